"""Norms as linear maps: the deviation counts as a constant, the mean is subtracted, weight and bias are a layer's."""

import torch
from torch import Tensor

from ..errors import LRPError
from ..network.graph import Node
from ..network.operators import Operator

CENTRED = set("layer_norm layernorm group_norm groupnorm instance_norm".split())
CENTRED |= {f"instancenorm{d}d" for d in (1, 2, 3)}


class Normalising(Operator):
    """y = w (x - mean) + b with w = weight / deviation, of LayerNorm, GroupNorm and InstanceNorm (achtibat2024attnlrp).

    `layer` is the module, or has its attributes; `x` the input (N, ...), whose statistics count. Raises LRPError for
    another norm, whose parts are not known.
    """

    cacheable = False

    def __init__(self, node: Node, layer, x: Tensor):
        if node.op not in CENTRED or getattr(layer, "running_mean", None) is not None:
            raise LRPError(f"the parts of the norm `{node.name}` ({node.op}) are not known: give it rules.Pass()")
        self.layer, self.x = layer, x
        layered = node.op in ("layer_norm", "layernorm")
        self.axes = len(layer.normalized_shape) if layered else x.dim() - 1  # so many last axes, in `groups` groups
        self.groups = 1 if layered else getattr(layer, "num_groups", x.shape[1])

    def weights(self):
        layer, x = self.layer, self.x
        variance = self._rows(x).var(-1, unbiased=False, keepdim=True)
        scale = torch.rsqrt(variance + layer.eps).expand(self._rows(x).shape).reshape(x.shape)
        weight, bias = (None if p is None else self._beside(p.detach()) for p in (layer.weight, layer.bias))
        return scale if weight is None else scale * weight, bias

    def apply(self, xs, w):
        return self._centred(xs[0]) * w

    def transpose(self, s, w, xs):
        return [self._centred(s * w)]

    def _rows(self, t: Tensor) -> Tensor:
        """One row for each set of values that share a mean."""
        return t.reshape(*t.shape[: t.dim() - self.axes], self.groups, -1)

    def _centred(self, t: Tensor) -> Tensor:
        rows = self._rows(t)
        return (rows - rows.mean(-1, keepdim=True)).view(t.shape)

    def _beside(self, p: Tensor) -> Tensor:
        return p if p.dim() == self.axes else p.view(-1, *[1] * (self.axes - 1))
