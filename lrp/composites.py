"""Composites: which rule where. Each is a short, printable list of (condition, rule); the first match holds.

A condition is the kind of a node ("convolution", "dense", "batchnorm", "average"; see `lrp.kinds`), "first"
(the convolutions and dense layers nearest to the input), "any", or a function of the node that says yes or no.

    >>> print(EpsilonPlus(bias="exclude"))
    EpsilonPlus(bias='exclude')
      dense        Epsilon(epsilon=1e-06, relative=True)
      any          ZPlus()
      addition     Ratio()
      lrn          Pass()

Presets are named as in the field. Edit one by overriding modules by name,
`EpsilonPlus(overrides={"features.0": rules.ZBox(low, high)})`, or by changing its list `rules`.
"""

import fnmatch
from collections.abc import Callable, Mapping

from torch import Tensor

from . import kinds as v
from . import rules as r
from . import splitting as _s
from .graph import Node

GLOBBED = (v.CONVOLUTION, v.DENSE, v.BATCHNORM, v.AVERAGE, v.LRN, v.UNKNOWN)  # what a glob in `overrides` reaches
CONDITIONS = ("any", "first", v.CONVOLUTION, v.DENSE, v.BATCHNORM, v.AVERAGE, v.MAXIMUM)


class Composite:
    """Rules for a whole network.

    Args:
        rules: list of (condition, rule) for convolutions, dense layers, unfolded BatchNorms and averages; "maximum"
            is for rules made for max pooling, where all others leave relevance to the winner.
        addition: the rule at sums; `rules.Ratio()` by magnitude, `rules.Flat()` in equal parts,
            `rules.Epsilon()` signed, `rules.ZPlus()` among positive summands.
        lrn: the rule at local response normalisation; `rules.Pass()` treats it as the identity.
        bias: "absorb" (the bias keeps its share) or "exclude" (the inputs share everything).
        overrides: {module name or glob: rule}, first match first; they come before everything else. A glob such as
            "layer4.*" means layers with weights, averages, LRN and unknown operations; name a sum in full to
            override it. A name that matches nothing is an error.
        fold_batchnorm: fold BatchNorm into the layer before it (False leaves each one a node of its own).
        spread: spread what a layer with gaps (1 x 1 with a stride, x[:, :, ::2, ::2]) leaves on a lattice of pixels
            over those between; see `lrp.splitting.spread`.

    Raises ValueError for an unknown condition or bias policy, TypeError for what is no rule.
    """

    def __init__(
        self,
        rules: list[tuple[str | Callable[[Node], bool], r.Rule]],
        *,
        addition: r.Rule | None = None,
        lrn: r.Rule | None = None,
        bias: str = "absorb",
        overrides: Mapping[str, r.Rule] | None = None,
        fold_batchnorm: bool = True,
        spread: bool = False,
    ):
        self.rules = list(rules)
        self.addition = r.Ratio() if addition is None else addition
        self.lrn = r.Pass() if lrn is None else lrn
        self.bias, self.overrides = bias, dict(overrides or {})
        self.fold_batchnorm, self.spread = fold_batchnorm, spread
        if bias not in ("absorb", "exclude"):
            raise ValueError(f"bias must be 'absorb' or 'exclude', not {bias!r}")
        for condition, _ in self.rules:
            if not callable(condition) and condition not in CONDITIONS:
                raise ValueError(f"unknown condition {condition!r}; there are {', '.join(CONDITIONS)}, or a function")
        given = [rule for _, rule in self.rules] + [self.addition, self.lrn, *self.overrides.values()]
        for rule in given:
            if not isinstance(rule, r.Rule):
                raise TypeError(f"{rule!r} is no rule: make one, as in rules.ZPlus()")

    def rule(self, node: Node, first: set[Node]) -> r.Rule | None:
        """The rule at this node; None where its kind needs none (activations, pooling, views)."""
        override = self.override(node)
        if override is not None:
            return override
        if node.kind == v.ADD:
            return self.addition
        if node.kind == v.LRN:
            return self.lrn
        if node.kind == v.MAXIMUM:
            return next((rule for condition, rule in self.rules if condition == v.MAXIMUM), None)
        if node.kind not in v.LINEAR:
            return None
        for condition, rule in self.rules:
            if condition(node) if callable(condition) else condition in ("any", node.kind):
                return rule
            if condition == "first" and node in first:
                return rule
        return None

    def override(self, node: Node) -> r.Rule | None:
        """The rule that `overrides` names for this node, by its name or that of a BatchNorm folded into it."""
        return next((rule for pattern, rule in self.overrides.items() if self.names(pattern, node)), None)

    @staticmethod
    def names(pattern: str, node: Node) -> bool:
        """Does this key of `overrides` mean this node? (The second call of a module, `relu#2`, goes by `relu` too.)"""
        names = {name for full in (node.name, *node.aliases) for name in (full, full.split("#")[0])}
        return pattern in names or (node.kind in GLOBBED and any(fnmatch.fnmatchcase(n, pattern) for n in names))

    def __repr__(self):
        return f"{type(self).__name__}(bias={self.bias!r})"

    def __str__(self):
        rows = [(c if isinstance(c, str) else getattr(c, "__name__", "function"), rule) for c, rule in self.rules]
        rows = [*self.overrides.items(), *rows, ("addition", self.addition), ("lrn", self.lrn)]
        return "\n".join([repr(self), *(f"  {name:<12} {rule}" for name, rule in rows)])


class Epsilon(Composite):
    """LRP-epsilon everywhere but at sums; with `addition=rules.Epsilon()` too it equals gradient x input.

    (For a ReLU network, as epsilon -> 0, with absorbed biases.)
    """

    def __init__(self, epsilon: float = 1e-6, **options):
        super().__init__([("any", r.Epsilon(epsilon))], **options)


class EpsilonPlus(Composite):
    """LRP-epsilon in dense layers, z+ in convolutions (kohlbrenner2020towards)."""

    def __init__(self, epsilon: float = 1e-6, **options):
        super().__init__([("dense", r.Epsilon(epsilon)), ("any", r.ZPlus())], **options)


class EpsilonPlusFlat(Composite):
    """EpsilonPlus with the flat rule in the first layer."""

    def __init__(self, epsilon: float = 1e-6, **options):
        super().__init__([("first", r.Flat()), ("dense", r.Epsilon(epsilon)), ("any", r.ZPlus())], **options)


class EpsilonGammaBox(Composite):
    """LRP-epsilon in dense layers, gamma in convolutions, z^B on the pixels (montavon2019layer).

    `low` and `high` bound the network's input, in its own units: numbers, or tensors such as (3, 1, 1).
    """

    def __init__(
        self, low: float | Tensor, high: float | Tensor, gamma: float = 0.25, epsilon: float = 1e-6, **options
    ):
        rules = [
            ("first", r.ZBox(low, high)),
            ("dense", r.Epsilon(epsilon)),
            ("any", r.Gamma(gamma, epsilon)),
        ]
        super().__init__(rules, **options)


class EpsilonAlpha2Beta1(Composite):
    """LRP-epsilon in dense layers, alpha-beta with alpha = 2, beta = 1 in convolutions."""

    def __init__(self, epsilon: float = 1e-6, **options):
        super().__init__([("dense", r.Epsilon(epsilon)), ("any", r.AlphaBeta(2, 1))], **options)


class EpsilonAlpha2Beta1Flat(Composite):
    """EpsilonAlpha2Beta1 with the flat rule in the first layer."""

    def __init__(self, epsilon: float = 1e-6, **options):
        rules = [("first", r.Flat()), ("dense", r.Epsilon(epsilon)), ("any", r.AlphaBeta(2, 1))]
        super().__init__(rules, **options)


class RelevanceSplitting(Composite):
    """Relevance splitting for ResNets (otsuki2024layer): z+, and at skip connections a split by magnitude.

    `faithful` is the authors' program: z+ on raw weights with 1e-5 added to every denominator, BatchNorm and biases
    left out, max pooling treated as an average over 2 x 2, the first layer blind to the image; its seed is
    `seeds.Probability()` and its target the predicted class. Not faithful is our corrected version: BatchNorm folded,
    relevance of max pooling to the winner, z^B with the bounds `low` and `high` on the pixels, exact division, no
    lattice of dots (`spread`); its seed is the logit. `splitting` is "ratio" or "symmetric", `identical` off gives
    identity skips nothing.

    Raises ValueError for other names, and for missing bounds.
    """

    def __init__(
        self,
        faithful: bool = True,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        splitting: str = "ratio",
        identical: bool = True,
        **options,
    ):
        if splitting not in SPLITS:
            raise ValueError(f"splitting must be 'ratio' or 'symmetric', not {splitting!r}")
        own = {"bias": "exclude", "addition": SPLITS[splitting][not identical], "fold_batchnorm": not faithful}
        own["spread"] = not faithful
        if faithful:
            rules = [
                ("first", _s.PlusOnes()),
                (v.BATCHNORM, r.Pass()),
                (v.AVERAGE, r.Epsilon(_s.ADDED, relative=False)),
                (v.MAXIMUM, _s.AverageInstead()),
                ("any", _s.PlusRaw()),
            ]
        elif low is None or high is None:
            raise ValueError(
                "the corrected preset needs the bounds of the pixels: low and high, as EpsilonGammaBox does"
            )
        else:
            rules = [("first", r.ZBox(low, high)), ("any", r.ZPlus())]
        super().__init__(rules, **own | options)


SPLITS = {
    "ratio": (r.Ratio(), _s.BranchOnly("ratio")),
    "symmetric": (r.Symmetric(), _s.BranchOnly("symmetric")),
}
