"""What is known of a network's constants before it runs: their values, their shapes, and what they are made of.

A constant is a node that carries no relevance: a parameter, a buffer, a number, or what is computed from these. It may
ask for the shape of a value that does carry relevance, as `b.view(1, y.shape[1], 1, 1)` and `b.expand_as(y)` do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from . import kinds as v
from .graph import Node, ancestors, fill, references

GIVEN = {"input", "default", "made"}  # by the user, by the signature of forward, in forward
BROADCAST = v.SHAPED_LIKE | {"expand", "broadcast_to"}  # what a sum or a product with the tensor does anyway
CASTS = {"type_as", "to"}


def made_of_parameters(constant: Node, *more: str) -> bool:
    """Is it made of parameters, buffers and numbers alone, and perhaps of these more of `GIVEN`?"""
    return all(node.kind == v.CONSTANT and node.op not in GIVEN - set(more) for node in ancestors(constant))


def known(constant) -> object:
    """The value of a constant that depends neither on what the user gives nor on its shape; None for another."""
    if not isinstance(constant, Node):
        return constant
    if not made_of_parameters(constant, "made", "default"):
        return None
    with torch.no_grad():
        return constant.run({node: known(node) for node in constant.reads})


def shape(constant) -> tuple[int, ...] | None:
    """The shape of a constant, if it can be told now."""
    value = known(constant)
    if value is None:
        return constant.shape
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def freed(constant, made: list[Node]) -> object:
    """The same constant without the question for a shape, where broadcasting answers it, or where it is known.

    What it is a constant of must be added to it, or multiplied with it. New nodes are appended to `made`.
    """
    while isinstance(constant, Node) and constant.op in BROADCAST and not made_of_parameters(constant):
        constant = constant.args[0]
    return _without_questions(constant, made)


def _without_questions(constant, made: list[Node]):
    if not isinstance(constant, Node) or constant.kind != v.CONSTANT or made_of_parameters(constant):
        return constant
    if constant.op in CASTS and references((constant.args[1:], constant.kwargs)):
        return _without_questions(constant.args[0], made)
    if (size := _channels_asked(constant)) is not None:
        return size
    parts = {node: _without_questions(node, made) for node in references((constant.args, constant.kwargs))}
    if all(node is part for node, part in parts.items()):
        return constant
    new = replace(constant, args=fill(constant.args, parts), kwargs=fill(constant.kwargs, parts))
    made.append(new)
    return new


def _channels_asked(node: Node) -> int | None:
    """The number of channels, where this is y.shape[1] or y.size(1) and known."""
    if node.op == "size" and len(node.args) == 2 and node.args[1] == 1:
        return _channels(node.args[0])
    asks = node.op == "getitem" and node.args[1] == 1 and isinstance(node.args[0], Node)
    of = node.args[0] if asks else None
    if asks and ((of.op == "getattr" and of.args[1] == "shape") or (of.op == "size" and len(of.args) == 1)):
        return _channels(of.args[0])
    return None


def _channels(node: Node) -> int | None:
    """The size of axis 1, from the convolution that made it, with nothing but elementwise functions since."""
    if node.shape is not None:
        return node.shape[1] if len(node.shape) > 1 else None
    while node.kind in (v.BATCHNORM, v.SCALE, v.ADD, v.ACTIVATION) and len(node.inputs) == 1:
        node = node.inputs[0]
    if node.kind != v.CONVOLUTION:
        return None
    if node.module is not None:
        return node.module.out_channels
    weight = known(node.args[1]) if len(node.args) > 1 else None
    return len(weight) if weight is not None and "transpose" not in node.op else None
