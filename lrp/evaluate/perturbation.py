"""Faithfulness by perturbation: replace pixels or regions in the order of their relevance and watch the score.

`curves` gives the score of every image after k = 0..L replacements; its result has the area under the relative
curve (AUC: low where the order finds first what the network uses) and the area over it (AOPC: high there), with
bootstrap intervals over images, and `compare` sets two orders or two methods side by side, image by image.
Sources: bach2015pixel (pixel flipping), samek2017evaluating (regions, AOPC), binder2016layer (AUC, minabs).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from ..errors import InputError, LRPError
from . import flipping
from .flipping import ALIASES, KEYS, ORDERS, Alias, Order, Output, at_once, column, known, ranks, region_sums, score
from .metrics import Interval, bootstrap, interval

__all__ = [
    "ALIASES", "KEYS", "ORDERS", "REPLACEMENTS", "Curves", "Settings", "at_once", "column", "compare", "curves",
    "known", "ranks", "region_sums", "relative_area", "score",
]  # fmt: skip

Replacement = Literal["uniform", "mean", "blur", "constant"]
REPLACEMENTS: tuple[str, ...] = get_args(Replacement)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores of N images after k = 0..L replacements, (N, L + 1) float64 on the CPU; k = 0 is the untouched image."""

    scores: Tensor = field(repr=False)
    order: str
    region: int
    replace: str
    output: str
    repeats: int

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def steps(self) -> int:
        """L, the number of replacements."""
        return self.scores.shape[1] - 1

    @property
    def mean_curve(self) -> Tensor:
        """Mean score over images after each replacement, (L + 1,)."""
        return self.scores.mean(0)

    def auc(self, **options) -> Interval:
        """Area under the mean curve relative to its start, in replacements: low is faithful for `morf`.

        AUC = trapezoid over k = 0..L of mean_n f(x_k) / mean_n f(x_0) (binder2016layer; that the paper divides by the
        start is a reconstruction: see `relative_area`). The interval resamples images, numerator and denominator
        together; it is NaN where a resample starts at or below zero, and LRPError is raised where all images do.
        `options` are those of `metrics.bootstrap`: level, draws, seed.
        """
        return bootstrap(_ratio, *self._areas_and_starts(), **options)

    def aopc(self, **options) -> Interval:
        """Area over the perturbation curve, in units of the score: high is faithful for `morf`.

        AOPC = mean_n 1 / (L + 1) sum_{k=0..L} [f(x_0) - f(x_k)], the term k = 0 included (samek2017evaluating).
        """
        return interval(self.aopc_per_sample(), **options)

    def aopc_per_sample(self) -> Tensor:
        """Each image's term of `aopc`, (N,)."""
        return self.scores[:, 0] - self.scores.mean(1)

    def _areas_and_starts(self) -> tuple[np.ndarray, np.ndarray]:
        """What the AUC is the ratio of, each (N,)."""
        if (start := float(self.mean_curve[0])) <= 0:
            raise LRPError(
                f"the untouched images score {start:.3g} on average, a relative curve needs more than 0: "
                "take images that the model gets right, output='probability', or aopc()"
            )
        return torch.trapezoid(self.scores, dim=1).numpy(), self.scores[:, 0].numpy()


def _ratio(areas: np.ndarray, starts: np.ndarray, axis: int) -> np.ndarray:
    """The AUC of a choice of images; NaN where their mean start is not positive."""
    start = starts.mean(axis)
    return areas.mean(axis) / np.where(start > 0, start, np.nan)


def compare(a: Curves, b: Curves, statistic: Literal["auc", "aopc"] = "auc", **options) -> Interval:
    """AUC (or "aopc") of `a` minus that of `b`, paired: each resample takes the same images of both.

    Raises LRPError unless both agree in images, steps, size of regions, kind of score, and scores at the start.
    """
    known("statistic", statistic, ("auc", "aopc"))
    one, two = ({"images": len(c), "steps": c.steps, "region": c.region, "output": c.output} for c in (a, b))
    flipping.paired("curves", "untouched", (one, two), (a.scores[:, 0], b.scores[:, 0]))
    if statistic == "aopc":
        return interval(a.aopc_per_sample() - b.aopc_per_sample(), **options)
    difference = lambda *given, axis: _ratio(*given[:2], axis) - _ratio(*given[2:], axis)  # noqa: E731
    return bootstrap(difference, *a._areas_and_starts(), *b._areas_and_starts(), **options)


def relative_area(x: Sequence[float] | Tensor, y: Sequence[float] | Tensor) -> float:
    """Area under a curve relative to its start, trapezoid of y / y_0 over x, in units of x.

    `relative_area(range(L + 1), mean_curve)` is the AUC; six read-offs of Fig. 2 of binder2016layer give 37.5 where
    its Table 1 has 35.47 to 37.10. Raises LRPError for fewer than two points, x that do not rise, or y_0 <= 0.
    """
    x, y = (torch.as_tensor(v if isinstance(v, Tensor) else list(v), dtype=torch.float64) for v in (x, y))
    if x.shape != y.shape or x.dim() != 1 or len(x) < 2 or not (x.diff() > 0).all() or not y[0] > 0:
        raise LRPError(f"a curve is at least two points, x rises and y starts above 0; got x {x} and y {y}")
    return float(torch.trapezoid(y, x) / y[0])


# ---------------------------------------------------------------- the measurement


@dataclass(kw_only=True, eq=False)
class Settings:
    """What `curves` replaces, by what, how often, and which score it reads.

    Args:
        order: `morf`, `lerf`, `minabs` or `random`, as in `ranks`; a random one is drawn anew for each repeat.
        steps: L; by default 100 as in the papers, or as many regions as there are.
        region: side of the regions in pixels, in the grid of `region_sums`; 1 flips pixels, the papers use 9 too.
        replace: `uniform` noise in [low, high], a draw for every pixel and channel; `mean` of the image per channel;
            `blur`, the image under a Gaussian of `sigma` pixels; `constant`, that is `value`; or a callable from x to a
            tensor like x, called again for each repeat. Options of other replacements are ignored.
        low, high, value: in the units of x; a number, one per channel or an image, as `Normalizer.bounds` gives them.
        output: `logit`, or `probability` for its softmax.
        seed: of noise and random orders: the same for all orders and methods, so that these can be paired.
        repeats: draws to average over; by default 10 for the order `random`, 1 for others.

    Raises InputError for names and numbers that cannot be.
    """

    order: Order | Alias = "morf"
    steps: int | None = None
    region: int = 1
    replace: Replacement | Callable[[Tensor], Tensor] = "uniform"
    low: float | Tensor | None = None
    high: float | Tensor | None = None
    value: float | Tensor = 0.0
    sigma: float = 5.0
    output: Output = "logit"
    seed: int = 0
    repeats: int | None = None

    def __post_init__(self):
        self.order = known("order", ALIASES.get(self.order, self.order), ORDERS)
        known("output", self.output, get_args(Output))
        if not callable(self.replace):
            known("replacement", self.replace, REPLACEMENTS)
        if self.repeats is None:
            self.repeats = 10 if self.order == "random" else 1
        flipping.whole_numbers(region=self.region, repeats=self.repeats, steps=self.steps)

    def steps_of(self, x: Tensor) -> int:
        """L for images of this size; raises InputError for more than there are regions."""
        regions = math.ceil(x.shape[2] / self.region) * math.ceil(x.shape[3] / self.region)
        if self.steps is not None and self.steps > regions:
            size = tuple(x.shape[2:])
            raise InputError(f"steps={self.steps}, but images of {size} hold {regions} regions of side {self.region}")
        return min(100, regions) if self.steps is None else self.steps

    def replacement(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What replaces x where it is replaced, (N, C, H, W)."""
        if callable(self.replace):
            new = self.replace(x.clone())
            if (shape := getattr(new, "shape", None)) != x.shape:
                raise InputError(f"replace must return a tensor of its input's shape {tuple(x.shape)}; it has {shape}")
            return new.to(x)
        if self.replace == "uniform":
            if self.low is None or self.high is None:
                raise InputError("uniform noise needs the valid range of x: `low, high = normalizer.bounds()` gives it")
            low, high = column("low", self.low, x), column("high", self.high, x)
            # drawn on the CPU, image by image: the same on every device, and for any N
            noise = torch.stack([torch.rand(x.shape[1:], generator=generator, dtype=torch.float64) for _ in x])
            return (low + (high - low) * noise).to(x)
        if self.replace == "mean":
            return x.mean((2, 3), keepdim=True).expand_as(x)
        if self.replace == "constant":
            return column("value", self.value, x).to(x).expand_as(x)
        kernel = [min(2 * math.ceil(3 * self.sigma) + 1, 2 * side - 1) for side in (x.shape[3], x.shape[2])]
        return gaussian_blur(x, kernel, [float(self.sigma)] * 2)


@torch.no_grad()
def curves(
    model: nn.Module,
    x: Tensor,
    relevance: Tensor | None,
    target: int | Tensor | None = None,
    *,
    batch: int | None = None,
    progress: bool = True,
    **settings,
) -> Curves:
    """The target's score after each of L replacements, most relevant region first or in another order.

    x_k is x with its k first regions replaced, all channels of a pixel together; what is replaced stays so
    (bach2015pixel for pixels, samek2017evaluating for regions).

    Args:
        model: gives logits (N, K); in eval mode, in the dtype and on the device of x; it is left as it is.
        x, relevance: images (N, C, H, W), and maps of that shape or (N, H, W); None will do for the order `random`.
        target: None for the class predicted on x, an int for all, or a LongTensor (N,).
        batch: images per forward pass, which bounds memory (beside three tensors like x); by default `at_once(x)`.
        progress: a bar after five seconds.
        settings: order, steps, region, replace, low, high, value, sigma, output, seed, repeats; see `Settings`.

    Raises InputError for names, numbers and tensors that cannot be, TargetError for targets.
    """
    s = Settings(**settings)
    flipping.images(model, x, target)
    if relevance is not None or s.order != "random":  # a random order takes the shape of the images only
        flipping.maps_of(x, relevance, "relevance")
    flipping.whole_numbers(batch=batch)
    counts = torch.arange(1, s.steps_of(x) + 1).expand(len(x), -1)
    flips = flipping.Flips(model, x, target, output=s.output, batch=batch)
    total, every = torch.zeros(counts.shape, dtype=torch.float64), torch.ones(counts.shape, dtype=torch.bool)
    with flips.progress(total.numel() * s.repeats, s.order, progress):
        for repeat in range(s.repeats):
            streams = np.random.SeedSequence([s.seed, repeat]).generate_state(2)
            of_order, of_noise = (torch.Generator().manual_seed(int(stream)) for stream in streams)
            rank = ranks((x if relevance is None else relevance).cpu(), s.order, s.region, of_order)
            total += flips.scores(every, counts, rank, s.replacement(x, of_noise), x)
    scores = flipping.sound(torch.cat([flips.untouched[:, None], total / s.repeats], 1), "after {} replacements")
    replaced = s.replace if isinstance(s.replace, str) else "callable"
    return Curves(scores, s.order, s.region, replaced, s.output, s.repeats)
