"""Names of torch's functions by what LRP does there, and bounds of values: the words of `tests/derivation.py`."""

import math
from typing import NamedTuple

from torch import Tensor


class Bounds(NamedTuple):
    """Where values lie; `gate`: a sigmoid or softmax made them, whatever was done to them since."""

    low: float
    high: float
    gate: bool = False


def _words(text: str) -> set[str]:
    """The words, with "#" written out as 1, 2 and 3."""
    return {word.replace("#", d) for word in text.split() for d in ("123" if "#" in word else "-")}


BOUNDS = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softmax"), Bounds(0.0, 1.0, True)),
    **dict.fromkeys(("tanh", "softsign", "erf", "sin", "cos"), Bounds(-1.0, 1.0)),
    "relu6": Bounds(0.0, 6.0),
}
FACTS = _words(
    "get set size dim requires_grad register_hook numel stride data_ptr hash is_contiguous new_zeros new_ones"
)
NORMS = _words("layer_norm group_norm instance_norm rms_norm normalize local_response_norm")
PASSES = NORMS | _words(
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign tanh sigmoid hardswish "
    "hardsigmoid hardtanh logsigmoid tanhshrink softshrink hardshrink threshold alpha_dropout feature_alpha_dropout "
    "clamp clamp_min clamp_max clip pow square detach"
)
ELEMENTWISE = _words("exp log sqrt rsqrt sin cos abs erf reciprocal expm1 log1p sign")  # no rule of their own
COMPARES = _words("lt gt le ge eq ne less greater less_equal greater_equal")
CHOICES = _words("where masked_fill")  # by a condition
PRODUCTS = _words("mul rmul multiply div truediv true_divide divide rtruediv rdiv")
DIVISIONS = {name for name in PRODUCTS if "div" in name}
SUMS = _words("add radd sub rsub subtract")
SHAPES = _words(
    "flatten reshape view permute transpose t squeeze unsqueeze expand expand_as repeat tile movedim moveaxis swapaxes "
    "swapdims narrow select index_select getitem unflatten roll flip view_as reshape_as ravel contiguous clone to "
    "dropout dropout#d pixel_shuffle pixel_unshuffle channel_shuffle float double half type_as repeat_interleave unfold"
)
COPIES = _words("contiguous clone to dropout dropout#d float double half type_as")
POOLS = _words("avg_pool#d adaptive_avg_pool#d mean interpolate upsample")
AVERAGES = POOLS | {"sum"}
MAXIMA = _words(
    "max_pool#d _max_pool#d adaptive_max_pool#d amax amin max min maximum minimum fmax fmin max_pool#d_with_indices"
)
PIECES = _words("cat concat concatenate stack chunk split unbind tensor_split")
LINEAR = _words(
    "conv#d conv_transpose#d linear matmul rmatmul mm bmm mv addmm baddbmm einsum tensordot batch_norm sum cumsum pad "
    "where masked_fill neg sort topk fold lp_pool diag copy_ index_copy index_add scatter masked_scatter diff gather "
    "broadcast_tensors split_with_sizes"
)
MATRICES = _words("matmul rmatmul mm bmm einsum")
CLAMPS = _words("clamp clamp_min clamp_max clip")
OF_TWO = CLAMPS | CHOICES | _words("maximum minimum fmax fmin max min")
KNOWN = CLAMPS | SHAPES | POOLS | MAXIMA | PIECES | LINEAR
SAVES = POOLS | MAXIMA | ELEMENTWISE | {"softmax", "topk", "sort"}
KEEPS_BOUNDS = SHAPES | POOLS | MAXIMA | PIECES
ONE_FACTOR = _words("conv#d conv_transpose#d linear matmul rmatmul mm bmm mv addmm baddbmm einsum tensordot")
_INPLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv", "ipow": "pow"}


def plain(func) -> tuple[str, bool]:
    """A function's plain name, and whether it works in place: `__iadd__` is ("add", True)."""
    name = getattr(func, "__name__", str(func))
    if name.startswith("__") and name.endswith("__"):
        return _INPLACE.get(name[2:-2], name[2:-2]), name[2:-2] in _INPLACE or name == "__setitem__"
    name = "threshold" if name == "_threshold" else name
    return (name[:-1], True) if name.endswith("_") and name not in ("copy_", "requires_grad_") else (name, False)


def is_maximum(name: str, args, kwargs) -> bool:
    """Is this clamp the larger (smaller) of a value and a constant tensor?"""
    return name in CLAMPS and any(isinstance(limit, Tensor) for limit in (*args[1:], *kwargs.values()))


def rank(bounds: Bounds | None) -> int:
    """0 made by a sigmoid, 1 within [0, 2], 2 within [-1, 1], 3 bounded, 4 not."""
    if bounds is None or not (math.isfinite(bounds.low) and math.isfinite(bounds.high)):
        return 4
    if bounds.gate:
        return 0
    return 1 if 0 <= bounds.low and bounds.high <= 2 else 2 if -1 <= bounds.low and bounds.high <= 1 else 3


def joined(bounds: list) -> Bounds | None:
    """Of values that come from several tensors."""
    if not bounds or not all(bounds):
        return None
    return Bounds(min(b.low for b in bounds), max(b.high for b in bounds), all(b.gate for b in bounds))


def _ends(constant) -> tuple[float, float]:
    return (float(constant.min()), float(constant.max())) if isinstance(constant, Tensor) else (float(constant),) * 2


def times(one: Bounds | None, two: Bounds | None) -> Bounds | None:
    if not (one and two):
        return None
    products = [p * q for p in one[:2] for q in two[:2]]
    return Bounds(min(products), max(products), one.gate and two.gate)


def added(one: Bounds | None, two: Bounds | None) -> Bounds | None:
    return Bounds(one.low + two.low, one.high + two.high, one.gate and two.gate) if one and two else None


def scaled(bounds: Bounds | None, constant, divides: bool) -> Bounds | None:
    """Bounds of x c, or of x / c."""
    if bounds is None:
        return None
    low, high = _ends(constant)
    if divides:
        return None if low <= 0 <= high else times(bounds, Bounds(1 / high, 1 / low, bounds.gate))
    return times(bounds, Bounds(low, high, bounds.gate))


def shifted(bounds: Bounds | None, constant, name: str, minus: bool) -> Bounds | None:
    """Bounds of x + c, x - c or, with `minus`, c - x."""
    if bounds is None:
        return None
    low, high = _ends(constant)
    if minus:
        return Bounds(low - bounds.high, high - bounds.low, bounds.gate)
    low, high = (-high, -low) if "sub" in name else (low, high)
    return Bounds(bounds.low + low, bounds.high + high, bounds.gate)


def activated(name: str, args, kwargs, bounds: Bounds | None) -> Bounds | None:
    """Bounds of an activation of x, from those of x."""
    gate = bounds is not None and bounds.gate
    if name == "detach":
        return bounds
    if name == "relu":
        return bounds and Bounds(max(bounds.low, 0.0), max(bounds.high, 0.0), gate)
    if name not in CLAMPS | {"hardtanh"}:
        found = BOUNDS.get(name)
        return found and found._replace(gate=found.gate or gate)
    given = dict(zip({"clamp_min": ("min",), "clamp_max": ("max",)}.get(name, ("min", "max")), args[1:], strict=False))
    given |= {key.removesuffix("_val"): value for key, value in kwargs.items()}
    if name == "hardtanh":
        given = {"min": -1.0, "max": 1.0} | given
    low, high = given.get("min"), given.get("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    low, high = (bounds.low if low is None and bounds else low), (bounds.high if high is None and bounds else high)
    return None if low is None or high is None else Bounds(float(low), float(high), gate)
