"""From a model to its graph: torch.fx traces, and what it finds is rewritten into few kinds of node.

* Modules, functions and tensor methods that do the same become the same kind of node.
* Calls that work in place become functional, and who used the changed tensor later uses the new one.
* A sum with a constant becomes an addition with a bias, a product with a constant a scale.

The model itself is only read: nothing is hooked onto it, stored in it or switched.
"""

import copy
import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import kinds as v
from .errors import CaptureError
from .graph import Graph, Node, ancestors, fold, references


def capture(model: nn.Module, fold_batchnorm: bool = True) -> Graph:
    """Trace `model` into a Graph; raises CaptureError with the way out where fx cannot follow."""
    if isinstance(model, fx.GraphModule):
        traced, paths, returned, constants = model.graph, {}, {}, {}
    else:
        tracer = _Tracer()
        traced = _trace(tracer, model)
        paths, returned, constants = tracer.paths, tracer.returned, tracer.constants
    graph = _Translation(model, traced, paths, constants).graph(returned)
    return fold(graph) if fold_batchnorm else graph


class _Tracer(fx.Tracer):
    """fx's tracer, taking down which module each call happened in and what each module returned."""

    def __init__(self):
        super().__init__()
        self.stack: list[str] = []
        self.paths: dict[fx.Node, str] = {}
        self.returned: dict[str, fx.Node] = {}

    def is_leaf_module(self, m, qualname):
        return super().is_leaf_module(m, qualname) or isinstance(m, tuple(v.REGISTERED))

    def call_module(self, m, forward, args, kwargs):
        path = self.path_of_module(m)
        self.stack.append(path)
        try:
            out = super().call_module(m, forward, args, kwargs)
        finally:
            self.stack.pop()
        if isinstance(out, fx.Proxy):
            self.returned[path] = out.node
        return out

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        self.paths[node] = self.stack[-1] if self.stack else ""
        return node


def _trace(tracer: fx.Tracer, model: nn.Module) -> fx.Graph:
    params = list(inspect.signature(model.forward).parameters.values())
    required = [p.name for p in params if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1:
        raise CaptureError(
            f"{type(model).__name__}.forward takes {len(required)} inputs ({', '.join(required)}); one tensor can "
            "be explained: wrap the model in a module whose forward takes that tensor and fixes the others"
        )
    before = set(vars(model))
    defaults = {p.name: p.default for p in params[1:] if p.default is not p.empty}
    try:
        return tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:  # fx raises many types here, each about the same thing
        where = f" in module `{tracer.stack[-1]}`" if tracer.stack else ""
        raise CaptureError(
            f"{type(model).__name__} could not be traced{where}: {error}. Control flow that depends on the data "
            "cannot be followed: rewrite it with tensor operations, or hand over an fx.GraphModule from a tracer "
            "that keeps this module as a leaf"
        ) from error
    finally:  # fx stows constants that forward makes on the model
        tracer.constants = {name: vars(model).pop(name) for name in set(vars(model)) - before}


class _Translation:
    """From fx nodes to ours, in one pass; `now` maps each fx node to the node that holds its value now."""

    def __init__(self, model: nn.Module, traced: fx.Graph, paths: dict[fx.Node, str], constants: dict):
        self.constants = constants
        self.model, self.traced, self.paths = model, traced, paths
        self.now: dict[fx.Node, Node] = {}
        self.same: dict[fx.Node, set[fx.Node]] = {}  # fx nodes that are the same tensor, after in-place calls
        self.nodes: list[Node] = []
        self.counts: dict[str, int] = {}

    def graph(self, returned: dict[str, fx.Node]) -> Graph:
        output = None
        for fx_node in self.traced.nodes:
            if fx_node.op == "output":
                output = self._output(fx_node)
            else:
                self._add(fx_node, getattr(self, fx_node.op)(fx_node))
        keep = ancestors(output)
        if not any(node.kind == v.INPUT for node in keep):
            raise CaptureError(f"the output of {type(self.model).__name__} does not depend on its input")
        modules = {path: self.now[n] for path, n in returned.items() if self.now.get(n) in keep}
        return Graph([node for node in self.nodes if node in keep], output, modules, self.model)

    def _output(self, fx_node: fx.Node) -> Node:
        value = fx_node.args[0]
        if not isinstance(value, fx.Node):
            kind = type(value).__name__.removeprefix("immutable_")
            raise CaptureError(
                f"{type(self.model).__name__} returns a {kind}, not one tensor: wrap it in a module whose forward "
                "returns the tensor of logits"
            )
        if self.now[value].kind in (v.CONSTANT, v.PIECES):
            raise CaptureError(f"the output of {type(self.model).__name__} is not a tensor that depends on its input")
        return self.now[value]

    def _name(self, base: str) -> str:
        self.counts[base] = self.counts.get(base, 0) + 1
        return base if self.counts[base] == 1 else f"{base}#{self.counts[base]}"

    def _add(self, fx_node: fx.Node, node: Node) -> None:
        self.nodes.append(node)
        node.nonnegative = _nonnegative(node)
        self.now[fx_node] = node
        self.same[fx_node] = {fx_node}
        if self._inplace(fx_node) and isinstance(_first(fx_node), fx.Node):
            group = self.same[_first(fx_node)] | {fx_node}
            for alias in group:
                self.now[alias], self.same[alias] = node, group

    def _inplace(self, fx_node: fx.Node) -> bool:
        if fx_node.op == "call_module":
            return bool(getattr(self._module(fx_node.target), "inplace", False))
        if fx_node.op in ("call_function", "call_method"):
            return v.is_inplace(fx_node.target) or _bind(fx_node).get("inplace") is True
        return False

    def _module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def _arguments(self, fx_node: fx.Node) -> tuple[tuple, dict]:
        return fx.map_arg(fx_node.args, self.now.__getitem__), fx.map_arg(fx_node.kwargs, self.now.__getitem__)

    def placeholder(self, fx_node: fx.Node) -> Node:
        if not any(node.kind == v.INPUT for node in self.nodes):
            return Node(self._name("input"), v.INPUT, "input")
        default = fx_node.args[0] if fx_node.args else None
        return Node(self._name(str(fx_node.target)), v.CONSTANT, "default", call=lambda: default)

    def get_attr(self, fx_node: fx.Node) -> Node:
        path, _, name = fx_node.target.rpartition(".")
        if fx_node.target in self.constants:
            value = self.constants[fx_node.target]
            return Node(self._name(fx_node.target), v.CONSTANT, "constant", call=lambda: value)
        return Node(self._name(fx_node.target), v.CONSTANT, "get_attr",
                    call=lambda: getattr(self._module(path), name))  # fmt: skip

    def call_module(self, fx_node: fx.Node) -> Node:
        module = self._module(fx_node.target)
        args, kwargs = self._arguments(fx_node)
        kind = v.kind_of_module(module)
        call = module
        if getattr(module, "inplace", False):
            call = copy.copy(module)
            call.inplace = False
        node = Node(self._name(fx_node.target), kind, v.module_name(module), call, args, kwargs, module=module)
        node.pads = v.is_padding(module, None)
        return self._relate(node)

    def call_function(self, fx_node: fx.Node) -> Node:
        name = v.function_name(fx_node.target)
        call = fx_node.target
        if fx_node.op == "call_method":
            call = _method(name)
        elif v.is_inplace(fx_node.target):
            call = _functional(fx_node.target, name)
        args, kwargs = self._arguments(fx_node)
        if _bind(fx_node).get("inplace") is True:
            args, kwargs = _not_inplace(fx_node.target, args, kwargs)
        path = self.paths.get(fx_node, "")
        op = name or getattr(fx_node.target, "__name__", str(fx_node.target))
        full = self._name(f"{path}.{op}" if path else op)
        kind, pads = v.KIND_OF_NAME.get(name, v.UNKNOWN), v.is_padding(None, name)
        return self._relate(Node(full, kind, op, call, args, kwargs, pads=pads))

    call_method = call_function

    def _relate(self, node: Node) -> Node:
        """Find the inputs of the node, and the kind that follows from them."""
        node.inputs = tuple(n for n in references((node.args, node.kwargs)) if n.carries)
        if not node.inputs:
            node.kind = v.CONSTANT
        elif node.kind == v.ADD:
            _summands(node)
        elif node.kind == v.PRODUCT:
            _factors(node)
        elif node.kind in (*v.WEIGHTED, v.BATCHNORM) and node.inputs != (_first(node),):
            node.kind = v.UNKNOWN  # a kernel computed from the input
        elif node.op in v.PIECEWISE:
            node.kind = v.PIECES
        elif node.op == "getitem" and node.inputs[0].kind == v.PIECES:
            _piece(node)
        return node


def _first(node):
    """The first argument of a node (or of an fx node), given by position or by keyword."""
    return next(iter((*node.args, *node.kwargs.values())), None)


def _summands(node: Node) -> None:
    """Signs of the summands; whatever is no input is a constant, that is, a bias."""
    a, b = (*node.args, *(k for name, k in node.kwargs.items() if name != "alpha"))
    alpha = node.kwargs.get("alpha", 1.0)
    signs = {"sub": (1.0, -alpha), "subtract": (1.0, -alpha), "rsub": (-alpha, 1.0)}.get(node.op, (1.0, alpha))
    terms = list(zip(signs, (a, b), strict=True))
    node.signs = tuple(float(s) for s, t in terms if isinstance(t, Node) and t.carries)
    node.constants = tuple((s, t) for s, t in terms if not (isinstance(t, Node) and t.carries))


def _factors(node: Node) -> None:
    """Times a constant is a scale; of two factors that carry, the one a squashing function made is the gate."""
    divides = node.op in v.DIVISIONS
    if len(node.inputs) == 1:
        node.kind = v.UNKNOWN if divides and node.inputs[0] is not _first(node) else v.SCALE
    elif divides:
        node.gate = 1
    else:
        gates = [_is_gate(factor) for factor in node.inputs]
        node.gate = gates.index(True) if sum(gates) == 1 else None


def _is_gate(node: Node) -> bool:
    while (node.kind == v.REARRANGE and len(node.inputs) == 1) or node.op in v.KEEPS_SIGN_NAMES:
        node = node.inputs[0]
    return node.op in v.GATES and (node.kind == v.ACTIVATION or node.op == "softmax")


def _piece(node: Node) -> None:
    """x.chunk(2)[1] as one node, so that relevance returns to x without a stop in between."""
    pieces, index = node.inputs[0], node.args[1]
    node.kind = v.PIECES if isinstance(index, slice) else node.kind
    node.call = lambda *args, **kwargs: pieces.call(*args, **kwargs)[index]
    node.args, node.kwargs, node.inputs = pieces.args, pieces.kwargs, pieces.inputs


def _nonnegative(node: Node) -> bool:
    if node.op in v.NONNEGATIVE and node.kind == v.ACTIVATION and not isinstance(node.module, tuple(v.REGISTERED)):
        return True
    below = bool(node.inputs) and all(i.nonnegative for i in node.inputs)
    if node.kind == v.ADD:
        return below and not node.constants and min(node.signs) > 0
    keeps = node.kind in v.KEEPS_SIGN and not node.pads and node.op not in ("interpolate", "upsample")
    return below and (keeps or node.op in v.KEEPS_SIGN_NAMES)


def _method(name: str) -> Callable:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _functional(target: Callable, name: str) -> Callable:
    """The plain form of an in-place function: torch.relu_ -> torch.relu, operator.iadd -> operator.add."""
    import operator

    return next(getattr(home, name) for home in (torch, F, operator) if hasattr(home, name))


_signature = functools.lru_cache(maxsize=512)(inspect.signature)  # a long recursion calls few functions many times


def _bind(fx_node: fx.Node) -> dict:
    """Arguments of a function call by name, where its signature tells."""
    if fx_node.op != "call_function":
        return dict(fx_node.kwargs)
    try:
        return _signature(fx_node.target).bind(*fx_node.args, **fx_node.kwargs).arguments
    except (TypeError, ValueError):
        return dict(fx_node.kwargs)


def _not_inplace(target: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The same arguments with inplace=False."""
    bound = inspect.signature(target).bind(*args, **kwargs)
    bound.arguments["inplace"] = False
    return bound.args, bound.kwargs
