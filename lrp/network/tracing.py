"""From a model to its graph. torch.fx traces it without an example; where that cannot be, an example is run.

fx gives one graph for inputs of every shape. It stops where the network asks what its input is: its sizes, its type.
`lrp.network.recording` runs the network on an example instead, and its graph holds for inputs of that shape.
The model itself is only read: nothing is hooked onto it, stored in it or switched.
"""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, fx, nn

from .. import checks
from ..errors import CaptureError, NeedsExample
from . import kinds as v
from .folding import fold
from .graph import Graph
from .heads import mark_heads
from .recording import Recorder
from .translation import Traced, Translation, place

ALONE = (
    "rewrite it with tensor operations, or hand over an fx.GraphModule from a tracer that keeps this module as a leaf"
)


def capture(model: nn.Module, fold_batchnorm: bool = True, example: Tensor | tuple[Tensor, ...] | None = None) -> Graph:
    """The model as a Graph, for inputs of any shape, or for inputs like `example` (a tensor, or a tuple of them).

    Raises CaptureError with the way out where a model cannot be followed.
    """
    checks.capturable(model)
    if isinstance(model, fx.GraphModule) and example is None:
        trace = Traced(model.graph, _given(model.graph))
    elif example is None:
        trace = _Tracer().follow(model)
    else:
        trace = _record(model, example if isinstance(example, tuple) else (example,))
    graph = Translation(model, trace).graph()
    graph.recorded = example is not None
    return mark_heads(fold(graph, fold_batchnorm))


def required(model: nn.Module) -> list[str]:
    """Names of the inputs that forward takes without a default."""
    params = inspect.signature(model.forward).parameters.values()
    return [p.name for p in params if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _record(model: nn.Module, example: tuple[Tensor, ...]) -> Traced:
    """The trace of a run on other values in the range of the example's."""
    names = [name for name, p in inspect.signature(model.forward).parameters.items() if p.kind != p.VAR_KEYWORD]
    names += [f"input{i}" for i in range(len(names), len(example))]  # forward(self, *inputs)
    recorder = Recorder(model, _Tracer().is_leaf_module)
    before = [(module, _held(module)) for module in model.modules()]
    try:
        return recorder.record(tuple(map(_other, example)), names[: len(example)])
    except CaptureError as error:
        raise CaptureError(f"{type(model).__name__} could not be traced{_where(recorder.inside)}: {error}") from error
    finally:
        for module, held in before:
            _restored(module, held)


def _other(x: Tensor) -> Tensor:
    """Values from the range of x, drawn without touching torch's generator; x itself where it holds no floats."""
    if not x.is_floating_point():
        return x.clone()
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    return x.min() + (x.max() - x.min()) * drawn


def _where(inside: str, line: str = "") -> str:
    return (f" in module `{inside}`" if inside else "") + (f" at {line}" if line else "")


class _Tracer(fx.Tracer):
    """fx's tracer, which notes the module and the line of each call, what each module returned, and constants."""

    proxy_buffer_attributes = True  # buffers are looked up in each run, as parameters are

    def __init__(self):
        super().__init__()
        self.inside = ""  # path of the module whose forward is being traced
        self.notes = Traced(None)

    def is_leaf_module(self, m, qualname):
        """Is this module one node, whose inside is not looked at? torch's own are, and registered ones."""
        known = super().is_leaf_module(m, qualname) and not isinstance(m, v.BLOCKS)
        known = known or isinstance(m, tuple(v.REGISTERED))
        return known and "forward" not in vars(m)  # one that was patched is no longer what its class says

    def call_module(self, m, forward, args, kwargs):
        wrapper, m = self.path_of_module(m), checks.inner(m)
        outside, self.inside = self.inside, self.path_of_module(m)
        out = super().call_module(m, m.forward, args, kwargs)  # without hooks, which would meet proxies
        if isinstance(out, fx.Proxy):
            self.notes.returned[wrapper] = self.notes.returned[self.inside] = out.node
        self.inside = outside  # not reached after an error, so that `inside` names the module where it happened
        return out

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        self.notes.paths[node], self.notes.places[node] = self.inside, place()
        return node

    def follow(self, model: nn.Module) -> Traced:
        """Trace the model with its first argument as the input, the others at their defaults."""
        if len(needed := required(model)) > 1:
            raise NeedsExample(f"{type(model).__name__}.forward takes {len(needed)} inputs ({', '.join(needed)})")
        params = list(inspect.signature(model.forward).parameters.values())
        before = [(module, _held(module)) for module in model.modules()]
        defaults = {p.name: p.default for p in params[1:] if p.default is not p.empty}
        try:
            self.notes.graph = self.trace(model, concrete_args=defaults or None)
        except Exception as error:  # fx raises many types here, each about the same thing
            raise NeedsExample(
                f"{type(model).__name__} could not be traced{_where(self.inside)}: {error}. Control flow that depends "
                f"on the data cannot be followed: {ALONE}"
            ) from error
        finally:
            # What tracing leaves on modules goes again: notes of forward's own, which now are proxies, and tensors that
            # forward makes, as in x + torch.ones(3), which fx stores on the model as `_tensor_constant0`.
            made = [_restored(module, held) for module, held in before]
            self.notes.constants = made[0]
        self.notes.inputs = _given(self.notes.graph)
        return self.notes


def _held(module: nn.Module) -> tuple[dict, list]:
    """The attributes of a module, and what their dicts, lists and sets hold: forward may keep in them what it makes."""
    return dict(vars(module)), [(c, copy.copy(c)) for value in vars(module).values() for c in _containers(value)]


def _containers(value) -> list:
    """The dicts, lists and sets in a value, itself first."""
    if not isinstance(value, dict | list | set):
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [value, *(c for item in inside for c in _containers(item))]


def _members(container: dict | list | set) -> list[int]:
    """Which objects it holds, by their identity."""
    return [id(x) for pair in container.items() for x in pair] if isinstance(container, dict) else [*map(id, container)]


def _restored(module: nn.Module, held: tuple[dict, list]) -> dict:
    """Give a module the attributes back that it had, and return those that are new."""
    now, (attributes, contents) = vars(module), held
    now |= {name: value for name, value in attributes.items() if now.get(name) is not value}
    for container, content in contents:
        if _members(container) != _members(content):  # else another thread might find it empty for a moment
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
    return {name: now.pop(name) for name in set(now) - set(attributes)}


def _given(graph: fx.Graph) -> dict[fx.Node, str]:
    """The first placeholder: what a user gives, unless there is an example."""
    return dict.fromkeys([node for node in graph.nodes if node.op == "placeholder"][:1], v.INPUT)
