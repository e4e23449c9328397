"""What a node is, seen from its inputs: summands and factors, expressions of one value, pieces of several.

An elementwise function of one value is an activation, however it is written: x * sigmoid(x), x * relu6(x + 3) / 6,
relu(x) - 0.1 * relu(-x), where(x > 0, x, 0.1 * x). Where several functions of one node meet, in a product, a sum, or
what takes the larger, they become one node that reads it, and relevance passes. What is added to one value alone is a
bias (`lrp.network.affine`), be it behind a layer or behind an activation.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile

from ..errors import CaptureError
from . import kinds as v
from .gates import KNOWN, gate, weights
from .graph import Node, reachable, references


def related(node: Node) -> Node:
    """The node with its inputs, and the kind that follows from them."""
    read = [first(node)] if node.op in v.SHAPED_LIKE else references((node.args, node.kwargs))
    node.inputs = tuple(n for n in read if isinstance(n, Node) and n.carries)
    if not node.inputs:
        node.kind = v.CONSTANT
    elif node.kind == v.ADD:
        _summands(node)
    elif node.kind == v.PRODUCT:
        _factors(node)
    elif node.op in v.PRODUCTS:
        _matrices(node)
    elif node.kind in (*v.WEIGHTED, v.BATCHNORM) and node.inputs != (first(node),):
        node.kind = v.UNKNOWN  # a kernel computed from the input
    elif node.kind == v.BATCHNORM and node.module is None and node.layer({}).by_batch:
        node.kind = v.UNKNOWN
    elif node.op in v.PIECEWISE or _gives_several(node):
        node.kind = v.PIECES
    elif node.op in ("getitem", "getattr") and node.inputs[0].kind == v.PIECES:
        _piece(node)
    elif node.op == "getattr":
        _attribute(node)
    elif node.op in v.JOINS and not node.own:
        _larger(node)
    elif node.kind == v.REARRANGE:
        node.fills = node.op in v.FILLS | v.PADS or len(_listed(node)) > len(node.inputs)
    if node.kind in (v.ADD, v.PRODUCT) or (node.op in v.JOINS and not node.own):
        _meet(node)
    return node


def first(node):
    """The first argument of a node (or of an fx node), given by position or by keyword."""
    return next(iter((*node.args, *node.kwargs.values())), None)


def operands(node: Node) -> tuple[list, tuple, dict]:
    """The two factors of a product, and the other arguments."""
    factors = [*node.args, *(value for key, value in node.kwargs.items() if key in v.OPERANDS)]
    if node.op == "einsum":
        factors = factors[1:]
        factors = list(factors[0]) if len(factors) == 1 and isinstance(factors[0], list | tuple) else factors
        return factors, (), {}
    return factors[:2], tuple(factors[2:]), {key: value for key, value in node.kwargs.items() if key not in v.OPERANDS}


def _summands(node: Node) -> None:
    """Signs of the summands; those that do not depend on the input are constants, that is, a bias."""
    a, b = (*node.args, *(k for name, k in node.kwargs.items() if name != "alpha"))
    alpha = node.kwargs.get("alpha", 1.0)  # torch.add(a, b, alpha=alpha) is a + alpha b
    signs = {"sub": (1.0, -alpha), "subtract": (1.0, -alpha), "rsub": (-alpha, 1.0)}.get(node.op, (1.0, alpha))
    terms = [(sign, term, isinstance(term, Node) and term.carries) for sign, term in zip(signs, (a, b), strict=True)]
    node.signs = tuple(float(sign) for sign, _, carries in terms if carries)
    node.constants = tuple((sign, term) for sign, term, carries in terms if not carries)


def _factors(node: Node) -> None:
    """Times a constant is a scale; of two factors that carry, one may be the gate."""
    divides = node.op in v.DIVISIONS
    if node.kwargs.get("rounding_mode") is not None:
        node.kind = v.UNKNOWN
    elif len(node.inputs) == 1:  # c / x is no scale of x
        node.kind = v.UNKNOWN if divides and node.inputs[0] is not first(node) else v.SCALE
    else:
        node.gate = 1 if divides else gate(node)


def _matrices(node: Node) -> None:
    """Times a constant matrix it is a dense layer; of two signals a product, of which one may be the gate."""
    factors = operands(node)[0]
    carrying = [factor for factor in factors if isinstance(factor, Node) and factor.carries]
    node.kind = v.UNKNOWN
    if len(carrying) == len(node.inputs) == 1 and len(factors) == 2:
        node.kind = v.DENSE
    elif len(carrying) == len(node.inputs) == len(factors) == 2:
        node.kind, node.gate = v.MATMUL, weights(node)


def softmax_axis(node: Node, axes: int) -> int:
    """The axis of a softmax, counted from the last one, for a value of so many axes."""
    if node.op == "softmax2d":
        return -3
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axis = node.module.dim if node.module is not None else given
    if axis is None:  # as torch chooses it
        axis = 0 if axes in (0, 1, 3) else 1
    return axis if axis < 0 else axis - axes


def _larger(node: Node) -> None:
    """Of two tensors the larger, or the chosen one, gets everything; what a constant wins, it keeps."""
    limits = references((node.args[1:], node.kwargs))
    if node.op == "pow":
        exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
        vanishes = not isinstance(exponent, int | float) or exponent > 0  # at 0, as an activation does
        node.kind = v.ACTIVATION if vanishes and node.inputs == (first(node),) else v.UNKNOWN
    elif node.op in ("where", "masked_fill"):
        node.fills = len(node.inputs) == 1
    elif limits:
        node.kind = v.MAXIMUM
        node.fills = any(not n.carries for n in references((node.args, node.kwargs)))


# ---------------------------------------------------------------- functions of one value


def _meet(node: Node) -> None:
    """Make functions of one node that meet here one activation of it."""
    asked = _asked(node)
    if len(node.inputs) > 1 or asked or _clips(node):
        lines = [list(_line(n)) for n in (*node.inputs, *asked)]
        common = next((n for n in lines[0] if all(n in line for line in lines)), None)
        if common is not None and node.kind == v.ADD and any(_shifts(line, common) for line in lines):
            node.root = common
        elif common is not None:
            _express(node, common)


def _line(node: Node) -> Iterator[Node]:
    """The node and those below it of which it is an elementwise function, in order."""
    yield node
    while node.root or (len(node.inputs) == 1 and _elementwise(node)):
        node = node.root or node.inputs[0]
        yield node


def _elementwise(node: Node) -> bool:
    if node.op in ("max", "min"):
        return node.kind == v.MAXIMUM  # of two tensors
    named = node.op in v.UNRULED | v.DIVISIONS | v.JOINS and not node.own
    return named or node.kind in (v.ACTIVATION, v.SCALE, v.ADD, v.BATCHNORM)


def _asked(node: Node) -> list[Node]:
    """Of where(x > 0, a, b): x."""
    if node.op not in ("where", "masked_fill"):
        return []

    def step(n: Node) -> list[Node]:
        facts = n.op in v.FORMS or (n.carries and n is not node)
        return [] if facts else [r for r in references((n.args, n.kwargs)) if n is not node or not r.carries]

    return [n for n in reachable(node, step) if n.carries and n is not node]


def _clips(node: Node) -> bool:
    """Is this the larger or smaller of x and 0?"""
    given = [n for n in references((node.args, node.kwargs)) if not n.carries]
    return node.kind == v.MAXIMUM and bool(given) and all(KNOWN.get(n.op) == 0 for n in given)


def _shifts(line: list[Node], source: Node) -> bool:
    """Does a summand end in an affine map that adds constants? They are a bias, and no part of an activation."""
    summand = takewhile(lambda n: n is not source, line)
    ends = takewhile(lambda n: n.kind in (v.SCALE, v.ADD, v.BATCHNORM) or n.op in v.LINEAR_NAMES, summand)
    return any(n.kind == v.BATCHNORM or n.constants or n.root for n in ends)


def _between(node: Node, source: Node) -> list[Node]:
    """What stands between the two, in order."""
    found, todo = {}, list(reversed(node.inputs))
    while todo:
        below = [n for n in todo[-1].inputs if n is not source and n not in found]
        if todo[-1] is source or todo[-1] in found or not below:
            found[todo.pop()] = None
        else:
            todo += below
    return [n for n in found if n is not source]


def _express(node: Node, source: Node) -> None:
    """Make the node an activation of `source`, which computes all that lies between them by itself."""
    between = _between(node, source)
    parts = [(part, replace(part)) for part in (*between, node)]
    read = dict.fromkeys(n for part, _ in parts for n in references((part.args, part.kwargs)) if n not in between)
    node.parts = tuple(copy for _, copy in parts)
    node.call, node.args, node.kwargs = _expression(parts[:-1], node.parts[-1], tuple(read)), tuple(read), {}
    node.kind, node.inputs, node.signs, node.constants = v.ACTIVATION, (source,), (), ()
    node.gate, node.fills = None, False


def _expression(parts: list[tuple[Node, Node]], last: Node, read: tuple[Node, ...]) -> Callable:
    def call(*given):
        values = dict(zip(read, given, strict=True))
        for node, part in parts:
            values[node] = part.run(values)
        return last.run(values)

    return call


# ---------------------------------------------------------------- several values


def _gives_several(node: Node) -> bool:
    """Does this call of x.max(1), or of a pool with its indices, give a tuple?"""
    if node.op not in v.SEVERAL:
        return False
    if node.op in ("max", "min", "median", "nanmedian"):  # of one tensor they give a number, of two the larger
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return axis is not None and not isinstance(axis, Node)
    if "pool" in node.op and not node.op.endswith("indices"):
        return bool(getattr(node.module, "return_indices", node.kwargs.get("return_indices", False)))
    return True


def _attribute(node: Node) -> None:
    """x.shape is a fact about a tensor, x.mT carries its values."""
    name = node.args[1]
    if name not in v.CARRYING | v.FACTS:
        raise CaptureError(
            f"node `{node.name}` reads the attribute `{name}` of `{node.inputs[0].name}`, and it is not known whether "
            "that holds its values: write it as a call of torch"
        )
    if name in v.FACTS:
        node.kind, node.inputs = v.CONSTANT, ()
    else:
        node.kind = v.REARRANGE


def _piece(node: Node) -> None:
    """Make x.chunk(2)[1] one node that reads x, so that no node with several values lies on the way back.

    A slice, x.chunk(3)[:2], still is several tensors. The node of `chunk` itself falls out if nothing else reads it.
    """
    pieces, index = node.inputs[0], node.args[1]
    if node.op == "getattr":
        index = v.FIELDS[index]
    kinds = v.SEVERAL.get(pieces.op, ())
    node.kind = v.PIECES if isinstance(index, slice) else kinds[index] if kinds else v.REARRANGE
    if not kinds or node.kind == v.REARRANGE:  # a piece of chunk is a view, one of sort or topk is chosen
        node.op = pieces.op
    node.call = lambda *args, **kwargs: pieces.call(*args, **kwargs)[index]
    node.args, node.kwargs, node.inputs = pieces.args, pieces.kwargs, pieces.inputs


def _listed(node: Node) -> list:
    """The tensors that cat and stack join."""
    given = first(node)
    return list(given) if isinstance(given, list | tuple) else []
