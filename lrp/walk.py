"""The two passes over the steps: forward through the network, and back with relevance.

`lrp.studies.masked` walks over the same steps with masks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import UnsupportedOperation
from .explanation import Row
from .graph import Node
from .propagate import Shares, total

LARGEST = {"cpu": 2**22, "cuda": 2**27}  # values of the largest node, times targets, that one walk carries at most


@dataclass
class Run:
    """What a forward pass leaves: steps that hold what the way back needs, and the value where it ended."""

    nodes: list[Node]
    x: Tensor
    steps: dict = field(default_factory=dict)
    shapes: dict[Node, torch.Size] = field(default_factory=dict)
    output: Tensor | None = None


def forward(plan, x: Tensor, end: Node | None = None) -> Run:
    """Run the network on x (N, ...) up to a node, by default its output. Values are freed after their last use."""
    graph, values, run = plan.graph, {}, Run([], x)
    end, uses = end or graph.output, dict(graph.users)
    uses[end] += 1
    for node in graph.nodes:
        run.nodes.append(node)
        if node is graph.input:
            value = x
        elif node.carries:
            run.steps[node] = plan.step(node)
            value = run.steps[node].forward(values)
        else:
            value = node.run(values)
        values[node] = value
        if isinstance(value, Tensor) and node.carries:
            run.shapes[node] = value.shape
            if value.dim() == 0 or len(value) != len(x):
                raise UnsupportedOperation(
                    f"node `{node.name}` has shape {tuple(value.shape)}, whose first axis is not the batch of "
                    f"{len(x)}: keep samples along the first axis throughout the network"
                )
        for source in graph.reads[node]:
            uses[source] -= 1
            if not uses[source]:
                del values[source]
        if node is end:
            break
    run.output = values[end]
    return run


@dataclass
class Found:
    """What a walk back finds: relevance of the input, and of wanted nodes, (T, N, ...), and the rows of the ledger."""

    relevance: Tensor
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
    return Found(torch.cat([f.relevance for f in found]), layers, rows)


def _back(run: Run, R: Tensor, wanted: Collection[Node], contrast: Collection[Node], last: bool) -> Found:
    layers = {node: R.new_zeros(len(R), *run.shapes[node]) for node in wanted if node in run.shapes}
    nowhere = R.new_zeros(()).expand(len(R), *run.x.shape)  # where relevance never reaches the input
    arrived, amounts, rows = {run.nodes[-1]: R}, {run.nodes[-1]: total(R)}, []
    for node in reversed(run.nodes):
        R = arrived.pop(node, None)
        step = run.steps.pop(node, None) if last else run.steps.get(node)  # its memory is free after the last walk
        if R is None:
            continue
        if node in layers:
            layers[node] = R
        if step is None:  # the input
            return Found(R, layers, rows)
        shares, amount = step.back(R, last), amounts[node]
        if node in contrast:
            taken = step.opposite(R)
            relevance = [a - b for a, b in zip(shares.relevance, taken.relevance, strict=True)]
            shares = Shares(relevance, shares.bias - taken.bias, shares.stabiliser - taken.stabiliser)
        out = amount * 0 if node in contrast else amount
        row = Row(node.name, node.kind, repr(step.rule), out, 0.0, shares.bias, shares.stabiliser)
        for source, share in zip(step.sources, shares.relevance, strict=True):
            if share is not None:
                part = amount if share is R else total(share)
                row.relevance_in = row.relevance_in + part
                arrived[source] = arrived[source] + share if source in arrived else share
                amounts[source] = amounts[source] + part if source in amounts else part
        rows.append(row)
    return Found(nowhere.clone(), layers, rows)
