"""How pictures lie in memory: the one place that knows a layout which is faster than the usual one.

On a CPU, torch's convolutions of float32 pictures take about four fifths of the time where the channels of a pixel lie
side by side ("channels-last"). A walk is begun in that layout, and all steps keep it: elementwise work keeps strides,
and amounts are taken over axes (`samples.within`), never over flattened copies. Results come back in the layout of the
input.

The network's own code may ask for the usual layout, by `as_strided`, say. Where the graph does not give the model's
output from such an input, it is walked as it is (`lrp.plan.Plan.ready`).
"""

import torch
from torch import Tensor

from . import kinds as v
from .graph import Graph


def gains(graph: Graph) -> bool:
    """Are there convolutions of pictures, which are faster in channels-last?"""
    return any(node.kind == v.CONVOLUTION and "2d" in node.op for node in graph.nodes)


def side_by_side(xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, with float32 pictures (N, C, H, W) on a CPU in channels-last; new memory unless they are already."""
    return tuple(
        x.contiguous(memory_format=torch.channels_last)
        if isinstance(x, Tensor) and x.dim() == 4 and x.dtype == torch.float32 and x.device.type == "cpu"
        else x
        for x in xs
    )


def in_memory(z: Tensor) -> Tensor:
    """The value with its axes in the order in which they lie in memory, where that is one of torch's two layouts."""
    last = z.dim() == 4 and not z.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last)
    return z.permute(0, 2, 3, 1) if last else z


def as_given(value: Tensor, x: Tensor) -> Tensor:
    """A value with the samples of x, or (T, N, ...), in the usual layout, unless x itself came in channels-last."""
    return value if not x.is_contiguous() else value.contiguous()
