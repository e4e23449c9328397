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
from .graph import Graph, Node, ancestors, fold
from .relating import first, nonnegative, related


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
        node.nonnegative = nonnegative(node)
        changed = first(fx_node) if inplace else None
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
        return related(Node(name, kind, op, call, *self._arguments(fx_node), module=module)), inplace

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
        return related(Node(full, v.KIND_OF_NAME.get(name, v.UNKNOWN), op, call, args, kwargs)), inplace

    _call_method = _call_function

    def _arguments(self, fx_node: fx.Node) -> tuple[tuple, dict]:
        """Arguments with our nodes in the places of fx's, as they are now."""
        return fx.map_arg(fx_node.args, self.now.__getitem__), fx.map_arg(fx_node.kwargs, self.now.__getitem__)


def _method(name: str) -> Callable:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


_signature = functools.lru_cache(maxsize=512)(inspect.signature)  # a long recursion calls few functions many times


def _bind(target: Callable, args: tuple, kwargs: dict) -> inspect.BoundArguments | None:
    """Arguments of a function by name; None where torch's C code tells no signature."""
    try:
        return _signature(target).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
