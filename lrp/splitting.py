"""How relevance is split at a skip connection: rules for sums beyond those that any linear map has.

At y = a + b, skip a and branch b, every composite takes one as `addition=`::

    rule                    R_a                                  conserves  bounded  minds signs
    rules.Ratio()           R |a| / (|a| + |b|)                  yes        yes      no
    rules.Symmetric()       R / 2                                yes        yes      no
    rules.Epsilon()         R a / (a + b)                        yes        no       yes
    rules.ZPlus()           R a+ / (a+ + b+)                     yes        yes      yes
    rules.AlphaBeta()       alpha positive - beta negative       yes        yes      yes
    BranchOnly()            0 for an identity skip               yes        yes      no
    Copy()                  R, and R for b too                   no         yes      no
    GlobalRatio()           signed, totals by magnitude          yes        no       yes

Ratio and Symmetric are those of relevance splitting (otsuki2024layer). Below stand that paper's rules for the rest of a
ResNet, and the cure for the dot lattice that skips with stride 2 leave behind (`spread=True` of a composite).
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UnsupportedOperation
from .network import kinds as v
from .network.graph import Node
from .nodes.amounts import stabilise
from .parts import Group, Part, ones, pos, same
from .rules import Rule


class Told(Rule):
    """Base of rules that say the shares themselves, at sums, pooling, or normalisation."""

    def share(self, xs: list[Tensor], R: Tensor, at) -> list[Tensor]:
        """Relevance of each input, `(T, *x.shape)`, from that of the output, R (T, N, ...).

        `xs` are the inputs (N, ...); at a sum they are the summands, with their signs and in the shape of the sum.
        `at` is the step: `at.layer` has the attributes of the module (or what the functional call was given),
        `at.call(x)` is the layer itself, `at.skips` says which summands another summand was computed from.
        """
        raise NotImplementedError


def by_magnitude(xs: list[Tensor], R: Tensor) -> list[Tensor]:
    """`R |x_k| / sum |x|`, in equal parts where all are zero."""
    sizes = [x.abs() for x in xs]
    whole = sum(sizes)
    empty = whole == 0
    whole = whole.masked_fill(empty, len(xs))
    return [R * (size.masked_fill(empty, 1) / whole) for size in sizes]


@dataclass(frozen=True)
class BranchOnly(Told):
    """Nothing for an identity skip; the other summands share all of it, by magnitude or in equal parts.

    Projections are no identity skips. Where every summand or none is one, all share. `otherwise` is "ratio" or
    "symmetric": rows (iii) and (i) of the paper's ablation.

    Source: otsuki2024layer ("include identical" off). Conserves relevance.
    """

    at = ("add",)
    otherwise: str = "ratio"

    def __post_init__(self):
        if self.otherwise not in ("ratio", "symmetric"):
            raise ValueError(f"otherwise must be 'ratio' or 'symmetric', not {self.otherwise!r}")

    def share(self, xs, R, at):
        skips = [False] * len(xs) if all(at.skips) else at.skips
        rest = [x for x, skip in zip(xs, skips, strict=True) if not skip]
        if self.otherwise == "symmetric":
            rest = [torch.ones_like(x) for x in rest]
        shares = iter(by_magnitude(rest, R))
        return [torch.zeros_like(R) if skip else next(shares) for skip in skips]


@dataclass(frozen=True)
class Copy(Told):
    """All of it to every summand: what a gradient does. Relevance doubles at each skip connection.

    The negative example: does not conserve relevance, and the ledger says so.
    """

    at = ("add",)

    def share(self, xs, R, at):
        return [R for _ in xs]


@dataclass(frozen=True)
class GlobalRatio(Told):
    r"""Shares by the signed rule, then rescaled so that each summand's total goes by the size of its total.

    .. math:: R_a = \frac{a R}{a + b} \cdot \frac{|\sum A|}{|\sum A| + |\sum B|} \cdot \frac{\sum R}{\sum A}

    with A and B the signed shares and sums over a sample. Source: chefer2021transformer. Conserves relevance; within a
    sample, shares are not bounded.
    """

    at = ("add",)

    def share(self, xs, R, at):
        z = stabilise(sum(xs))
        shares = [R * (x / z) for x in xs]
        axes = tuple(range(2, R.dim()))
        totals = [share.sum(axes, keepdim=True) for share in shares]
        parts = by_magnitude(totals, R.sum(axes, keepdim=True))
        return [
            torch.where(total == 0, torch.zeros_like(share), share * part / total.masked_fill(total == 0, 1))
            for share, total, part in zip(shares, totals, parts, strict=True)
        ]


# ---------------------------------------------------------------- the authors' rules for the rest of a ResNet

ADDED = 1e-5  # to every denominator


class PlusRaw(Rule):
    r"""z+ as in the authors' program: for inputs >= 0, without bias, stabilised by a fixed number.

    .. math:: R_i = a_i \sum_j \frac{w_{ij}^+ R_j}{\sum_{i'} a_{i'} w_{i'j}^+ + 10^{-5}}

    Source: otsuki2024layer.
    """

    groups = ((1.0, Group((Part(same, pos),))),)
    epsilon, relative, sign_selective = ADDED, False, True


class PlusOnes(Rule):
    r"""The same with an input of ones: blind to the image, by the positive weights alone.

    .. math:: R_i = \sum_j \frac{w_{ij}^+ R_j}{\sum_{i'} w_{i'j}^+ + 10^{-5}}

    Source: otsuki2024layer.
    """

    groups = ((1.0, Group((Part(ones, pos),))),)
    epsilon, relative = ADDED, False


@dataclass(frozen=True)
class AverageInstead(Told):
    r"""Max pooling treated as if it were an average over 2 x 2 with stride 2, as in the authors' program.

    .. math:: R_i = \frac{a_i}{4} \cdot \frac{R_j}{\tfrac14 \sum_{2 \times 2} a + 10^{-5}}

    Where all four are zero but the true window had a winner, relevance is lost, as the ledger says. Input
    (N, C, H, W) whose maximum has half its height and width. Source: otsuki2024layer.
    """

    at = ("maximum",)

    def share(self, xs, R, at):
        (x,) = xs
        halves = tuple(n // 2 for n in x.shape[2:])
        if R.shape[3:] != halves or x.shape[2] % 2 or x.shape[3] % 2:
            raise UnsupportedOperation(
                f"AverageInstead() needs a pool that halves height and width; this one takes {tuple(x.shape[2:])} to "
                f"{tuple(R.shape[3:])}: leave it to the winner with overrides or another composite"
            )
        s = R / (F.avg_pool2d(x, 2) + ADDED)
        return [x / 4 * s.repeat_interleave(2, -2).repeat_interleave(2, -1)]


# ---------------------------------------------------------------- no lattice


def spread(R: Tensor, x: Tensor, strides: tuple[int, int]) -> Tensor:
    r"""Relevance that a layer with gaps left on every s-th pixel, over the s x s pixels of its cell.

    .. math:: R_p = R_{\text{cell}} \, \frac{|x_p|}{\sum_{p' \in \text{cell}} |x_{p'}|}

    for each channel, as average pooling would. Where a cell is zero throughout, relevance stays where it is.
    Totals are kept. R is (T, N, C, H, W), x (N, C, H, W). The idea is ours: the paper's maps show the lattice.
    """
    (h, w), (a, b) = x.shape[2:], strides
    R = F.pad(R, (0, -w % b, 0, -h % a)).unflatten(-1, (-1, b)).unflatten(-3, (-1, a))  # (T, N, C, cells, a, cells, b)
    size = F.pad(x.abs(), (0, -w % b, 0, -h % a)).unflatten(-1, (-1, b)).unflatten(-3, (-1, a))
    whole = size.sum((-3, -1), keepdim=True)
    share = size / whole.masked_fill(whole == 0, 1)
    out = torch.where(whole == 0, R, R.sum((-3, -1), keepdim=True) * share)
    return out.flatten(-2).flatten(-3, -2)[..., :h, :w]


@cache
def spreading(chosen: type) -> type:
    """The same step; at a layer that reads every s-th pixel, its shares are spread over the pixels between."""

    class Spreading(chosen):
        def forward(self, values):
            self.strides = gaps(self.node, values)
            self.x = values[self.sources[0]] if self.strides else None
            return super().forward(values)

        def back(self, R, last=True):
            return self._spread(super().back(R, last))

        def opposite(self, R):
            return self._spread(super().opposite(R))

        def _spread(self, shares):
            if self.strides:
                shares.relevance = [spread(share, self.x, self.strides) for share in shares.relevance]
            return shares

    return Spreading


def gaps(node: Node, values: dict) -> tuple[int, int] | None:
    """The strides of a layer that reads single pixels and leaves gaps between them, (vertical, horizontal), or None.

    These are 1 x 1 convolutions with a stride, as in a ResNet's projections, and slices such as x[:, :, ::2, ::2].
    """
    if node.kind == v.CONVOLUTION:
        read = node.layer(values)
        if (
            read.transposed
            or read.weight.dim() != 4
            or set(read.weight.shape[2:]) != {1}
            or set(read.padding) - {0, *"valid"}
        ):
            return None
        strides = tuple(read.stride)
    elif node.op == "getitem" and isinstance(node.args[1], tuple) and len(node.args[1]) == 4:
        if not all(isinstance(i, slice) and i.start in (None, 0) and i.stop is None for i in node.args[1]):
            return None
        strides = tuple(i.step or 1 for i in node.args[1][2:])
    else:
        return None
    return strides if max(strides) > 1 else None
