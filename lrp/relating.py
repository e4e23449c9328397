"""What a node is, seen from its inputs: summands and factors, gates and pieces, and whether a value can be negative."""

import torch

from . import kinds as v
from .errors import CaptureError
from .graph import Node, references


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
        factors = operands(node)[0]
        node.kind = v.DENSE if len(node.inputs) == 1 and len(factors) == 2 and node.inputs[0] in factors else v.UNKNOWN
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
    return node


def first(node):
    """The first argument of a node (or of an fx node), given by position or by keyword."""
    return next(iter((*node.args, *node.kwargs.values())), None)


def spelled_out(node: Node) -> list[Node]:
    """The node; addcmul, addmm and their like are a product and a sum."""
    if node.op not in v.FUSED:
        return [related(node)]
    factors = {key: value for key, value in node.kwargs.items() if key in ("value", "alpha", "beta")}
    added, *terms = (*node.args, *(value for key, value in node.kwargs.items() if key not in factors))
    op, (alpha, beta) = v.FUSED[node.op], (factors.get("value", factors.get("alpha", 1)), factors.get("beta", 1))
    parts = [Node(f"{node.name}.{op}", v.KIND_OF_NAME[op], op, getattr(torch, op), tuple(terms), place=node.place)]
    if beta != 1:
        times = Node(f"{node.name}.times", v.PRODUCT, "mul", torch.mul, (added, beta), place=node.place)
        parts, added = [*parts, times], times
    node.kind, node.op, node.call, node.args, node.kwargs = v.ADD, "add", torch.add, (added, parts[0]), {}
    if alpha != 1:
        node.kwargs = {"alpha": alpha}
    return [related(part) for part in (*parts, node)]


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
    """Times a constant is a scale; of two factors that carry, the one that a sigmoid or softmax made is the gate."""
    divides = node.op in v.DIVISIONS
    if node.kwargs.get("rounding_mode") is not None:
        node.kind = v.UNKNOWN
    elif len(node.inputs) == 1:  # c / x is no scale of x
        node.kind = v.UNKNOWN if divides and node.inputs[0] is not first(node) else v.SCALE
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
    node.call = lambda *args, **kwargs: pieces.call(*args, **kwargs)[index]
    node.args, node.kwargs, node.inputs = pieces.args, pieces.kwargs, pieces.inputs


def nonnegative(node: Node) -> bool:
    """Is the value known to be >= 0, from the operation and what is known of its inputs?"""
    if node.kind == v.ACTIVATION and node.op in v.NONNEGATIVE:
        return True
    below = bool(node.inputs) and all(i.nonnegative for i in node.inputs)
    if node.kind == v.ADD:
        return below and not node.constants and min(node.signs) > 0
    return below and ((node.kind in v.KEEPS_SIGN and node.op not in v.LOSES_SIGN_NAMES) or _copies(node))
