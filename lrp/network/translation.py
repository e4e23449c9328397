"""From a trace to our graph: what fx wrote down, or a recorder, is rewritten into few kinds of node.

* Modules, functions and tensor methods that do the same become the same kind of node.
* Calls that work in place become functional, and later readers of the changed tensor read the new node.
* A sum with a constant becomes an addition with a bias, a product with a constant a scale.
"""

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx, nn

from .. import checks
from ..errors import CaptureError, NeedsExample
from . import kinds as v
from .gates import measure
from .graph import Graph, Node, ancestors
from .opened import FUNCTIONS, OPENED
from .opening import Do
from .relating import first, related


@dataclass
class Traced:
    """What a tracer wrote down: an fx graph, and beside it what fx does not keep."""

    graph: fx.Graph
    inputs: dict[fx.Node, str] = field(default_factory=dict)  # the placeholders for what the user gives, and kinds
    paths: dict[fx.Node, str] = field(default_factory=dict)  # path of the module in whose forward the call stands
    places: dict[fx.Node, str] = field(default_factory=dict)  # file and line of the call
    returned: dict[str, fx.Node] = field(default_factory=dict)  # what each module returned
    constants: dict[str, object] = field(default_factory=dict)  # made in forward, under fx's names for them
    recorded: bool = False  # on an example, with changes through views written down


HOMES = tuple(f"{home}/" for home in (Path(torch.__file__).parent, Path(__file__).parents[1]))


def place() -> str:
    """File and line of the nearest call outside torch and this package, as timm/layers/padding.py:28."""
    frame = sys._getframe(1)
    while frame and frame.f_code.co_filename.startswith((*HOMES, "<")):
        frame = None if frame.f_code.co_name in ("follow", "record") else frame.f_back  # where tracing began
    if frame is None:
        return ""
    path = Path(frame.f_code.co_filename)
    inside = [home for home in map(Path, filter(None, sys.path)) if path.is_relative_to(home)]
    return f"{path.relative_to(max(inside, key=lambda home: len(home.parts))) if inside else path}:{frame.f_lineno}"


class Translation:
    """From fx nodes to ours, in one pass.

    `now` maps each fx node to the node that holds its value at this point of the pass. After y = x.relu_() both names
    mean one tensor: the fx nodes x and y are aliases, and whatever reads x from here on reads the node of y.
    """

    def __init__(self, model: nn.Module, trace: Traced):
        self.model, self.trace = model, trace
        self.now: dict[fx.Node, Node] = {}
        self.aliases: dict[fx.Node, set[fx.Node]] = {}  # all fx nodes that are the same tensor, itself included
        self.memory: dict[fx.Node, fx.Node] = {}  # whose memory a value may share
        self.order = {node: k for k, node in enumerate(trace.graph.nodes)}
        self.nodes: list[Node] = []
        self.made: set[Node] = set()  # those of them that are here already when their fx node is met
        self.counts: dict[str, int] = {}

    def graph(self) -> Graph:
        """The graph of the nodes that the output depends on."""
        *body, last = self.trace.graph.nodes
        for fx_node in body:
            self.place = self.trace.places.get(fx_node, "")
            node, inplace = getattr(self, f"_{fx_node.op}")(fx_node)
            if isinstance(node, Node) and node not in self.made:
                node.place = self.place
                self._add(fx_node, node, inplace)
            else:  # several nodes of one call, or one of them
                self.now[fx_node], self.aliases[fx_node] = node, {fx_node}
            if isinstance(node, Node):
                node.shape = node.shape or fx_node.meta.get("shape")
        output = self._output(last.args[0])
        needed = ancestors(output)
        if not any(node.kind == v.INPUT for node in needed):
            raise self._unclear("does not depend on its input")
        modules = {path: node for path, n in self.trace.returned.items() if (node := self.now.get(n)) in needed}
        return Graph([n for n in self.nodes if n in needed or n.op == "input"], output, modules, self.model)

    def _output(self, value) -> Node:
        if not isinstance(value, fx.Node):
            raise checks.several(self.model, value)
        if isinstance(self.now[value], tuple):
            raise checks.several(self.model, self.now[value])
        if self.now[value].kind in (v.CONSTANT, v.PIECES):
            raise self._unclear("is not a tensor that depends on its input")
        return self.now[value]

    def _unclear(self, what: str) -> CaptureError:
        kind = CaptureError if self.trace.recorded else NeedsExample
        return kind(f"the output of {type(self.model).__name__} {what}")

    def _add(self, fx_node: fx.Node, node: Node, inplace: bool = False) -> None:
        self.nodes.append(node)
        measure(node)
        changed = first(fx_node) if inplace else None
        if not self.trace.recorded:
            self._look_for_views(fx_node, node, changed)
        group = self.aliases.get(changed, set()) | {fx_node}
        for alias in group:  # whichever of them is read next, its value is the new one
            self.now[alias], self.aliases[alias] = node, group

    def _look_for_views(self, fx_node: fx.Node, node: Node, changed: fx.Node | None) -> None:
        """A change in place reaches all views of the same memory, which only a run tells for certain."""
        source = first(fx_node)
        moves = v.KIND_OF_NAME.get(node.op) == v.REARRANGE or node.kind in (v.REARRANGE, v.PIECES)
        may_be_view = moves or node.op in v.KEEPS_SIGN_NAMES or changed is not None
        self.memory[fx_node] = self.memory.get(source, source) if may_be_view and source is not None else fx_node
        if changed is None:
            return
        same = self.aliases.get(changed, set()) | {changed}
        others = (n for n, home in self.memory.items() if home is self.memory[fx_node] and n not in same | {fx_node})
        if any(self.order[user] > self.order[fx_node] for other in others for user in other.users):
            raise NeedsExample(f"node {node.called} changes a view in place")

    def unique(self, base: str) -> str:
        self.counts[base] = self.counts.get(base, 0) + 1
        return base if self.counts[base] == 1 else f"{base}#{self.counts[base]}"

    # One method for each kind of fx node (`fx.Node.op`): our node, and whether the call changed its first argument.

    def _placeholder(self, fx_node: fx.Node) -> tuple[Node, bool]:
        if fx_node in self.trace.inputs:
            name = "input" if next(iter(self.trace.inputs)) is fx_node else fx_node.target
            return Node(self.unique(name), self.trace.inputs[fx_node], "input"), False
        default = fx_node.args[0] if fx_node.args else None
        return Node(self.unique(fx_node.target), v.CONSTANT, "default", lambda: default), False

    def _get_attr(self, fx_node: fx.Node) -> tuple[Node, bool]:
        target, made, model = fx_node.target, self.trace.constants, self.model
        path, _, name = target.rpartition(".")

        def call():  # looks the parameter up each time, because it may be replaced
            return made[target] if target in made else getattr(model.get_submodule(path), name)

        return Node(self.unique(target), v.CONSTANT, "made" if target in made else "get_attr", call), False

    def _call_module(self, fx_node: fx.Node) -> tuple[Node, bool]:
        module = self.model.get_submodule(fx_node.target)
        inplace, call = bool(getattr(module, "inplace", False)), module.forward  # without hooks
        if inplace:  # the twin has the same parameters
            twin = copy.copy(module)
            twin.inplace, call = False, twin.forward
        name, kind, op = self.unique(fx_node.target), v.kind_of_module(module), v.module_name(module)
        if op in OPENED:
            return self._opened(name, OPENED[op], module, *self._arguments(fx_node)), inplace
        return related(Node(name, kind, op, call, *self._arguments(fx_node), module=module)), inplace

    def _call_function(self, fx_node: fx.Node) -> tuple[Node, bool]:
        target, name, (args, kwargs) = fx_node.target, v.function_name(fx_node.target), self._arguments(fx_node)
        if name == "getitem" and isinstance(args[0], tuple):  # of what one call gave: a node, or several
            return args[0][args[1]], False
        call, inplace = target, v.is_inplace(target)
        if isinstance(target, str):
            call = _method(name)
        if name in RESHAPES:
            call = _reshaped
        elif inplace:
            call = next((getattr(home, name) for home in v.HOMES if hasattr(home, name)), None)  # torch.relu_: relu
            call = call or functools.partial(_on_a_copy, f"{name}_")
        elif (bound := _bind(target, args, kwargs)) and bound.arguments.get("inplace") is True:
            inplace = True
            bound.arguments["inplace"] = False
            args, kwargs = bound.args, bound.kwargs
        path, op = self.trace.paths.get(fx_node, ""), name or getattr(target, "__name__", str(target))
        full = self.unique(f"{path}.{op}" if path else op)
        if name in FUNCTIONS:
            return self._opened(full, FUNCTIONS[name], None, args, kwargs), inplace
        kind = v.KIND_OF_NAME.get(name, v.UNKNOWN)
        if (
            kind == v.UNKNOWN
            and not self.trace.recorded
            and (getattr(target, "__module__", None) or "").startswith("torchvision.models")
        ):
            raise NeedsExample(f"{op} of torchvision is kept whole by fx")
        return related(Node(full, kind, op, call, args, kwargs, own=name is None)), inplace

    _call_method = _call_function

    def _opened(self, name: str, compose: Callable, module: nn.Module | None, args: tuple, kwargs: dict):
        """The last of the nodes that stand for one call, or a tuple of nodes; the others come before."""
        do = Do(name, self.place, self.unique)
        value = compose(do, module, *args, **kwargs)
        if not isinstance(value, Node):
            self.nodes += do.made
            self.made.update(do.made)
            return value
        value.name = name
        self.nodes += [node for node in do.made if node is not value]
        return value

    def _arguments(self, fx_node: fx.Node) -> tuple[tuple, dict]:
        """Arguments with our nodes in the places of fx's, as they are now."""
        return fx.map_arg(fx_node.args, self.now.__getitem__), fx.map_arg(fx_node.kwargs, self.now.__getitem__)


def _on_a_copy(name: str, x, *args, **kwargs):
    """An in-place method that has no other form, on a copy."""
    return getattr(x.clone(), name)(*args, **kwargs)


RESHAPES = {"view", "view_as"}  # they ask for a layout of the memory, which is not the network's business here


def _reshaped(x, *shape, **kwargs):
    """x.view(...) in any layout; x.view(dtype) reads the same memory as numbers of another type."""
    if kwargs.get("dtype") or (shape and isinstance(shape[0], torch.dtype)):
        return x.view(*shape, **kwargs)
    shape = (*shape, *kwargs.values())
    return x.reshape(shape[0].shape if isinstance(shape[0], torch.Tensor) else shape if len(shape) > 1 else shape[0])


def _method(name: str) -> Callable:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


_signature = functools.lru_cache(maxsize=512)(inspect.signature)  # a long recursion calls few functions many times


def _bind(target: Callable, args: tuple, kwargs: dict) -> inspect.BoundArguments | None:
    """Arguments of a function by name; None where torch's C code tells no signature."""
    try:
        return _signature(target).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
