"""How relevance is split at a skip connection: rules for sums beyond those that any linear map has.

At y = a + b, skip a and branch b, every composite takes one as `addition=`:

    rule                    R_a                                  conserves  bounded  minds signs
    rules.Ratio()           R |a| / (|a| + |b|)                  yes        yes      no
    rules.Symmetric()       R / 2                                yes        yes      no
    rules.Epsilon()         R a / (a + b)                        yes        no       yes
    rules.ZPlus()           R a+ / (a+ + b+)                     yes        yes      yes
    rules.AlphaBeta()       alpha positive - beta negative       yes        yes      yes
    BranchOnly()            0 for an identity skip               yes        yes      no
    Copy()                  R, and R for b too                   no         yes      no
    GlobalRatio()           signed, totals by magnitude          yes        no       yes

Ratio and Symmetric are those of relevance splitting (otsuki2024layer).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .rules import Split
from .sharing import stabilise


def by_magnitude(xs: list[Tensor], R: Tensor) -> list[Tensor]:
    """R |x_k| / sum |x|, in equal parts where all are zero."""
    sizes = [x.abs() for x in xs]
    whole = sum(sizes)
    empty = whole == 0
    whole = whole.masked_fill(empty, len(xs))
    return [R * (size.masked_fill(empty, 1) / whole) for size in sizes]


@dataclass(frozen=True)
class BranchOnly(Split):
    """Nothing for an identity skip; the other summands share all of it, by magnitude or in equal parts.

    Projections are no identity skips. Where every summand or none is one, all share. `otherwise` is "ratio" or
    "symmetric": rows (iii) and (i) of the paper's ablation.

    Source: otsuki2024layer ("include identical" off). Conserves relevance.
    """

    otherwise: str = "ratio"

    def __post_init__(self):
        if self.otherwise not in ("ratio", "symmetric"):
            raise ValueError(f"otherwise must be 'ratio' or 'symmetric', not {self.otherwise!r}")

    def split(self, xs, R, skips):
        if all(skips):
            skips = [False] * len(xs)
        rest = [x for x, skip in zip(xs, skips, strict=True) if not skip]
        if self.otherwise == "symmetric":
            rest = [torch.ones_like(x) for x in rest]
        shares = iter(by_magnitude(rest, R))
        return [torch.zeros_like(R) if skip else next(shares) for skip in skips]


@dataclass(frozen=True)
class Copy(Split):
    """All of it to every summand: what a gradient does. Relevance doubles at each skip connection.

    The negative example: does not conserve relevance, and the ledger says so.
    """

    def split(self, xs, R, skips):
        return [R for _ in xs]


@dataclass(frozen=True)
class GlobalRatio(Split):
    r"""Shares by the signed rule, then rescaled so that each summand's total goes by the size of its total.

    .. math:: R_a = \frac{a R}{a + b} \cdot \frac{|\sum A|}{|\sum A| + |\sum B|} \cdot \frac{\sum R}{\sum A}

    with A and B the signed shares and sums over a sample. Source: chefer2021transformer. Conserves relevance; within a
    sample, shares are not bounded.
    """

    def split(self, xs, R, skips):
        z = stabilise(sum(xs))
        shares = [R * (x / z) for x in xs]
        axes = tuple(range(2, R.dim()))
        totals = [share.sum(axes, keepdim=True) for share in shares]
        parts = by_magnitude(totals, R.sum(axes, keepdim=True))
        return [
            torch.where(total == 0, torch.zeros_like(share), share * part / total.masked_fill(total == 0, 1))
            for share, total, part in zip(shares, totals, parts, strict=True)
        ]
