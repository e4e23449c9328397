"""Which dense layers are the last ones, those of a classifier: "dense" in a composite means them.

A dense layer is one of them if nothing behind it moves or joins places before another layer with weights: a
convolution, a view, a pool, a mean. One that stands at many places, as in ConvNeXt's blocks, in a mixer or at each step
of a series, is a convolution in all but name.

No shape is known here. What is followed, from the output back, is the axis on which the next dense layers expect their
features: the last, or the one before it for W @ x. Two transpositions that undo each other change nothing.
"""

from __future__ import annotations

from . import kinds as v
from .graph import Graph, Node
from .relating import operands

PLACES, LAST, BEFORE_LAST = 0, -1, -2  # what lies ahead: layers that join places, or dense ones with features there
ALONG = (*v.WEIGHTED, v.BATCHNORM, v.ADD, v.PRODUCT, v.SCALE, v.ACTIVATION, v.NORM)  # kinds that leave all in its place
SWAPS = {"transpose", "t", "swapaxes", "swapdims", "permute", "getattr"}
MADE = {"view", "reshape", "unflatten"}


def mark_heads(graph: Graph) -> Graph:
    """The graph with `Node.head` set."""
    ahead: dict[Node, set[int]] = {}
    for node in reversed(graph.nodes):
        ahead[node] = set().union(*(_through(r, ahead[r], graph.readers) for r in graph.readers[node]))
        node.head = node.kind == v.DENSE and ahead[node] <= {_axis(node)}
    return graph


def _through(node: Node, ahead: set[int], readers: dict[Node, list[Node]]) -> set[int]:
    """What lies ahead of the node's source."""
    if node.kind == v.DENSE:
        return {_axis(node) if node.head else PLACES}
    if node.kind == v.CONVOLUTION:
        return {PLACES}
    if moved := _turned(node):
        return {moved.get(axis, PLACES) for axis in ahead}
    return {PLACES} if ahead and _moves(node, readers[node]) else ahead


def _axis(node: Node) -> int:
    """The axis of features of a dense layer."""
    left = node.op in ("matmul", "mm", "bmm") and operands(node)[0][0] is not node.inputs[0]
    return BEFORE_LAST if left else LAST


def _turned(node: Node) -> dict[int, int]:
    """Where features are in the source, if the node swaps the last two axes, adds a last one, or takes it off."""
    if node.kind != v.REARRANGE:
        return {}
    order = node.args[1:]
    order = tuple(order[0]) if order and isinstance(order[0], list | tuple) else order
    swaps = [(), (1, 2), (2, 1), (-1, -2), (-2, -1), (0, 2, 1)]
    swaps += [(0, 1), (1, 0)] if len(node.shape or "nm") == 2 else []  # where it is not known, of a matrix
    if node.op in SWAPS and order in swaps:
        return {LAST: BEFORE_LAST, BEFORE_LAST: LAST}
    if node.op == "getattr":  # x.T
        return {LAST: BEFORE_LAST, BEFORE_LAST: LAST}
    index = _index(node)
    if (index[0] is Ellipsis and index[-1] is None) or (node.op == "unsqueeze" and node.args[1:] == (-1,)):
        return {BEFORE_LAST: LAST}
    ends = (index[0] is Ellipsis and isinstance(index[-1], int)) or (node.op == "squeeze" and node.args[1:] == (-1,))
    return {LAST: BEFORE_LAST} if ends and _is_added(node.inputs[0]) else {}


def _index(node: Node) -> tuple:
    index = node.args[1] if node.op == "getitem" and len(node.args) > 1 else None
    return index if isinstance(index, tuple) and index else (index,)


def _is_added(node: Node) -> bool:
    """Has one of the nodes below added an axis, which is still there?"""
    while node.kind in ALONG and len(node.inputs) == 1:
        node = node.inputs[0]
    return node.op in ("stack", "unsqueeze") or (node.op == "getitem" and None in _index(node)[1:])


def _moves(node: Node, readers: list[Node]) -> bool:
    """Does this node move places, or join them, as no MLP does?"""
    source = node.inputs[0]
    if node.op in v.JOINS | v.UNRULED or _unswapped(source).op == "stack":  # of what `stack` has put apart
        return False
    if _is_maxout(node, source) or any(_is_maxout(reader, node) for reader in readers):
        return False
    if node.kind in (v.REARRANGE, v.PIECES):
        chosen = any(isinstance(i, int | Node) for i in _index(node))
        return node.op not in v.STAYING or (chosen and not _is_added(source))
    return node.kind not in ALONG


def _unswapped(node: Node) -> Node:
    """What axes were swapped of, as those of samples and steps are behind a recurrent layer."""
    while node.op in SWAPS and node.kind == v.REARRANGE:
        node = node.inputs[0]
    return node


def _is_maxout(node: Node, source: Node) -> bool:
    """Is this the largest along one axis that a view has made?"""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return node.kind == v.MAXIMUM and isinstance(axis, int) and source.op in MADE
