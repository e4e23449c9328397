#!/usr/bin/env bash
# torch 2.15.0, CPU: in eval mode, BatchNorm2d gives a wrong gradient for one image, silently, where the gradient that
# comes back has passed a transposition: y.flatten(2).transpose(1, 2).mean(1), as between a patch embedding and tokens.
#
# Why it surprises: y = a x + b per channel, so the gradient of x is a times that of y, whatever its memory layout.
# The incoming gradient (1, C, H, W) has the strides (C, 1, W C, C): those of channels-last, but for the one of the
# batch axis, which is of size one. torch counts that as contiguous in channels-last, and the values that come out stand
# in other places. With two images, or after `grad.contiguous()`, they are right. Gradient maps of single images, and
# whatever is tested against them, are wrong on networks with such a place (XCiT's convolutional stem, for one).
#
# Seen with torch 2.15.0+cu132 on a CPU: one image: largest error 1.0e+00 to 2.6e+00 of the largest gradient, float32
# and float64; two images: 0. This script fails when that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.15.0 numpy==2.3.5
"$work/env/bin/python" - <<'PY'
import torch
from torch import nn


def error(images: int, dtype: torch.dtype) -> float:
    """The gradient of one mean over places, with a transposition in between and without: how far apart?"""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).to(dtype).eval()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(images, 3, 8, 8, dtype=dtype, requires_grad=True)
    plain = torch.autograd.grad(norm(x).mean((2, 3))[:, 1].sum(), x)[0]
    turned = torch.autograd.grad(norm(x).flatten(2).transpose(1, 2).mean(1)[:, 1].sum(), x)[0]
    return float((plain - turned).abs().max() / plain.abs().max())


print("torch", torch.__version__)
for dtype in (torch.float32, torch.float64):
    one, two = error(1, dtype), error(2, dtype)
    print(f"{dtype}: one image {one:.1e}, two images {two:.1e}")
    assert one > 0.5, "one image: the gradient is right now"
    assert two < 1e-6, "two images: the gradient is wrong, too"
PY
