"""Linear maps, as the rules see them: apply with any weights, transpose, and say what the bias is.

A rule never looks at a layer. It asks an operator three things: its weight (which the rule splits into
parts), `apply(xs, w)`, which is the layer without bias but with the weight part w, and `transpose(s, w)`,
which sends s back along the same connections. Convolutions, dense layers, a BatchNorm that stands alone,
additions and averages all answer alike.

Shapes: xs is a list of inputs (N, ...), one entry for everything but an addition; s is (T, N, ...) with
a leading axis of targets, and so is what `transpose` returns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .samples import Samples, rows


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y = a x + b per channel: a = gamma / sqrt(var + eps), b = beta - a mean."""
    a = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        a = a * norm.weight
    b = -a * norm.running_mean
    return a, b if norm.bias is None else b + norm.bias


def reduce_to(s: Tensor, x: Tensor) -> Tensor:
    """Sum s (T, N, ...) over the axes along which x (N, ...) was broadcast, so that it fits x."""
    axes = [d for d in range(1, x.dim() + 1) if x.shape[d - 1] == 1 and s.shape[d] != 1]
    return s.sum(axes, keepdim=True) if axes else s


class Operator:
    """What all operators have; `weights` reads the module anew, so a changed parameter is seen."""

    cacheable = True  # weights come from modules alone, so they may be kept until a parameter changes
    fresh = True  # what `transpose` returns is new memory that the caller may overwrite

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, BatchNorm folded in where one was handed over."""
        raise NotImplementedError

    def apply(self, xs: list[Tensor], w: Tensor) -> Tensor:
        """The layer without its bias, with weight w: list of (N, ...) -> (N, ...)."""
        raise NotImplementedError

    def transpose(self, s: Tensor, w: Tensor, xs: list[Tensor]) -> list[Tensor]:
        """Send s (T, N, ...) back along the connections w: one (T, N, ...) per input."""
        raise NotImplementedError

    def forward(self, xs: list[Tensor], w: Tensor, b: Tensor | None) -> Tensor:
        """The layer itself, bias included."""
        z = self.apply(xs, w)
        return z if b is None else z + self.broadcast(b, z)

    def broadcast(self, b: Tensor, z: Tensor) -> Tensor:
        """View the bias (C,) so that it broadcasts over the output z (N, C, ...)."""
        return b.view(-1, *[1] * (z.dim() - 2))

    def bias_share(self, b: Tensor, s: Tensor, samples: Samples | None = None) -> Tensor:
        """The part of s (T, N, ...) that the bias receives: sum of s b, (T, N)."""
        return rows(s.reshape(*s.shape[:3], -1).sum(3) @ b, samples, 1).sum(2)


class Layer(Operator):
    """A convolution or dense layer; `norm` is a BatchNorm that follows and is folded in.

    `layer` is a module, or has a module's attributes.
    """

    def __init__(self, layer, norm: nn.Module | None = None):
        self.layer, self.norm = layer, norm

    def weights(self):
        w, b = self.layer.weight.detach(), None if self.layer.bias is None else self.layer.bias.detach()
        if self.norm is None:
            return w, b
        a, shift = scale_and_shift(self.norm)
        scale = a[:, None]  # weights are (outputs, inputs, ...)
        if getattr(self.layer, "transposed", False):  # but here (inputs, outputs of the input's group, ...)
            groups = self.layer.groups
            scale = a.view(groups, -1).repeat_interleave(len(w) // groups, 0)
        w = w * scale.view(*scale.shape, *[1] * (w.dim() - 2))
        return w.detach(), (shift if b is None else shift + a * b).detach()

    def apply(self, xs, w):
        return self.forward(xs, w, None)


class Convolution(Layer):
    """Conv1d-3d and their transposes, any stride, padding (mode), dilation and groups."""

    def __init__(self, layer, norm=None):
        super().__init__(layer, norm)
        self.mode = getattr(layer, "padding_mode", "zeros")
        self.pads = self._pads()  # in F.pad's order, where the convolution itself cannot pad this way
        dims = len(layer.stride)
        self.padding = [0] * dims if self.pads or layer.padding == "valid" else layer.padding
        self.options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        self.call, self.output_padding = getattr(F, f"conv{dims}d"), [0] * dims
        if layer.transposed:
            self.call, self.output_padding = getattr(F, f"conv_transpose{dims}d"), layer.output_padding
            self.options["output_padding"] = self.output_padding

    def _pads(self) -> list[int] | None:
        layer = self.layer
        if layer.padding == "same":  # with an even kernel, one more at the end than at the beginning
            total = [d * (k - 1) for d, k in zip(layer.dilation, layer.weight.shape[2:], strict=True)]
            return [p for t in reversed(total) for p in (t // 2, t - t // 2)]
        if layer.padding == "valid" or self.mode == "zeros":
            return None
        return [p for q in reversed(layer.padding) for p in (q, q)]

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads, mode="constant" if self.mode == "zeros" else self.mode) if self.pads else x

    def forward(self, xs, w, b):
        return self.call(self._pad(xs[0]), w, b, padding=self.padding, **self.options)

    def transpose(self, s, w, xs):
        layer, targets = self.layer, s.shape[0]
        s = s.flatten(0, 1)
        like = s.new_empty(1).expand(len(s), *xs[0].shape[1:])  # only its shape is read
        if self.pads:
            x = like.new_zeros(like.shape).requires_grad_()
            with torch.enable_grad():
                padded = self._pad(x)
            like = padded.detach()
        back = torch.ops.aten.convolution_backward(
            s, like, w, None, layer.stride, self.padding, layer.dilation,
            layer.transposed, self.output_padding, layer.groups, [True, False, False],
        )[0]  # fmt: skip
        if self.pads:  # what went to a copied pixel returns to its original
            back = torch.autograd.grad(padded, x, back)[0]
        return [back.unflatten(0, (targets, -1))]


class Dense(Layer):
    """Linear on the last axis."""

    def forward(self, xs, w, b):
        return F.linear(xs[0], w, b)

    def transpose(self, s, w, xs):
        return [s @ w]

    def broadcast(self, b, z):
        return b

    def bias_share(self, b, s, samples=None):
        return rows(s @ b, samples, 1).sum(2)


class Scaling(Operator):
    """A BatchNorm that stands alone: y = a x + b with one a and b per channel, a diagonal linear map."""

    def __init__(self, norm: nn.Module):
        self.norm = norm

    def weights(self):
        return scale_and_shift(self.norm)

    def apply(self, xs, w):
        return xs[0] * self.broadcast(w, xs[0])

    def transpose(self, s, w, xs):
        return [s * self.broadcast(w, xs[0])]

    def forward(self, xs, w, b):
        if b is None:
            return self.apply(xs, w)
        return torch.addcmul(self.broadcast(b, xs[0]), xs[0], self.broadcast(w, xs[0]))


class Addition(Operator):
    """Any number of summands with their signs; constants that are added are its bias.

    Every linear rule has a meaning here: `Epsilon` divides by the signed sum, `ZPlus` shares among the
    positive summands, `Flat` gives equal parts, `Ratio` goes by magnitude.
    """

    cacheable = fresh = False

    def __init__(self, signs: list[float], constant: Tensor | None):
        self.signs, self.constant = signs, constant

    def weights(self):
        return torch.tensor(self.signs, dtype=torch.float64), self.constant

    def apply(self, xs, w):
        first, *others = [x if v == 1 else x * v for x, v in zip(xs, w.tolist(), strict=True)]
        return sum(others, first)

    def transpose(self, s, w, xs):
        return [reduce_to(s if v == 1 else s * v, x) for x, v in zip(xs, w.tolist(), strict=True)]

    def broadcast(self, b, z):
        return b

    def bias_share(self, b, s, samples=None):
        return rows(s * b, samples, 1).sum(2)


class Averaging(Operator):
    """A linear map with fixed weights >= 0 (average pooling, mean, sum, upsampling), by its local graph.

    `call` computes it anew for other inputs; `back` is the vector-Jacobian product kept by the forward pass.
    Its weight is the single number 1, which a rule's weight part turns into 1, 0 (no such part) or 1 + gamma.
    """

    cacheable = fresh = False

    def __init__(self, call, back, like: Tensor):
        self.call, self.back, self.like = call, back, like

    def weights(self):
        return torch.ones((), dtype=self.like.dtype, device=self.like.device), None

    def apply(self, xs, w):
        return self.call(xs) * w

    def transpose(self, s, w, xs):
        return self.back(s * w)
