"""Contrastive LRP (gu2018understanding): what a class has that others lack, and why plain z+ cannot show it.

Under z+ and z^B every layer passes relevance down by a matrix of non-negative shares that does not depend on the
relevance: R = A_1 ... A_L r. Products of such matrices lose their rank, so maps of different classes r become
parallel; a contrast starts from a seed that sums to zero, and what is common to all classes cancels.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from ..composites import Composite
from ..engine import LRP
from ..errors import LRPError
from ..evaluate import metrics
from ..evaluate.baselines import METHODS
from ..rules import Rule, ZBox, ZPlus
from ..seeds import Contrastive, Logit, OneHot, Seed
from ..seeds import UnitContrast as UnitContrast

PIXELS = 2**18  # of the images that go through a network at once

# ---------------------------------------------------------------- rules and seeds


def preset(low: float | Tensor, high: float | Tensor, **options) -> Composite:
    """The rules of the paper: z^B in the first layer, z+ in all others, dense ones too; biases get nothing.

    low, high: bounds of the input, as `Normalizer.bounds` gives them. Deviation: the authors' program has one pair
    for all channels.
    """
    options = {"bias": "exclude"} | options
    return Composite([("first", ZBox(low, high)), ("any", ZPlus())], **options)


@dataclass(frozen=True)
class Difference(Seed):
    """The logit minus the mean of all others: R_t = f_t, R_k = -f_k / (K - 1).

    The contrast that suits the epsilon rule, whose shares are a_i w_ik / f_k: it gives a_i (w_it - mean w_ik).
    """

    def __call__(self, output, target):
        t = Logit()(output, target)
        return t - (output - t) / (output.shape[-1] - 1)


# ---------------------------------------------------------------- maps


def maps(explainer: LRP, x: Tensor, targets: Sequence | Tensor, seed: Seed | None = None, **options) -> Tensor:
    """Maps of T targets of every image, (T, N, H, W): summed over channels, and only then cut at 0 by a contrast.

    targets: a list of T ints or LongTensors (N,), or a LongTensor (T, N). Options (`start`) are those of
    `LRP.explain`. The images go through in batches.
    """
    if not len(targets) or (isinstance(targets, Tensor) and targets.dim() != 2):
        raise LRPError("targets are a list of ints or LongTensors (N,), or a LongTensor (T, N)")
    late = isinstance(seed, Contrastive) and seed.positive
    start = replace(seed, positive=False) if late else seed
    rows = [torch.as_tensor(t, device=x.device).expand(len(x)).split(_at_once(x)) for t in targets]
    parts = [
        explainer.attribute(part, list(chunk), start, **options).sum(2)
        for part, *chunk in zip(x.split(_at_once(x)), *rows, strict=True)
    ]
    R = torch.cat(parts, 1)
    return seed.finish(R) if late else R


def two_passes(
    model: nn.Module, composite: Composite, x: Tensor, target: int, *, kind: Literal[1, 2] = 1
) -> tuple[Tensor, Tensor]:
    """R and R_dual of the definition, by two explanations from the same total: an oracle for the signed pass.

    kind 1: the dual starts as f_t / (K - 1) at the other classes. kind 2: it is the target's own neuron in a copy of
    the model whose last dense layer has its weights negated (and its bias, which belongs to them).
    """
    explainer = LRP(model, composite)
    with torch.no_grad():
        f = model(x)
    one_hot = nn.functional.one_hot(torch.tensor(target), f.shape[1]).to(f)
    own = f * one_hot
    R = explainer.attribute(x, seed=own)
    if kind == 1:
        rest = own.sum(1, keepdim=True) * (1 - one_hot) / (f.shape[1] - 1)
        return R, explainer.attribute(x, seed=rest)
    opposite = copy.deepcopy(model)
    last = [m for m in opposite.modules() if isinstance(m, nn.Linear)]
    if not last:
        raise LRPError(f"{type(model).__name__} has no dense layer to negate")
    with torch.no_grad():
        for parameter in last[-1].parameters():
            parameter.neg_()
    return R, LRP(opposite, composite).attribute(x, seed=own)


def compare(
    model: nn.Module, x: Tensor, targets: Sequence[Tensor] | Tensor, family: Mapping, others: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Maps (T, N, H, W) by method: LRP's `family`, {title: (composite, seed)}, and `others` of `baselines`.

    Seeds of one composite (the same object) go through together: they share the forward pass and all denominators.
    """
    found: dict[str, Tensor] = {}
    for composite in {id(composite): composite for composite, _ in family.values()}.values():
        explainer = LRP(model, composite)
        own = {title: seed for title, (other, seed) in family.items() if other is composite}
        found |= {title: maps(explainer, x, targets, seed) for title, seed in own.items() if seed.negate_last}
        found |= _together(explainer, x, targets, {t: seed for t, seed in own.items() if not seed.negate_last})
    found = {title: found[title] for title in family}
    for name in others:
        parts = [(x[i], t[i]) for t in targets for i in torch.arange(len(x)).split(_at_once(x))]
        found[name] = torch.cat([METHODS[name](model, *part) for part in parts]).unflatten(0, (len(targets), len(x)))
    return found


@torch.no_grad()
def _together(explainer: LRP, x: Tensor, targets: Sequence[Tensor], seeds: Mapping[str, Seed]) -> dict[str, Tensor]:
    rows = []
    for i in torch.arange(len(x)).split(_at_once(x)) if seeds else ():
        f, t = explainer.model(x[i]), torch.stack([target[i] for target in targets])
        rows.append(explainer.attribute(x[i], seed=torch.cat([seed(f, t) for seed in seeds.values()])).sum(2))
    R = torch.cat(rows, 1).unflatten(0, (len(seeds), -1)) if rows else ()
    return {title: seed.finish(one) for (title, seed), one in zip(seeds.items(), R, strict=True)}


def _at_once(x: Tensor) -> int:
    return max(8, PIXELS // x.shape[-2:].numel())


# ---------------------------------------------------------------- how alike are they?


def cosines(R: Tensor) -> Tensor:
    """Cosines between the maps of all pairs of targets of each sample: (T, N, ...) -> (N, T, T), NaN for no map."""
    v = R.double().flatten(2).transpose(0, 1)
    v = v / v.norm(dim=2, keepdim=True)
    return v @ v.transpose(1, 2)


def pairs(matrices: Tensor) -> Tensor:
    """Mean over the pairs of different targets of each sample that have a value: (N, T, T) -> (N,)."""
    off = ~torch.eye(matrices.shape[-1], dtype=torch.bool, device=matrices.device)
    return matrices[:, off].nanmean(1)


def by_layer(explainer: LRP, x: Tensor, seed: Seed, layers: Sequence[str]) -> dict[str, Tensor]:
    """How alike the relevance of all classes is at each layer's output and at the pixels: mean `|cosine|`, (N,)."""
    with torch.no_grad():
        classes = explainer.model(x[:1]).shape[1]
    e = explainer.explain(x, list(range(classes)), seed, layers=layers)
    return {name: pairs(cosines(R).abs()) for name, R in (*e.layers.items(), ("pixels", e.relevance.sum(2)))}


def random_network(depth: int, *, width: int = 200, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Dense ReLU network without biases, weights N(0, 2 / width), last N(0, 1 / width), in double precision.

    Random on purpose: it shows what comes from the rule and from depth alone.
    """
    generator, layers = torch.Generator().manual_seed(seed), []
    for k in range(depth + 1):
        out, variance = (classes, 1) if k == depth else (width, 2)
        layer = nn.Linear(width, out, bias=False, dtype=torch.float64)
        nn.init.normal_(layer.weight, std=(variance / width) ** 0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def collapse(
    depths: Sequence[int], rule: Rule, seed: Seed | None = None, *, draws: int = 5, width: int = 200, classes: int = 10
) -> pd.DataFrame:
    """How alike the maps of all classes are in random networks, by depth: `|cosine|`, one row per depth and draw.

    One input from U(0, 1) per draw, one rule in every layer, relevance from `seed` (default 1 at the class), with its
    sign. 1 is one map for all classes, up to a factor.
    """
    rows = []
    for depth in depths:
        for draw in range(draws):
            model = random_network(depth, width=width, classes=classes, seed=1000 * depth + draw)
            x = torch.rand(1, width, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
            R = LRP(model, Composite([("any", rule)])).attribute(x, list(range(classes)), seed or OneHot())
            rows.append({"depth": depth, "draw": draw, "likeness": float(pairs(cosines(R).abs()))})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- two things at a time


def per_image(score: Callable, R: Tensor, masks: Tensor) -> Tensor:
    """A score of maps against masks, as in `lrp.evaluate.localisation`, averaged over the targets of each image.

    R and masks are (T, N, H, W); the score gives (N,) or (N, P), and so does this. Two maps of one image are not two
    samples: intervals resample images. Targets without a value are left out.
    """
    return torch.stack([score(own, mask) for own, mask in zip(R, masks, strict=True)]).nanmean(0)


def preference(R: Tensor, masks: Tensor) -> Tensor:
    """Does a map prefer the object of its target? (own - other) / (own + other) of the positive relevance.

    R (2, N, H, W), the maps of both objects, masks (2, N, H, W) -> (2, N): 1 where all is on its object, 0 where both
    objects get the same.
    """
    own, other = (
        torch.stack([metrics.inside(r, mask) for r, mask in zip(R, m, strict=True)]) for m in (masks, masks.flip(0))
    )
    return (own - other) / (own + other)


def instance_gain(R: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """Does a map show its own image? Its share inside the mask minus that of another image's map, of the same class.

    R and masks (N, H, W), labels (N,) -> (M,), one value for each image that follows another of its class.
    """
    order = labels.argsort(stable=True)
    R, masks, same = R[order], masks[order], labels[order] == labels[order].roll(1)
    return (metrics.inside(R, masks) - metrics.inside(R.roll(1, 0), masks))[same]


def concentration(R: Tensor, part: Tensor, whole: Tensor) -> Tensor:
    """Share of the positive relevance in `whole` that lies on `part` of it, minus the part's share of the area, (N,).

    R, part and whole are (N, H, W); 0 is a map that is flat in there.
    """
    part = part & whole
    return metrics.inside(R * whole, part) - part.sum((1, 2)) / whole.sum((1, 2))


def beside(
    left: Tensor, right: Tensor, left_mask: Tensor | None = None, right_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Two pictures (..., 3, H, W) side by side, and the masks of both objects in it, (2, ..., H, 2 W).

    The masks are (..., H, W), bool; by default each object is its whole half.
    """
    if left.shape != right.shape:
        raise LRPError(f"pictures of one size; got {tuple(left.shape)} and {tuple(right.shape)}")
    full = torch.ones_like(left[..., 0, :, :], dtype=torch.bool)
    one, two = (full if mask is None else mask for mask in (left_mask, right_mask))
    none = torch.zeros_like(full)
    masks = torch.stack([torch.cat([one, none], -1), torch.cat([none, two], -1)])
    return torch.cat([left, right], -1), masks


def neighbours(images: Tensor, labels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Photographs 0 and 1, 2 and 3, ... side by side where their classes differ: pictures of two known things.

    images (N, 3, H, W), labels (N,), masks (N, H, W) -> (M, 3, H, 2 W), targets (2, M), masks (2, M, H, 2 W).
    """
    first = torch.arange(0, len(labels) - 1, 2)
    first = first[labels[first] != labels[first + 1]]
    second = first + 1
    pictures, both = beside(images[first], images[second], masks[first], masks[second])
    return pictures, torch.stack([labels[first], labels[second]]), both
