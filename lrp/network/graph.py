"""A network as a graph of nodes, each of one kind, so that relevance can walk back over it.

`lrp.capture` makes the graph from a model. `lrp.network.folding` then merges affine maps with constants, and constant
pads, into the layers that they belong to.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from ..errors import InputError
from . import kinds as v

SOME = 1e18  # a finite number that is not known before the network runs


class Bound(NamedTuple):
    """The interval in which the values of a node lie, and whether they are a gate's: made by a sigmoid or softmax."""

    low: float = -inf
    high: float = inf
    gate: bool = False

    @property
    def finite(self) -> bool:
        return -inf < self.low and self.high < inf


UNBOUNDED = Bound()


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
    before: tuple["Node", ...] = ()  # pads, or affine maps of scores, folded into this node; HOLE stands for the value
    after: tuple["Node", ...] = ()  # affine maps folded into this node, likewise
    aliases: tuple[str, ...] = ()  # names of nodes that were folded into this one
    bound: Bound = UNBOUNDED
    softmaxes: frozenset["Node"] = frozenset()  # those on the ways of relevance below it, the nearest
    parts: tuple["Node", ...] = ()  # of an activation written as an expression: its operations, in order
    fills: bool = False  # do constants stand among its values? They keep what they get, as a bias does
    head: bool = False  # is this one of the last dense layers?
    signs: tuple[float, ...] = ()  # of the summands of an addition
    constants: tuple = ()  # what it adds besides its inputs: (sign, value or Node)
    gate: int | None = None  # which factor of a product is the gate, where the graph tells
    own: bool = False  # does it call a function of the user's, whatever its name?
    root: "Node | None" = None  # of a sum with constants in its summands: the one value that these are functions of
    place: str = ""  # file and line of the call in the network's code
    shape: torch.Size | None = None  # of its value, where an example was recorded
    front: bool = False  # an affine map of the network's input itself
    fixed: bool = False  # its weights are made of the model's parameters and buffers alone

    def __repr__(self):
        return f"Node({self.name!r}, {self.kind})"

    @property
    def called(self) -> str:
        """What errors call it: its name, and the line of the network's code."""
        return f"`{self.name}`" + (f" (at {self.place})" if self.place else "")

    @property
    def carries(self) -> bool:
        """Does relevance flow through this node?"""
        return self.kind != v.CONSTANT

    @property
    def nonnegative(self) -> bool:
        """Is the value known to be >= 0?"""
        return self.bound.low >= 0

    @property
    def sources(self) -> tuple["Node", ...]:
        """`inputs` without repetition."""
        return tuple(dict.fromkeys(self.inputs))

    @property
    def weights(self) -> object:
        """What its weights are made of: nodes of which this is the same share what a rule modifies."""
        if self.op == "linear" and self.module is None and not self.after and not self.kwargs:
            return self.args[1:]
        return self

    @property
    def reads(self) -> set["Node"]:
        """The nodes whose values it needs."""
        folded = [(piece.args, piece.kwargs) for piece in (*self.before, *self.after)]
        return set(references((self.args, self.kwargs, folded))) - {HOLE}

    @property
    def signals(self) -> tuple["Node", ...]:
        """`inputs` without the gate of a product, where the graph tells it."""
        return self.inputs if self.gate is None else self.inputs[1 - self.gate : 2 - self.gate]

    def run(self, values: dict["Node", object]) -> object:
        """The node's value from those of the nodes before it, with the pads and affine maps folded into it."""
        if self.before:
            values = {**values, self.inputs[0]: self.padded(values[self.inputs[0]], values)}
        value = self.call(*fill(self.args, values), **fill(self.kwargs, values))
        for piece in self.after:
            value = piece.run({**values, HOLE: value})
        return value

    def padded(self, x: Tensor, values: dict["Node", object]) -> Tensor:
        """x with the pads that were folded into this node."""
        for pad in self.before:
            x = pad.run({**values, HOLE: x})
        return x

    def layer(self, values: dict["Node", object]) -> object:
        """The node's module, or what stands for it where it is a functional call: the arguments as attributes."""
        return self.module or _LAYERS[self.op](*fill(self.args, values), **fill(self.kwargs, values))


HOLE = Node("x", v.INPUT, "hole")  # stands for the one argument of a folded operation that is no constant


class Graph:
    """The nodes of a network in the order of computation, with its input, its output and their names."""

    def __init__(self, nodes: list[Node], output: Node, modules: dict[str, Node], model: nn.Module):
        self.nodes, self.output, self.model = nodes, output, model
        self.recorded = False  # did an example's shape decide on what it holds?
        self.inputs = [node for node in nodes if node.op == "input"]  # in the order of the model's arguments
        self.input = next(node for node in self.inputs if node.carries)
        self.modules = modules  # module path -> the node whose value the module returned
        self.names = {name: node for node in nodes for name in (node.name, *node.aliases)}
        self.reads = {node: node.reads for node in nodes}
        counts = Counter(source for sources in self.reads.values() for source in sources)
        self.users = {node: counts[node] for node in nodes}  # how many nodes read each one's value
        self.readers = {node: [] for node in nodes}  # the nodes that hand relevance to each one
        for node in nodes:
            for source in node.sources:
                self.readers[source].append(node)
        self.first = set().union(*(_nearest(node, self.readers) for node in self.inputs if node.carries))
        self.last = self.feeding(output)
        self._skips: dict[Node, list[bool]] = {}

    def feeding(self, node: Node) -> set[Node]:
        """The convolutions and dense layers that make this node's value (itself, if it is one)."""
        return _nearest(node, {n: n.inputs for n in self.nodes})

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


def _nearest(start: Node, step: Mapping[Node, Iterable[Node]]) -> set[Node]:
    """The convolutions and dense layers reached from `start` without passing through another."""
    reached = reachable(start, lambda node: () if node.kind in v.WEIGHTED else step[node])
    return {node for node in reached if node.kind in v.WEIGHTED}


def ancestors(node: Node) -> set[Node]:
    """The node and all that it is computed from."""
    return reachable(node, lambda node: node.reads)


def reachable(start: Node, step: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """The node, those that `step` gives for it, those that it gives for these, and so on."""
    seen, todo = set(), [start]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += step(node)
    return seen


def references(args) -> list[Node]:
    """All nodes in nested arguments, in order."""
    found = []
    map_aggregate(args, lambda a: found.append(a) if isinstance(a, Node) else None)
    return found


def fill(args, values: Mapping[Node, object]):
    """Nested arguments with every node replaced by its value (a node without one stays)."""
    return map_aggregate(args, lambda a: values.get(a, a) if isinstance(a, Node) else a)


def _convolution(
    dims, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, output_padding=0, transposed=False
) -> SimpleNamespace:
    sizes = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
    sizes = {k: (size,) * dims if isinstance(size, int) else size for k, size in sizes.items()}
    return SimpleNamespace(weight=weight, bias=bias, groups=groups, transposed=transposed, **sizes)


def _transposed(dims, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    return _convolution(dims, input, weight, bias, stride, padding, dilation, groups, output_padding, transposed=True)


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, *torchs, **_
) -> SimpleNamespace:
    if torchs:  # torch.batch_norm takes nine arguments, and these four in another order
        running_mean, running_var, weight, bias = weight, bias, running_mean, running_var
    by_batch = bool(training) or running_mean is None
    return SimpleNamespace(
        running_mean=running_mean, running_var=running_var, weight=weight, bias=bias, eps=eps, by_batch=by_batch
    )


# From the arguments of a function of torch to the attributes that the module of the same kind has.
_LAYERS = {
    "linear": lambda input, weight, bias=None: SimpleNamespace(weight=weight, bias=bias),
    "batch_norm": _batch_norm,
    "local_response_norm": lambda input, size, alpha=1e-4, beta=0.75, k=1.0: SimpleNamespace(
        size=size, alpha=alpha, beta=beta, k=k
    ),
    "layer_norm": lambda input, normalized_shape, weight=None, bias=None, eps=1e-5: SimpleNamespace(
        normalized_shape=normalized_shape, weight=weight, bias=bias, eps=eps
    ),
    "group_norm": lambda input, num_groups, weight=None, bias=None, eps=1e-5: SimpleNamespace(
        num_groups=num_groups, weight=weight, bias=bias, eps=eps
    ),
    "instance_norm": lambda input, *_, weight=None, bias=None, eps=1e-5, **__: SimpleNamespace(
        weight=weight, bias=bias, eps=eps
    ),
    **{f"conv{d}d": partial(_convolution, d) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": partial(_transposed, d) for d in (1, 2, 3)},
}
