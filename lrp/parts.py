"""Parts of inputs and weights, groups of their products, and the base of rules: what `lrp.rules` is written in."""

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


class Rule:
    """Base of all rules.

    `groups` are (coefficient, Group) pairs whose coefficients sum to 1 at every unit. Where all contributions of a
    group have one sign (`one_sided`), division is exact; a unit for which a group is empty gives that group's share to
    the others, and where all are empty `fallback` steps in, so that no relevance leaks. Other rules are stabilised.
    """

    groups: tuple[tuple[float, Group], ...] = ()
    fallback: tuple[Group, ...] = ()
    one_sided: bool = False
    complete: bool = False  # do the groups together make z, bias included?
    own_sign: float = 0.0  # how much more than once contributions of the unit's own sign count
    at: tuple[str, ...] = ()  # the only kinds of node at which it has a meaning (none: any linear map)
    sign_selective: bool = False  # would negated weights give other shares? (Contrastive(kind=2) needs it)
    epsilon: float = 1e-6
    relative: bool = True

    def __repr__(self):
        return f"{type(self).__name__}()"

    def complaint(self, xs: list[Tensor]) -> str | None:
        """What about these inputs breaks the rule's assumptions (None if nothing does)."""
        return None
