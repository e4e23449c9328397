"""What each patch of an image truly contributes to a score, and how far a map agrees with it.

The contribution of patch p is what the score loses when the patch is replaced, C_p = f_t(x) - f_t(x without p). A map
agrees with it where its sums over patches rank the patches alike, and where they have the sign of C_p: below zero, a
patch argues against the class, and taking it away helps. Patches are replaced one at a time, so what only two of them
do together is not seen.
Source: zeiler2014visualizing for occlusion, samek2017evaluating for the patches.
"""

import torch
from torch import Tensor, nn

from ..engine import Target
from ..errors import InputError, LRPError
from .baselines import METHODS
from .perturbation import region_sums
from .randomisation import spearman


def contributions(
    model: nn.Module, x: Tensor, target: Target = None, region: int = 8, baseline: float | Tensor = 0.0
) -> Tensor:
    """C of each patch of `region` x `region` pixels, in units of the logit: (N, C, H, W) -> (N, rows, columns).

    baseline: what replaces the patch, a number or a tensor (C, 1, 1) in the units of x; 0 is the mean colour of most
    networks' data, at which gradient x input is zero as well. Patches that the border cuts stay smaller. Raises what
    the methods of `lrp.evaluate.baselines` do.
    """
    C = METHODS["occlusion"](model, x, target, window=region, stride=region, baseline=baseline)
    return C[:, ::region, ::region].double()


def agreement(maps: Tensor, C: Tensor, region: int = 8) -> dict[str, Tensor]:
    """How far maps (N, H, W) or (N, C, H, W) agree with the contributions C (N, rows, columns), each (N,).

    "rank correlation": Spearman's, of the map's sums over patches and C; NaN where either is flat. "signs": share of
    the patches where both have the same sign; "signs by weight": the same, with each patch counted by |C|. A sum of
    exactly zero has no sign and agrees with nothing. A map without negative values gets for its signs the share of
    the patches that help, and this is what signs are to be compared with.

    Raises InputError where the patches of maps and C are not the same.
    """
    R = region_sums(maps, region).double()
    if R.shape != C.shape:
        raise InputError(f"the maps have patches {tuple(R.shape)}, the contributions {tuple(C.shape)}")
    if not torch.isfinite(R).all() or not torch.isfinite(C).all():
        raise LRPError("maps and contributions must be finite")
    same = ((R.sign() == C.sign()) & (R != 0)).double().flatten(1)
    size = C.abs().flatten(1)
    return {
        "rank correlation": spearman(R, C),
        "signs": same.mean(1),
        "signs by weight": (same * size).sum(1) / size.sum(1),
    }
