"""The two passes over the steps: forward through the network, and back with relevance.

`lrp.studies.masked` walks over the same steps with masks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .checks import failed
from .errors import LRPError
from .explanation import Row
from .network.graph import Node
from .network.samples import Samples, follow
from .nodes.amounts import total
from .nodes.propagate import Shares

LARGEST = {"cpu": 2**22, "cuda": 2**27}  # values of the largest node, times targets, that one walk carries at most


@dataclass
class Run:
    """What a forward pass leaves: steps that hold what the way back needs, and the value where it ended.

    `samples` says where the samples are in the values of nodes that do not have them on their first axis.
    """

    nodes: list[Node]
    inputs: dict[Node, Tensor]
    steps: dict = field(default_factory=dict)
    shapes: dict[Node, torch.Size] = field(default_factory=dict)
    samples: dict[Node, Samples] = field(default_factory=dict)
    output: Tensor | None = None


def forward(plan, xs: tuple[Tensor, ...], end: Node | None = None) -> Run:
    """Run the network on inputs (N, ...) up to a node, by default its output. Values are freed after their last use."""
    graph, values = plan.graph, {}
    end, uses = end or graph.output, dict(graph.users)
    run = Run([], dict(zip(graph.inputs, xs, strict=True)))
    known = plan.samples_of(xs)
    found, n = {} if known is None else known, len(xs[0])
    uses[end] += 1
    reach = plan.reach(end)
    for node in graph.nodes:
        run.nodes.append(node)
        if node in reach:
            run.steps[node] = plan.step(node)
        given = node in run.inputs
        values[node] = value = run.inputs[node] if given else _value(node, run.steps.get(node), values)
        if isinstance(value, Tensor) and node.carries:
            run.shapes[node] = value.shape
            if known is None and node in reach:
                found[node] = follow(node, value, {s: values[s] for s in graph.reads[node]}, found, n)
        for source in graph.reads[node]:
            uses[source] -= 1
            if not uses[source]:
                del values[source]
        if node is end:
            break
    run.output = values[end]
    run.samples = {node: samples for node, samples in found.items() if samples is not None}
    if known is None and end is graph.output:
        plan.remember_samples(xs, run.samples)
    return run


def _value(node: Node, step, values: dict) -> object:
    """The value of a node; whatever goes wrong in it becomes an error that names the node."""
    try:
        return node.run(values) if step is None else step.forward(values)
    except (LRPError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "memory" in str(error):  # on the CPU, torch raises a bare RuntimeError
            raise
        raise failed(node, error) from error


@dataclass
class Found:
    """What a walk back finds: relevance of each input, and of wanted nodes, (T, N, ...), and the rows of the ledger."""

    relevance: list[Tensor]
    layers: dict[Node, Tensor]
    rows: list[Row]


def back(run: Run, R: Tensor, wanted: Collection[Node] = (), contrast: Collection[Node] = ()) -> Found:
    """Walk from the end of a run, with relevance R (T, N, ...), to the input.

    At the layers of `contrast` the same with negated weights is taken away. Many targets go in several walks.
    """
    largest = max(shape.numel() for shape in run.shapes.values())
    blocks = R.split(max(1, LARGEST.get(R.device.type, LARGEST["cuda"]) // max(1, largest)))
    found = [_back(run, block, wanted, contrast, last=block is blocks[-1]) for block in blocks]
    if len(found) == 1:
        return found[0]
    layers = {node: torch.cat([f.layers[node] for f in found]) for node in found[0].layers}
    rows = [Row.joined(same) for same in zip(*(f.rows for f in found), strict=True)]
    return Found([torch.cat(same) for same in zip(*(f.relevance for f in found), strict=True)], layers, rows)


def _back(run: Run, R: Tensor, wanted: Collection[Node], contrast: Collection[Node], last: bool) -> Found:
    layers = {node: R.new_zeros(len(R), *run.shapes[node]) for node in wanted if node in run.shapes}
    start, end, found, rows = R, run.nodes[-1], {}, []
    arrived, amounts = {end: R}, {end: total(R, run.samples.get(end))}
    for node in reversed(run.nodes):
        R = arrived.pop(node, None)
        step = run.steps.pop(node, None) if last else run.steps.get(node)  # its memory is free after the last walk
        if R is None:
            continue
        if node in layers:
            layers[node] = R
        if step is None:  # an input
            found[node] = R
            if len(run.inputs) > 1:  # a line for each
                rows.append(Row(node.name, node.kind, "", amounts[node], amounts[node]))
            continue
        step.samples, step.below = run.samples.get(node), [run.samples.get(source) for source in step.sources]
        shares, amount = step.back(R, last), amounts[node]
        if node in contrast:
            taken = step.opposite(R)
            relevance = [a - b for a, b in zip(shares.relevance, taken.relevance, strict=True)]
            shares = Shares(relevance, shares.bias - taken.bias, shares.stabiliser - taken.stabiliser)
        out = amount * 0 if node in contrast else amount
        row = Row(node.name, node.kind, repr(step.rule), out, 0.0, shares.bias, shares.stabiliser)
        for source, share, samples in zip(step.sources, shares.relevance, step.below, strict=True):
            if share is not None:
                part = amount if share is R else total(share, samples)
                row.relevance_in = row.relevance_in + part
                arrived[source] = arrived[source] + share if source in arrived else share
                amounts[source] = amounts[source] + part if source in amounts else part
        rows.append(row)
    nowhere = start.new_zeros(())  # where relevance never reaches an input
    inputs = [
        found[node] if node in found else nowhere.expand(len(start), *x.shape).clone() for node, x in run.inputs.items()
    ]
    return Found(inputs, layers, rows)
