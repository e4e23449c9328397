"""Amounts per sample: sizes of values, with the stabiliser that is relative to them, and sums of relevance."""

import torch
from torch import Tensor

from ..network.samples import Samples, beside, within


def rms(z: Tensor, samples: Samples | None = None) -> Tensor:
    """Root mean square of each sample: (N, ...) -> (N, 1, ...)."""
    each, axes = within(z, samples)
    norm = torch.linalg.vector_norm(each, dim=axes, dtype=torch.float32 if z.element_size() < 4 else None)
    return beside((norm / (each.numel() / max(1, len(each))) ** 0.5).to(z.dtype), z, samples)


def least(dtype: torch.dtype) -> float:
    """What is never too small to divide by."""
    tiny = torch.finfo(dtype).tiny
    return tiny if dtype == torch.float16 else tiny**0.5


def stabilise(z: Tensor, epsilon: float = 1e-6, relative: bool = True, samples=None, output: Tensor | None = None):
    """z moved away from zero, scale-free: z + sign(z) epsilon rms(z) per sample, with sign(+0) = +1.

    `relative=False` takes epsilon as an absolute number; `output` is measured in z's place. In half precision a
    relative epsilon is at least the smallest step of the dtype, and the shift is never too small to divide by.
    """
    limits = torch.finfo(z.dtype)
    if relative:
        size = rms(z if output is None else output, samples)
        shift = max(epsilon, limits.eps if z.element_size() < 4 else 0.0) * size
    else:
        shift = torch.full_like(z[:1], epsilon)
    return torch.copysign(shift.clamp(min=least(z.dtype)), z).add_(z)


def total(t: Tensor, samples: Samples | None = None) -> Tensor:
    """Sum per target and sample, at least in float32: (T, N, ...) -> (T, N)."""
    each, axes = within(t, samples, 1)
    return each.sum(axes, dtype=torch.float32 if t.element_size() < 4 else t.dtype).double()
