"""Relevance through local response normalisation: the layer within channels, and the rules for it and for torch's.

Hand a rule to any composite, as in `composites.EpsilonPlus(lrn=LRNTaylor())`. The default there, `rules.Pass()`, is
the identity: all relevance goes to the unit itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import kinds
from ..data.networks import WithinChannelLRN
from ..errors import LRPError, UnsupportedOperation
from ..rules import Adjoint, Told


class LRNRule(Told):
    """Base of the rules for local response normalisation; half precision is worked out in single."""

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

    zeroth: str = "self"

    def __post_init__(self):
        if self.zeroth not in ("self", "uniform"):
            raise ValueError(f"zeroth must be 'self' or 'uniform', not {self.zeroth!r}")

    def among(self, n, R):
        g = n.w.add(1).pow_(-n.c - 1)
        rho = R / g.mul(n.w).mul_(-2 * n.c).add_(1)
        q = g.div_(n.a).mul_(-2 * n.c * n.b)
        return n.spread(rho, rho * q, self.zeroth == "uniform")


@dataclass(frozen=True)
class LRNPath(LRNRule):
    r"""The exact relative of `LRNTaylor`: the gradient integrated on the straight way that turns the neighbours on.

    .. math:: z_{kk} = x_k (k_0 + b x_k^2)^{-c}, \quad
              z_{jk} = \frac{x_j^2}{\sum_{i \ne k} x_i^2} (y_k - z_{kk}), \quad
              R_{j \leftarrow k} = \frac{z_{jk}}{y_k} R_k

    The coefficients add up to y_k without an error of expansion. Their price: a neighbour's share, (1 + w)^c - 1 with
    w = b (sum of the neighbours' x^2) / (k_0 + b x_k^2), has no upper bound.

    Source: this project, in the terms of sundararajan2017axiomatic. Conserves relevance.
    """

    def among(self, n, R):
        change = torch.expm1(-n.c * torch.log1p(n.w))  # y / z_kk - 1
        q = torch.where(n.w != 0, n.b * change / (n.a * n.w), -n.c * n.b / n.a)
        rho = R / (1 + change)
        return n.spread(rho, rho * q)


@dataclass(frozen=True)
class LRNToolbox(LRNRule):
    r"""The coefficients of `LRNTaylor` without division by their sum, as the LRP Toolbox has them: relevance leaks.

    .. math:: R_j = \sum_k z_{jk} R_k

    Each R_k is scaled by about y_k, so the sum of relevance depends on the scale of activations: the ledger says by
    how much.

    Source: lapuschkin2016lrp (behaviour of the Caffe implementation). Does not conserve relevance.
    """

    def among(self, n, R):
        rho = R * n.x * n.a.pow(-n.c)
        return n.spread(rho, rho * (-2 * n.c * n.b / n.a) * (1 + n.w).pow(-n.c - 1))


@dataclass(frozen=True)
class LRNGradient(Adjoint):
    r"""The plain vector-Jacobian product: what tools do that know no rule for this layer. Does not conserve relevance.

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
                f"{type(layer).__name__} is no local response normalisation that this rule knows: "
                "nn.LocalResponseNorm, F.local_response_norm or lrn.WithinChannelLRN"
            )
        self.size, self.c = layer.size, layer.beta
        self.b = layer.alpha / self.size ** (2 if self.within else 1)
        self.x, self.square = x, x * x
        self.a = self.square.mul(self.b).add_(layer.k)
        self.w = self.box(self.square).sub_(self.square).mul_(self.b).div_(self.a)
        if not layer.k > 0:  # 0 / 0 where everything is silent
            self.w = self.w.nan_to_num(0.0, posinf=1e30)
            self.a.clamp_(min=torch.finfo(x.dtype).tiny)

    def box(self, v: Tensor, transposed: bool = False) -> Tensor:
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

    def spread(self, to_self: Tensor, to_neighbours: Tensor, uniform: bool = False) -> Tensor:
        """R_j = to_self_j + x_j^2 (sum of to_neighbours_k over k != j with j in their neighbourhood); (T, N, ...).

        `uniform` spreads to_self over the neighbourhood in equal parts.
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
    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: found.__setitem__(name, (m, args[0].detach())))
        for name, module in model.named_modules()
        if isinstance(module, (nn.LocalResponseNorm, WithinChannelLRN))
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise LRPError(f"{type(model).__name__} has no local response normalisation")
    return found


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
