"""Affine maps with constants, y = a x + b, whichever way a network writes them, and the operators they belong to.

A BatchNorm, as a module or a function; `x * a`, `x / s`, `-x`; `x + b`, `x - m`, `c - x`. Constants are numbers,
parameters, buffers, and what the network computes from these. `lrp.network.folding` puts such maps in a row together,
and into the layer below them; here they are read, with the values that the constants have now.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NeedsExample
from . import kinds as v
from .graph import HOLE, Node, fill
from .operators import Addition, Affine, Convolution, Dense, Layer, Operator, Pad, Product, Scaling
from .relating import operands


def is_affine(node: Node) -> bool:
    """Is it y = a x + b of one value that carries relevance?"""
    return len(node.inputs) == 1 and (node.kind in (v.BATCHNORM, v.SCALE, v.ADD) or is_scale(node))


def is_scale(node: Node) -> bool:
    """Is it y = a x?"""
    return node.kind == v.SCALE or (node.kind == v.ACTIVATION and node.op in v.NEGATIONS)


def constants(piece: Node) -> list:
    """The constants a and b of an affine map other than BatchNorm: numbers, tensors or nodes."""
    if piece.kind == v.ADD:
        return [term for _, term in piece.constants]
    found = (*piece.args, *(value for key, value in piece.kwargs.items() if key in v.OPERANDS))
    return [value for value in found if value is not HOLE and value is not piece.inputs[0]]


def holed(pieces: Sequence[Node]) -> tuple[Node, ...]:
    """The same operations, with a hole in the place of what they are applied to."""
    return tuple(
        replace(
            piece,
            args=fill(piece.args, {piece.inputs[0]: HOLE}),
            kwargs=fill(piece.kwargs, {piece.inputs[0]: HOLE}),
            inputs=(HOLE,),
        )
        for piece in pieces
    )


def scale_and_shift(norm) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y = a x + b per channel: a = gamma / sqrt(var + eps), b = beta - a mean."""
    a = torch.rsqrt(norm.running_var.detach() + norm.eps)
    if norm.weight is not None:
        a = a * norm.weight.detach()
    b = -a * norm.running_mean.detach()
    return a, b if norm.bias is None else b + norm.bias.detach()


def composed(pieces: Sequence[Node], values: dict, axes: int) -> Affine:
    """a and b of several affine maps in a row, numbers or tensors that broadcast over a value of so many axes."""
    a, b = 1.0, 0.0
    for piece in pieces:
        c, d = _map(piece, values, axes)
        a, b = a * c, b * c + d
    return a, b


def _map(piece: Node, values: dict, axes: int) -> Affine:
    if piece.kind == v.BATCHNORM:
        return tuple(t.view(-1, *[1] * (axes - 2)) for t in scale_and_shift(piece.layer(values)))
    found = [c.detach() if isinstance(c, Tensor) else c for c in fill(tuple(constants(piece)), values)]
    if piece.kind == v.ADD:
        return piece.signs[0], sum(sign * c for (sign, _), c in zip(piece.constants, found, strict=True))
    if piece.op in v.NEGATIONS:
        return -1.0, 0.0
    return (1 / found[0] if piece.op in v.DIVISIONS else found[0]), 0.0


def operator(node: Node, values: dict) -> Operator:
    """The linear map of a node, with the affine maps and pads that were folded into it."""
    x = values[node.inputs[0]]
    if node.kind == v.ADD:
        return Addition(list(node.signs))
    if node.kind == v.BATCHNORM:
        norm = any(piece.kind == v.BATCHNORM for piece in node.after)
        return Scaling(partial(composed, node.after, values), x, norm)
    if node.kind == v.CONVOLUTION:
        layer = _sized(node, node.layer(values), x, values)
        pads = [pad(piece, values) for piece in node.before]
        return Convolution(layer, _affine(node, values, len(layer.stride) + 2), pads, x.shape)
    if any(piece.kind == v.BATCHNORM for piece in node.after) and x.dim() != 2:
        raise NeedsExample(f"the axis of BatchNorm `{node.aliases[-1]}` is not that of `{node.name}` on {x.dim()} axes")
    return _dense(node, values, _affine(node, values, x.dim()))


def _affine(node: Node, values: dict, axes: int):
    return partial(composed, node.after, values, axes) if node.after else None


def pad(piece: Node, values: dict) -> Pad | None:
    """How much, and with what constant; None where it pads with copies of the values."""
    if piece.module is not None:
        return (piece.module.padding, piece.module.value) if hasattr(piece.module, "value") else None
    given = dict(zip(("input", "pad", "mode", "value"), fill(piece.args, values), strict=False))
    given |= fill(piece.kwargs, values)
    return None if given.get("mode", "constant") != "constant" else (given["pad"], given.get("value") or 0.0)


def _sized(node: Node, layer, x: Tensor, values: dict):
    """A transposed convolution that is called with the size of its output."""
    size = fill(
        node.kwargs.get("output_size", node.args[1] if node.module is not None and node.args[1:] else None), values
    )
    if size is None:
        return layer
    dims = len(layer.stride)
    kernel = layer.weight.shape[2:]
    rows = zip(x.shape[2:], layer.stride, layer.padding, layer.dilation, kernel, strict=True)
    least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in rows]
    wanted = [more - less for more, less in zip(size[-dims:], least, strict=True)]
    names = ("weight", "bias", "stride", "padding", "dilation", "groups", "transposed")
    return SimpleNamespace(**{name: getattr(layer, name) for name in names}, output_padding=wanted)


def _dense(node: Node, values: dict, affine) -> Layer:
    if node.op not in v.PRODUCTS:
        layer = node.layer(values)
        if layer.weight.dim() == 2:
            return Dense(layer, affine)
        return Product(SimpleNamespace(weight=layer.weight, bias=layer.bias, product=F.linear), affine)
    (a, b), rest, options = operands(node)
    right = a is node.inputs[0]
    weight = fill((b if right else a,), values)[0].detach()
    if node.op in ("matmul", "mm") and right and weight.dim() == 2:
        return Dense(SimpleNamespace(weight=weight.T, bias=None), affine)
    call = partial(torch.einsum, node.args[0]) if node.op == "einsum" else node.call
    rest, options = fill(rest, values), fill(options, values)

    def product(x: Tensor, w: Tensor) -> Tensor:
        return call(x, w, *rest, **options) if right else call(w, x, *rest, **options)

    return Product(SimpleNamespace(weight=weight, bias=None, product=product), affine)
