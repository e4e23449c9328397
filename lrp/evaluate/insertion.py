"""Insertion and deletion: does the score come with the pixels that a map names, and go with them?

Insertion shows an image's pixels in the order of their relevance, deletion takes them away in that order; `measure`
gives the probability of a class at each point of both curves, and the areas under them: Ins is high, Del is low and
ID = Ins - Del is high for a map that finds what the network uses. How many pixels enter where values tie, and what
stands in for those that are not shown, decide the numbers: that is a `Protocol`, and scores compare within one only.
`heat_quantization` makes ties, by which a protocol that lets them enter together gains: most of the image comes (and
goes) at once. `lowest_bin` tells how much of it; `STRICT` is the control.
Sources: petsiuk2018rise (both curves), otsuki2024layer (its program: black, thresholds, quantization),
samek2017evaluating (the general scheme: see `perturbation`).
"""

import math
import numbers
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import flipping
from .flipping import column, known
from .metrics import Interval, heat, interval

Ties = Literal["together", "strict"]
Replacement = Literal["black", "mean", "blur"]
TIES: tuple[str, ...] = get_args(Ties)
REPLACEMENTS: tuple[str, ...] = get_args(Replacement)
KERNEL, SIGMA = 11, 5.0  # the blur of petsiuk2018rise, in pixels

# ---------------------------------------------------------------- maps of few levels


@torch.no_grad()
def heat_quantization(maps: Tensor, levels: int = 8) -> Tensor:
    """Each map rounded down to Q levels between its minimum and its maximum, (N, H, W) -> a new (N, H, W).

    b_k = min v + k (max v - min v) / (Q - 1), k = 0..Q-1; a value in [b_k, b_{k+1}) becomes b_k, and the maximum alone
    keeps b_{Q-1} (otsuki2024layer, its program). The minimum is signed: in a map of both signs zero is no level, and
    moves. A constant map stays as it is. The levels are rounded to the maps' type before values are compared with
    them, so no value is ever raised and a second call changes nothing.

    Raises InputError for maps that are not finite floating point (N, H, W), or less than two levels.
    """
    if not isinstance(maps, Tensor) or maps.dim() != 3 or not maps.is_floating_point():
        got = f"{maps.dtype} {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"maps are floating point (N, H, W), channels summed first (`metrics.heat`); got {got}")
    if not isinstance(levels, numbers.Integral) or levels < 2:
        raise InputError(f"levels is a whole number of at least 2, the minimum and the maximum; got {levels!r}")
    if len(bad := (~torch.isfinite(maps)).nonzero()):
        raise InputError(f"map {bad[0, 0]} holds NaN or infinite values")
    v = maps.flatten(1).double()
    low, high = v.amin(1, keepdim=True), v.amax(1, keepdim=True)
    shares = torch.arange(levels, dtype=v.dtype, device=v.device) / (levels - 1)
    bins = torch.minimum(low + shares * (high - low), high)
    bins[:, -1:] = high  # exactly, without rounding
    bins = bins.to(maps.dtype)
    place = torch.searchsorted(bins.double(), v, right=True) - 1
    return bins.gather(1, place).view_as(maps)


def lowest_bin(maps: Tensor, levels: int = 8) -> Tensor:
    """Share of each image's pixels that `heat_quantization` puts into the lowest of its levels, (N,); 1 for a flat map.

    Where ties enter together, this share of the image is shown (or taken) in one step.
    """
    v = heat_quantization(maps, levels).flatten(1)
    return (v == v.amin(1, keepdim=True)).double().mean(1)


# ---------------------------------------------------------------- protocols


@dataclass(frozen=True)
class Protocol:
    """How the curves are run, for images of HW pixels at `step` pixels a point.

    Args:
        name: what reports call it.
        ties: `strict` shows exactly k pixels, those of equal value in the order in which one reads; `together` shows
            all pixels at or above the k-th value, M = [map >= tau], more than k where values tie.
        ends: True for k = 0, step, ..., HW; False for k = rank_i + 1 with rank_i = min(step (i + 1), HW - 1) and
            i = 0..ceil(HW / step) - 1: the start is left out, and the first point has step + 1 pixels.
        insertion, deletion: what stands in for pixels not yet shown, and for those taken away: `black`, `mean` of the
            data set, or the image under a `blur` (Gaussian of 11 x 11 pixels, sigma 5, zero-padded, sum 1 inside).

    Raises InputError for other names.
    """

    name: str
    ties: Ties
    ends: bool
    insertion: Replacement
    deletion: Replacement

    def __post_init__(self):
        known("treatment of ties", self.ties, TIES)
        for replacement in (self.insertion, self.deletion):
            known("replacement", replacement, REPLACEMENTS)


AUTHORS = Protocol("authors", ties="together", ends=False, insertion="black", deletion="black")  # otsuki2024layer
STRICT = Protocol("strict", ties="strict", ends=False, insertion="black", deletion="black")  # the same without ties
RISE = Protocol("rise", ties="strict", ends=True, insertion="blur", deletion="mean")  # petsiuk2018rise
PROTOCOLS = {p.name: p for p in (AUTHORS, STRICT, RISE)}


def _protocol(given: Protocol | str) -> Protocol:
    """The protocol, or the one of this name."""
    if isinstance(given, str):
        return PROTOCOLS[known("protocol", given, tuple(PROTOCOLS))]
    if not isinstance(given, Protocol):
        raise InputError(f"a protocol is a Protocol, or one of {', '.join(PROTOCOLS)} by name; got {given!r}")
    return given


# ---------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False)
class Scores:
    """Probabilities of N images at P points of both curves, (N, P) float64 on the CPU.

    `step` is in pixels, `pixels` is HW, and `evaluations` the samples that the model was shown, those of the first
    look at the whole images among them.
    """

    insertion: Tensor = field(repr=False)
    deletion: Tensor = field(repr=False)
    protocol: Protocol
    step: int
    pixels: int
    evaluations: int

    def __len__(self) -> int:
        return len(self.insertion)

    def insertion_auc(self) -> Tensor:
        """Ins of each image, (N,), 0 to 1: (sum p_i - (p_0 + p_last) / 2) / (P - 1). High is faithful."""
        return torch.trapezoid(self.insertion, dim=1) / (self.insertion.shape[1] - 1)

    def deletion_auc(self) -> Tensor:
        """Del of each image, (N,), the same area under the other curve. Low is faithful."""
        return torch.trapezoid(self.deletion, dim=1) / (self.deletion.shape[1] - 1)

    def id_score(self) -> Tensor:
        """ID = Ins - Del of each image, (N,), -1 to 1 (otsuki2024layer). High is faithful."""
        return self.insertion_auc() - self.deletion_auc()

    def summary(self, **options) -> dict[str, Interval]:
        """Means over images with bootstrap intervals; keys "insertion", "deletion" and "ID".

        `options` are those of `metrics.interval`: level, draws, seed.
        """
        return {name: interval(area(self), **options) for name, area in AREAS.items()}


AREAS = {"insertion": Scores.insertion_auc, "deletion": Scores.deletion_auc, "ID": Scores.id_score}


def compare(a: Scores, b: Scores, statistic: str = "ID", **options) -> Interval:
    """ID (or "insertion" or "deletion") of `a` minus that of `b`, paired by image; `options` as in `metrics.interval`.

    Raises LRPError unless both agree in protocol, step, size and number of images, and scores of the whole images.
    """
    area = AREAS[known("statistic", statistic, tuple(AREAS))]
    one, two = ({"images": len(s), "protocol": s.protocol, "step": s.step, "pixels": s.pixels} for s in (a, b))
    flipping.paired("scores", "whole", (one, two), (a.insertion[:, -1], b.insertion[:, -1]))
    return interval(area(a) - area(b), **options)


# ---------------------------------------------------------------- the measurement


@torch.no_grad()
def measure(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: int | Tensor | None = None,
    *,
    protocol: Protocol | str = AUTHORS,
    step: int | None = None,
    black: float | Tensor | None = None,
    mean: float | Tensor = 0.0,
    batch: int | None = None,
    progress: bool = True,
) -> Scores:
    """The target's softmax probability at each point of insertion and deletion.

    At a point with mask M the model sees M x + (1 - M) s for insertion and (1 - M) x + M s for deletion, all channels
    of a pixel together, with s as the protocol says. Points of an image whose masks are equal, because values tie, are
    evaluated once, and so is the whole image: maps of few values cost little where ties enter together.

    Args:
        model: gives logits (N, K); in eval mode, in the dtype and on the device of x; it is left as it is.
        x, maps: normalised images (N, C, H, W), and maps of that shape, then summed over channels, or (N, H, W).
        target: None for the class predicted on x, an int for all, or a LongTensor (N,).
        protocol: one of `PROTOCOLS`, its name, or your own.
        step: pixels from point to point; by default 500 at 224 x 224 (101 points) and in proportion elsewhere.
        black: black in units of x, a number or one per channel (`low, _ = normalizer.bounds()`); for `black` only.
        mean: the mean of the data set in units of x; 0 where inputs were normalised by theirs.
        batch: images per forward pass, which bounds memory (beside a map of ranks per image, and a blurred copy of x);
            by default `flipping.at_once(x)`.
        progress: a bar after five seconds.

    Raises InputError for names, numbers and tensors that cannot be, TargetError for targets. Deviations from the
    program of otsuki2024layer: it takes channel 0 of a map that has several, and scores the label while the predicted
    class is explained (hand over the labels for that). From petsiuk2018rise: ties go as one reads.
    """
    protocol = _protocol(protocol)
    flipping.images(model, x, target)
    flipping.maps_of(x, maps, "maps")
    step = _step(x, step, protocol)
    flipping.whole_numbers(batch=batch)
    stand_ins = [_replacement(name, x, protocol, black, mean) for name in (protocol.insertion, protocol.deletion)]
    flips = flipping.Flips(model, x, target, output="probability", batch=batch)
    return _both_curves(flips, x, maps, stand_ins, protocol, step, progress)


def _step(x: Tensor, step: int | None, protocol: Protocol) -> int:
    """Pixels from point to point; raises InputError where a curve would have less than two points."""
    flipping.whole_numbers(step=step)
    size = x.shape[2:].numel()
    step = max(1, round(500 * size / 224**2)) if step is None else int(step)
    if step > size - (not protocol.ends):
        raise InputError(
            f"step={step}, but images of {tuple(x.shape[2:])} hold {size} pixels: no two points on a curve"
        )
    return step


def _both_curves(
    flips: flipping.Flips,
    x: Tensor,
    maps: Tensor,
    stand_ins: list[Tensor],
    protocol: Protocol,
    step: int,
    progress: bool,
) -> Scores:
    """Insertion and deletion, with what stands in for pixels in each; every mask is evaluated once."""
    parts, size = maps.split(flips.batch), x.shape[2:].numel()
    rank = torch.cat([flipping.ranks(part).int() for part in parts]).to(x.device)
    counts = torch.cat([_counts(part, protocol, step) for part in parts])
    fresh = counts.diff(dim=1, prepend=torch.full((len(x), 1), -1)) != 0
    first = torch.where(fresh, torch.arange(counts.shape[1]), 0).cummax(1).values  # the point with the same mask
    passes = {  # name: (number of pixels that leaves the image whole, what is ahead in the order, what is behind)
        "insertion": (size, x, stand_ins[0]),
        "deletion": (0, stand_ins[1], x),
    }
    evaluated = {name: fresh & (counts != whole) for name, (whole, _, _) in passes.items()}
    total, curves = sum(int(points.sum()) for points in evaluated.values()), []
    with flips.progress(total, protocol.name, progress):
        for name, (whole, ahead, behind) in passes.items():
            scores = flips.scores(evaluated[name], counts, rank, ahead, behind)
            scores = torch.where(counts == whole, flips.untouched[:, None], scores).gather(1, first)
            curves.append(flipping.sound(scores, f"at point {{}} of its {name}"))
    return Scores(*curves, protocol, step, size, len(x) + total)


def _counts(maps: Tensor, protocol: Protocol, step: int) -> Tensor:
    """Numbers of pixels at the points of each map, (N, P), on the CPU."""
    R = heat(maps).flatten(1)
    points = torch.arange(math.ceil(R.shape[1] / step) + protocol.ends, device=R.device) * step
    counts = points.clamp(max=R.shape[1]) if protocol.ends else (points + step).clamp(max=R.shape[1] - 1) + 1
    counts = counts.expand(len(R), -1)
    if protocol.ties == "together":
        values = R.neg().sort(dim=1).values
        last = values.gather(1, (counts - 1).clamp(min=0))
        counts = torch.searchsorted(values, last, right=True).where(counts > 0, 0)
    return counts.cpu()


def _replacement(name: Replacement, x: Tensor, protocol: Protocol, black, mean) -> Tensor:
    """What stands in for a pixel: (N, C, H, W), or (1, C, 1, 1) or the like where it is the same for all images."""
    if name == "blur":
        return _band(x.shape[2], x) @ x @ _band(x.shape[3], x)
    if name == "black" and black is None:
        raise InputError(
            f"the protocol {protocol.name!r} replaces pixels by black, which has to be given in units of x: "
            "`low, _ = normalizer.bounds()`, then black=low"
        )
    return column(name, black if name == "black" else mean, x).to(x)[None]


def _band(size: int, like: Tensor) -> Tensor:
    """One direction of the Gaussian blur as a matrix (size, size): beyond the border there is zero."""
    at = torch.arange(size, dtype=torch.float64)
    distance = (at[:, None] - at).abs()
    weights = torch.exp(-(distance**2) / (2 * SIGMA**2)) * (distance <= KERNEL // 2)
    reach = torch.arange(-(KERNEL // 2), KERNEL // 2 + 1, dtype=torch.float64)
    return (weights / torch.exp(-(reach**2) / (2 * SIGMA**2)).sum()).to(like)
