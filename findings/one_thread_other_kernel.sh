#!/usr/bin/env bash
# torch 2.15.0, CPU: the number of threads chooses the kernel. With one thread a 1 x 1 convolution is computed by torch's
# own matrix product (aten::_slow_conv2d_forward), with two by oneDNN (aten::mkldnn_convolution); a 3 x 3 convolution
# is computed by oneDNN either way.
#
# Why it surprises: one expects more threads to run the same code faster. A cost in units of a gradient, measured on one
# thread "to be free of noise", is that of other code than users run. It matters most where explanations are compared:
# ResNets and MobileNets are mostly 1 x 1 convolutions, VGG has none, so a ranking of methods or networks by time on one
# thread need not hold on two. A profile that names "slow" kernels is no sign of a missing oneDNN.
#
# Seen with torch 2.15.0+cu132 on a CPU, float32, (4, 64, 28, 28) to 128 and to 64 channels. The values are the same.
# This script fails when that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.15.0 numpy==2.3.5
"$work/env/bin/python" - <<'PY'
import torch
from torch.profiler import ProfilerActivity, profile

KERNELS = {"aten::_slow_conv2d_forward", "aten::mkldnn_convolution"}


def kernel(threads: int, size: int) -> tuple[set[str], torch.Tensor]:
    """Which kernel computes a convolution, and what it gives."""
    torch.manual_seed(0)
    x, w = torch.randn(4, 64, 28, 28), torch.randn(128 if size == 1 else 64, 64, size, size)
    torch.set_num_threads(threads)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        y = torch.conv2d(x, w)
    return {event.name for event in seen.events()} & KERNELS, y


print("torch", torch.__version__, "oneDNN:", torch.backends.mkldnn.is_available())
for size, alone in ((1, "aten::_slow_conv2d_forward"), (3, "aten::mkldnn_convolution")):
    one, two = kernel(1, size), kernel(2, size)
    print(f"{size} x {size}: one thread {one[0]}, two threads {two[0]}")
    assert one[0] == {alone} and two[0] == {"aten::mkldnn_convolution"}, "another choice of kernels now"
    assert torch.allclose(one[1], two[1], atol=1e-3)
PY
