"""Relevance through local response normalisation: rules for layers across channels (torch's) and within (Caffe's).

Give a rule to any composite, as in `composites.EpsilonPlus(lrn=LRNTaylor())`. The default there, `rules.Pass()`, is
the identity: all relevance goes to the unit itself. A `Trial` compares rules on images that a network gets right.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..composites import Composite
from ..data import models
from ..data.networks import WithinChannelLRN
from ..engine import LRP
from ..errors import DataError, LRPError, UnsupportedOperation
from ..evaluate import perturbation
from ..network import kinds
from ..rules import Adjoint
from ..splitting import Told

Zeroth = Literal["self", "uniform"]


class LRNRule(Told):
    """Base of the rules for local response normalisation; half precision is computed in single."""

    at = (kinds.LRN,)

    def share(self, xs, R, at):
        (x,) = xs
        wide = torch.float32 if x.element_size() < 4 else x.dtype
        return [self.among(Neighbourhood(at.layer, x.to(wide)), R.to(wide)).to(R.dtype)]

    def among(self, n: "Neighbourhood", R: Tensor) -> Tensor:
        """Share R (T, N, ...) among the units and their neighbours."""
        raise NotImplementedError


@dataclass(frozen=True)
class LRNTaylor(LRNRule):
    r"""The paper's treatment: from the unit with silent neighbours to the unit as it is, by the gradient at the input.

    .. math:: z_{kk} = x_k (k_0 + b x_k^2)^{-c}, \quad z_{jk} = -2bc\, x_k x_j^2 s_k^{-c-1}, \quad
              R_{j \leftarrow k} = \frac{z_{jk}}{\sum_i z_{ik}} R_k

    with s_k = k_0 + b (sum of x_i^2 over the neighbourhood of k). A unit keeps at least all of its relevance, and its
    neighbours, which inhibit it, get what is negative. The factor x_k cancels, so nothing is ever divided by zero and
    no stabiliser is needed. `zeroth`: the term z_kk goes to the centre ("self", as printed) or in equal parts to the
    whole neighbourhood ("uniform", as the general scheme of the paper has it).

    Source: binder2016layer. Conserves relevance.
    """

    zeroth: Zeroth = "self"

    def __post_init__(self):
        if self.zeroth not in get_args(Zeroth):
            raise ValueError(f"zeroth must be 'self' or 'uniform', not {self.zeroth!r}")

    def among(self, n, R):
        g = n.w.add(1).pow_(-n.c - 1)
        rho = R / g.mul(n.w).mul_(-2 * n.c).add_(1)
        q = g.div_(n.a).mul_(-2 * n.c * n.b)
        return n.distribute(rho, rho * q, uniform=self.zeroth == "uniform")


@dataclass(frozen=True)
class LRNPath(LRNRule):
    r"""The exact relative of `LRNTaylor`: the gradient integrated on the straight way that turns the neighbours on.

    .. math:: z_{kk} = x_k (k_0 + b x_k^2)^{-c}, \quad
              z_{jk} = \frac{x_j^2}{\sum_{i \ne k} x_i^2} (y_k - z_{kk}), \quad
              R_{j \leftarrow k} = \frac{z_{jk}}{y_k} R_k

    The coefficients add up to y_k without an error of expansion. But a neighbour's share, (1 + w)^c - 1 with
    w = b (sum of the neighbours' x^2) / (k_0 + b x_k^2), has no upper bound.

    Source: this project, in the terms of sundararajan2017axiomatic. Conserves relevance.
    """

    def among(self, n, R):
        change = torch.expm1(-n.c * torch.log1p(n.w))  # y / z_kk - 1
        q = torch.where(n.w != 0, n.b * change / (n.a * n.w), -n.c * n.b / n.a)
        rho = R / (1 + change)
        return n.distribute(rho, rho * q)


@dataclass(frozen=True)
class LRNToolbox(LRNRule):
    r"""The coefficients of `LRNTaylor` without division by their sum, as the LRP Toolbox has them: relevance leaks.

    .. math:: R_j = \sum_k z_{jk} R_k

    Each R_k is scaled by about y_k, so the sum of relevance depends on the scale of activations; the ledger shows by
    how much.

    Source: lapuschkin2016lrp (behaviour of the Caffe implementation). Does not conserve relevance.
    """

    def among(self, n, R):
        rho = R * n.x * n.a.pow(-n.c)
        return n.distribute(rho, rho * (-2 * n.c * n.b / n.a) * (1 + n.w).pow(-n.c - 1))


@dataclass(frozen=True)
class LRNGradient(Adjoint):
    r"""The plain vector-Jacobian product, as in tools without a rule for this layer. Does not conserve relevance.

    .. math:: R_j = \sum_k \frac{\partial y_k}{\partial x_j} R_k
    """

    at = (kinds.LRN,)


class Neighbourhood:
    """What the rules need of a layer y = x s^-c, s = k_0 + b S(x^2), at input x.

    S sums over the neighbourhood of each unit. `a` = k_0 + b x^2 is s with the neighbours silent, and
    `w` = (s - a) / a >= 0 how much they inhibit the unit.

    Raises UnsupportedOperation for a layer that is neither form of LRN.
    """

    def __init__(self, layer, x: Tensor):
        self.within = isinstance(layer, WithinChannelLRN)
        if not self.within and not all(hasattr(layer, name) for name in ("size", "alpha", "beta", "k")):
            raise UnsupportedOperation(
                f"{type(layer).__name__} is no local response normalisation for this rule: "
                "nn.LocalResponseNorm, F.local_response_norm or lrn.WithinChannelLRN"
            )
        self.size, self.c = layer.size, layer.beta
        self.b = layer.alpha / self.size ** (2 if self.within else 1)
        self.x, self.square = x, x * x
        self.a = self.square.mul(self.b).add_(layer.k)
        self.w = self.box(self.square).sub_(self.square).mul_(self.b).div_(self.a)
        if not layer.k > 0:  # else 0 / 0 where a unit and its neighbours are zero
            self.w = self.w.nan_to_num(0.0, posinf=1e30)
            self.a.clamp_(min=torch.finfo(x.dtype).tiny)

    def box(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        """S(v): sum over each unit's neighbourhood; transposed, over the units in whose neighbourhood it is."""
        reach = self.size // 2, (self.size - 1) // 2
        before, after = reversed(reach) if transposed else reach
        axes = (-2, -1) if self.within else (1 - self.square.dim(),)
        for axis in axes:
            total, length = v.clone(), v.shape[axis]
            for step in range(1, min(max(before, after), length - 1) + 1):
                near, far = total.narrow(axis, 0, length - step), total.narrow(axis, step, length - step)
                if step <= before:
                    far.add_(v.narrow(axis, 0, length - step))
                if step <= after:
                    near.add_(v.narrow(axis, step, length - step))
            v = total
        return v

    def distribute(self, to_self: Tensor, to_neighbours: Tensor, *, uniform: bool = False) -> Tensor:
        """R_j = to_self_j + x_j^2 (sum of to_neighbours_k over k != j with j in their neighbourhood); (T, N, ...).

        With `uniform`, to_self goes to the whole neighbourhood in equal parts.
        """
        if uniform:
            to_self = self.box(to_self / self.box(torch.ones_like(self.square)), transposed=True)
        return self.box(to_neighbours, transposed=True).sub_(to_neighbours).mul_(self.square).add_(to_self)


# ---------------------------------------------------------------- what such layers do in a network


@torch.no_grad()
def inputs(model: nn.Module, x: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """The LRN modules of a model by name, in order of execution, each with what it receives for input x.

    Raises LRPError for a model without one. The model is left as it was.
    """
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    with ExitStack() as hooks:  # each hook removes itself at the end, also after an error
        for name, module in model.named_modules():
            if isinstance(module, (nn.LocalResponseNorm, WithinChannelLRN)):
                hooks.enter_context(
                    module.register_forward_pre_hook(lambda m, args, name=name: found.update({name: (m, args[0])}))
                )
        model(x)
    if not found:
        raise LRPError(f"{type(model).__name__} has no local response normalisation")
    return {name: (module, x.detach()) for name, (module, x) in found.items()}


def denominators(layer: nn.Module, x: Tensor) -> Tensor:
    """s^c, what each unit of x (N, ...) is divided by."""
    n = Neighbourhood(layer, x)
    return (n.a * (1 + n.w)).pow(n.c)


def inhibition(layer: nn.Module, x: Tensor) -> Tensor:
    """w >= 0, how much the neighbours inhibit each unit of x (N, ...); 0 for a unit without active neighbours."""
    return Neighbourhood(layer, x).w


def taylor_share(w: Tensor, c: float = 0.75) -> Tensor:
    """What `LRNTaylor` takes from a unit's neighbours per unit of relevance: t / (1 - t), t = 2 c w (1 + w)^(-c-1).

    Largest at w = 1/c: 0.83 for c = 0.75. Source: binder2016layer (the bound follows from its equations).
    """
    t = 2 * c * w * (1 + w) ** (-c - 1)
    return t / (1 - t)


def path_share(w: Tensor, c: float = 0.75) -> Tensor:
    """The same for `LRNPath`: (1 + w)^c - 1."""
    return (1 + w) ** c - 1


# ---------------------------------------------------------------- a trial: treatments on the same images


@dataclass(frozen=True, eq=False)
class Trial:
    """A network with inputs (N, C, H, W) that it classifies correctly, and their labels (N,).

    `settings` go to every `perturbation.curves` of this trial: low, high, steps, region, seed, ...
    """

    name: str
    model: nn.Module = field(repr=False)
    x: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    settings: dict

    @classmethod
    def of(cls, name: str, images: Tensor, labels: Tensor, device="cpu", batch: int = 64, **settings) -> "Trial":
        """Load a network by name and keep the images (N, 3, H, W) in [0, 1] that it classifies as labelled.

        Raises DataError where it gets none of them right, and what `models.load` raises.
        """
        fast = {"memory_format": torch.channels_last}  # half the time on a CPU
        model, normalizer = models.load(name, device=device).to(**fast), models.normalizer(name)
        x, labels = normalizer(images).to(device, **fast), labels.to(device)
        with torch.no_grad():
            right = torch.cat([model(part).argmax(1) for part in x.split(batch)]) == labels
        if not right.any():
            raise DataError(f"{name} gets none of the {len(x)} images right: are they normalised and labelled for it?")
        low, high = (bound.to(device) for bound in normalizer.bounds())
        return cls(name, model, x[right], labels[right], {"low": low, "high": high} | settings)

    def __len__(self) -> int:
        return len(self.x)

    def maps(self, composite: Composite, batch: int = 32) -> Tensor:
        """Relevance of the true class's logit, channels summed: (N, H, W)."""
        explainer = LRP(self.model, composite)
        parts = zip(self.x.split(batch), self.labels.split(batch), strict=True)
        return torch.cat([explainer.attribute(x, target).sum(1) for x, target in parts])

    def flip(self, relevance: Tensor | None, order: str = "morf", **options) -> perturbation.Curves:
        """Scores of the true class as pixels are replaced by noise; see `perturbation.curves`."""
        return perturbation.curves(self.model, self.x, relevance, self.labels, order=order, **self.settings | options)
