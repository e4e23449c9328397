"""Which factor of a product is the gate: the bounded one, by interval arithmetic over the graph.

`bound` gives the interval in which a node's values lie, whatever the input, from the operation and the intervals of its
inputs. A gate gets no relevance. Of two bounded factors it is one that a sigmoid or softmax made, then one within 0..2
(`relu6(x + 3) / 6`, `1 + tanh(x)`), then one within -1..1 (tanh), then any other (relu6); where both rank alike, the
graph does not tell. So sigmoid(o) * tanh(c) lets tanh(c) through, and relu6(x) * y lets y through.
"""

from math import inf, pi

from . import kinds as v
from .graph import SOME, Bound, Node, references

ANY, POSITIVE, UNIT, SIGNED = (-inf, inf), (0.0, inf), (0.0, 1.0), (-1.0, 1.0)
RANGES = {  # of functions, whatever their argument
    **dict.fromkeys([*v.GATES, "softmin", "softmax2d", "gumbel_softmax"], UNIT),
    **dict.fromkeys("tanh softsign erf special_erf sin cos sign sgn normalize cosine_similarity".split(), SIGNED),
    **dict.fromkeys("exp exp2 softplus sqrt rsqrt norm vector_norm".split(), POSITIVE),
    **dict.fromkeys(("atan", "arctan"), (-pi / 2, pi / 2)),
    "erfc": (0.0, 2.0),
}
CLIPS = {  # names of the limits, and what they are if not given
    "relu": (),
    "relu6": (),
    "hardtanh": (("min_val", -1.0), ("max_val", 1.0)),
    **dict.fromkeys(("clamp", "clip"), (("min", None), ("max", None))),
    "clamp_min": (("min", None),),
    "clamp_max": (("max", None),),
}
KNOWN = {"zeros_like": 0.0, "new_zeros": 0.0, "ones_like": 1.0, "new_ones": 1.0}  # values of constants
LARGER, SMALLER = {"maximum", "fmax", "max"}, {"minimum", "fmin", "min"}  # of two tensors


def gate(node: Node) -> int | None:
    """Which of the two factors of a product is the gate; None where the graph does not tell."""
    a, b = (_rank(factor.bound) for factor in node.inputs)
    return None if a == b else int(b < a)


def weights(node: Node) -> int | None:
    """Which of two matrices holds the weights of the other's rows: the one that a softmax or sigmoid made, perhaps
    mixed since, as talking heads are, or one within 0..1, as a softmax by hand is; None where both did, or neither.
    What was weighted already, as k^T V in linear attention, is none."""
    made = [_rank(factor.bound) <= 1 for factor in node.inputs]
    if made[0] == made[1]:
        one, two = (factor.softmaxes for factor in node.inputs)
        made = [bool(one - two), bool(two - one)]
    return None if made[0] == made[1] else made.index(True)


def attends(node: Node) -> bool:
    """Is this elementwise product one of attention weights and values, whose sum is written apart?"""
    return node.kind == v.PRODUCT and node.gate is not None and bool(node.inputs[node.gate].softmaxes)


def measure(node: Node) -> Node:
    """The node with what is known of its values: their bound, and the softmaxes that they are made of."""
    node.bound = bound(node)
    below = (source.softmaxes for source in node.signals)
    node.softmaxes = frozenset([node]) if node.kind == v.SOFTMAX else frozenset().union(*below)
    return node


def _rank(bound: Bound) -> int:
    kinds = (bound.gate, 0 <= bound.low and bound.high <= 2, -1 <= bound.low and bound.high <= 1, bound.finite)
    return kinds.index(True) if any(kinds) else len(kinds)


def bound(node: Node) -> Bound:
    """In which interval the node's values lie, and whether they are a gate's: made by a sigmoid or softmax."""
    if not node.carries:
        value = KNOWN.get(node.op)
        return Bound(-SOME, SOME) if value is None else Bound(value, value)
    if node.parts:  # an expression: of its last part
        return bound(node.parts[-1])
    low, high = ANY if node.own else _interval(node)
    made = node.op in v.GATES and not node.own
    kept = (low, high) != ANY and bool(node.inputs) and all(i.bound.gate for i in node.inputs)
    return Bound(low, high, made or kept)


def _interval(node: Node) -> tuple[float, float]:
    """By what the node does: each kind, and some functions, have their own arithmetic."""
    below, op = [(i.bound.low, i.bound.high) for i in node.inputs], node.op
    if node.signs:
        return _sum(node, below)
    if node.kind == v.PRODUCT or (node.kind in (v.SCALE, v.UNKNOWN) and op in v.MULTIPLICATIONS | v.DIVISIONS):
        return _product(node)
    if op in LARGER | SMALLER and node.kind != v.PIECES:
        return _winner(node, below)
    if node.kind in (v.ACTIVATION, v.UNKNOWN, v.NORM, v.SOFTMAX):
        return _function(node, below)
    if node.kind in (v.REARRANGE, v.PIECES, v.MAXIMUM):
        return hull([*below, *_filled(node)])
    if node.kind == v.AVERAGE:
        return _average(node, below)
    if node.kind == v.LRN:
        return _signs(below[0])
    return ANY


def hull(intervals) -> tuple[float, float]:
    lows, highs = zip(*intervals, strict=True)
    return min(lows), max(highs)


def _signs(interval: tuple[float, float]) -> tuple[float, float]:
    """What is known if only the sign is kept."""
    low, high = interval
    return 0.0 if low >= 0 else -inf, 0.0 if high <= 0 else inf


def times(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    products = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(products), max(products)


def number(value) -> tuple[float, float]:
    """The interval of an argument that does not depend on the input."""
    if isinstance(value, Node):
        return value.bound.low, value.bound.high
    return (float(value), float(value)) if isinstance(value, int | float) else (-SOME, SOME)


def _sum(node: Node, below: list) -> tuple[float, float]:
    terms = [times((sign, sign), x) for sign, x in zip(node.signs, below, strict=True)]
    terms += [times((sign, sign), number(c)) for sign, c in node.constants if isinstance(sign, int | float)]
    return sum(low for low, _ in terms), sum(high for _, high in terms)


def _product(node: Node) -> tuple[float, float]:
    a, b, *_ = (*node.args, *node.kwargs.values())
    if node.op in v.DIVISIONS:
        return _ratio(a, b)
    if a is b:
        low, high = number(a)
        return (0.0 if low <= 0 <= high else min(low * low, high * high)), max(low * low, high * high)
    return times(number(a), number(b))


def _ratio(a, b) -> tuple[float, float]:
    """x / (sum or largest of x, where x >= 0) is a share; otherwise what the signs tell."""
    x, (low, high) = number(a), number(b)
    if not isinstance(b, Node) and low == high != 0:
        return times(x, (1 / low, 1 / low))
    if isinstance(a, Node) and x[0] >= 0 and a in _counted(b):
        return UNIT
    if low > 0:
        return times(x, (1 / high, 1 / low))
    return _signs(x) if low == 0 else ANY


def _counted(node) -> list[Node]:
    """Of what is this node a sum or the largest value, perhaps moved away from zero, or copied?"""
    while isinstance(node, Node) and node.op not in ("sum", "amax"):
        passes = node.kind == v.REARRANGE or node.op in ("clamp", "clamp_min")
        if node.kind == v.ADD and len(node.inputs) == 1 and node.signs == (1.0,):
            passes = all(number(c)[0] * sign >= 0 for sign, c in node.constants)
        node = node.inputs[0] if passes and len(node.inputs) == 1 else None
    return list(node.inputs) if node is not None else []


def _winner(node: Node, below: list) -> tuple[float, float]:
    given = [number(c) for c in _constants(node)]
    lows, highs = zip(*below, *given, strict=True)
    if not given and len(below) == 1:  # of one tensor
        return below[0]
    return (max(lows), max(highs)) if node.op in LARGER else (min(lows), min(highs))


def _constants(node: Node) -> list[Node]:
    return [n for n in references((node.args, node.kwargs)) if not n.carries]


def _filled(node: Node) -> list[tuple[float, float]]:
    """What stands in the value besides the inputs' own."""
    if node.op in v.PADS:
        value = getattr(node.module, "value", (*node.args[3:4], node.kwargs.get("value"))[0]) or 0.0
        return [number(value), (0.0, 0.0)]
    if node.op in v.ZEROS:
        return [(0.0, 0.0)]
    return [(-SOME, SOME)] if node.fills else []


def _function(node: Node, below: list) -> tuple[float, float]:
    """Of an elementwise function: by a table, or clipped; copies keep all."""
    op, (low, high) = node.op, below[0]
    if op in v.KEEPS_SIGN_NAMES and node.kind == v.ACTIVATION:
        return low, high
    if op in CLIPS:
        least, most = _limits(node)
        return min(max(low, least), most), max(min(high, most), least)
    if op in ("abs", "absolute", "square"):
        size, power = hull([(abs(low), abs(low)), (abs(high), abs(high))]), 2 if op == "square" else 1
        return (0.0 if low <= 0 <= high else size[0] ** power), size[1] ** power
    if op == "pow":
        return _power(low, high, node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent"))
    if op in v.NEGATIONS:
        return -high, -low
    least, most = RANGES.get(op, ANY)
    return (max(least, 0.0), most) if op in ("tanh", "softsign", "erf", "special_erf") and low >= 0 else (least, most)


def _limits(node: Node) -> tuple[float, float]:
    """The limits of a function that clips."""
    if node.op in ("relu", "relu6"):
        return 0.0, 6.0 if node.op == "relu6" else inf
    limits = {"min": -inf, "max": inf}
    for place, (name, otherwise) in enumerate(CLIPS[node.op], 1):
        given = node.args[place] if len(node.args) > place else node.kwargs.get(name, otherwise)
        given = getattr(node.module, name, given)
        if isinstance(given, int | float):
            limits[name[:3]] = float(given)
    return limits["min"], limits["max"]


def _power(low: float, high: float, exponent) -> tuple[float, float]:
    if isinstance(exponent, int | float) and exponent > 0:
        if low >= 0:
            return _raised(low, exponent), _raised(high, exponent)
        if exponent % 2 == 0:
            return 0.0, _raised(max(abs(low), abs(high)), exponent)
    return POSITIVE if low >= 0 else ANY


def _raised(x: float, exponent: float) -> float:
    try:
        return x**exponent
    except OverflowError:
        return inf


def _average(node: Node, below: list) -> tuple[float, float]:
    low, high = hull([*below, (0.0, 0.0)])  # a pool may count its padding
    if node.op in ("sum", "fold", "cumsum"):
        return _signs((low, high))
    if overshoots(node):  # less than its width beyond
        return low - (high - low), high + (high - low)
    return low, high


def overshoots(node: Node) -> bool:
    """May an average have negative weights? Bicubic and Lanczos resampling do."""
    mode = getattr(node.module, "mode", None) or node.kwargs.get("mode") or (*node.args[3:4], "nearest")[0]
    return node.op in v.RESAMPLING and str(mode) not in v.SMOOTH
