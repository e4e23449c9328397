"""Names of torch's functions by what LRP does there, and bounds of values: the words of `tests/derivation.py`."""

import math

from torch import Tensor

Bounds = tuple[float, float] | None


def _words(text: str) -> set[str]:
    """The words, with "#" written out as 1, 2 and 3."""
    return {word.replace("#", d) for word in text.split() for d in ("123" if "#" in word else "-")}


BOUNDS = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softmax"), (0.0, 1.0)),
    **dict.fromkeys(("tanh", "softsign", "erf", "sin", "cos"), (-1.0, 1.0)),
    "relu6": (0.0, 6.0),
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
CLAMPS = _words("clamp clamp_min clamp_max clip")
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


def rank(bounds: Bounds) -> int:
    """0 within [0, 1], 1 not negative and bounded, 2 bounded, 3 not."""
    if bounds is None or not all(map(math.isfinite, bounds)):
        return 3
    return 0 if bounds[0] >= 0 and bounds[1] <= 1 else 1 if bounds[0] >= 0 else 2


def joined(bounds: list) -> Bounds:
    """Of values that come from several tensors."""
    return (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds and all(bounds) else None


def _ends(constant) -> tuple[float, float]:
    return (float(constant.min()), float(constant.max())) if isinstance(constant, Tensor) else (float(constant),) * 2


def times(one: Bounds, two: Bounds) -> Bounds:
    products = [p * q for p in one for q in two] if one and two else [math.inf]
    return (min(products), max(products)) if one and two else None


def added(one: Bounds, two: Bounds) -> Bounds:
    return (one[0] + two[0], one[1] + two[1]) if one and two else None


def scaled(bounds: Bounds, constant, divides: bool) -> Bounds:
    """Bounds of x c, or of x / c."""
    if bounds is None:
        return None
    low, high = _ends(constant)
    if divides:
        return None if low <= 0 <= high else times(bounds, (1 / high, 1 / low))
    return times(bounds, (low, high))


def shifted(bounds: Bounds, constant, name: str, minus: bool) -> Bounds:
    """Bounds of x + c, x - c or, with `minus`, c - x."""
    if bounds is None:
        return None
    low, high = _ends(constant)
    if minus:
        return low - bounds[1], high - bounds[0]
    return (bounds[0] - high, bounds[1] - low) if "sub" in name else (bounds[0] + low, bounds[1] + high)


def activated(name: str, args, kwargs, bounds: Bounds) -> Bounds:
    """Bounds of an activation of x, from those of x."""
    if name == "detach":
        return bounds
    if name == "relu":
        return bounds and (max(bounds[0], 0.0), max(bounds[1], 0.0))
    if name not in CLAMPS | {"hardtanh"}:
        return BOUNDS.get(name)
    given = dict(zip({"clamp_min": ("min",), "clamp_max": ("max",)}.get(name, ("min", "max")), args[1:], strict=False))
    given |= {key.removesuffix("_val"): value for key, value in kwargs.items()}
    if name == "hardtanh":
        given = {"min": -1.0, "max": 1.0} | given
    low, high = given.get("min"), given.get("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    low, high = (bounds[0] if low is None and bounds else low), (bounds[1] if high is None and bounds else high)
    return None if low is None or high is None else (float(low), float(high))
