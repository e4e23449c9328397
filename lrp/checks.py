"""Everything that is checked before an explanation: each failure names the thing, the facts and the fix."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from .errors import CaptureError, InputError, LRPError, TargetError

# how far graph and model, or seed and ledger, may differ, as a share of the largest output or the seed
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}


def mode(model: nn.Module) -> None:
    """Raise InputError for a model in training mode, or with a part in training mode to which that may matter."""
    for name, module in model.named_modules():
        changed = "forward" in vars(module) or bool(module._forward_pre_hooks)
        if module.training and (module is model or _asks_for_training(type(module), changed)):
            what = f"its module `{name}`" if name else "it"
            raise InputError(
                f"{type(model).__name__} is to be explained, but {what} is in training mode: call model.eval() first"
            )


@cache
def _asks_for_training(kind: type[nn.Module], changed: bool) -> bool:
    """May a module behave otherwise in training? Of torch's own, only those that read the flag or were changed."""
    if changed or not kind.__module__.startswith("torch."):
        return True
    own = [f for cls in kind.__mro__[: kind.__mro__.index(nn.Module)] for f in vars(cls).values()]
    return any("training" in code.co_names for f in own if (code := getattr(f, "__code__", None)))


def inner(model: nn.Module) -> nn.Module:
    """The network inside wrappers that compute the same: data parallel, averaged (SWA, EMA), or torch.compile's."""
    while isinstance(model, nn.Module):
        if isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            break
    return model


def capturable(model: nn.Module) -> None:
    """Raise LRPError for what no graph can be made of, or what has no values yet."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"{type(model).__name__} is no torch.nn.Module: hand over the network itself")
    name = type(model).__name__
    for path, module in model.named_modules():
        if complaint := _foreign(module):
            what = f"its module `{path}`" if path else "it"
            raise CaptureError(f"{name} is to be explained, but {what} {complaint}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for path, t in tensors:
        if is_lazy(t):
            raise InputError(
                f"`{path}` of {name} is not initialized, because a lazy module has not run yet: call the model once"
            )
        if t.is_meta:
            raise InputError(
                f"`{path}` of {name} is on the meta device and has no values: model.to_empty(device='cpu'), then "
                "model.load_state_dict(...)"
            )
    if len(devices := {str(t.device) for _, t in tensors}) > 1:
        raise InputError(f"{name} is spread over {', '.join(sorted(devices))}: move it to one, as in model.to('cpu')")


def _foreign(module: nn.Module) -> str | None:
    """What stands in the way of modules that are no ordinary Python code, and the way out."""
    home = type(module).__module__
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is a TorchScript module, whose Python code is gone: hand over the network that torch.jit.trace or "
            "torch.jit.script was given"
        )
    if isinstance(module, fx.GraphModule) and any(isinstance(n.target, OpOverload) for n in module.graph.nodes):
        return "comes from torch.export, which leaves only calls of aten: hand over the network that was exported"
    if home.startswith("torch.") and ".quantized" in home:
        return "is quantised and computes with integers: hand over the network in floating point that it was made of"
    return None


def same_model(planned: nn.Module, model: nn.Module) -> None:
    """Raise InputError for a plan that was made for another model."""
    if planned is not model:
        raise InputError(
            f"this plan was made for another model ({type(planned).__name__}), not for this {type(model).__name__}: "
            "make a new one, as LRP(model, composite) does"
        )


def inputs(xs: tuple[Tensor, ...], model: nn.Module) -> None:
    """Raise InputError unless these are batches of as many samples; those that hold no floats are constants."""
    if not xs:
        raise InputError("the tuple of inputs is empty")
    floats = [x for x in xs if not (len(xs) > 1 and isinstance(x, Tensor) and not x.is_floating_point())]
    for x in floats or xs:
        tensor(x, model)
    if len({len(x) for x in xs if x.dim()}) > 1:
        raise InputError(f"the inputs hold different numbers of samples: shapes {[tuple(x.shape) for x in xs]}")


def tensor(x: Tensor, model: nn.Module) -> None:
    """Raise InputError unless x is a finite, non-empty batch in the model's dtype and on its device."""
    if not isinstance(x, Tensor):
        raise InputError(f"the input must be a tensor (N, ...), not {type(x).__name__}")
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise InputError("the input stands inside torch.func (vmap, grad or the like): explain it outside of that")
    if x.dim() < 2 or len(x) == 0:
        raise InputError(f"the input must be a batch (N, ...) with N >= 1; its shape is {tuple(x.shape)}")
    if x.dtype not in TOLERANCE:
        raise InputError(f"the input must be floating point; its dtype is {x.dtype}")
    p = next((p for p in model.parameters() if p.is_floating_point()), None)
    if p is not None and (p.dtype != x.dtype or p.device != x.device):
        raise InputError(
            f"the input is {x.dtype} on {x.device}, the model {p.dtype} on {p.device}: "
            f"use x.to(device='{p.device}', dtype={p.dtype})"
        )
    bad = ~torch.isfinite(x)
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise InputError(f"the input holds {int(bad.sum())} values that are NaN or infinite, the first at {where}")


def finite_weights(model: nn.Module) -> None:
    """Raise InputError naming the first parameter or buffer with NaN or Inf; in a buffer, -inf may be a mask's."""
    masks = {name: t.masked_fill(t == -torch.inf, 0) if t.dim() > 1 else t for name, t in model.named_buffers()}
    for name, t in (*model.named_parameters(), *masks.items()):
        _finite(t, f"`{name}` of {type(model).__name__}", ": load sound weights")


def kind(xs: tuple[Tensor, ...]) -> tuple:
    """What a plan is checked for: shapes but for the number of samples, dtypes and devices."""
    return tuple((tuple(x.shape[1:]), x.dtype, x.device) for x in xs)


def run(model: nn.Module, *xs: Tensor) -> Tensor:
    """The model's own output; what it cannot take becomes an InputError."""
    try:
        output = model(*(x.clone() for x in xs))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in xs)
        raise InputError(f"{type(model).__name__} cannot take an input of shape {shapes}: {error}") from error
    if not isinstance(output, Tensor):
        raise several(model, output)
    return output


def failed(node, error: Exception) -> LRPError:
    """The error for a node whose computation failed."""
    return CaptureError(
        f"node {node.called} calls {node.op} and cannot be computed as it was captured: {type(error).__name__}: {error}"
    )


class _Plain(TorchFunctionMode):
    """Inside, an autocast that the model turns on has no effect."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with no_autocast():
            return func(*args, **(kwargs or {}))


@contextmanager
def no_autocast() -> Iterator[None]:
    """A context without autocast on any device where it is on."""
    with ExitStack() as off:
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps", "xpu")):
            off.enter_context(torch.autocast(device, enabled=False))
        yield


def several(model: nn.Module, output) -> CaptureError:
    """The error for a model that returns something other than one tensor."""
    kind = type(output).__name__.removeprefix("immutable_")  # fx has lists and dicts of its own
    return CaptureError(
        f"{type(model).__name__} returns a {kind}, not one tensor: wrap it in a module whose forward returns the "
        "tensor of logits"
    )


def same(expected: Tensor, output: Tensor, model: nn.Module, xs: Sequence[Tensor], hooked: Sequence[str] = ()) -> None:
    """Raise CaptureError unless the graph's output is the model's own, in the precision of the inputs.

    A model that turns on autocast in its forward is compared without, which is what its graph computes. `hooked` are
    modules with hooks, which no graph sees.
    """
    try:
        same_output(expected, output, model)
    except CaptureError as error:
        with _Plain():
            expected = run(model, *xs)
        try:
            same_output(expected, output, model)
        except CaptureError:
            if not hooked:
                raise error from None
            raise CaptureError(
                f"a forward hook at {', '.join(hooked)} changes what {type(model).__name__} computes, and hooks are "
                "not part of what is explained: remove it (handle.remove()), or do in forward what it does"
            ) from None


def same_output(expected: Tensor, output: Tensor, model: nn.Module) -> None:
    """Raise CaptureError unless the graph reproduces the model's output, InputError if that is not finite."""
    _finite(expected, f"the output of {type(model).__name__}", " for this input")
    if expected.shape != output.shape:
        raise CaptureError(f"the captured graph gives shape {tuple(output.shape)}, the model {tuple(expected.shape)}")
    gap = float((expected - output).abs().max())
    allowed = TOLERANCE[expected.dtype] * max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny)
    if not gap <= allowed:
        raise CaptureError(
            f"the captured graph does not reproduce {type(model).__name__}: outputs differ by {gap:.3g} "
            f"(allowed {allowed:.3g}). Does forward change tensors in place through views, use randomness, or depend "
            "on the shape of the input it was traced without?"
        )


def logits(output: Tensor, model: nn.Module) -> None:
    """Raise InputError unless the output is (N, K)."""
    if output.dim() != 2:
        raise InputError(
            f"{type(model).__name__} gives an output of shape {tuple(output.shape)}, not (N, K): hand over a seed "
            "tensor of that shape, or wrap the model so that it returns (N, K)"
        )


def seed(R: Tensor, output: Tensor) -> None:
    """Raise InputError unless the seed has the shape of the output, perhaps with a leading axis of targets."""
    if R.shape != output.shape and R.shape[1:] != output.shape:
        raise InputError(
            f"the seed has shape {tuple(R.shape)}; it must be shaped like the output {tuple(output.shape)}, "
            "with a leading axis for several targets"
        )
    _finite(R, "the seed")


def targets(target, output: Tensor) -> tuple[Tensor, bool]:
    """The targets as (T, N), and whether one (not a list) was given; raises TargetError for what names no class."""
    single = not isinstance(target, (list, tuple))
    given = [target] if single else target
    if not given:
        raise TargetError("the list of targets is empty")
    return torch.stack([_target(t, output) for t in given]), single


def unit(target, output: Tensor, name: str) -> tuple[int, ...]:
    """A channel c, or one unit (c, y, x), of a hidden output (N, C, ...), as a tuple of ints; else TargetError."""
    sizes = tuple(output.shape[1:])
    shape = f"(N, {', '.join(map(str, sizes))})"
    index = target if isinstance(target, tuple) else (target,)
    if not all(map(_integral, index)) or len(index) not in (1, len(sizes)):
        raise TargetError(
            f"`{name}` gives {shape}: there a target is a channel, or a tuple of {len(sizes)} indices for one unit, "
            f"or a list of these; got {target!r}"
        )
    if any(not 0 <= i < size for i, size in zip(index, sizes, strict=False)):
        raise TargetError(f"{target!r} is no unit of `{name}`, whose output is {shape}")
    return tuple(int(i) for i in index)


def _target(target, output: Tensor) -> Tensor:
    n, k = output.shape
    if target is None:
        return output.argmax(1)
    if _integral(target):
        target = torch.tensor(int(target))
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        what = f"a {target.dtype} tensor" if isinstance(target, Tensor) else f"{target!r}"
        raise TargetError(f"a target is None, an int, or a LongTensor ({n},) with one class per sample; got {what}")
    if target.shape not in ((), (n,)):
        raise TargetError(f"a target tensor has one class per sample, ({n},); got shape {tuple(target.shape)}")
    if len(wrong := target[(target < 0) | (target >= k)]):
        raise TargetError(f"target {int(wrong[0])} is none of the {k} classes 0..{k - 1}")
    return target.to(output.device, torch.long).expand(n)


def _integral(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _finite(values: Tensor, what: str, more: str = "") -> None:
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise InputError(f"{what} holds NaN or infinite values{more}")
