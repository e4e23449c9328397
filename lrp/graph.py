"""A network as a graph of nodes, each of one kind, so that relevance can walk back over it.

`lrp.capture` makes the graph from a model. `fold` merges each BatchNorm into the convolution or dense layer
that feeds it and nothing else, found by following the data, not by the order of registration; any other
BatchNorm stays a node of its own.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from torch import nn

from . import kinds as v
from .errors import InputError


@dataclass(eq=False, repr=False)
class Node:
    """One operation of the network; `inputs` are the nodes it hands relevance to, in order of use."""

    name: str
    kind: str
    op: str  # the operation's plain name: "conv2d", "add", "relu"
    call: Callable | None = None
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    inputs: tuple["Node", ...] = ()
    module: nn.Module | None = None
    norm: nn.Module | None = None  # BatchNorm folded into this node
    aliases: tuple[str, ...] = ()  # names of nodes that were folded into this one
    nonnegative: bool = False  # its output is known to be >= 0
    signs: tuple[float, ...] = ()  # of the summands of an addition
    constants: tuple = ()  # what an addition adds besides its inputs: (sign, value or Node)
    pads: bool = False  # torch's own padding: what goes to padded constants, it keeps
    gate: int | None = None  # which factor of a product is the gate, where the graph tells

    def __repr__(self):
        return f"Node({self.name!r}, {self.kind})"

    @property
    def carries(self) -> bool:
        """Does relevance flow through this node?"""
        return self.kind != v.CONSTANT

    @property
    def sources(self) -> tuple["Node", ...]:
        """`inputs` without repetition."""
        return tuple(dict.fromkeys(self.inputs))

    def run(self, values: dict["Node", object]) -> object:
        """The node's value from those of the nodes before it."""
        return self.call(*fill(self.args, values), **fill(self.kwargs, values))

    def layer(self, values: dict["Node", object]) -> object:
        """The node's module, or what stands for it where it is a functional call: the arguments as attributes."""
        return self.module or SimpleNamespace(**_layer(self.op, fill((self.args, self.kwargs), values)))


class Graph:
    """The nodes of a network in the order of computation, with its input, its output and their names."""

    def __init__(self, nodes: list[Node], output: Node, modules: dict[str, Node], model: nn.Module):
        self.nodes, self.output, self.model = nodes, output, model
        self.input = next(node for node in nodes if node.kind == v.INPUT)
        self.modules = modules  # module path -> the node whose value the module returned
        self.names = {name: node for node in nodes for name in (node.name, *node.aliases)}
        self.reads = {node: set(references((node.args, node.kwargs))) for node in nodes}
        self.users: dict[Node, int] = dict.fromkeys(nodes, 0)  # how many nodes read each one's value
        for sources in self.reads.values():
            for source in sources:
                self.users[source] += 1
        readers: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for source in node.sources:
                readers[source].append(node)
        self.first = self._nearest(self.input, readers)
        self.last = self.feeding(output)
        self._skips: dict[Node, list[bool]] = {}

    def feeding(self, node: Node) -> set[Node]:
        """The convolutions and dense layers that make this node's value (itself, if it is one)."""
        return self._nearest(node, {n: n.inputs for n in self.nodes})

    @staticmethod
    def _nearest(start: Node, step: dict[Node, list[Node]]) -> set[Node]:
        """The convolutions and dense layers reached from `start` without passing through another."""
        found, seen, todo = set(), set(), [start]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.kind in v.WEIGHTED:
                found.add(node)
            else:
                todo.extend(step[node])
        return found

    def skips(self, node: Node) -> list[bool]:
        """Which summands of a sum are identity skips: another summand is computed from them."""
        if node not in self._skips:
            above = {source: ancestors(source) - {source} for source in node.sources}
            self._skips[node] = [any(n in above[other] for other in above if other is not n) for n in node.inputs]
        return self._skips[node]

    def find(self, name: str) -> Node:
        """The node whose value a module (or a node) of this name returns."""
        node = self.names.get(name) or self.modules.get(name)  # first its own value, before a ReLU overwrote it
        if node is None or not node.carries:
            near = difflib.get_close_matches(name, [*self.modules, *self.names], n=5, cutoff=0.3)
            hint = f"; similar names: {', '.join(near)}" if near else ""
            raise InputError(f"the network has no module or node named `{name}` that carries relevance{hint}")
        return node

    def __repr__(self):
        rows = [f"  {n.name:<32} {n.kind:<12} <- {', '.join(i.name for i in n.inputs)}" for n in self.nodes]
        return "\n".join([f"Graph of {len(self.nodes)} nodes", *rows])


def fold(graph: Graph) -> Graph:
    """Fold each BatchNorm into the convolution or dense layer whose output nobody else reads."""
    replaced: dict[Node, Node] = {}
    for node in graph.nodes:
        node.inputs = tuple(replaced.get(i, i) for i in node.inputs)
        node.args, node.kwargs = fill((node.args, node.kwargs), replaced)
        node.constants = fill(node.constants, replaced)
        if node.kind != v.BATCHNORM or node.module is None:
            continue
        layer = node.inputs[0]
        alone = graph.users[layer] == 1 and layer is not graph.output and layer.norm is None
        if layer.kind in v.WEIGHTED and alone:
            layer.norm, layer.aliases = node.module, (*layer.aliases, node.name)
            replaced[node] = layer
    nodes = [node for node in graph.nodes if node not in replaced]
    modules = {path: replaced.get(node, node) for path, node in graph.modules.items()}
    return Graph(nodes, replaced.get(graph.output, graph.output), modules, graph.model)


def references(args) -> list[Node]:
    """All nodes in nested arguments, in order."""
    if isinstance(args, Node):
        return [args]
    if isinstance(args, dict):
        return [n for a in args.values() for n in references(a)]
    if isinstance(args, (tuple, list)):
        return [n for a in args for n in references(a)]
    if isinstance(args, slice):
        return references((args.start, args.stop, args.step))
    return []


def fill(args, values: dict):
    """Nested arguments with every node replaced by its value (a node without one stays)."""
    if isinstance(args, Node):
        return values.get(args, args)
    if isinstance(args, dict):
        return {k: fill(a, values) for k, a in args.items()}
    if isinstance(args, (tuple, list)):
        return (tuple if isinstance(args, tuple) else list)(fill(a, values) for a in args)
    if isinstance(args, slice):
        return slice(fill(args.start, values), fill(args.stop, values), fill(args.step, values))
    return args


def ancestors(node: Node) -> set[Node]:
    """The node and all that it is computed from."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += references((node.args, node.kwargs))
    return seen


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
CONVOLUTIONS = {f"conv{way}{d}d": (d, bool(way)) for d in (1, 2, 3) for way in ("", "_transpose")}
_LRN = ("input", "size", "alpha", "beta", "k")
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def _layer(op: str, arguments: tuple[tuple, dict]) -> dict:
    """What a module of this kind would have as attributes, from the arguments of the functional call."""
    args, kwargs = arguments
    if op in ("matmul", "mm"):
        return {"weight": (*args, *kwargs.values())[1].T, "bias": None}
    if op == "batch_norm":
        return {"weight": None, "bias": None, "eps": 1e-5} | dict(zip(_BATCH_NORM, args)) | kwargs  # noqa: B905
    if op == "local_response_norm":
        return {"alpha": 1e-4, "beta": 0.75, "k": 1.0} | dict(zip(_LRN, args)) | kwargs  # noqa: B905
    if op == "linear":
        return {"bias": None} | dict(zip(_CONV, args)) | kwargs  # noqa: B905
    dims, transposed = CONVOLUTIONS[op]
    given = dict(zip(_CONV_TRANSPOSE if transposed else _CONV, args)) | kwargs  # noqa: B905
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
    sizes = {k: given.get(k, d) for k, d in defaults.items()}
    sizes = {k: s if isinstance(s, str) else (s,) * dims if isinstance(s, int) else tuple(s) for k, s in sizes.items()}
    return {"bias": None, "groups": 1, "transposed": transposed} | given | sizes
