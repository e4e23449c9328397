"""Composites: which rule where. Each is a short, printable list of (condition, rule); the first match holds.

A condition is the kind of a node ("convolution", "batchnorm", "average"; see `lrp.network.kinds`), "dense" (the last
dense layers), "linear" (all of them), "first" (the convolutions and dense layers nearest to the input), "any", or a
function of the node that says yes or no.

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
from itertools import chain
from typing import Literal

from torch import Tensor

from . import rules as r
from . import splitting as s
from .network import kinds as v
from .network.gates import attends
from .network.graph import Node

LISTED = (v.CONVOLUTION, v.DENSE, v.BATCHNORM, v.AVERAGE)  # where "any", "first" and functions are asked
CONDITIONS = ("any", "first", "linear", *LISTED, v.MAXIMUM)
NAMED = {"addition": v.ADD, "lrn": v.LRN, "norm": v.NORM, "matmul": v.MATMUL, "softmax": v.SOFTMAX}
UNSAID = [("norm", r.Pass()), ("softmax", None)]  # defaults that are not printed
GLOBBED = (*LISTED, v.LRN, v.UNKNOWN)  # what a glob in `overrides` reaches


class Composite:
    """Rules for a whole network.

    Args:
        rules: list of (condition, rule) for convolutions, dense layers, unfolded BatchNorms and averages. Max pooling
            leaves relevance to the winner, except where "maximum" names a rule made for it. Any affine map with
            constants counts as BatchNorm; where it normalises the input itself, "any" lets relevance pass. "dense"
            means the dense layers behind all convolutions and places, those of a classifier. A dense layer that works
            at many places, as in ConvNeXt's blocks or a mixer, is a convolution in all but name, and takes their
            rule; "linear" means every dense layer.
        addition: the rule at sums; `rules.Ratio()` by magnitude, `rules.Flat()` in equal parts,
            `rules.Epsilon()` signed, `rules.ZPlus()` among positive summands.
        lrn: the rule at local response normalisation; `rules.Pass()` treats it as the identity.
        norm: the rule at LayerNorm and its kind; `rules.Pass()` treats it as the identity, `rules.Epsilon()` as a
            linear map with a constant deviation, of which mean and bias are parts.
        matmul: the rule at products of two matrices that both depend on the input, as in attention;
            `rules.SignalTakesAll()` counts what a softmax made as constant, `rules.Uniform()` gives halves.
        softmax: the rule where relevance gets to a softmax, `rules.Taylor()`; by default that is an error.
        bias: "absorb" (the bias keeps its part) or "exclude" (the inputs get everything).
        overrides: {module name or glob: rule}, before everything else; the first match holds. A glob such as
            "layer4.*" means layers with weights, averages, LRN and unknown operations; name a sum in full to
            override it. A name that matches nothing is an error.
        fold_batchnorm: fold BatchNorm, and what else scales a layer's output by constants, into the layer before it
            (False leaves them nodes of their own). A bias that is added to the output is folded always.
        spread: move relevance from the lattice of pixels that a layer with gaps reads (1 x 1 with a stride,
            x[:, :, ::2, ::2]) to the pixels between, too; see `lrp.splitting.spread`.

    Raises ValueError for an unknown condition or bias policy, TypeError for what is no rule.
    """

    def __init__(
        self,
        rules: list[tuple[str | Callable[[Node], bool], r.Rule]],
        *,
        addition: r.Rule | None = None,
        lrn: r.Rule | None = None,
        norm: r.Rule | None = None,
        matmul: r.Rule | None = None,
        softmax: r.Rule | None = None,
        bias: Literal["absorb", "exclude"] = "absorb",
        overrides: Mapping[str, r.Rule] | None = None,
        fold_batchnorm: bool = True,
        spread: bool = False,
    ):
        self.rules = list(rules)
        self.addition = r.Ratio() if addition is None else addition
        self.lrn = r.Pass() if lrn is None else lrn
        self.norm = r.Pass() if norm is None else norm
        self.matmul = r.SignalTakesAll() if matmul is None else matmul
        self.softmax = softmax
        self.bias, self.overrides = bias, dict(overrides or {})
        self.fold_batchnorm, self.spread = fold_batchnorm, spread
        if bias not in ("absorb", "exclude"):
            raise ValueError(f"bias must be 'absorb' or 'exclude', not {bias!r}")
        for condition, _ in self.rules:
            if not callable(condition) and condition not in CONDITIONS:
                raise ValueError(f"unknown condition {condition!r}; there are {', '.join(CONDITIONS)}, or a function")
        own = [rule for name in NAMED if (rule := getattr(self, name)) is not None]
        for rule in [rule for _, rule in self.rules] + own + [*self.overrides.values()]:
            if not isinstance(rule, r.Rule):
                raise TypeError(f"{rule!r} is no rule: make one, as in rules.ZPlus()")

    def rule(self, node: Node, first: set[Node]) -> r.Rule | None:
        """The rule at this node; None where its kind needs none (activations, pooling, views)."""
        rows = [*self.rules, *((kind, rule) for name, kind in NAMED.items() if (rule := getattr(self, name)))]
        if front := node.front and node.kind == v.BATCHNORM:
            rows = [(condition, rule) for condition, rule in rows if condition != "any" or isinstance(rule, r.Adjoint)]
        named = (rule for pattern, rule in self.overrides.items() if self.names(pattern, node))
        listed = (rule for condition, rule in rows if _holds(condition, node, first))
        if attends(node):  # the product of matrices with its sum written apart has the same rule
            listed = chain(listed, [self.matmul])
        return next(chain(named, listed), r.Pass() if front else None)

    @staticmethod
    def names(pattern: str, node: Node) -> bool:
        """Does this key of `overrides` mean this node, or a BatchNorm folded into it? (`relu` means `relu#2`, too.)"""
        names = {name for full in (node.name, *node.aliases) for name in (full, full.split("#")[0])}
        return pattern in names or (node.kind in GLOBBED and any(fnmatch.fnmatchcase(n, pattern) for n in names))

    def __repr__(self):
        return f"{type(self).__name__}(bias={self.bias!r})"

    def __str__(self):
        rows = [(c if isinstance(c, str) else getattr(c, "__name__", "function"), rule) for c, rule in self.rules]
        own = [(name, getattr(self, name)) for name in NAMED]
        own = [row for row in own if row not in UNSAID and not isinstance(row[1], r.SignalTakesAll)]
        rows = [*self.overrides.items(), *rows, *own]
        return "\n".join([repr(self), *(f"  {name:<12} {rule}" for name, rule in rows)])


def _holds(condition: str | Callable[[Node], bool], node: Node, first: set[Node]) -> bool:
    """Does a row with this condition hold at the node? At sums, LRN and max pooling, only a row of that kind does."""
    if condition in (v.DENSE, "linear"):
        return node.kind == v.DENSE and (node.head or condition == "linear")
    if condition == node.kind:
        return True
    if node.kind not in LISTED:
        return False
    return condition(node) if callable(condition) else condition == "any" or (condition == "first" and node in first)


class Epsilon(Composite):
    """LRP-epsilon everywhere but at sums; with `addition=rules.Epsilon()` too it equals gradient x input.

    (For a ReLU network, as epsilon -> 0, with absorbed biases; a normalisation of the input itself passes.)
    """

    def __init__(self, epsilon: float = 1e-6, **options):
        super().__init__([("any", r.Epsilon(epsilon))], **{"matmul": r.SignalTakesAll(epsilon)} | options)


class EpsilonPlus(Composite):
    """LRP-epsilon in the last dense layers, z+ in all others (kohlbrenner2020towards)."""

    def __init__(self, epsilon: float = 1e-6, **options):
        super().__init__([("dense", r.Epsilon(epsilon)), ("any", r.ZPlus())], **options)


class EpsilonPlusFlat(Composite):
    """EpsilonPlus with the flat rule in the first layer."""

    def __init__(self, epsilon: float = 1e-6, **options):
        super().__init__([("first", r.Flat()), ("dense", r.Epsilon(epsilon)), ("any", r.ZPlus())], **options)


class EpsilonGammaBox(Composite):
    """LRP-epsilon in the last dense layers, gamma in all others, z^B on the pixels (montavon2019layer).

    `low` and `high` bound the network's input, in its own units: numbers, or tensors such as (3, 1, 1).
    """

    def __init__(
        self, low: float | Tensor, high: float | Tensor, gamma: float = 0.25, epsilon: float = 1e-6, **options
    ):
        rules = [("first", r.ZBox(low, high)), ("dense", r.Epsilon(epsilon)), ("any", r.Gamma(gamma, epsilon))]
        super().__init__(rules, **options)


class EpsilonAlpha2Beta1(Composite):
    """LRP-epsilon in the last dense layers, alpha-beta with alpha = 2, beta = 1 in all others."""

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
    left out, max pooling treated as an average over 2 x 2, the first layer blind to the image. Its seed is
    `seeds.Probability()` and its target the predicted class. Not faithful is our corrected version: BatchNorm folded,
    relevance of max pooling to the winner, z^B with the bounds `low` and `high` on the pixels, exact division, no
    lattice of dots (`spread`). Its seed is the logit.

    `splitting` is "ratio" or "symmetric"; without `identical`, identity skips get nothing.

    Raises ValueError for other names, and for missing bounds.
    """

    def __init__(
        self,
        faithful: bool = True,
        *,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        splitting: Literal["ratio", "symmetric"] = "ratio",
        identical: bool = True,
        **options,
    ):
        split = {"ratio": r.Ratio(), "symmetric": r.Symmetric()}.get(splitting)
        if split is None:
            raise ValueError(f"splitting must be 'ratio' or 'symmetric', not {splitting!r}")
        if faithful:
            rules = [
                ("first", s.PlusOnes()),
                (v.BATCHNORM, r.Pass()),
                (v.AVERAGE, r.Epsilon(s.ADDED, relative=False)),
                (v.MAXIMUM, s.AverageInstead()),
                ("any", s.PlusRaw()),
            ]
        elif low is None or high is None:
            raise ValueError(
                "the corrected preset needs the bounds of the pixels: low and high, as EpsilonGammaBox does"
            )
        else:
            rules = [("first", r.ZBox(low, high)), ("any", r.ZPlus())]
        own = {"bias": "exclude", "addition": split if identical else s.BranchOnly(splitting)}
        own |= {"fold_batchnorm": not faithful, "spread": not faithful}
        super().__init__(rules, **own | options)


class CPLRP(Composite):
    """CP-LRP for transformers: attention weights and deviations of norms count as constants (ali2022xai).

    All of the relevance of an attended value goes to the values V, none to queries and keys; GELU and the like hand it
    through; LayerNorm is a linear map that subtracts the mean; sums are signed. `gamma` is that of convolutions, the
    patch embedding among them, and `gamma_linear` of dense layers; with 0 they take LRP-epsilon, as in the paper.
    Vision transformers need more than that (achtibat2024attnlrp).
    """

    def __init__(self, gamma: float = 0.25, gamma_linear: float = 0.05, epsilon: float = 1e-6, **options):
        linear, convolution = (r.Gamma(g, epsilon) if g else r.Epsilon(epsilon) for g in (gamma_linear, gamma))
        signed = r.Epsilon(epsilon)
        own = {"addition": signed, "norm": signed, "matmul": r.SignalTakesAll(epsilon)}
        super().__init__([("linear", linear), (v.CONVOLUTION, convolution), ("any", signed)], **own | options)


class AttnLRP(CPLRP):
    """AttnLRP for transformers: relevance goes through softmax and queries, too (achtibat2024attnlrp).

    A product of two matrices is shared in halves, a softmax by its Taylor expansion, whose constant keeps a share; all
    else is as in `CPLRP`. Deviation: LayerNorm subtracts the mean, as in the authors' program. The identity of
    proposition 3.4, `norm=rules.Pass()`, gives relevance to values near 0 that only mean and bias made large.
    """

    def __init__(self, gamma: float = 0.25, gamma_linear: float = 0.05, epsilon: float = 1e-6, **options):
        own = {"matmul": r.Uniform(epsilon), "softmax": r.Taylor()}
        super().__init__(gamma, gamma_linear, epsilon, **own | options)


class LXTViT(CPLRP):
    """What LXT 2.1 does to torchvision's vision transformers: CP-LRP inside the attention, AttnLRP outside.

    It is `CPLRP` but for one thing: its gammas are set at modules, and the projections inside nn.MultiheadAttention are
    none, so these take LRP-epsilon (achtibat2024attnlrp, the authors' program).
    """

    def __init__(self, gamma: float = 0.25, gamma_linear: float = 0.05, epsilon: float = 1e-6, **options):
        super().__init__(gamma, gamma_linear, epsilon, **options)
        self.rules.insert(0, (no_module, r.Epsilon(epsilon)))


def no_module(node: Node) -> bool:
    """Is this a dense layer that is called as a function?"""
    return node.kind == v.DENSE and node.module is None
