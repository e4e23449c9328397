"""Faithfulness by perturbation: replace pixels or regions in the order of their relevance and watch the score.

`curves` gives the score of every image after k = 0..L replacements; its result has the area under the relative
curve (AUC: low where the order finds first what the network uses) and the area over it (AOPC: high there), with
bootstrap intervals over images, and `compare` sets two orders or two methods side by side, image by image.
Sources: bach2015pixel (pixel flipping), samek2017evaluating (regions, AOPC), binder2016layer (AUC, minabs).
"""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .. import checks
from ..errors import InputError, LRPError, TargetError
from .metrics import Interval, heat, interval

KEYS = {"morf": torch.neg, "lerf": torch.clone, "minabs": torch.abs}  # regions go by this key, smallest first
ORDERS = (*KEYS, "random")
ALIASES = {"max": "morf", "rand": "random"}  # names in binder2016layer
REPLACEMENTS = ("uniform", "mean", "blur", "constant")


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
        `options` are those of `metrics.interval`: level, draws, seed.
        """
        return _bootstrap(self._auc, len(self), **options)

    def aopc(self, **options) -> Interval:
        """Area over the perturbation curve, in units of the score: high is faithful for `morf`.

        AOPC = mean_n 1 / (L + 1) sum_{k=0..L} [f(x_0) - f(x_k)], the term k = 0 included (samek2017evaluating).
        """
        return interval(self.aopc_per_sample(), **options)

    def auc_per_sample(self) -> Tensor:
        """Each image's own area, relative to its own start, (N,); NaN where that is not positive."""
        start = self.scores[:, 0]
        return torch.where(start > 0, torch.trapezoid(self.scores, dim=1) / start, torch.nan)

    def aopc_per_sample(self) -> Tensor:
        """Each image's term of `aopc`, (N,)."""
        return self.scores[:, 0] - self.scores.mean(1)

    def _auc(self, images: np.ndarray) -> np.ndarray:
        """The AUC of a choice of images, (..., n) indices -> (...)."""
        if (start := float(self.mean_curve[0])) <= 0:
            raise LRPError(
                f"the untouched images score {start:.3g} on average, a relative curve needs more than 0: "
                "take images that the model gets right, output='probability', or aopc()"
            )
        area, start = (v.numpy()[images].mean(-1) for v in (torch.trapezoid(self.scores, dim=1), self.scores[:, 0]))
        return area / np.where(start > 0, start, np.nan)


def compare(a: Curves, b: Curves, statistic: str = "auc", **options) -> Interval:
    """AUC (or "aopc") of `a` minus that of `b`, paired: each resample takes the same images of both.

    Raises LRPError unless both agree in images, steps, size of regions, kind of score, and scores at the start.
    """
    known("statistic", statistic, ("auc", "aopc"))
    one, two = ({"images": len(c), "steps": c.steps, "region": c.region, "output": c.output} for c in (a, b))
    if one != two:
        raise LRPError(f"curves of different kinds cannot be paired: {one} and {two}")
    if not torch.allclose(a.scores[:, 0], b.scores[:, 0], rtol=1e-3, atol=1e-3):
        raise LRPError("the untouched images score differently: curves are paired on one model, images and targets")
    if statistic == "aopc":
        return interval(a.aopc_per_sample() - b.aopc_per_sample(), **options)
    return _bootstrap(lambda images: a._auc(images) - b._auc(images), len(a), **options)


def relative_area(x: Sequence[float] | Tensor, y: Sequence[float] | Tensor) -> float:
    """Area under a curve relative to its start, trapezoid of y / y_0 over x, in units of x.

    `relative_area(range(L + 1), mean_curve)` is the AUC; six read-offs of Fig. 2 of binder2016layer give 37.5 where
    its Table 1 has 35.47 to 37.10. Raises LRPError for fewer than two points, x that do not rise, or y_0 <= 0.
    """
    x, y = (torch.as_tensor(v if isinstance(v, Tensor) else list(v), dtype=torch.float64) for v in (x, y))
    if x.shape != y.shape or x.dim() != 1 or len(x) < 2 or not (x.diff() > 0).all() or not y[0] > 0:
        raise LRPError(f"a curve is at least two points, x rises and y starts above 0; got x {x} and y {y}")
    return float(torch.trapezoid(y, x) / y[0])


def _bootstrap(statistic: Callable, n: int, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """As `metrics.interval`, and with its resamples, for a statistic that is no mean: of indices (..., n) -> (...)."""
    drawn = statistic(np.random.default_rng(seed).integers(0, n, (draws, n)))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(np.arange(n))), float(low), float(high), n)


def region_sums(relevance: Tensor, region: int = 1) -> Tensor:
    """Relevance summed over channels and over regions of r x r pixels: (N, C, H, W) or (N, H, W) -> (N, h, w).

    The grid starts at the upper left, h = ceil(H / r), w = ceil(W / r): where r does not divide the size, the last row
    and column of regions are smaller, and their sums have fewer terms.
    """
    R = heat(relevance)
    R = F.pad(R, (0, -R.shape[2] % region, 0, -R.shape[1] % region))
    return R.unflatten(2, (-1, region)).unflatten(1, (-1, region)).sum((2, 4))


def ranks(relevance: Tensor, order: str = "morf", region: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """The place of each pixel's region in the order, (N, H, W) int64: pixels of rank < k are replaced after k steps.

    `morf` (or `max`) takes the highest relevance first, `lerf` the lowest, `minabs` the smallest magnitude of a
    region's sum; `random` (or `rand`) draws an order for each image. Ranks are strict; equal regions follow each other
    as one reads, row by row. Raises LRPError for other names.
    """
    sums = region_sums(relevance, region)
    if (order := ALIASES.get(order, order)) == "random":
        places = torch.stack([torch.randperm(row.numel(), generator=generator) for row in sums]).to(sums.device)
    else:
        places = KEYS[known("order", order, ORDERS)](sums).flatten(1).argsort(stable=True).argsort()
    pixels = places.view_as(sums).repeat_interleave(region, 1).repeat_interleave(region, 2)
    return pixels[:, : relevance.shape[-2], : relevance.shape[-1]]


def _replacement(replace, x: Tensor, generator: torch.Generator, low, high, value, sigma: float) -> Tensor:
    """What replaces x where it is replaced, (N, C, H, W)."""
    if callable(replace):
        new = replace(x.clone())
        if (shape := getattr(new, "shape", None)) != x.shape:
            raise LRPError(f"replace must return a tensor of its input's shape {tuple(x.shape)}; it has {shape}")
        return new.to(x)
    if replace == "uniform":
        if low is None or high is None:
            raise LRPError("uniform noise needs the valid range of x: `low, high = normalizer.bounds()` gives it")
        low, high = column("low", low, x), column("high", high, x)
        # drawn on the CPU, image by image: the same on every device, and for any N
        noise = torch.stack([torch.rand(x.shape[1:], generator=generator, dtype=torch.float64) for _ in x])
        return (low + (high - low) * noise).to(x)
    if replace == "mean":
        return x.mean((2, 3), keepdim=True).expand_as(x)
    if replace == "constant":
        return column("value", value, x).to(x).expand_as(x)
    from torchvision.transforms.v2.functional import gaussian_blur

    kernel = [min(2 * int(np.ceil(3 * sigma)) + 1, 2 * side - 1) for side in (x.shape[3], x.shape[2])]
    return gaussian_blur(x, kernel, [float(sigma)] * 2)


def column(name: str, value, x: Tensor) -> Tensor:
    """A number, one per channel ((C,) or (1, C, 1, 1)) or an image, to broadcast with (C, H, W); float64 on the CPU."""
    given = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    column = given.reshape(x.shape[1:]) if given.numel() == x[0].numel() else given.reshape(-1, 1, 1)
    if column.shape != x.shape[1:] and len(column) not in (1, x.shape[1]):
        got = f"{given.numel()} of shape {tuple(given.shape)}"
        raise LRPError(f"{name} is one number, {x.shape[1]}, one per channel, or an image; got {got}")
    if not torch.isfinite(column).all():
        raise LRPError(f"{name} must be finite; got {value if given.numel() < 5 else 'values that are not'}")
    return column


@torch.no_grad()
def curves(
    model: nn.Module,
    x: Tensor,
    relevance: Tensor | None,
    target: int | Tensor | None = None,
    *,
    order: str = "morf",
    steps: int | None = None,
    region: int = 1,
    replace: str | Callable[[Tensor], Tensor] = "uniform",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    value: float | Tensor = 0.0,
    sigma: float = 5.0,
    output: str = "logit",
    seed: int = 0,
    repeats: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Curves:
    """The target's score after each of L replacements, most relevant region first or in another order.

    x_k is x with its k first regions replaced, all channels of a pixel together; what is replaced stays so
    (bach2015pixel for pixels, samek2017evaluating for regions).

    Args:
        model: gives logits (N, K); in eval mode, in the dtype and on the device of x; it is left as it is.
        x, relevance: images (N, C, H, W), and maps of that shape or (N, H, W); None will do for the order `random`.
        target: None for the class predicted on x, an int for all, or a LongTensor (N,).
        order: `morf`, `lerf`, `minabs` or `random`, as in `ranks`; a random one is drawn anew for each repeat.
        steps: L; by default 100 as in the papers, or as many regions as there are.
        region: side of the regions in pixels, in the grid of `region_sums`; 1 flips pixels, the papers use 9 too.
        replace: `uniform` noise in [low, high], a draw for every pixel and channel; `mean` of the image per channel;
            `blur`, the image under a Gaussian of `sigma` pixels; `constant`, that is `value`; or a callable from x to a
            tensor like x, asked anew for each repeat. Options of other replacements are ignored.
        low, high, value: in the units of x; a number, one per channel or an image, as `Normalizer.bounds` gives them.
        output: `logit`, or `probability` for its softmax.
        seed: of noise and random orders: the same for all orders and methods, so that these can be paired.
        repeats: draws to average over; by default 10 for the order `random`, 1 for others.
        batch: images per forward pass, which bounds memory (beside three tensors like x); by default `at_once(x)`.
        progress: a bar after five seconds.

    Raises LRPError for names and numbers that cannot be, InputError for tensors, TargetError for targets.
    """
    order = known("order", ALIASES.get(order, order), ORDERS)
    repeats = (10 if order == "random" else 1) if repeats is None else repeats
    known("output", output, ("logit", "probability"))
    if not callable(replace):
        known("replacement", replace, REPLACEMENTS)
    _check_images(model, x, relevance, order)
    batch = at_once(x) if batch is None else batch
    counts = {"region": region, "repeats": repeats, "batch": batch, "steps": 1 if steps is None else steps}
    if wrong := {name: n for name, n in counts.items() if not isinstance(n, numbers.Integral) or n < 1}:
        raise LRPError(f"whole numbers of at least 1 are needed; got {wrong}")
    regions = math.ceil(x.shape[2] / region) * math.ceil(x.shape[3] / region)
    steps = min(100, regions) if steps is None else steps
    if steps > regions:
        raise LRPError(f"steps={steps}, but images of {tuple(x.shape[2:])} hold {regions} regions of side {region}")

    logits = torch.cat([checks.run(model, part).cpu() for part in x.split(batch)])
    checks.logits(logits, model)
    targets, single = checks.targets(target, logits)
    if not single:
        raise TargetError("curves take one target per image: call them once for each entry of the list")
    scores = torch.zeros(len(x), steps + 1, dtype=torch.float64)
    scores[:, 0] = score(logits, targets[0], output)
    relevance = (x if relevance is None else relevance).cpu()  # a random order takes its shape only
    pairs = torch.arange(len(x) * steps).split(batch)  # of an image and a number of replacements
    with tqdm(total=len(pairs) * repeats, desc=order, leave=False, delay=5, disable=not progress) as bar:
        for repeat in range(repeats):
            streams = np.random.SeedSequence([seed, repeat]).generate_state(2)
            of_order, of_noise = (torch.Generator().manual_seed(int(stream)) for stream in streams)
            rank = ranks(relevance, order, region, of_order).to(x.device)
            new = _replacement(replace, x, of_noise, low, high, value, sigma)
            for part in pairs:
                n, k = part // steps, part % steps + 1
                i = n.to(x.device)
                done = (rank[i] < k.to(x.device)[:, None, None])[:, None]
                logits = checks.run(model, torch.where(done, new[i], x[i])).cpu()
                scores[n, k] += score(logits, targets[0, n], output)
                bar.update()
    scores[:, 1:] /= repeats
    if len(bad := (~torch.isfinite(scores)).nonzero()):
        raise InputError(f"the score of image {bad[0, 0]} is not finite after {bad[0, 1]} replacements")
    return Curves(scores, order, region, replace if isinstance(replace, str) else "callable", output, repeats)


def at_once(x: Tensor) -> int:
    """How many images to show a network at a time: 128, or on a CPU 8 of 224 x 224, or as many values.

    On a CPU larger batches gain little, and are slower where each layer asks the system for memory anew.
    """
    return max(1, 8 * 3 * 224**2 // x[0].numel()) if x.device.type == "cpu" else 128


def score(logits: Tensor, target: Tensor, output: str) -> Tensor:
    """The target's logit or probability, (N, K), (N,) -> (N,), in double precision."""
    scores = logits.double().softmax(1) if output == "probability" else logits.double()
    return scores.gather(1, target[:, None])[:, 0]


def known(kind: str, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise LRPError(f"no {kind} is called {name!r}: there are {', '.join(names)}")
    return name


def _check_images(model: nn.Module, x: Tensor, relevance: Tensor | None, order: str) -> None:
    checks.mode(model)
    checks.tensor(x, model)
    if x.dim() != 4:
        raise InputError(f"x must be images (N, C, H, W); its shape is {tuple(x.shape)}")
    if relevance is None and order == "random":
        return
    shape, shapes = getattr(relevance, "shape", None), (x.shape, x[:, 0].shape)
    if shape not in shapes:
        raise InputError(f"relevance must have shape {tuple(shapes[0])}, as x, or {tuple(shapes[1])}; it has {shape}")
    if len(bad := (~torch.isfinite(relevance)).nonzero()):
        raise InputError(f"the relevance of image {bad[0, 0]} holds NaN or infinite values")
