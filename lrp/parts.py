"""Parts of inputs and weights, and groups of their products: what the rules are written in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# parts of an input or a weight


def same(t: Tensor) -> Tensor:
    return t


def pos(t: Tensor) -> Tensor:
    return t.clamp(min=0)


def neg(t: Tensor) -> Tensor:
    return t.clamp(max=0)


magnitude, square, ones = torch.abs, torch.square, torch.ones_like


@dataclass(frozen=True)
class Tilt:
    """w + gamma * part(w): the part that gamma favours."""

    gamma: float
    part: Callable[[Tensor], Tensor]

    def __call__(self, t: Tensor) -> Tensor:
        return t + self.gamma * self.part(t)


@dataclass(frozen=True, eq=False)
class Constant:
    """The same value for every input: a number, or a tensor that broadcasts against the input."""

    value: float | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.value, dtype=x.dtype, device=x.device).expand_as(x)


class Part(NamedTuple):
    """One product of the group: a function of the input and a function of the weight."""

    x: Callable[[Tensor], Tensor]
    w: Callable[[Tensor], Tensor]


class Group(NamedTuple):
    """Contributions that share one denominator; `where` +1 / -1 limits it to units with z >= 0 / z < 0."""

    parts: tuple[Part, ...]
    bias: Callable[[Tensor], Tensor] | None = None
    where: int = 0


PLAIN = Group((Part(same, same),), bias=same)
POSITIVE = Group((Part(pos, pos), Part(neg, neg)), bias=pos)
NEGATIVE = Group((Part(pos, neg), Part(neg, pos)), bias=neg)
UNIFORM = Group((Part(ones, magnitude),))
EQUAL = Group((Part(ones, ones),))  # the last resort: a pruned filter, active by its bias alone
