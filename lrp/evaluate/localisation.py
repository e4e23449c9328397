"""Does a map point at the object, and at what the model uses? Pointing games, energy, ablation, contributions.

Maps are (N, H, W), or (N, C, H, W) and then summed over channels; masks are (N, H, W), bool. Each function gives one
value per sample in double precision, (N,), NaN where it is undefined (an empty mask, a map without relevance):
`metrics.interval` makes a mean with its bootstrap interval of it, leaves NaN out and counts them.

The contribution of patch p is what the score loses when the patch is replaced, C_p = f_t(x) - f_t(x without p). A map
agrees with it where its sums over patches rank the patches alike, and where they have the sign of C_p: below zero, a
patch argues against the class, and taking it away helps. Patches are replaced one at a time, so what only two of them
do together is not seen. Sources: zeiler2014visualizing for occlusion, samek2017evaluating for the patches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import Target
from ..errors import InputError, LRPError
from . import flipping, metrics
from .baselines import METHODS

ENERGIES = tuple(p / 10 for p in range(10))  # shares of a map's energy for the curve of `energy_hits`


def _maps(maps: Tensor, masks: Tensor | None = None) -> Tensor:
    """Finite maps (N, H, W), with masks of the same shape; raises LRPError otherwise."""
    R = metrics.finite(maps)
    if masks is not None and (masks.dtype != torch.bool or masks.shape != R.shape):
        raise LRPError(f"masks are bool, shaped like the maps {tuple(R.shape)}; got {masks.dtype} {tuple(masks.shape)}")
    return R


def _undefined_where_empty(values: Tensor, masks: Tensor) -> Tensor:
    some = masks.flatten(1).any(1)
    return values.where(some.view(-1, *[1] * (values.dim() - 1)), torch.nan)


# ---------------------------------------------------------------- where is the maximum?


def dilate(masks: Tensor, tolerance: float) -> Tensor:
    """Masks (N, H, W) grown by a disc: all pixels whose distance from the mask is at most `tolerance` pixels."""
    if not (masks.dtype == torch.bool and masks.dim() == 3 and tolerance >= 0):
        raise LRPError(f"a bool mask (N, H, W) and a tolerance >= 0; got {masks.dtype} {masks.shape}, {tolerance}")
    r = min(math.floor(tolerance), max(masks.shape[1:]))
    if r == 0:
        return masks
    steps = torch.arange(-r, r + 1, device=masks.device)
    disc = (steps[:, None] ** 2 + steps**2 <= tolerance**2).float()
    return F.conv2d(masks[:, None].float(), disc[None, None], padding=r)[:, 0] > 0.5


def pointing_game(maps: Tensor, masks: Tensor, tolerance: float = 0) -> Tensor:
    """1 where the maximum of the map lies at most `tolerance` pixels from the mask, else 0 (zhang2018top).

    Where several pixels share the maximum: the share of them that hits, the expectation of picking one at random. A
    flat map so scores the chance level. Deviation: TorchRay's tolerance of 15 asks for less than 15 pixels.
    """
    R = _maps(maps, masks).flatten(1)
    top = R == R.amax(1, keepdim=True)
    hits = (top & dilate(masks, tolerance).flatten(1)).sum(1).double() / top.sum(1)
    return _undefined_where_empty(hits, masks)


def chance(masks: Tensor, tolerance: float = 0) -> Tensor:
    """What a random pixel scores in the pointing game: the share of the image within `tolerance` of the mask."""
    return _undefined_where_empty(dilate(masks, tolerance).flatten(1).double().mean(1), masks)


def by_class(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of the known values of each class, (K,) in the order of the labels that occur; NaN for a class without.

    The mean of these is the macro average. Deviation: TorchRay counts a class without samples as 0.
    """
    if values.shape != labels.shape:
        raise LRPError(f"one label per value: got {tuple(labels.shape)} for {tuple(values.shape)}")
    return torch.stack([values[labels == k].nanmean() for k in labels.unique()])


@dataclass(frozen=True)
class Score:
    """A localisation score: over all samples (micro), over class means (macro), and what chance gives.

    `macro` resamples classes, `micro` and `chance` samples; `micro.left_out` are those without a value.
    """

    micro: metrics.Interval
    macro: metrics.Interval | None
    chance: metrics.Interval


def score(values: Tensor, masks: Tensor, labels: Tensor | None = None, tolerance: float = 0) -> Score:
    """Values (N,) of `pointing_game`, `rank_accuracy` or `metrics.inside` with averages and the chance level.

    The chance level is that of a random pixel, or of a flat map: the mean area of the masks, tolerance included.
    Raises LRPError where no sample has a value.
    """
    macro = None if labels is None else metrics.interval(by_class(values, labels))
    known = chance(masks, tolerance).where(~values.isnan(), torch.nan)
    return Score(metrics.interval(values), macro, metrics.interval(known))


# ---------------------------------------------------------------- where is the energy?


def energy_hits(maps: Tensor, masks: Tensor, p: Sequence[float] = ENERGIES) -> Tensor:
    """1 where the strongest pixels that hold a share p of the energy all lie inside the mask, (N, P).

    The energy is max(0, R); v sorted downwards, k = min{k: sum_{i<=k} v_i >= p sum v}, hit if pixels 0..k lie inside
    (gu2018understanding; the protocol is a reconstruction). Equal pixels rank in the order of rows, so that exactly
    k + 1 are kept; p = 0 keeps one, the maximum. NaN also where a map has no positive value.
    """
    v = _maps(maps, masks).clamp(min=0).flatten(1)
    shares = torch.as_tensor(p, dtype=v.dtype, device=v.device).reshape(-1)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise LRPError(f"p are shares of the energy, from 0 to 1; got {p}")
    v, rank = v.sort(dim=1, descending=True, stable=True)
    held = v.cumsum(1)
    held = held / held[:, -1:]
    inside = masks.flatten(1).gather(1, rank).cummin(1).values.double()  # are all pixels up to here inside?
    k = torch.searchsorted(held.nan_to_num(), (shares - 1e-12).expand(len(v), -1).contiguous())  # rounding of sums
    hits = inside.gather(1, k.clamp(max=v.shape[1] - 1)).where(held[:, -1:] > 0, torch.nan)
    return _undefined_where_empty(hits, masks)


def energy(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Shares of positive and of negative relevance inside the mask, and the positive share of all, each (N,).

    Keys: "positive", the energy pointing game (wang2020score); "negative"; "balance" = sum max(0, R) / sum `|R|`. NaN
    where there is no relevance of that sign. From the three follow all four masses, sign by place, but for scale.
    """
    R = _maps(maps, masks)
    inside = {"positive": metrics.inside(R, masks), "negative": metrics.inside(-R, masks)}
    balance = R.clamp(min=0).flatten(1).sum(1) / R.abs().flatten(1).sum(1)
    return {key: _undefined_where_empty(share, masks) for key, share in inside.items()} | {"balance": balance}


def rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the K strongest pixels inside a mask of K pixels, signed ranking (arras2022clevr).

    Pixels that tie for the last places count as their mean, the expectation over orders; a flat map so scores the
    share of the mask. Deviation: Quantus lets the sorting routine decide.
    """
    R, inside = _maps(maps, masks).flatten(1), masks.flatten(1)
    size = inside.sum(1, keepdim=True)
    last = R.sort(1, descending=True).values.gather(1, (size - 1).clamp(min=0))
    above, tied, size = R > last, R == last, size[:, 0]
    places = (size - above.sum(1)).double() / tied.sum(1)  # per pixel that ties for them
    return _undefined_where_empty(((above & inside).sum(1) + places * (tied & inside).sum(1)) / size, masks)


# ---------------------------------------------------------------- does the model need the place?


@torch.no_grad()
def ablation(
    model: nn.Module,
    x: Tensor,
    maps: Tensor | None,
    target: Target = None,
    *,
    patch: int = 9,
    fill: float | Tensor = 0.0,
    seed: int = 0,
    batch: int = 128,
) -> Tensor:
    """Drop of the logit, f_t(x) - f_t(x'), when the patch around the map's maximum is replaced (gu2018understanding).

    Args:
        model: gives logits (N, K); in eval mode.
        x: images (N, C, H, W).
        maps: (N, H, W); the first of equal maxima in the order of rows counts, a flat map has none and gives NaN.
            None is the control: a place drawn at random, each pixel as likely, by `seed` and the sample's number.
        target: class, as in `LRP.explain`; None is the class predicted for the whole image.
        patch: side of the square in pixels, odd; cut at the borders of the image.
        fill: what replaces it, in units of x: a number, (C, 1, 1), or a mean image (C, H, W). 0 is the mean of
            inputs that were normalised by theirs.
        batch: images per forward pass.

    Raises InputError, TargetError or LRPError for what does not fit. The protocol is a reconstruction.
    """
    flipping.images(model, x, target)
    if patch < 1 or patch % 2 == 0:
        raise LRPError(f"a patch with a middle has an odd side; got {patch}")
    (n, _, h, w), r = x.shape, patch // 2
    if maps is None:
        place = torch.tensor([int(np.random.default_rng([seed, i]).integers(h * w)) for i in range(n)])
        flat = torch.zeros(n, dtype=torch.bool)
    else:
        R = _maps(maps).cpu()
        if R.shape != (n, h, w):
            raise LRPError(f"maps of {n} images of {h} x {w} pixels are ({n}, {h}, {w}); got {tuple(maps.shape)}")
        place, flat = R.flatten(1).argmax(1), R.amax((1, 2)) == R.amin((1, 2))
    middle, one = torch.stack([place % w, place // w], 1), torch.ones(n, 1, dtype=torch.int)
    patches = metrics.box_masks(torch.cat([middle - r, middle + r + 1], 1), (h, w))
    fill = torch.as_tensor(fill, dtype=x.dtype, device=x.device).expand(1, *x.shape[1:])
    flips = flipping.Flips(model, x, target, output="logit", batch=batch)
    drops = flips.untouched - flips.scores(one.bool(), one, (~patches).int(), fill, x)[:, 0]
    return drops.where(~flat, torch.nan)


def contributions(
    model: nn.Module, x: Tensor, target: Target = None, region: int = 8, baseline: float | Tensor = 0.0
) -> Tensor:
    """C of each patch of `region` x `region` pixels, in units of the logit: (N, C, H, W) -> (N, rows, columns).

    baseline: what replaces the patch, a number or a tensor (C, 1, 1) in the units of x; 0 is the mean colour of most
    networks' data, at which gradient x input is zero as well. Patches that the border cuts stay smaller. Raises what
    the methods of `baselines` do.
    """
    C = METHODS["occlusion"](model, x, target, window=region, stride=region, baseline=baseline)
    return C[:, ::region, ::region].double()


def agreement(maps: Tensor, C: Tensor, region: int = 8) -> dict[str, Tensor]:
    """How far maps (N, H, W) or (N, C, H, W) agree with the contributions C (N, rows, columns), each (N,).

    "rank correlation": Spearman's, of the map's sums over patches and C; NaN where either is flat. "signs": share of
    the patches where both have the same sign; "signs by weight": the same, with each patch counted by `|C|`. A sum of
    exactly zero has no sign and agrees with nothing. A map without negative values gets for its signs the share of
    the patches that help, and this is what signs are to be compared with.

    Raises InputError where the patches of maps and C are not the same.
    """
    R = flipping.region_sums(maps, region)
    if R.shape != C.shape:
        raise InputError(f"the maps have patches {tuple(R.shape)}, the contributions {tuple(C.shape)}")
    if not torch.isfinite(R).all() or not torch.isfinite(C).all():
        raise LRPError("maps and contributions must be finite")
    same = ((R.sign() == C.sign()) & (R != 0)).double().flatten(1)
    size = C.abs().flatten(1)
    return {
        "rank correlation": metrics.spearman(R, C),
        "signs": same.mean(1),
        "signs by weight": (same * size).sum(1) / size.sum(1),
    }
