"""One function, one map: affine maps with constants, and constant pads, go where they belong, however they are written.

* Affine maps in a row are one, y = a x + b. It belongs to the convolution or dense layer below it if nothing else reads
  that layer's output: found by following the data, not by the order of registration.
* Where there is no such layer, it is one node, of kind "batchnorm", with the rule that BatchNorm has there; of kind
  "scale" if it only multiplies: that passes.
* Where a network sees its input only through such nodes, with nothing but views between, they normalise the input, and
  relevance passes: the map is that of the network without them, at the normalised input (`Node.front`), and bounds of
  pixels are in units of that. A row ("batchnorm", rule) of a composite still holds, and an override by name.
* A pad with a constant belongs to the convolutions that read it: see `lrp.network.padding`.
* What is added to the scores of a softmax, and what scales them, belongs to the softmax.

Without `norms`, affine maps that scale stay nodes of their own; a bias kept apart is folded all the same.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import prod

from torch import Tensor, nn

from . import kinds as v
from .affine import constants, holed, is_affine, is_scale
from .constants import freed, known, made_of_parameters, shape
from .graph import HOLE, Graph, Node, ancestors, fill, references
from .padding import fold_pads
from .relating import operands

VIEWS = set(
    "flatten reshape view permute transpose t squeeze unsqueeze cat concat concatenate stack expand expand_as movedim "
    "moveaxis swapaxes swapdims narrow select unflatten view_as reshape_as ravel flip pixel_unshuffle".split()
)
RESHAPES = set("flatten reshape view unflatten".split())
CASTS = v.KEEPS_SIGN_NAMES | {"float", "double", "half", "bfloat16", "type_as"}


def fold(graph: Graph, norms: bool = True) -> Graph:
    """The graph with affine maps and constant pads folded into the layers that they belong to."""
    fold_pads(graph)
    made = _free_constants(graph)
    readers, replaced, heads = _readers(graph), {}, []

    def alone(node: Node) -> bool:
        """Is the node's value read by one node only?"""
        return node is not graph.output and len(readers[node]) == 1

    front = _front(graph, readers)
    for chain in _chains(graph, alone):
        layer = _below(chain[0].inputs[0], alone)
        fits = layer.kind in v.WEIGHTED and alone(layer) and (norms or _only_shift(chain))
        count = _Target(layer).takes(chain) if fits else 0
        replaced |= {piece: piece.inputs[0] for piece in chain}
        if count:
            layer.after, layer.aliases = holed(chain[:count]), (*layer.aliases, *(p.name for p in chain[:count]))
        rest = chain[count:]
        if rest and (found := _softmax(rest[-1], readers, alone)):
            softmax, views = found
            softmax.before, softmax.aliases = (
                holed([*_undone(views, rest[0].inputs[0]), *rest, *views]),
                tuple(p.name for p in rest),
            )
            rest = []
        if rest:
            heads.append(_head(rest))
            heads[-1].front = rest[0] in front
            replaced[rest[0]] = heads[-1]
    return _rewired(graph, replaced, [*made, *heads])


# ---------------------------------------------------------------- who reads whom


def _readers(graph: Graph) -> dict[Node, list[Node]]:
    """The nodes that read each node's value, not only its shape."""
    readers = defaultdict(list)
    for node in graph.nodes:
        for source in node.reads:
            if not _asks(node, source):
                readers[source].append(node)
    return readers


def _asks(node: Node, source: Node) -> bool:
    """Does the node ask for no more than the source's shape and type?"""
    if node.kind == v.CONSTANT and (node.op in v.MEASURES or (node.op == "getattr" and node.args[1] in v.FACTS)):
        return True
    return node.op in v.SHAPED_LIKE and source not in references(node.args[:1])


def _below(node: Node, alone: Callable[[Node], bool]) -> Node:
    """The node whose value this one copies: dropout and the like stand between."""
    while node.kind == v.ACTIVATION and node.op in v.COPIES and alone(node):
        node = node.inputs[0]
    return node


# ---------------------------------------------------------------- affine maps


def _chains(graph: Graph, alone: Callable[[Node], bool]) -> list[list[Node]]:
    """The affine maps of the graph: each list holds those in a row, between which nothing else reads."""
    by_last: dict[Node, list[Node]] = {}
    for node in filter(is_affine, graph.nodes):
        below = _below(node.inputs[0], alone)
        after = below in by_last and alone(below) and not _depends(node, lambda other, below=below: other is below)
        chain = by_last.pop(below) if after else []
        by_last[node] = [*chain, node]
    return list(by_last.values())


def _free_constants(graph: Graph) -> list[Node]:
    """Let the constants of affine maps ask for no shape where that can be spared; returns the new nodes."""
    made: list[Node] = []
    for node in filter(is_affine, graph.nodes):
        free = {c: freed(c, made) for c in constants(node) if isinstance(c, Node)}
        node.args, node.kwargs, node.constants = fill((node.args, node.kwargs, node.constants), free)
    return made


def _only_shift(chain: list[Node]) -> bool:
    """Do these affine maps only add? Then they are a bias kept apart."""
    signs = [piece.signs[0] if piece.kind == v.ADD else -1.0 for piece in chain]
    return all(piece.kind == v.ADD or piece.op in v.NEGATIONS for piece in chain) and prod(signs) == 1


def _softmax(
    last: Node, readers: dict[Node, list[Node]], alone: Callable[[Node], bool]
) -> tuple[Node, list[Node]] | None:
    """The softmax whose scores these affine maps make: what they add, a mask or a position bias, belongs to it.

    With it, the views of the scores that stand between, as in a Swin block, where the mask is added to windows.
    """
    views: list[Node] = []
    while alone(last):
        (last,) = readers[last]
        if last.kind == v.SOFTMAX:
            return last, views
        if last.op in RESHAPES and last.kind == v.REARRANGE:
            views.append(last)
        elif last.kind != v.ACTIVATION or last.op not in v.COPIES:
            return None
    return None


def _undone(views: list[Node], source: Node) -> list[Node]:
    """The view back to the shape that the affine maps saw, of scores that come in the shape of the softmax."""
    for view in views:
        view.call = _reshaped if view.op == "view" else view.call  # `source` may be a view itself, a sum never is
    return [
        Node(f"{view.name}.back", v.REARRANGE, "reshape_as", Tensor.reshape_as, (view, source), inputs=(view,))
        for view in views[-1:]
    ]


def _reshaped(x: Tensor, *shape) -> Tensor:
    return x.reshape(*shape)


def _depends(piece: Node, on: Callable[[Node], bool]) -> bool:
    """Is a constant of this affine map computed from such a node, or from its shape?"""
    read = references((piece.args, piece.kwargs))
    return any(on(node) for constant in read if constant is not piece.inputs[0] for node in ancestors(constant))


def _head(pieces: list[Node]) -> Node:
    """One node for affine maps in a row that no layer takes."""
    first, source = pieces[0], pieces[0].inputs[0]
    return replace(
        first,
        kind=v.SCALE if all(map(is_scale, pieces)) else v.BATCHNORM,
        call=_same,
        args=(source,),
        kwargs={},
        after=holed(pieces),
        aliases=tuple(piece.name for piece in pieces[1:]),
    )


def _same(x: Tensor) -> Tensor:
    return x


def _front(graph: Graph, readers: dict[Node, list[Node]]) -> set[Node]:
    """The affine maps of the input: if it is only seen through them, with views between, by a network with layers."""
    seen, raw = set(), set()
    for node in graph.nodes:
        if node.kind == v.INPUT or ((_is_view(node) or is_affine(node)) and seen.issuperset(node.inputs)):
            seen.add(node)
            if node.kind == v.INPUT or (not is_affine(node) and raw & set(node.inputs)):
                raw.add(node)
    only = all(seen.issuperset(readers[node]) for node in raw)
    layers = any(node.kind in v.WEIGHTED for node in graph.nodes)
    return {node for node in seen if is_affine(node)} if only and layers else set()


def _is_view(node: Node) -> bool:
    """Does it hold the same values, in the same order or type or another, whatever they are?"""
    if node.op == "getitem":
        return node.call is operator.getitem  # and not what topk and sort choose
    return (node.kind == v.REARRANGE and node.op in VIEWS) or (node.kind == v.ACTIVATION and node.op in CASTS)


class _Target:
    """A layer that may take affine maps: those whose scale has one value, or one for each channel."""

    def __init__(self, layer: Node):
        self.layer = layer
        self.behind: int | None = None  # axes behind that of the channels; None: there is no such axis
        self.channels = 0
        if layer.kind == v.CONVOLUTION:
            self.behind = int(layer.op.removesuffix("d")[-1]) if layer.module is None else layer.module.weight.dim() - 2
        elif layer.op == "linear" or isinstance(layer.module, nn.Linear):
            self.behind = 0
        elif layer.op in ("matmul", "mm") and operands(layer)[0][0] is layer.inputs[0]:
            weight = known(operands(layer)[0][1])
            self.behind = 0 if isinstance(weight, Tensor) and weight.dim() == 2 else None

    def takes(self, chain: list[Node]) -> int:
        """How many of these, from the first on, can be folded into the layer."""
        return next((i for i, piece in enumerate(chain) if not self._fits(piece)), len(chain))

    def _fits(self, piece: Node) -> bool:
        if _depends(piece, lambda node: node is self.layer or node.op == "input"):
            return False  # a constant that asks for the layer's shape, or that the user gives
        if piece.kind == v.BATCHNORM:
            flat = self.layer.kind == v.CONVOLUTION or self.layer.shape is None or len(self.layer.shape) == 2
            return self.behind is not None and flat
        shapes = [shape(c) for c in constants(piece)]
        if piece.kind == v.ADD:
            return all(map(self._keeps_shape, shapes))
        return all(sizes is not None and self._per_channel(sizes) for sizes in shapes)

    def _per_channel(self, sizes: tuple[int, ...]) -> bool:
        others = sizes if self.behind is None else [n for i, n in enumerate(sizes[::-1]) if i != self.behind]
        return all(n == 1 for n in others) and self._keeps_shape(sizes)

    def _keeps_shape(self, sizes: tuple[int, ...] | None) -> bool:
        """Would a constant of this shape leave the output's as it is? Where that cannot be told, yes."""
        out = self.layer.shape
        if sizes is None or out is None:
            return True
        return len(sizes) <= len(out) and all(n in (1, m) for n, m in zip(sizes[::-1], out[::-1], strict=False))


# ---------------------------------------------------------------- the new graph


def _rewired(graph: Graph, replaced: dict[Node, Node], new: list[Node]) -> Graph:
    """The graph with other nodes in the place of those that were replaced, in the order of computation."""

    def now(node: Node) -> Node:
        while node in replaced:
            node = replaced[node]
        return node

    nodes = [node for node in (*graph.nodes, *new) if node not in replaced]
    moved = {node: now(node) for node in replaced}
    for node in nodes:
        for part in (node, *node.before, *node.after):
            part.args, part.kwargs, part.constants = fill((part.args, part.kwargs, part.constants), moved)
        node.inputs = tuple(map(now, node.inputs))
        node.fixed = _weights_fixed(node)
    output = now(graph.output)
    modules = {path: now(node) for path, node in graph.modules.items()}
    needed = ancestors(output)
    kept = _in_order([node for node in nodes if node in needed or node in graph.inputs])
    folded = Graph(kept, output, {path: node for path, node in modules.items() if node in needed}, graph.model)
    folded.recorded = graph.recorded
    return folded


def _weights_fixed(node: Node) -> bool:
    """Are the weights made of the model's parameters and buffers alone, so that they may be kept between calls?"""
    read = references([(piece.args, piece.kwargs) for piece in node.after])
    if node.module is None:
        read += references((node.args, node.kwargs))
    return all(made_of_parameters(c) for c in read if c is not HOLE and c not in node.inputs)


def _in_order(nodes: list[Node]) -> list[Node]:
    """The nodes, each behind those that it reads."""
    ordered: dict[Node, None] = {}

    def add(node: Node) -> None:
        for source in sorted([n for n in node.reads if n not in ordered], key=place.__getitem__):
            add(source)
        ordered.setdefault(node)

    place = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        add(node)
    return list(ordered)
