"""Patterns that come from the network and not from the data: scores of stripes, borders, grids, and control maps.

Maps are (N, H, W), or (N, C, H, W) whose channels are summed; each score is one value per map, (N,), in double
precision. Scores take `|R|`, since maps of both signs cancel; NaN (land in a field) is no part of a map; a map that is
zero everywhere has no score: NaN, which `metrics.interval` leaves out. Source of the questions: landthayen2023fact;
its scores, if it has any, are not known to us, and these are ours.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import composites
from ..data.field_networks import accuracy
from ..data.geospatial import split
from ..engine import LRP
from ..errors import LRPError
from ..evaluate import metrics
from ..evaluate.perturbation import known
from . import skips

SIDES = {"left": (2, 0), "right": (2, -1), "top": (1, 0), "bottom": (1, -1)}  # axis of the map, place on it


def shares(R: Tensor) -> Tensor:
    """`|R|` of each map over its sum: (N, H, W), NaN as 0."""
    size = metrics.heat(R).abs().nan_to_num(0.0)
    return size / size.sum((1, 2), keepdim=True)


# ---------------------------------------------------------------- stripes


def row_profile(R: Tensor) -> Tensor:
    """Share of `|R|` in each row, (N, H)."""
    return shares(R).sum(2)


def first_share(R: Tensor, side: Literal["left", "right", "top", "bottom"] = "left") -> Tensor:
    """Share of `|R|` in the column (or row) at a side, where a recurrent network begins: 1 / W (or 1 / H) if even.

    Raises LRPError for another side.
    """
    axis, place = SIDES[known("side", side, SIDES)]
    return shares(R).sum(3 - axis)[:, place]


def row_norm_correlation(R: Tensor, W_in: Tensor, rows: Tensor | None = None) -> Tensor:
    r"""Rank correlation between the rows' shares of `|R|` and their input weights, :math:`\sum_i |W_{in,ki}|`.

    `W_in` is (H, units), as in u W_in with columns u of the map fed one by one; `rows` (H,) bool selects rows, for
    example those without objects. For a network fed row by row, give R.mT. Raises LRPError for other shapes.
    """
    profile = row_profile(R)
    if W_in.dim() != 2 or len(W_in) != profile.shape[1]:
        raise LRPError(
            f"W_in must have one row per row of the map, ({profile.shape[1]}, units), not {tuple(W_in.shape)}: is it "
            "transposed (W_in.T), or is the network fed by rows (R.mT)?"
        )
    norms = W_in.detach().abs().double().sum(1)
    if rows is not None:
        profile, norms = profile[:, rows], norms[rows]
    return _rank_correlation(profile, norms.expand_as(profile))


# ---------------------------------------------------------------- borders and grids


def border_energy(R: Tensor, width: int = 1) -> Tensor:
    """Share of `|R|` within `width` cells of the edge over the share of cells there: 1 is fair, more a bright border.

    Raises LRPError where the border is the whole map.
    """
    size = metrics.heat(R)
    if not 0 < 2 * width < min(size.shape[1:]):
        raise LRPError(f"a border of {width} leaves no middle in maps of {tuple(size.shape[1:])}")
    border = torch.ones(size.shape[1:], dtype=torch.bool, device=R.device)
    border[width:-width, width:-width] = False
    known = ~size.isnan()
    area = (known & border).sum((1, 2)) / known.sum((1, 2)).double()
    return (shares(R) * border).sum((1, 2)) / area


def grid_energy(R: Tensor, period: int) -> Tensor:
    """Power of `|R|` at the frequencies of a grid over that at zero: 0 for none, p^2 - 1 for one pixel in each p x p.

    It is `skips.lattice` of `|R|`, on the largest part from the top left that p divides, where strides and pooling
    begin. Large structures count a little, too: compare with maps of the same objects. Raises LRPError for a period
    below 2 or beyond the map.
    """
    share = shares(R)
    h, w = (side - side % max(period, 1) for side in share.shape[1:])
    if period < 2 or not h * w:
        raise LRPError(f"a grid of period {period} has no meaning in maps of {tuple(share.shape[1:])}")
    return skips.lattice(share[:, :h, :w], period)


# ---------------------------------------------------------------- truth


class Overlap(NamedTuple):
    """How well maps meet the truth: `rank`, a rank correlation in [-1, 1], and `auc` in [0, 1]; (N,) each."""

    rank: Tensor
    auc: Tensor


def truth_overlap(R: Tensor, truth: Tensor) -> Overlap:
    r"""Spearman's rank correlation of maps with the truth, and the ROC AUC of `|R|` for the cells where truth is not 0.

    .. math:: AUC = P(|R_p| > |R_q|) + \tfrac12 P(|R_p| = |R_q|), \quad p \text{ with truth}, q \text{ without}

    `truth` is (N, H, W), or (H, W) for all maps: contributions, which are ranked with their signs, or a mask (bool),
    which is compared with `|R|`. Cells that are NaN in either are left out. NaN where a side is constant or empty.
    Raises LRPError for other shapes.
    """
    R = metrics.heat(R)
    mask = truth.dtype == torch.bool
    if truth.shape not in (R.shape, R.shape[1:]):
        raise LRPError(f"the truth has shape {tuple(truth.shape)}, the maps {tuple(R.shape)}")
    truth = truth.double().expand_as(R)
    rows = []
    for r, t in zip(R.flatten(1), truth.flatten(1), strict=True):
        known = ~(r.isnan() | t.isnan())
        r, t = r[known][None], t[known][None]
        rows.append((_rank_correlation(r.abs() if mask else r, t), _auc(r.abs(), t != 0)))
    rank, auc = (torch.cat(column) for column in zip(*rows, strict=True)) if rows else (R.new_zeros(0),) * 2
    return Overlap(rank, auc)


def object_shares(R: Tensor, masks: Tensor) -> Tensor:
    """Share of `|R|` on each of K objects, masks (K, H, W) or (N, K, H, W) bool: (N, K).

    Put the object of the class first and the decoys after it: where the map answers to the class, the first column is
    above the others. Raises LRPError for other shapes.
    """
    share = shares(R)
    n, *plane = share.shape
    if [*masks.shape[-2:]] != plane or masks.dim() not in (3, 4) or (masks.dim() == 4 and len(masks) != n):
        raise LRPError(f"masks are (K, H, W) or (N, K, H, W); got {tuple(masks.shape)} for maps {tuple(share.shape)}")
    return torch.einsum("nhw,nkhw->nk", share, masks.to(share).expand(n, *masks.shape[-3:]))


def _ranks(x: Tensor) -> Tensor:
    """Ranks along the last axis, ties by their mean."""
    from scipy.stats import rankdata

    return torch.from_numpy(np.asarray(rankdata(x.detach().cpu().numpy(), axis=-1), float)).to(x.device)


def _rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation of each row: (N, K), (N, K) -> (N,); NaN for constant rows."""
    if x.shape[1] < 2:
        return x.new_full((len(x),), torch.nan)
    a, b = (r - r.mean(1, keepdim=True) for r in (_ranks(x), _ranks(y)))
    rho = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return rho.masked_fill(x.isnan().any(1) | y.isnan().any(1), torch.nan)


def _auc(score: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve of each row by the rank-sum formula: (N, K), (N, K) bool -> (N,)."""
    p = positive.sum(1).double()
    q = positive.shape[1] - p
    if not score.shape[1]:
        return p * torch.nan
    return ((_ranks(score) * positive).sum(1) - p * (p + 1) / 2) / (p * q)


# ---------------------------------------------------------------- control maps


@dataclass(frozen=True, eq=False)
class ArtifactMaps:
    """Maps of networks with something to learn and with nothing. Maps are mean shares of `|R|` and sum to 1.

    real (H, W): trained on the true labels. shuffled (repeats, H, W): trained on labels in random order. constant
    (repeats, H, W): those networks' maps of a constant input. accuracy of the first and accuracies (repeats,) of the
    others, all on the held-out samples. One shuffle may by chance resemble the labels or their opposite, and then its
    accuracy is far from 1/2; the mean over many shuffles is at chance.
    """

    real: Tensor = field(repr=False)
    shuffled: Tensor = field(repr=False)
    constant: Tensor = field(repr=False)
    accuracy: float
    accuracies: Tensor

    @property
    def corrected(self) -> Tensor:
        """The real map minus the mean artifact map, (H, W): above 0 is what labels added."""
        return self.real - self.shuffled.mean(0)


def artifact_map(
    train_once: Callable[[Tensor, Tensor, int], Callable[[Tensor], Tensor]],
    inputs: Tensor,
    labels: Tensor,
    explain: Callable[..., Tensor],
    *,
    repeats: int = 5,
    seed: int = 0,
    fraction: float = 0.8,
    constant: float = 1.0,
) -> ArtifactMaps:
    """Fact or artifact: maps of networks that learned shuffled labels, and of a constant input, beside the real map.

    `train_once(inputs, labels, seed)` gives a network that maps inputs (N, ...) to (N, 1), whose sign is the class;
    `explain(network, inputs)` gives maps (N, H, W) or (N, C, H, W). The first `fraction` of the samples (inputs
    (N, ...), labels (N,), continuous or +-1) is for training, its labels shuffled among themselves; the rest is
    explained and gives the accuracy. The constant input has the value `constant` everywhere. Network r, trained with
    `seed` + r, gets shuffle r; network 0 is also trained on the true labels. Raises LRPError for fewer than two
    repeats, and what `train_once` and `explain` raise.

    Source: ours, after the question of landthayen2023fact.
    """
    if repeats < 2:
        raise LRPError(f"repeats must be 2 or more, not {repeats}: compare at least two shuffled networks")
    (x, held), (y, held_y) = split(inputs, torch.as_tensor(labels), fraction=fraction)
    generator = torch.Generator().manual_seed(seed)
    flat = torch.full_like(inputs[:1], constant)
    network = train_once(x, y, seed)
    real, score = _mean_share(explain(network, held)), accuracy(network, held, held_y)
    shuffled, constants, scores = [], [], []
    for r in tqdm(range(repeats), desc="shuffled labels", leave=False, delay=1):
        network = train_once(x, y[torch.randperm(len(y), generator=generator)], seed + r)
        shuffled.append(_mean_share(explain(network, held)))
        constants.append(_mean_share(explain(network, flat)))
        scores.append(accuracy(network, held, held_y))
    return ArtifactMaps(
        real, torch.stack(shuffled), torch.stack(constants), score, torch.tensor(scores, dtype=torch.float64)
    )


def _mean_share(R: Tensor) -> Tensor:
    """Mean over maps of their shares of `|R|`, without maps that are zero everywhere: (H, W)."""
    return shares(R).nanmean(0)


def coverage(net: nn.Module, shape: tuple[int, ...]) -> Tensor:
    r"""How many ways lead from each pixel to the output: LRP of an all-ones input when all weights are 1, biases 0.

    With contributions in proportion to x w and relevance starting as the output itself, pixel p gets the number of
    paths, :math:`R_p = \sum_j 1` over kernel placements and output channels for a single convolution: 9 inside and 4
    in the corners of a 3 x 3 one with padding. Max pooling follows its winner, on ties the first cell. A map divided
    by it loses its borders. `shape` is (H, W) or (C, H, W); (H, W) float64, channels summed. `net` is left as it is;
    BatchNorm counts as the identity.
    """
    ones = copy.deepcopy(net).double().cpu().eval()
    with torch.no_grad():
        for name, parameter in ones.named_parameters():
            parameter.fill_(float(name.rsplit(".")[-1] != "bias"))
        for module in ones.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.zero_()
                module.running_var.fill_(1.0 - module.eps)
        x = torch.ones(1, *((1, *shape) if len(shape) == 2 else shape), dtype=torch.float64)
        R = LRP(ones, composites.Epsilon(0)).attribute(x, seed=ones(x))
    return R[0].sum(0)
