r"""The rules: each says, as data, among which contributions a unit shares its relevance.

At a linear node z_j = sum_i x_i w_ij + b_j. A rule is a short list of groups, each a coefficient and a sum of (input
part, weight part) products, over which `lrp.nodes.propagate` divides. A new rule is a new row of this table (x+ =
max(x, 0), x- = min(x, 0), likewise w+ and w-)::

    Epsilon     (x, w)
    ZPlus       (x+, w+) + (x-, w-)
    AlphaBeta   alpha [(x+, w+) + (x-, w-)]  -  beta [(x+, w-) + (x-, w+)]
    Gamma       (x+, w + gamma w+) + (x-, w + gamma w-)  where z >= 0, mirrored where z < 0
    ZBox        (x, w) - (low, w+) - (high, w-)
    WSquare     (1, w^2)
    Flat        (1, 1)
    Ratio       (|x|, |w|)

At additions the weights are 1: there `Epsilon` is the signed rule, `Flat` the symmetric split, `Ratio` the split by
magnitude. With `bias="absorb"` the bias stands in the denominator, in the part that the group names, and keeps its
share; with `bias="exclude"` it is left out, and the inputs share everything.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .parts import (
    EQUAL,
    NEGATIVE,
    PLAIN,
    POSITIVE,
    UNIFORM,
    Constant,
    Group,
    Part,
    Rule,
    Tilt,
    magnitude,
    neg,
    ones,
    pos,
    same,
    square,
)


@dataclass(frozen=True)
class Epsilon(Rule):
    r"""LRP-epsilon: contributions in proportion to x_i w_ij, with a stabiliser that dampens weak units.

    .. math:: R_i = \sum_j \frac{x_i w_{ij}}{z_j + \epsilon_j \operatorname{sign} z_j} R_j

    `epsilon` is scale-free: epsilon_j = epsilon * rms(z) of the sample. `relative=False` takes it as it is, as
    papers of 2015-2016 do. With epsilon -> 0 this is LRP-0.

    Source: bach2015pixel, eq. 58. Deviation: epsilon is relative by default.
    """

    epsilon: float = 1e-6
    relative: bool = True

    groups = ((1.0, PLAIN),)

    def __post_init__(self):
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be >= 0, not {self.epsilon}")


@dataclass(frozen=True)
class ZPlus(Rule):
    r"""LRP-z+: positive contributions only, so relevance keeps its sign and its amount.

    .. math:: R_i = \sum_j \frac{x_i^+ w_{ij}^+ + x_i^- w_{ij}^-}{\sum_{i'} (\cdot) + b_j^+} R_j

    Source: montavon2017explaining. Deviation: where no input contributes positively, relevance is shared by the
    magnitude of the negative contributions, and where nothing contributes, by `|w|`, instead of getting lost.
    """

    groups = ((1.0, POSITIVE),)
    fallback = (NEGATIVE, UNIFORM, EQUAL)
    one_sided = True
    sign_selective = True


@dataclass(frozen=True)
class AlphaBeta(Rule):
    r"""LRP-alpha-beta: alpha parts to positive contributions, minus beta parts to negative ones; alpha - beta = 1.

    .. math:: R_i = \sum_j \Big(\alpha \frac{z_{ij}^+}{z_j^+} - \beta \frac{z_{ij}^-}{z_j^-}\Big) R_j

    with z_j^+ and z_j^- including the bias' part of that sign. AlphaBeta(1, 0) is ZPlus.

    Source: bach2015pixel, eq. 60. Deviation: a unit that has contributions of one sign only gives them R_j once
    (the formula would give alpha R_j, and relevance would grow). Raises ValueError unless alpha - beta = 1, to 1e-6.
    """

    alpha: float = 2.0
    beta: float = 1.0

    one_sided = True
    sign_selective = True

    @property
    def complete(self):
        return self.beta > 0

    def __post_init__(self):
        if abs(self.alpha - self.beta - 1) > 1e-6 or self.beta < 0:
            raise ValueError(f"alpha - beta must be 1 and beta >= 0; got alpha={self.alpha}, beta={self.beta}")

    @property
    def groups(self):
        return ((float(self.alpha), POSITIVE), (-float(self.beta), NEGATIVE))[: 2 if self.beta else 1]

    @property
    def fallback(self):
        return (UNIFORM, EQUAL) if self.beta else (NEGATIVE, UNIFORM, EQUAL)


@dataclass(frozen=True)
class Gamma(Rule):
    r"""LRP-gamma, generalised: contributions of the unit's own sign count 1 + gamma times.

    .. math:: R_i = \sum_j \frac{x_i^+ (w_{ij} + \gamma w_{ij}^+) + x_i^- (w_{ij} + \gamma w_{ij}^-)}
              {\sum_{i'} (\cdot) + b_j + \gamma b_j^+} R_j \quad (z_j \ge 0)

    and mirrored (w^+ and w^- exchanged) where z_j < 0, so that the denominator never is smaller than `|z_j|`.
    gamma = 0 is Epsilon, gamma -> infinity is ZPlus on active units.

    Source: montavon2019layer for x >= 0; the generalisation to inputs and outputs of any sign is the field's.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    def __post_init__(self):
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be >= 0, not {self.gamma}")

    @property
    def own_sign(self):
        return self.gamma

    @property
    def groups(self):
        up, down = Tilt(self.gamma, pos), Tilt(self.gamma, neg)
        return (
            (1.0, Group((Part(pos, up), Part(neg, down)), bias=up, where=1)),
            (1.0, Group((Part(pos, down), Part(neg, up)), bias=down, where=-1)),
        )


@dataclass(frozen=True)
class ZBox(Rule):
    r"""LRP-z^B for the first layer: pixels live in a box [low, high], and every pixel value can carry relevance.

    .. math:: R_i = \sum_j \frac{x_i w_{ij} - l_i w_{ij}^+ - h_i w_{ij}^-}{\sum_{i'} (\cdot)} R_j

    `low` and `high` are numbers or tensors that broadcast against the layer's input, in its units, that is, after
    normalisation, inside the network or outside. The bias takes no part. Padding contributes nothing.

    Source: montavon2017explaining. Raises ValueError unless low < high.
    """

    low: float | Tensor = 0.0
    high: float | Tensor = 1.0

    fallback = (UNIFORM, EQUAL)
    one_sided = True
    sign_selective = True

    def __post_init__(self):
        if not bool((torch.as_tensor(self.low) < torch.as_tensor(self.high)).all()):
            raise ValueError(f"low must be below high everywhere; got low={self.low}, high={self.high}")

    @property
    def groups(self):
        low, high = (Constant(-b) for b in (self.low, self.high))
        return ((1.0, Group((Part(same, same), Part(low, pos), Part(high, neg)))),)

    def complaint(self, xs):
        x, low, high = xs[0], *(torch.as_tensor(b).to(xs[0]) for b in (self.low, self.high))
        slack = 1e-4 * (high - low)
        if not ((x < low - slack) | (x > high + slack)).any():
            return None
        return (
            f"the input, {float(x.min()):.3g} to {float(x.max()):.3g}, leaves the box of {self!r}; shares are no "
            "longer bounded: give low and high in the units of this layer's input"
        )


@dataclass(frozen=True)
class WSquare(Rule):
    r"""LRP-w^2 for the first layer: by squared weights, whatever the input.

    .. math:: R_i = \sum_j \frac{w_{ij}^2}{\sum_{i'} w_{i'j}^2 + b_j^2} R_j

    Source: montavon2017explaining. Deviation: an absorbed bias takes part with b_j^2, as is usual today.
    """

    groups = ((1.0, Group((Part(ones, square),), bias=square)),)
    fallback = (EQUAL,)
    one_sided = True


@dataclass(frozen=True)
class Flat(Rule):
    r"""LRP-flat: equally to all inputs that are connected, R_i = sum_j R_j / (number of inputs of j).

    At an addition it is the symmetric split. Source: lapuschkin2019unmasking.
    """

    groups = ((1.0, EQUAL),)
    one_sided = True


@dataclass(frozen=True)
class Ratio(Rule):
    r"""By magnitude of the contributions: bounded and conserving, blind to their sign.

    .. math:: R_i = \sum_j \frac{|x_i w_{ij}|}{\sum_{i'} |x_{i'} w_{i'j}| + |b_j|} R_j

    At an addition this is the ratio-based relevance splitting, the default there.

    Source: otsuki2024layer. Deviation: 0/0 gives equal parts.
    """

    groups = ((1.0, Group((Part(magnitude, magnitude),), bias=magnitude)),)
    fallback = (UNIFORM, EQUAL)
    one_sided = True


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance goes through unchanged: R_i = R_j for i = j. Input and output must have the same shape."""


@dataclass(frozen=True)
class Own(Rule):
    """What nodes of a kind do with relevance when no rule is asked for: max pooling gives it to the winner."""

    kind: str

    def __repr__(self):
        return self.kind


@dataclass(frozen=True)
class ProductRule(Rule):
    """Base of the rules at products of two signals; `epsilon` as in `Epsilon`."""

    epsilon: float = 1e-6
    relative: bool = True

    at = ("matmul", "product")


class SignalTakesAll(ProductRule):
    r"""O = A V, whose weights A a softmax or sigmoid made, perhaps mixed since: all to V, nothing to A.

    .. math:: R_{ip} = \sum_j \frac{A_{ji} V_{ip}}{O_{jp} + \epsilon_{jp} \operatorname{sign} O_{jp}} R_{jp}

    Where the graph tells no gate, as at q k^T, it is `Uniform`. It stands in every composite but `AttnLRP`.
    Sources: arras2017explaining (gates), ali2022xai (attention). Deviation: epsilon is relative by default.
    """


class Uniform(ProductRule):
    r"""O = A V: half to each, by contributions A_ji V_ip. At an elementwise product with attention weights, R / 2.

    .. math:: R_{ji} = \sum_p \frac{A_{ji} V_{ip}}{2 O_{jp}} R_{jp}, \qquad
              R_{ip} = \sum_j \frac{A_{ji} V_{ip}}{2 O_{jp}} R_{jp}

    Source: achtibat2024attnlrp, propositions 3.2 and 3.3. Deviation: epsilon is relative by default.
    """


@dataclass(frozen=True)
class Taylor(Rule):
    r"""At a softmax s = softmax(x): its Taylor expansion at x, whose constant keeps a share; x = -inf gets nothing.

    .. math:: R_i = x_i \Big(R_i^{out} - s_i \sum_j R_j^{out}\Big)

    What is added to the scores right before, a mask or a position bias, is part of the constant.
    Source: achtibat2024attnlrp, proposition 3.1.
    """

    at = ("softmax",)


class Adjoint(Rule):
    """The vector-Jacobian product, R_i = sum_j (d y_j / d x_i) R_j: at every node, and from 1, the gradient.

    A subclass may name a `step` of its own (`lrp.nodes.steps`), for nodes whose Jacobian has a short form.
    """

    step = None


Symmetric = Flat
