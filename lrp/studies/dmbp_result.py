"""Results of DMBP (reconstructed objective; the original code and text were not available): mappings and their numbers.

Source: ruiz2021generating; the numbers are of this project. `lrp.studies.dmbp` has the method.
"""

from dataclasses import dataclass, field
from numbers import Real

import pandas as pd
import torch
from torch import Tensor

from ..errors import LRPError

STATEMENT = "DMBP (reconstructed objective; the original code and text were not available)"
FLOOR = 0.01  # the least denominator of completeness, as a share of the mass of gradient x input


def total(values: Tensor) -> Tensor:
    """Sum over all but the first axis, (N, ...) -> (N,)."""
    return values.flatten(1).sum(1)


def positive_share(R: Tensor) -> Tensor:
    """Share of the mass that is positive, (N, ...) -> (N,): NaN where there is none."""
    return total(R.relu()) / total(R.abs())


def mass_of(R: Tensor) -> Tensor:
    """Sum of magnitudes, (N, ...) -> (N,), safe to divide by."""
    return total(R.abs()).clamp(min=torch.finfo(R.dtype).tiny)


def scale_of(F: Tensor, mass: Tensor) -> Tensor:
    """What completeness is measured by: the logit's size, or the FLOOR, (N,)."""
    return torch.maximum(F.abs(), FLOOR * mass)


@dataclass(eq=False, repr=False)
class DMBPResult:
    """DMBP (reconstructed objective; the original code and text were not available): what it found for N images.

    Attributes:
        pos_mapping, neg_mapping: W+ and W-, shaped like x, in units of the logit per unit of input.
        nuisance_mapping, mapping: W(1) - W+ - W-, and W(1): the gradient of the target's logit (see `frozen`).
        pos_attribution, neg_attribution, gradient_x_input: P, N and A(1): the mappings W+, W- and W(1), times x. N is
            mostly below zero; where it is empty, its masks collapsed, and there may be negative evidence all the same.
        b_eff: what biases contribute to the logit, (N,): F = y(1) + b_eff, with y(1) the sum of gradient_x_input. Where
            y(1) < 0, biases exceed the logit: then N alone can be complete, and it is P that collapses.
        output, target: logits (N, K), and the class that was explained (N,).
        masks: {node: (2, N, C)}, of the positive and the negative mapping, 0 to 1.
        history: iteration, loss, its terms, completeness error and purity, from the start on: means over the images.
        frozen: names of LRN nodes whose denominators count as constants: then `mapping` is not the exact gradient.
        num_its: iterations that were run.
    """

    pos_mapping: Tensor
    neg_mapping: Tensor
    nuisance_mapping: Tensor
    mapping: Tensor
    pos_attribution: Tensor
    neg_attribution: Tensor
    gradient_x_input: Tensor
    b_eff: Tensor
    output: Tensor
    target: Tensor
    masks: dict[str, Tensor]
    history: pd.DataFrame
    frozen: list[str] = field(default_factory=list)
    num_its: int = 0

    @property
    def completeness_error(self) -> Tensor:
        """`|sum P + sum N - y(1)|` / max(`|F|`, floor), (N,); the floor is 1 % of the mass of gradient x input."""
        G = self.gradient_x_input
        F = self.output.gather(1, self.target[:, None])[:, 0]
        return (total(self.pos_attribution) + total(self.neg_attribution) - total(G)).abs() / scale_of(F, mass_of(G))

    @property
    def purity(self) -> Tensor:
        """Share of P's mass that is positive, (N,): 0 to 1, NaN where P is zero."""
        return positive_share(self.pos_attribution)

    @property
    def gradient_purity(self) -> Tensor:
        """The same share for gradient x input, with which `purity` is to be compared, (N,)."""
        return positive_share(self.gradient_x_input)

    @property
    def joint_purity(self) -> Tensor:
        """Share of the mass of P and N together that has its mapping's sign, (N,): small where P collapsed, too."""
        P, N = self.pos_attribution, self.neg_attribution
        return total(P.relu() + (-N).relu()) / total(P.abs() + N.abs())

    @property
    def negative_share(self) -> Tensor:
        """Sum of `|N|` as a share of the mass of gradient x input, (N,): near 0, the negative mapping collapsed."""
        return total(self.neg_attribution.abs()) / mass_of(self.gradient_x_input)

    def map(self, quantile: float = 0.9999) -> Tensor:
        r"""The map for display, a+ - a-, (N, H, W) from -1 to 1; metrics are for the attributions, not for this.

        a+ is the mean of P over colours, a- minus that of N. Each is clipped at +- the quantile of its magnitude and
        shifted to minimum 0; then both are divided by the larger of their maxima. So where a+ reaches below zero, its
        zero is shown above that of the map. As in the authors' program. Raises LRPError for inputs that are not
        images (N, C, H, W), or a quantile that is none.
        """
        sound = isinstance(quantile, Real) and not isinstance(quantile, bool) and 0 < quantile <= 1
        if self.pos_attribution.dim() != 4 or not sound:
            raise LRPError(
                f"a map is made of attributions (N, C, H, W) and a quantile above 0, up to 1; got {quantile} and shape "
                f"{tuple(self.pos_attribution.shape)}"
            )
        sides = []
        for a in (self.pos_attribution.mean(1), -self.neg_attribution.mean(1)):
            limit = a.abs().flatten(1).quantile(quantile, dim=1)[:, None, None]
            a = torch.minimum(torch.maximum(a, -limit), limit)
            sides.append(a - a.amin((1, 2), keepdim=True))
        top = torch.maximum(*(a.amax((1, 2), keepdim=True) for a in sides))
        return (sides[0] - sides[1]) / top.clamp(min=torch.finfo(top.dtype).tiny)

    def __repr__(self):
        names = ("completeness_error", "purity", "gradient_purity", "joint_purity", "negative_share")
        means = {name: float(getattr(self, name).nanmean()) for name in names}
        lines = [
            STATEMENT,
            f"  {len(self.target)} x {tuple(self.mapping.shape[1:])}, {self.num_its} iterations; means over images:",
            *(f"  {name.replace('_', ' '):<20}{mean:.4g}" for name, mean in means.items()),
        ]
        if self.frozen:
            lines.append(f"  LRN frozen at {', '.join(self.frozen)}: W(1) is not the exact gradient")
        return "\n".join(lines)
