"""From a model to its graph: torch.fx traces, and what it finds is rewritten into few kinds of node.

* Modules, functions and tensor methods that do the same become the same kind of node.
* Calls that work in place become functional, and later readers of the changed tensor read the new node.
* A sum with a constant becomes an addition with a bias, a product with a constant a scale.

The model itself is only read: nothing is hooked onto it, stored in it or switched.
"""

import copy
import functools
import inspect
from collections.abc import Callable

from torch import fx, nn

from . import checks
from . import kinds as v
from .errors import CaptureError
from .graph import Graph, Node, ancestors, fold, references


def capture(model: nn.Module, fold_batchnorm: bool = True) -> Graph:
    """Trace `model` into a Graph; raises CaptureError with the way out where fx cannot follow."""
    tracer = _Tracer()
    traced = model.graph if isinstance(model, fx.GraphModule) else tracer.follow(model)
    graph = _Translation(model, tracer).graph(traced)
    return fold(graph) if fold_batchnorm else graph


class _Tracer(fx.Tracer):
    """fx's tracer, which notes the module of each call, what each module returned, and constants made in forward."""

    def __init__(self):
        super().__init__()
        self.inside = ""  # path of the module whose forward is being traced
        self.paths: dict[fx.Node, str] = {}
        self.returned: dict[str, fx.Node] = {}
        self.constants: dict[str, object] = {}

    def is_leaf_module(self, m, qualname):
        return super().is_leaf_module(m, qualname) or isinstance(m, tuple(v.REGISTERED))

    def call_module(self, m, forward, args, kwargs):
        outside, self.inside = self.inside, self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        if isinstance(out, fx.Proxy):
            self.returned[self.inside] = out.node
        self.inside = outside  # not reached after an error, so that `inside` names the module where it happened
        return out

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        self.paths[node] = self.inside
        return node

    def follow(self, model: nn.Module) -> fx.Graph:
        """Trace the model with its first argument as the input, the others at their defaults."""
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
            return self.trace(model, concrete_args=defaults or None)
        except Exception as error:  # fx raises many types here, each about the same thing
            where = f" in module `{self.inside}`" if self.inside else ""
            raise CaptureError(
                f"{type(model).__name__} could not be traced{where}: {error}. Control flow that depends on the data "
                "cannot be followed: rewrite it with tensor operations, or hand over an fx.GraphModule from a tracer "
                "that keeps this module as a leaf"
            ) from error
        finally:
            # A tensor that forward makes, as in x + torch.ones(3), fx stores on the model as `_tensor_constant0`.
            # Move it here: the model stays as it was, and the next capture cannot meet it.
            self.constants = {name: vars(model).pop(name) for name in set(vars(model)) - before}


class _Translation:
    """From fx nodes to ours, in one pass.

    `now` maps each fx node to the node that holds its value at this point of the pass. After y = x.relu_() both names
    mean one tensor: the fx nodes x and y are aliases, and whatever reads x from here on reads the node of y.
    """

    def __init__(self, model: nn.Module, tracer: _Tracer):
        self.model, self.tracer = model, tracer
        self.now: dict[fx.Node, Node] = {}
        self.aliases: dict[fx.Node, set[fx.Node]] = {}  # all fx nodes that are the same tensor, itself included
        self.nodes: list[Node] = []
        self.counts: dict[str, int] = {}

    def graph(self, traced: fx.Graph) -> Graph:
        """The graph of the nodes that the output depends on."""
        *body, last = traced.nodes
        for fx_node in body:
            self._add(fx_node, *getattr(self, f"_{fx_node.op}")(fx_node))
        output = self._output(last.args[0])
        needed = ancestors(output)
        if not any(node.kind == v.INPUT for node in needed):
            raise CaptureError(f"the output of {type(self.model).__name__} does not depend on its input")
        modules = {path: node for path, n in self.tracer.returned.items() if (node := self.now.get(n)) in needed}
        return Graph([node for node in self.nodes if node in needed], output, modules, self.model)

    def _output(self, value) -> Node:
        if not isinstance(value, fx.Node):
            raise checks.several(self.model, value)
        if self.now[value].kind in (v.CONSTANT, v.PIECES):
            raise CaptureError(f"the output of {type(self.model).__name__} is not a tensor that depends on its input")
        return self.now[value]

    def _add(self, fx_node: fx.Node, node: Node, inplace: bool = False) -> None:
        self.nodes.append(node)
        node.nonnegative = _nonnegative(node)
        changed = _first(fx_node) if inplace else None
        group = self.aliases.get(changed, set()) | {fx_node}
        for alias in group:  # whichever of them is read next, its value is the new one
            self.now[alias], self.aliases[alias] = node, group

    def _name(self, base: str) -> str:
        self.counts[base] = self.counts.get(base, 0) + 1
        return base if self.counts[base] == 1 else f"{base}#{self.counts[base]}"

    # One method for each kind of fx node (`fx.Node.op`): our node, and whether the call changed its first argument.

    def _placeholder(self, fx_node: fx.Node) -> tuple[Node, bool]:
        if not any(node.kind == v.INPUT for node in self.nodes):
            return Node(self._name("input"), v.INPUT, "input"), False
        default = fx_node.args[0] if fx_node.args else None
        return Node(self._name(fx_node.target), v.CONSTANT, "default", lambda: default), False

    def _get_attr(self, fx_node: fx.Node) -> tuple[Node, bool]:
        target, made, model = fx_node.target, self.tracer.constants, self.model
        path, _, name = target.rpartition(".")

        def call():  # looks the parameter up each time, because it may be replaced
            return made[target] if target in made else getattr(model.get_submodule(path), name)

        return Node(self._name(target), v.CONSTANT, "get_attr", call), False

    def _call_module(self, fx_node: fx.Node) -> tuple[Node, bool]:
        module = self.model.get_submodule(fx_node.target)
        inplace, call = bool(getattr(module, "inplace", False)), module
        if inplace:  # the twin has the same parameters
            call = copy.copy(module)
            call.inplace = False
        name, kind, op = self._name(fx_node.target), v.kind_of_module(module), v.module_name(module)
        return _related(Node(name, kind, op, call, *self._arguments(fx_node), module=module)), inplace

    def _call_function(self, fx_node: fx.Node) -> tuple[Node, bool]:
        target, name, (args, kwargs) = fx_node.target, v.function_name(fx_node.target), self._arguments(fx_node)
        call, inplace = target, v.is_inplace(target)
        if isinstance(target, str):
            call = _method(name)
        elif inplace:
            call = next(getattr(home, name) for home in v.HOMES if hasattr(home, name))  # torch.relu_ -> torch.relu
        elif (bound := _bind(target, args, kwargs)) and bound.arguments.get("inplace") is True:
            inplace = True
            bound.arguments["inplace"] = False
            args, kwargs = bound.args, bound.kwargs
        path, op = self.tracer.paths.get(fx_node, ""), name or getattr(target, "__name__", str(target))
        full = self._name(f"{path}.{op}" if path else op)
        return _related(Node(full, v.KIND_OF_NAME.get(name, v.UNKNOWN), op, call, args, kwargs)), inplace

    _call_method = _call_function

    def _arguments(self, fx_node: fx.Node) -> tuple[tuple, dict]:
        """Arguments with our nodes in the places of fx's, as they are now."""
        return fx.map_arg(fx_node.args, self.now.__getitem__), fx.map_arg(fx_node.kwargs, self.now.__getitem__)


def _related(node: Node) -> Node:
    """The node with its inputs, and the kind that follows from them."""
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
    """Signs of the summands; those that do not depend on the input are constants, that is, a bias."""
    a, b = (*node.args, *(k for name, k in node.kwargs.items() if name != "alpha"))
    alpha = node.kwargs.get("alpha", 1.0)  # torch.add(a, b, alpha=alpha) is a + alpha b
    signs = {"sub": (1.0, -alpha), "subtract": (1.0, -alpha), "rsub": (-alpha, 1.0)}.get(node.op, (1.0, alpha))
    terms = [(sign, term, isinstance(term, Node) and term.carries) for sign, term in zip(signs, (a, b), strict=True)]
    node.signs = tuple(float(sign) for sign, _, carries in terms if carries)
    node.constants = tuple((sign, term) for sign, term, carries in terms if not carries)


def _factors(node: Node) -> None:
    """Times a constant is a scale; of two factors that carry, the one that a sigmoid or softmax made is the gate."""
    divides = node.op in v.DIVISIONS
    if len(node.inputs) == 1:  # c / x is no scale of x
        node.kind = v.UNKNOWN if divides and node.inputs[0] is not _first(node) else v.SCALE
    elif divides:
        node.gate = 1
    else:
        gates = [_is_gate(factor) for factor in node.inputs]
        node.gate = gates.index(True) if sum(gates) == 1 else None


def _is_gate(node: Node) -> bool:
    """Was the node made by a sigmoid or softmax, perhaps with views, copies or dropout after it?"""
    while (node.kind == v.REARRANGE and len(node.inputs) == 1) or _copies(node):
        node = node.inputs[0]
    return node.op in v.GATES and (node.kind == v.ACTIVATION or node.op == "softmax")


def _copies(node: Node) -> bool:
    return node.kind == v.ACTIVATION and node.op in v.KEEPS_SIGN_NAMES


def _piece(node: Node) -> None:
    """Make x.chunk(2)[1] one node that reads x, so that no node with several values lies on the way back.

    A slice, x.chunk(3)[:2], still is several tensors. The node of `chunk` itself falls out if nothing else reads it.
    """
    pieces, index = node.inputs[0], node.args[1]
    node.kind = v.PIECES if isinstance(index, slice) else node.kind
    node.call = lambda *args, **kwargs: pieces.call(*args, **kwargs)[index]
    node.args, node.kwargs, node.inputs = pieces.args, pieces.kwargs, pieces.inputs


def _nonnegative(node: Node) -> bool:
    """Is the value known to be >= 0, from the operation and what is known of its inputs?"""
    if node.kind == v.ACTIVATION and node.op in v.NONNEGATIVE:
        return True
    below = bool(node.inputs) and all(i.nonnegative for i in node.inputs)
    if node.kind == v.ADD:
        return below and not node.constants and min(node.signs) > 0
    return below and ((node.kind in v.KEEPS_SIGN and node.op not in v.LOSES_SIGN_NAMES) or _copies(node))


def _method(name: str) -> Callable:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


_signature = functools.lru_cache(maxsize=512)(inspect.signature)  # a long recursion calls few functions many times


def _bind(target: Callable, args: tuple, kwargs: dict) -> inspect.BoundArguments | None:
    """Arguments of a function by name; None where torch's C code tells no signature."""
    try:
        return _signature(target).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
