"""Seeds: where relevance starts at the output.

A seed turns the output f (N, K) and the targets (T, N) into relevance (T, N, K). All the rest of the walk is
linear in it, so contrasts between classes are seeds too: one signed pass instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks
from .errors import InputError


def one_hot(target: Tensor, output: Tensor) -> Tensor:
    """1 at the target, 0 elsewhere: (T, N), (N, K) -> (T, N, K)."""
    return F.one_hot(target, output.shape[-1]).to(output.dtype)


class Seed:
    """Base of all seeds; `negate_last` asks for the last layer's contrast (Contrastive of kind 2)."""

    negate_last = False

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Relevance at the output: (N, K), (T, N) -> (T, N, K)."""
        raise NotImplementedError

    def finish(self, relevance: Tensor) -> Tensor:
        """What is shown of the relevance of the input (everything, by default)."""
        return relevance


@dataclass(frozen=True)
class Logit(Seed):
    """Relevance starts as the target's logit: R_k = f_k for k = t, else 0 (bach2015pixel)."""

    def __call__(self, output, target):
        return one_hot(target, output) * output


@dataclass(frozen=True)
class OneHot(Seed):
    """Relevance starts as 1 at the target: the map says which share of it each pixel gets."""

    def __call__(self, output, target):
        return one_hot(target, output)


@dataclass(frozen=True)
class Probability(Seed):
    """Relevance starts as the target's softmax probability, at the logit (otsuki2024layer).

    `sigmoid`: the probability is the sigmoid of the class's own logit, as it is by itself where the network ends so.
    """

    sigmoid: bool = False

    def __call__(self, output, target):
        return one_hot(target, output) * (output.sigmoid() if self.sigmoid else output.softmax(-1))


@dataclass(frozen=True)
class SoftmaxGradient(Seed):
    """SGLRP: R_t = y_t (1 - y_t), R_n = -y_t y_n, with y the softmax (iwana2019explaining).

    The seed is d y_t / d f; it sums to zero. Deviation from the released code: one signed pass, no rescaling.
    `sigmoid`: y is the sigmoid, as it is by itself where the network ends in one, and only R_t is not zero.
    """

    sigmoid: bool = False

    def __call__(self, output, target):
        t = one_hot(target, output)
        if self.sigmoid:
            return t * output.sigmoid() * (-output).sigmoid()
        y = output.softmax(-1)
        y_t = (t * y).sum(-1, keepdim=True)
        return y_t * (t - y)


@dataclass(frozen=True)
class Contrastive(Seed):
    r"""CLRP: relevance of the target minus that of its virtual opposite, in one signed pass (gu2018understanding).

    kind=1: the opposite is all other classes, with the same total,
    R_t = f_t and R_k = -f_t / (K - 1); `others="logit"` weighs them by `|f_k|` instead, as the authors' program does.
    kind=2: the opposite is the target's own neuron with negated weights in the last layer; its rule must tell
    positive from negative weights (z+, alpha-beta, z^B; epsilon would give exactly zero and is refused).

    `positive=True` shows max(0, R), element by element, as the paper does; the ledger keeps the signed amounts.
    Deviation: the authors' program first scales both maps to sum 1.
    """

    kind: int = 1
    others: str = "uniform"
    positive: bool = True

    def __post_init__(self):
        if self.kind not in (1, 2):
            raise ValueError(f"kind must be 1 or 2, not {self.kind!r}")
        if self.others not in ("uniform", "logit"):
            raise ValueError(f"others must be 'uniform' or 'logit', not {self.others!r}")

    @property
    def negate_last(self):
        return self.kind == 2

    def __call__(self, output, target):
        t = one_hot(target, output)
        R = t * output
        if self.kind == 2:
            return R
        if output.shape[-1] < 2:
            raise ValueError("Contrastive(kind=1) needs at least two classes; kind=2 works for a single output")
        weight = (1 - t) * (output.abs() if self.others == "logit" else torch.ones_like(output))
        return R - R.sum(-1, keepdim=True) * weight / weight.sum(-1, keepdim=True)

    def finish(self, relevance):
        return relevance.clamp(min=0) if self.positive else relevance


@dataclass(frozen=True)
class UnitContrast(Contrastive):
    """CLRP from 1 instead of the target's logit: R_t = 1, R_k = -1 / (K - 1), or 1 at both neurons of kind 2.

    The same map but for scale where the logit is positive. Where it is negative, Contrastive turns the contrast
    round; this does not, and neither does the `|logit|` of the authors' program.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.others != "uniform":
            raise ValueError("a contrast from 1 is uniform over the other classes: there are no logits to weigh by")

    def __call__(self, output, target):
        return super().__call__(torch.ones_like(output), target)


# ---------------------------------------------------------------- the start of a walk


@dataclass
class Begin:
    """Where a walk begins: relevance R (T, N, K), the targets, and whether one map per sample was asked for."""

    R: Tensor
    target: Tensor | None
    single: bool
    seed: Seed | None = None

    @property
    def opposite(self) -> bool:
        """Is the last layer's contrast taken away?"""
        return self.seed is not None and self.seed.negate_last

    def finish(self, relevance: Tensor) -> Tensor:
        """What is shown of the input's relevance."""
        return relevance if self.seed is None else self.seed.finish(relevance)


def begin(
    output: Tensor,
    target,
    seed: Seed | Tensor | None,
    model: nn.Module,
    start: str | None = None,
    sigmoid: bool = False,
) -> Begin:
    """Relevance at `output`, the network's or that of the hidden module `start`; the arguments are `LRP.explain`'s.

    `sigmoid`: the network gives the sigmoid of this output.
    """
    if isinstance(seed, Tensor):
        checks.seed(seed, output)
        single = seed.dim() == output.dim()
        return Begin((seed[None] if single else seed).to(output), None, single)
    if seed is not None and not isinstance(seed, Seed):
        raise InputError(f"{seed!r} is no seed: make one, as in seeds.Logit(), or hand over a tensor")
    seed = Logit() if seed is None else seed
    if sigmoid and hasattr(seed, "sigmoid"):
        seed = replace(seed, sigmoid=True)
    if start is not None and output.dim() > 2:
        single = not isinstance(target, list)
        R = [_in_space(one, output, seed, start) for one in ([target] if single else target)]
        return Begin(torch.stack(R), None, single, seed)
    checks.logits(output, model)
    targets, single = checks.targets(target, output)
    return Begin(seed(output, targets), targets[0] if single else targets, single, seed)


def _in_space(target, output: Tensor, seed: Seed, start: str) -> Tensor:
    """Relevance at a hidden (N, C, ...): every place is a sample of its own, a unit one place of a channel."""
    places = output.movedim(1, -1)
    channel, *place = checks.unit(target, output, start)
    channels = torch.full((1, places[..., 0].numel()), channel, device=output.device)
    whole = seed(places.flatten(0, -2), channels).view(places.shape).movedim(-1, 1)
    if not place:
        return whole
    R, here = torch.zeros_like(whole), (slice(None), slice(None), *place)
    R[here] = whole[here]
    return R
