"""Every method of the project on the same images and the same metrics: which is best, by how much, and at what cost.

`measure` gives one value per method, metric and image; `summary` makes means with intervals of them, and `leaders`
names the methods that these images do not separate from the best. All metrics but the cost are "more is better", and
between 0 and 1 (insertion minus deletion: -1 to 1).
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from .. import composites, seeds
from ..errors import LRPError
from ..evaluate import baselines, insertion, localisation, metrics, randomisation
from ..evaluate.attention import TOKEN_METHODS
from ..evaluate.metrics import Interval
from ..evaluate.perturbation import at_once
from . import contrastive
from .dmbp import dmbp_method

LOCALISATION, BLUR, BLACK = "localisation", "ID, blur", "ID, black"
CLASS, SANITY, COST = "class", "randomisation", "cost"
METRICS = (LOCALISATION, BLUR, BLACK, CLASS, SANITY)
PROTOCOLS = {BLUR: insertion.RISE, BLACK: insertion.STRICT}
FAMILIES = ("control", "gradient", "layer, patch", "attention", "LRP", "contrast", "splitting", "masks")


# ---------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Contender:
    """A method `(model, x, target) -> (N, H, W)`; `at_most` images are explained where it is slow."""

    name: str
    family: str
    method: Callable
    at_most: int | None = None


def contenders(
    low: Tensor | float, high: Tensor | float, *, residual: bool = False, tokens: bool = False, slow: int | None = 8
) -> list[Contender]:
    """The methods of the project for inputs between `low` and `high`; relevance splitting for `residual` networks.

    For transformers with a class token (`tokens`) the methods that read attention stand in for Grad-CAM at a
    convolution, CP-LRP and AttnLRP join LRP, and DMBP, which needs a piecewise linear network, is left out. `slow` is
    how many images DMBP and occlusion get: the first runs hundreds of steps, the other hundreds of patches.
    """
    lrp, base = baselines.lrp_method, baselines.METHODS
    plus = contrastive.preset(low, high)
    gradients = ("gradient", "gradient x input", "SmoothGrad", "integrated gradients", "guided backprop", "DeconvNet")
    layer = () if tokens else ("Grad-CAM", "guided Grad-CAM")
    families = {"control": baselines.CONTROLS, "gradient": gradients, "layer, patch": layer}
    rows = [(name, family, base[name]) for family, names in families.items() for name in names]
    rows += [
        ("Epsilon", "LRP", lrp(composites.Epsilon(0.1))),
        ("EpsilonPlus", "LRP", lrp(composites.EpsilonPlus())),
        ("EpsilonGammaBox", "LRP", lrp(composites.EpsilonGammaBox(low, high))),
        ("EpsilonAlpha2Beta1", "LRP", lrp(composites.EpsilonAlpha2Beta1())),
        ("z⁺ everywhere", "LRP", lrp(plus, seeds.OneHot())),
        ("CLRP1", "contrast", lrp(plus, seeds.UnitContrast(1))),
        ("CLRP2", "contrast", lrp(plus, seeds.UnitContrast(2))),
        ("SGLRP", "contrast", lrp(plus, seeds.SoftmaxGradient())),
    ]
    if residual:
        ours = composites.RelevanceSplitting(faithful=False, low=low, high=high)
        rows += [
            ("splitting, authors'", "splitting", lrp(composites.RelevanceSplitting(), seeds.Probability())),
            ("splitting, corrected", "splitting", lrp(ours)),
        ]
    rows.append(("occlusion", "layer, patch", base["occlusion"], slow))
    if tokens:
        rows += [("CP-LRP", "LRP", lrp(composites.CPLRP())), ("AttnLRP", "LRP", lrp(composites.AttnLRP()))]
        rows += [(name, "attention", method) for name, method in TOKEN_METHODS.items()]
    else:
        rows.append(("DMBP", "masks", dmbp_method("both"), slow))
    return [Contender(*row) for row in rows]


# ---------------------------------------------------------------- the images


@dataclass(frozen=True)
class Images:
    """What the metrics need of N images: inputs (N, C, H, W), labels (T, N) and the masks (T, N, H, W) of T objects."""

    x: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    masks: Tensor = field(repr=False)

    def __post_init__(self):
        t, n = self.labels.shape
        if len(self.x) != n or self.masks.shape != (t, n, *self.x.shape[2:]):
            raise LRPError(
                f"images (N, C, H, W), labels (T, N) and masks (T, N, H, W) belong together; got "
                f"{tuple(self.x.shape)}, {tuple(self.labels.shape)} and {tuple(self.masks.shape)}"
            )

    def __getitem__(self, some: slice) -> "Images":
        return Images(self.x[some], self.labels[:, some], self.masks[:, some])

    @classmethod
    def of(cls, scenes, device="cpu", **options) -> "Images":
        """The images of `datasets.scenes` with the boxes of their digits as masks; options of `Tensor.to`."""
        size = scenes.inputs.shape[-2:]
        masks = torch.stack([metrics.box_masks(scenes.boxes[:, k], size) for k in range(scenes.labels.shape[1])])
        return cls(scenes.inputs.to(device, **options), scenes.labels.T.to(device), masks.to(device))


# ---------------------------------------------------------------- the measurement


def explain(model: nn.Module, method: Callable, x: Tensor, target: Tensor) -> Tensor:
    """The maps (N, H, W), made in batches that fit into memory."""
    parts = zip(x.split(at_once(x)), target.split(at_once(x)), strict=True)
    return torch.cat([method(model, *part).detach() for part in parts])


def localisation_of(R: Tensor, images: Images) -> Tensor:
    """Share of the positive relevance inside the object's box, (N,): the energy pointing game (wang2020score)."""
    return metrics.inside(R, images.masks[0])


def class_sensitivity_of(model: nn.Module, method: Callable, pairs: Images) -> Tensor:
    """Pointing game with two objects, each the target once: share of the two maxima inside the target's box, (N,)."""
    R = torch.stack([explain(model, method, pairs.x, label) for label in pairs.labels])
    return contrastive.per_image(localisation.pointing_game, R, pairs.masks)


def randomised(model: nn.Module, x: Tensor, seed: int = 0, *, stops: int = 3) -> list[nn.Module]:
    """Copies of a network with random parameters from the output down: in a third of its layers, in two, in all.

    Cascading, with norms calibrated on x: see `randomisation.degrade` (adebayo2018sanity).
    """
    order = randomisation.layers(model, x)
    at = {order[round(len(order) * k / stops) - 1] for k in range(1, stops + 1)}
    return [copy.deepcopy(net) for layer, net in randomisation.degrade(model, x, "cascading", seed=seed) if layer in at]


def sanity_of(networks: Sequence[nn.Module], method: Callable, R: Tensor, images: Images) -> Tensor:
    """How much maps R (N, H, W) of a trained network change in `randomised` ones, (N,).

    The mean of 1 - `|rank correlation|` over these networks: 0 is a map that does not depend on what was learned. A map
    with the opposite signs counts as the same, a flat one as another.
    """
    maps = [explain(net, method, images.x, images.labels[0]) for net in networks]
    return 1 - torch.stack([randomisation.spearman(R, S).abs().nan_to_num() for S in maps]).mean(0)


class _Count(TorchDispatchMode):
    """Counts the work of convolutions and matrix products (torch's own counter fails at hooks of modules)."""

    work = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function.overloadpacket):
            self.work += count(*args, **(kwargs or {}), out_val=out)
        return out


def cost_of(model: nn.Module, method: Callable, x: Tensor, target: Tensor) -> float:
    """Work for the maps of x in units of one gradient with respect to it: convolutions and matrix products, counted.

    Copies, checks and elementwise work are not counted, so times may order methods of nearly equal cost otherwise.
    Capture is part of the first explanation of a model: call the method once before.
    """
    leaf = x.detach().clone().requires_grad_()
    if isinstance(method, baselines.Method):
        run, net = method.raw, baselines.prepared(model, x)[0]
    else:
        run, net = method, model
    with _Count() as one:
        torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)
    with _Count() as counter, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="captum")
        run(net, leaf if run is not method else x, target)
    return counter.work / one.work


def measure(
    model: nn.Module,
    methods: Sequence[Contender],
    singles: Images,
    pairs: Images,
    black: Tensor | float,
    *,
    step: int = 256,
    sanity: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """One row per method, metric and image: columns method, family, metric, sample, value; the cost has one row.

    The metrics: `localisation_of`; the ID score, insertion minus deletion, by the protocols `insertion.RISE` (blurred
    image and mean) and `insertion.STRICT` (black); `class_sensitivity_of`; `sanity_of`; `cost_of`.

    Args:
        singles, pairs: images of one object, and of two.
        black, step: of insertion and deletion, as in `insertion.measure`.
        sanity: how many images are explained in randomised networks.
    """
    rows, random = [], randomised(model, singles.x[:sanity], seed)
    flips = {"step": step, "black": black, "progress": False}
    for contender in (bar := tqdm(methods, delay=5, leave=False, disable=not progress)):
        bar.set_description(contender.name)
        n = contender.at_most
        few = sanity if n is None else min(sanity, (n + 1) // 2)
        found = _values(model, contender.method, singles[slice(n)], pairs[slice(n)], random, few, flips)
        head = {"method": contender.name, "family": contender.family}
        rows += [
            head | {"metric": metric, "sample": i, "value": float(value)}
            for metric, values in found.items()
            for i, value in enumerate(values)
        ]
    return pd.DataFrame(rows)


def _values(model, method, one: Images, two: Images, random, few: int, flips: Mapping) -> dict[str, Sequence]:
    """{metric: one value per image} of one method; `few` images are explained in the `random` networks."""
    label = one.labels[0]
    R = explain(model, method, one.x, label)
    cost = cost_of(model, method, one.x[:1], label[:1])  # before `random`: the method keeps the last model it captured
    ids = {
        name: insertion.measure(model, one.x, R, label, protocol=protocol, **flips).id_score()
        for name, protocol in PROTOCOLS.items()
    }
    sensitivity, sane = class_sensitivity_of(model, method, two), sanity_of(random, method, R[:few], one[:few])
    return {COST: [cost], LOCALISATION: localisation_of(R, one), **ids, CLASS: sensitivity, SANITY: sane}


# ---------------------------------------------------------------- the results


def _by_metric(rows: pd.DataFrame):
    """(metric, its rows), the cost left out, in the order of the rows."""
    return rows[rows.metric != COST].groupby("metric", sort=False)


def summary(rows: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """{metric: {method: mean with its interval}}, the cost left out, in the order of the rows."""
    methods = {metric: part.groupby("method", sort=False).value for metric, part in _by_metric(rows)}
    return {metric: {name: metrics.interval(v.to_numpy()) for name, v in by} for metric, by in methods.items()}


def costs(rows: pd.DataFrame) -> dict[str, float]:
    """{method: work in gradients}."""
    part = rows[rows.metric == COST]
    return dict(zip(part.method, part.value, strict=True))


def cheapness(rows: pd.DataFrame) -> dict[str, float]:
    """{method: 1 - log cost / log of the largest cost}: 1 for a gradient or less, 0 for the costliest method."""
    known = {name: math.log(max(1.0, value)) for name, value in costs(rows).items()}
    return {name: 1 - value / max(known.values()) for name, value in known.items()}


def leaders(rows: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """{metric: {method: best - method}}: the best of the methods with most images, and those not separated from it.

    A method is listed where the interval of the paired difference reaches zero. With some twenty methods one or another
    is listed, or not, by chance. Methods with fewer images are left out: few images separate no methods.
    """
    found = {}
    for metric, part in _by_metric(rows):
        wide = part.pivot(index="sample", columns="method", values="value")[part.method.unique()]
        counts = part.groupby("method", sort=False).size()
        wide = wide[counts.index[counts == counts.max()]]
        best = wide.mean().idxmax()
        gaps = {name: metrics.interval((wide[best] - wide[name]).to_numpy()) for name in wide}
        found[metric] = {name: gap for name, gap in gaps.items() if gap.low <= 0}
    return found


def agreement(means: Mapping[str, Mapping[str, Interval]], without: Sequence[str] = ()) -> pd.DataFrame:
    """Rank correlation (Spearman) between metrics over methods: do two of them order the methods alike?"""
    frame = pd.DataFrame({metric: {name: i.mean for name, i in by.items()} for metric, by in means.items()})
    return frame.drop(index=list(without)).corr("spearman")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per method: means of all metrics, the cost in gradients, and the number of images.

    A star marks the best and those not separated from it (`leaders`).
    """
    first, means = leaders(rows), summary(rows)
    columns = {
        metric: {name: f"{i.mean:.2f}" + (" ★" if name in first[metric] else "") for name, i in by.items()}
        for metric, by in means.items()
    }
    columns[COST] = {name: f"{value:.3g}" for name, value in costs(rows).items()}
    columns["images"] = {name: i.n + i.left_out for name, i in means[LOCALISATION].items()}
    return pd.DataFrame(columns)


def scaled(means: Mapping[str, Mapping[str, Interval]], controls: Sequence[str]) -> dict[str, dict[str, float]]:
    """{metric: {method: value}} with the best control at 0 and the best method at 1: axes that can stand side by side.

    Raises LRPError for a metric in which a control is the best.
    """
    found = {}
    for metric, by in means.items():
        floor, top = max(by[name].mean for name in controls), max(i.mean for i in by.values())
        if not top > floor:
            raise LRPError(f"{metric}: no method is above the controls, so there is no scale between them")
        found[metric] = {name: float(np.float64(i.mean - floor) / (top - floor)) for name, i in by.items()}
    return found
