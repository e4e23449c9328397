"""One loop for all that replaces pixels in an order and watches the score; see `perturbation` and `insertion`.

A protocol chooses an order of pixels or regions (`ranks`), how many of them are flipped at each point, and what
replaces them; `Flips` checks model, images and targets, and scores the images at these points. What the protocols
refuse, and in which words, stands here too.
"""

import numbers
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .. import checks
from ..engine import Target
from ..errors import InputError, LRPError, TargetError
from .metrics import heat

Order = Literal["morf", "lerf", "minabs", "random"]
Alias = Literal["max", "rand"]
Output = Literal["logit", "probability"]

KEYS = {"morf": torch.neg, "lerf": torch.clone, "minabs": torch.abs}  # regions go by this key, smallest first
ORDERS: tuple[str, ...] = get_args(Order)
ALIASES = {"max": "morf", "rand": "random"}  # names in binder2016layer

# ---------------------------------------------------------------- what is refused


def known(kind: str, name: str, names: Sequence[str]) -> str:
    """The name, if it is one of `names`; raises InputError that lists them otherwise."""
    if name not in names:
        raise InputError(f"no {kind} is called {name!r}: there are {', '.join(names)}")
    return name


def whole_numbers(**options: int | None) -> None:
    """Raise InputError for options that are not whole numbers of at least 1; None stands for a default."""
    given = {name: n for name, n in options.items() if n is not None}
    if wrong := {name: n for name, n in given.items() if not isinstance(n, numbers.Integral) or n < 1}:
        raise InputError(f"whole numbers of at least 1 are needed; got {wrong}")


def images(model: nn.Module, x: Tensor, target: Target = None) -> None:
    """Raise InputError for a training model or x that is no sound (N, C, H, W), TargetError for a list of targets."""
    checks.mode(model)
    checks.tensor(x, model)
    if x.dim() != 4:
        raise InputError(f"x must be images (N, C, H, W); its shape is {tuple(x.shape)}")
    if isinstance(target, list | tuple):
        raise TargetError("one target per call: None, an int, or a LongTensor (N,); call once for each entry of a list")


def maps_of(x: Tensor, maps: Tensor, name: str) -> None:
    """Raise InputError unless maps are finite, and shaped as x or as one channel of it."""
    shape, shapes = getattr(maps, "shape", None), (x.shape, x[:, 0].shape)
    if shape not in shapes:
        raise InputError(f"{name} must have shape {tuple(shapes[0])}, as x, or {tuple(shapes[1])}; it has {shape}")
    if len(bad := (~torch.isfinite(maps)).nonzero()):
        raise InputError(f"the {name.removesuffix('s')} of image {bad[0, 0]} holds NaN or infinite values")


def paired(what: str, start: str, kinds: tuple[dict, dict], starts: tuple[Tensor, Tensor]) -> None:
    """Raise LRPError unless two results are of one kind, and their images score alike where nothing is flipped."""
    if kinds[0] != kinds[1]:
        raise LRPError(f"{what} of different kinds cannot be paired: {kinds[0]} and {kinds[1]}")
    if not torch.allclose(*starts, rtol=1e-3, atol=1e-3):
        raise LRPError(f"the {start} images score differently: {what} are paired on one model, images and targets")


# ---------------------------------------------------------------- orders and replacements


def region_sums(relevance: Tensor, region: int = 1) -> Tensor:
    """Relevance summed over channels and over regions of r x r pixels: (N, C, H, W) or (N, H, W) -> (N, h, w).

    The grid starts at the upper left, h = ceil(H / r), w = ceil(W / r): where r does not divide the size, the last row
    and column of regions are smaller, and their sums have fewer terms.
    """
    R = heat(relevance)
    R = F.pad(R, (0, -R.shape[2] % region, 0, -R.shape[1] % region))
    return R.unflatten(2, (-1, region)).unflatten(1, (-1, region)).sum((2, 4))


def ranks(
    relevance: Tensor, order: Order | Alias = "morf", region: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """The place of each pixel's region in the order, (N, H, W) int64: pixels of rank < k are flipped after k steps.

    `morf` (or `max`) takes the highest relevance first, `lerf` the lowest, `minabs` the smallest magnitude of a
    region's sum; `random` (or `rand`) draws an order for each image. Ranks are strict; equal regions follow each other
    as one reads, row by row. Raises InputError for other names.
    """
    sums = region_sums(relevance, region)
    if (order := known("order", ALIASES.get(order, order), ORDERS)) == "random":
        places = torch.stack([torch.randperm(row.numel(), generator=generator) for row in sums]).to(sums.device)
    else:
        first_to_last = KEYS[order](sums).flatten(1).argsort(stable=True)
        places = torch.empty_like(first_to_last)
        places.scatter_(1, first_to_last, torch.arange(places.shape[1], device=places.device).expand_as(places))
    pixels = places.view_as(sums).repeat_interleave(region, 1).repeat_interleave(region, 2)
    return pixels[:, : relevance.shape[-2], : relevance.shape[-1]]


def column(name: str, value, x: Tensor) -> Tensor:
    """A number, one per channel ((C,) or (1, C, 1, 1)) or an image, to broadcast with (C, H, W); float64 on the CPU."""
    given = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    column = given.reshape(x.shape[1:]) if given.numel() == x[0].numel() else given.reshape(-1, 1, 1)
    if column.shape != x.shape[1:] and len(column) not in (1, x.shape[1]):
        got = f"{given.numel()} of shape {tuple(given.shape)}"
        raise InputError(f"{name} is one number, {x.shape[1]}, one per channel, or an image; got {got}")
    if not torch.isfinite(column).all():
        raise InputError(f"{name} must be finite; got {value if given.numel() < 5 else 'values that are not'}")
    return column


# ---------------------------------------------------------------- the loop


def at_once(x: Tensor) -> int:
    """How many images to show a network at a time: 128, or on a CPU 8 of 224 x 224, or as many values.

    On a CPU larger batches gain little, and are slower where each layer asks the system for memory anew.
    """
    return max(1, 8 * 3 * 224**2 // x[0].numel()) if x.device.type == "cpu" else 128


def score(logits: Tensor, target: Tensor, output: Output) -> Tensor:
    """The target's logit or probability, (N, K), (N,) -> (N,), in double precision."""
    scores = logits.double().softmax(1) if output == "probability" else logits.double()
    return scores.gather(1, target[:, None])[:, 0]


class Flips:
    """A model, images x (N, C, H, W) and a target for each, ready to be scored with pixels of x replaced.

    `untouched` are the scores of x, (N,) float64 on the CPU. Raises InputError for logits that are not (N, K),
    TargetError for targets that are none of them.
    """

    def __init__(self, model: nn.Module, x: Tensor, target: Target, *, output: Output, batch: int | None = None):
        self.model, self.output, self.bar = model, output, tqdm(disable=True)
        self.batch = at_once(x) if batch is None else batch
        logits = torch.cat([checks.run(model, part).cpu() for part in x.split(self.batch)])
        checks.logits(logits, model)
        self.target = checks.targets(target, logits)[0][0]
        self.untouched = score(logits, self.target, output)

    def progress(self, total: int, name: str, shown: bool) -> tqdm:
        """A bar for `total` images, after five seconds; to be closed, as by `with`."""
        self.bar = tqdm(total=total, desc=name, leave=False, delay=5, disable=not shown)
        return self.bar

    def scores(self, points: Tensor, counts: Tensor, rank: Tensor, ahead: Tensor, behind: Tensor) -> Tensor:
        """Scores (N, P) of images that are `ahead` at pixels of rank < counts, and `behind` elsewhere.

        points: bool (N, P), on the CPU, those that are evaluated; the others score 0. counts: (N, P), on the CPU.
        rank: (N, H, W). ahead, behind: (N, C, H, W), or one for all images.
        """
        scores, rank = torch.zeros(points.shape, dtype=torch.float64), rank.to(ahead.device, torch.int32)
        for n, p in zip(*(index.split(self.batch) for index in points.nonzero(as_tuple=True)), strict=True):
            i = n.to(rank.device)
            first = (rank[i] < counts[n, p].to(rank)[:, None, None])[:, None]
            frames = torch.where(first, *(each if len(each) == 1 else each[i] for each in (ahead, behind)))
            scores[n, p] = score(checks.run(self.model, frames).cpu(), self.target[n], self.output)
            self.bar.update(len(n))
        return scores


def sound(scores: Tensor, where: str) -> Tensor:
    """The scores (N, P); raises InputError with the place, as in "at point {}", of one that is not finite."""
    if len(bad := (~torch.isfinite(scores)).nonzero()):
        raise InputError(f"the score of image {bad[0, 0]} is not finite {where.format(int(bad[0, 1]))}")
    return scores
