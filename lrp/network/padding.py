"""A pad with a constant belongs to the convolutions, and with zeros to the averages, that read it.

There it is what their `padding=` would be. It changes places with an activation that keeps zeros. Elsewhere, before a
max pool say, it stays a node, and keeps as bias what comes to its constants.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import kinds as v
from .affine import holed, pad
from .graph import Graph, Node, fill

SPATIAL = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
ZERO_KEEPING = v.COPIES | set(
    "relu relu6 leakyrelu leaky_relu prelu elu celu selu gelu silu mish softsign tanh hardswish tanhshrink softshrink "
    "hardshrink".split()
)


def fold_pads(graph: Graph) -> None:
    """Fold constant pads into the convolutions and averages of the graph that read them."""
    for node in graph.nodes:
        if node.op in SPATIAL or node.kind == v.AVERAGE:
            while (padding := _pad_below(graph, node)) is not None:
                *_, reader = _down(node)
                source = padding.inputs[0]
                reader.args, reader.kwargs = fill((reader.args, reader.kwargs), {padding: source})
                reader.inputs = tuple(source if n is padding else n for n in reader.inputs)
                node.before = (*holed([padding]), *node.before)


def _down(node: Node) -> Iterator[Node]:
    """The node, and the activations that keep zeros below it."""
    yield node
    while len(node.inputs) == 1:
        node = node.inputs[0]
        if not (node.kind == v.ACTIVATION and node.op in ZERO_KEEPING):
            return
        yield node


def _pad_below(graph: Graph, node: Node) -> Node | None:
    """The constant pad that the node reads, or that one reads through activations which nothing else reads."""
    path = list(_down(node))
    padding = path[-1].inputs[0] if path[-1].inputs else None
    if padding is None or padding.op not in v.PADS or padding.kind != v.REARRANGE or len(padding.inputs) != 1:
        return None
    known = pad(padding, {})
    if known is None or not isinstance(known[0], list | tuple) or not isinstance(known[1], int | float):
        return None
    amounts, value = known
    if path[1:] and not (value == 0 and all(_read_once(graph, n) for n in (padding, *path[1:]))):
        return None
    if node.kind == v.AVERAGE:
        return padding if value == 0 else None
    ahead = amounts[2 * SPATIAL[node.op] :]
    return None if any(isinstance(n, Node) or n != 0 for n in ahead) else padding


def _read_once(graph: Graph, node: Node) -> bool:
    return node is not graph.output and graph.users[node] == 1
