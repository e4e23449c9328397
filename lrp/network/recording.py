"""Tracing with an example: the network runs once, and each call of torch is written down as a node of an fx graph.

What a network asks of its input's shape, type or dimensions has an answer then: it may check, branch, pad and loop.
A size keeps how it was computed (`Size`), so that the graph holds for another number of samples; where the network
decided by a size, the graph holds for that decision. What depends on the input's *values* is an error with its place.

The run is on an example with other values than the ones to be explained. Whatever escapes the record, a detour over
NumPy or a scripted function, therefore shows when graph and model are compared.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import contextmanager
from threading import RLock, get_ident

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .. import checks
from ..errors import CaptureError
from . import kinds as v
from .translation import Traced, place

VALUES = {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__", "item"}
VALUES |= {"tolist", "numpy", "equal", "allclose", "is_nonzero"}  # what tells Python the values of a tensor
SIZES = {"shape", "size", "numel", "nelement"}
SHAPED = {f"{name}_like" for name in ("zeros", "ones", "full", "empty", "rand", "randn")} | {*SIZES}
SHAPED |= {f"new_{name}" for name in ("zeros", "ones", "full", "empty", "tensor")}  # what reads a shape, not values
UNSEEN = {"__set__", "requires_grad_", "retain_grad", "register_hook"}  # what changes no value
ONE_AT_A_TIME = RLock()  # modules are called through one recorder at a time
REVERSED = {
    f"__r{name}__": getattr(operator, {"div": "truediv"}.get(name, name))
    for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "matmul")
}


class Size(int):
    """A size that knows the node which computes it; arithmetic with whole numbers is written down, too."""

    node: fx.Node
    recorder: Recorder


def _arithmetic(name: str) -> None:
    plain, call = getattr(int, f"__{name}__"), getattr(operator, name)

    def forward(self, other):
        return self.recorder.size(plain(self, other), call, self, other)

    def backward(self, other):
        return self.recorder.size(plain(other, self) if isinstance(other, int) else NotImplemented, call, other, self)

    setattr(Size, f"__{name}__", forward)
    setattr(Size, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _arithmetic(_name)


def setitem(x: Tensor, index, value) -> Tensor:
    """x[index] = value, as a new tensor."""
    x = x.clone()
    x[index] = value
    return x


def write_part(x: Tensor, index: Tensor, part: Tensor) -> Tensor:
    """x with `part` at these places of it, as a new tensor."""
    return x.flatten().index_put((index.flatten(),), part.flatten()).view(x.shape)


def read_part(x: Tensor, index: Tensor) -> Tensor:
    """What stands at these places of x."""
    return x.flatten()[index]


class Recorder(TorchFunctionMode):
    """Writes down what a model calls; `record` gives the trace."""

    def __init__(self, model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]):
        super().__init__()
        self.model, self.is_leaf, self.inside = model, is_leaf, ""
        self.graph = fx.Graph()
        self.trace = Traced(self.graph, recorded=True)
        self.nodes = WeakIdKeyDictionary()  # tensor -> the node of its value
        self.data: set[fx.Node] = set()  # nodes whose values depend on the input's
        self.names = {module: name for name, module in model.named_modules()}
        self.kept = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}

    def record(self, xs: tuple[Tensor, ...], names: list[str]) -> Traced:
        """Run the model on these tensors, the arguments of these names."""
        for x, name in zip(xs, names, strict=True):
            self.nodes[x] = node = self._node("placeholder", name, (), {})
            node.meta["shape"] = x.shape
            self.data.add(node)
            self.trace.inputs[node] = v.INPUT if x.is_floating_point() else v.CONSTANT
        with _calls_through(self), torch.no_grad(), self:
            output = self.model.forward(*xs)
        self.graph.output(self._written(output))
        return self.trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in UNSEEN:
            return func(*args, **kwargs)
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")
            func, args = getattr, (args[0], name)
        if name == "__getitem__":
            func = operator.getitem
        if name in VALUES:
            self._refuse_values(name, args)
        if name in REVERSED:
            func, args = REVERSED[name], (args[1], args[0])
        written = self._written(args), self._written(kwargs)  # before the call, which may change its arguments
        value = func(*args, **kwargs)
        changed = args and isinstance(args[0], Tensor) and _changes(func, kwargs, name)
        known = _nodes(written)
        if name == "__setitem__" and known:
            self._mark(args[0], self._node("call_function", setitem, *written))
        elif name in SIZES and known:
            return self._sizes(value, self._node("call_function", func, *written))
        elif known and _holds_tensor(value):  # all else is a constant of the network, or a fact about a tensor
            self._mark(value, self._node("call_function", func, *written))
        if changed and known:
            self._follow_views(args[0])
        return value

    def call(self, module: nn.Module, args: tuple, kwargs: dict):
        """A call of a module, without its hooks: one node for a leaf, what its forward does for others."""
        wrapper, module = self.names.get(module), checks.inner(module)
        path, outside = self.names.get(module), self.inside
        self.inside = outside if path is None else path
        if path and self.is_leaf(module, path):
            written = self._written(args), self._written(kwargs)
            with torch._C.DisableTorchFunction():
                value = module.forward(*args, **kwargs)
                self._mark(value, self._node("call_module", path, *written))
                if args and value is args[0] and getattr(module, "inplace", False):
                    self._follow_views(value)
        else:
            value = module.forward(*args, **kwargs)
        if isinstance(value, Tensor) and value in self.nodes:
            self.trace.returned |= {name: self.nodes[value] for name in (wrapper, path) if name}
        self.inside = outside  # not reached after an error, so that `inside` names the module where it happened
        return value

    def _follow_views(self, changed: Tensor) -> None:
        """A tensor was changed in place: so were those that share its memory, and get new nodes."""
        home = changed.untyped_storage().data_ptr()
        others = [t for t in list(self.nodes) if t is not changed and t.untyped_storage().data_ptr() == home]
        if not others:
            return
        whole = next((t for t in (changed, *others) if _fills(t)), None)
        if whole is None:
            raise CaptureError(
                f"at {place()} the network changes a tensor in place whose memory others share, and none of them holds "
                "all of it: write that without in-place calls"
            )
        numbers = torch.empty_like(whole, dtype=torch.long).copy_(torch.arange(whole.numel()).view(whole.shape))

        def places(t: Tensor) -> Tensor:
            return numbers.as_strided(t.shape, t.stride(), t.storage_offset() - whole.storage_offset()).clone()

        if changed is not whole:
            terms = self.nodes[whole], places(changed), self.nodes[changed]
            self.nodes[whole] = self._node("call_function", write_part, terms, {})
        for t in others:
            if t is not whole:
                self.nodes[t] = self._node("call_function", read_part, (self.nodes[whole], places(t)), {})

    def size(self, value, call: Callable, *terms):
        """The result of arithmetic with sizes."""
        return value if not isinstance(value, int) else self._size(value, call, *terms)

    def _size(self, value: int, call: Callable, *terms) -> Size:
        size = Size(value)
        size.recorder, size.node = self, self._node("call_function", call, self._written(terms), {})
        return size

    def _sizes(self, value, node: fx.Node):
        if isinstance(value, tuple):
            return torch.Size([self._size(v, operator.getitem, node, i) for i, v in enumerate(value)])
        size = Size(value)
        size.recorder, size.node = self, node
        return size

    def _node(self, op: str, target, args: tuple, kwargs: dict) -> fx.Node:
        node = self.graph.create_node(op, target, args, kwargs)
        self.trace.paths[node], self.trace.places[node] = self.inside, place()
        if getattr(target, "__name__", "") not in SHAPED and any(n in self.data for n in node.all_input_nodes):
            self.data.add(node)
        return node

    def _mark(self, value, node: fx.Node) -> None:
        """From here on, `value` is what this node gives; of several tensors each gets a node."""
        if isinstance(value, Tensor):
            self.nodes[value], node.meta["shape"] = node, value.shape
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                if _holds_tensor(item):
                    self._mark(item, self._node("call_function", operator.getitem, (node, i), {}))

    def _written(self, value):
        """Arguments with nodes in the places of tensors and sizes that have one."""
        if isinstance(value, Tensor):
            if value in self.nodes:
                return self.nodes[value]
            if id(value) in self.kept:
                self.nodes[value] = node = self._node("get_attr", self.kept[id(value)], (), {})
                return node
            return value.detach().clone()
        if isinstance(value, Size):  # a network may have stored one from an earlier record
            return value.node if value.recorder is self else int(value)
        if isinstance(value, (tuple, list)):
            items = [self._written(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self._written(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._written(part) for part in (value.start, value.stop, value.step)))
        return value

    def _refuse_values(self, name: str, args: tuple) -> None:
        if any(node in self.data for node in _nodes(self._written(args))):
            what = {"__bool__": "branches on", "item": "takes a number from"}.get(name, "hands to Python")
            raise CaptureError(
                f"at {place()} the network {what} the values of a tensor that depends on its input, so that what it "
                "computes differs from input to input: write it with tensor operations, as torch.where(condition, a, b)"
            )


@contextmanager
def _calls_through(recorder: Recorder):
    """While it is open, calls of modules go through the recorder; in other threads, and in leaves, they stay."""
    thread = get_ident()

    def call(module, *args, **kwargs):
        if get_ident() != thread or torch._C._is_torch_function_all_disabled():
            return original(module, *args, **kwargs)
        return recorder.call(module, args, kwargs)

    with ONE_AT_A_TIME:
        original, nn.Module.__call__ = nn.Module.__call__, call
        try:
            yield
        finally:
            nn.Module.__call__ = original


def _changes(func, kwargs: dict, name: str) -> bool:
    """Is this a call that changes its first argument?"""
    return name == "__setitem__" or v.is_inplace(func) or kwargs.get("inplace") is True


def _fills(t: Tensor) -> bool:
    """Does the tensor hold each value of its memory, once?"""
    dense = t.numel() * t.element_size() == t.untyped_storage().nbytes()
    return dense and torch.empty_like(t).stride() == t.stride()


def _nodes(written) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(written, found.append)
    return found


def _holds_tensor(value) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_holds_tensor, value)))
