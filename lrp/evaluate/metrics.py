"""Numbers for heat maps: how rough, how sparse, how class-specific, how well placed; with intervals.

Maps are (N, C, H, W) or (N, H, W); channels are summed first, so a method is never scored on one colour.
Each function returns one value per sample, (N,), in double precision; `interval` turns them into a mean with a
bootstrap interval. A map that is zero everywhere has no value: NaN, and `interval` leaves it out and counts it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from skimage.metrics import structural_similarity
from torch import Tensor

from ..errors import LRPError


def heat(R: Tensor) -> Tensor:
    """One value per pixel: (N, C, H, W) summed over channels, or (N, H, W) as it is, in double precision."""
    if R.dim() not in (3, 4):
        raise LRPError(f"maps are (N, C, H, W) or (N, H, W); got shape {tuple(R.shape)}")
    return (R.sum(1) if R.dim() == 4 else R).double()


def finite(R: Tensor) -> Tensor:
    """`heat` of maps without NaN or infinity; raises LRPError that names the others."""
    R = heat(R).detach()
    if len(bad := (~torch.isfinite(R)).flatten(1).any(1).nonzero()):
        raise LRPError(f"maps {bad[:8, 0].tolist()} hold NaN or infinity")
    return R


def roughness(R: Tensor) -> Tensor:
    """Mean step between neighbouring pixels over mean magnitude: 0 for a flat map, 4/3 to 3/2 for white noise.

    That is noise of both signs; of one sign it is less. Formula: (sum `|R_p - R_q|` / number of neighbour pairs) /
    (sum `|R_p|` / number of pixels); a Gaussian field without correlation has sqrt(2).
    """
    R = heat(R)
    down, right = R.diff(dim=1).abs().flatten(1), R.diff(dim=2).abs().flatten(1)
    step = (down.sum(1) + right.sum(1)) / (down.shape[1] + right.shape[1])
    return step / R.abs().flatten(1).mean(1)


def gini(R: Tensor) -> Tensor:
    """Gini index of `|R|`: 0 where all pixels carry the same, near 1 where one carries all."""
    v = heat(R).abs().flatten(1).sort(1).values
    rank = torch.arange(1, v.shape[1] + 1, dtype=v.dtype, device=v.device)
    return ((2 * rank - v.shape[1] - 1) * v).sum(1) / (v.shape[1] * v.sum(1))


def cosine(R: Tensor, S: Tensor) -> Tensor:
    """Cosine between two maps of each sample: 1 where they are the same but for scale."""
    a, b = heat(R).flatten(1), heat(S).flatten(1)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def likeness(R: Tensor, S: Tensor) -> Tensor:
    """`|cosine|` of two maps: 1 where they are the same up to a factor, be it negative (a negative logit's map)."""
    return cosine(R, S).abs()


def inside(R: Tensor, mask: Tensor) -> Tensor:
    """Share of the positive relevance that lies inside the mask (N, H, W), as in the energy pointing game."""
    v = heat(R).clamp(min=0)
    if mask.shape != v.shape:
        raise LRPError(f"the mask has shape {tuple(mask.shape)}, the maps {tuple(v.shape)}")
    return (v * mask).flatten(1).sum(1) / v.flatten(1).sum(1)


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) as x0, y0, x1, y1 in pixels (ends exclusive) -> masks (N, H, W)."""
    y, x = torch.arange(size[0], device=boxes.device), torch.arange(size[1], device=boxes.device)
    x0, y0, x1, y1 = boxes.unbind(1)
    rows = (y >= y0[:, None]) & (y < y1[:, None])
    columns = (x >= x0[:, None]) & (x < x1[:, None])
    return rows[:, :, None] & columns[:, None, :]


def centre(n: int, size: tuple[int, int]) -> Tensor:
    """A control that does not depend on the image: a Gaussian bump in the middle, (N, H, W)."""
    y, x = (torch.linspace(-1, 1, s, dtype=torch.float64) for s in size)
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.35**2)).expand(n, *size)


def ssim(R: Tensor, S: Tensor) -> Tensor:
    """Structural similarity of two maps of each sample, as pictures (1 + R / max `|R|`) / 2 in [0, 1] (wang2004image).

    0 is mid-grey in both, as in a diverging colour map: with signed values SSIM would take R and -R for alike, since
    means and covariances change sign together. Uniform windows of 7 x 7 pixels (less in smaller maps), as
    scikit-image has it. Stretches that are faint in both count as alike, so two maps with few strong pixels come out
    similar wherever these lie. NaN where a map is zero everywhere. Raises LRPError for maps that are not finite.
    """
    a, b = (finite(M).cpu() for M in (R, S))
    if a.shape != b.shape or min(a.shape[1:]) < 3:
        raise LRPError(f"two maps of the same shape, of 3 x 3 pixels or more; got {tuple(R.shape)}, {tuple(S.shape)}")
    side = min(7, (min(a.shape[1:]) - 1) // 2 * 2 + 1)
    pictures = (((1 + M / M.abs().amax((1, 2), keepdim=True)) / 2).numpy() for M in (a, b))
    values = [structural_similarity(*pair, win_size=side, data_range=1.0) for pair in zip(*pictures, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def spearman(R: Tensor, S: Tensor) -> Tensor:
    """Rank correlation of two maps of each sample, equal values get their mean rank, (N,); NaN for a flat map."""
    ranks = (torch.from_numpy(stats.rankdata(heat(M).flatten(1).cpu().numpy(), axis=1)) for M in (R, S))
    a, b = (r - r.mean(1, keepdim=True) for r in ranks)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def summary(R: Tensor, rival: Tensor, mask: Tensor) -> dict[str, "Interval"]:
    """Roughness, sparsity, likeness to the map of a rival class, and share inside the mask, each with its interval.

    R and rival are maps (N, C, H, W) of two classes of the same images, mask is (N, H, W).
    """
    return {
        "roughness": interval(roughness(R)),
        "sparsity (Gini)": interval(gini(R)),
        "likeness to rival": interval(likeness(R, rival)),
        "inside the box": interval(inside(R, mask)),
    }


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval over n samples; `left_out` samples had no value."""

    mean: float
    low: float
    high: float
    n: int
    left_out: int = 0

    def __str__(self):
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    __repr__ = __str__


def interval(values: Tensor, **options) -> Interval:
    """Mean and percentile bootstrap interval over samples; raises LRPError where no sample has a value.

    `options` are those of `bootstrap`: level, draws, seed.
    """
    v = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)
    known = v[np.isfinite(v)]
    if not len(known):
        raise LRPError("no sample has a value: are all maps zero?")
    return replace(bootstrap(np.mean, known, **options), left_out=len(v) - len(known))


def bootstrap(
    statistic: Callable, *samples: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """`statistic(*samples, axis=-1)` with its percentile bootstrap interval.

    samples: one array (n,) or several. They are paired: each draw takes the same indices of all. One seed gives the
    same draws to all statistics of n samples. The interval of a single sample has no width. It is NaN where the
    statistic of a draw is.
    """
    value, n = float(statistic(*samples, axis=-1)), len(samples[0])
    if n == 1:  # scipy asks for two
        return Interval(value, value, value, n)
    options = {"n_resamples": draws, "confidence_level": level, "method": "percentile", "paired": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # where it is NaN
        found = stats.bootstrap(samples, statistic, vectorized=True, rng=np.random.default_rng(seed), **options)
    return Interval(value, *map(float, found.confidence_interval), n)
