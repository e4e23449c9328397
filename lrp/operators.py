"""Linear maps, as the rules see them: apply with any weights, transpose, and say what the bias is.

A rule never looks at a layer. It asks an operator three things: its weight (which the rule splits into
parts), `apply(xs, w)`, which is the layer without bias but with the weight part w, and `transpose(s, w)`,
which sends s back along the same connections. Convolutions, dense layers, a BatchNorm that stands alone,
additions and averages all answer alike.

Shapes: xs is a list of inputs (N, ...), one entry for everything but an addition; s is (T, N, ...) with
a leading axis of targets, and so is what `transpose` returns.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y = a x + b per channel: a = gamma / sqrt(var + eps), b = beta - a mean."""
    a = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        a = a * norm.weight
    b = -a * norm.running_mean
    return a, b if norm.bias is None else b + norm.bias


def folded(layer, norm: nn.Module | None, scaled: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, with those of the BatchNorm after it folded in; `scaled(w, a)` multiplies them."""
    w, b = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if norm is None:
        return w, b
    a, shift = scale_and_shift(norm)
    return scaled(w, a).detach(), (shift if b is None else shift + a * b).detach()


def reduce_to(s: Tensor, x: Tensor) -> Tensor:
    """Sum s (T, N, ...) over the axes along which x (N, ...) was broadcast, so that it fits x."""
    axes = [d for d in range(1, x.dim() + 1) if x.shape[d - 1] == 1 and s.shape[d] != 1]
    return s.sum(axes, keepdim=True) if axes else s


class Operator:
    """What all operators share; `module` is read anew by `weights`, so a changed parameter is seen."""

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

    def bias_share(self, b: Tensor, s: Tensor) -> Tensor:
        """The part of s (T, N, ...) that the bias receives: sum of s b, (T, N)."""
        return s.reshape(*s.shape[:3], -1).sum(3) @ b


class Convolution(Operator):
    """Conv1d-3d and their transposes, any stride, padding (mode), dilation and groups.

    `layer` is a module or anything with its attributes; `norm` a BatchNorm that follows and is folded in.
    """

    def __init__(self, layer, norm: nn.Module | None = None):
        self.layer, self.norm, self.transposed = layer, norm, layer.transposed
        self.dims = len(layer.stride)
        self.name = f"conv_transpose{self.dims}d" if self.transposed else f"conv{self.dims}d"
        self.pads, self.padding = self._paddings()
        self.mode = getattr(layer, "padding_mode", "zeros")

    def _paddings(self) -> tuple[list[int] | None, list[int]]:
        """Explicit padding in F.pad's order (or None), and the padding left to the convolution itself."""
        layer, zero = self.layer, [0] * self.dims
        if layer.padding == "valid":
            return None, zero
        if layer.padding == "same":
            total = [d * (k - 1) for d, k in zip(layer.dilation, layer.weight.shape[2:], strict=True)]
            return [p for t in reversed(total) for p in (t // 2, t - t // 2)], zero
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            return [p for q in reversed(layer.padding) for p in (q, q)], zero
        return None, list(layer.padding)

    def weights(self):
        return folded(self.layer, self.norm, self._scaled)

    def _scaled(self, w: Tensor, a: Tensor) -> Tensor:
        """Weights times a per output channel; a transposed convolution has them as (in, out / groups, ...)."""
        if not self.transposed:
            return w * a.view(-1, 1, *[1] * self.dims)
        groups = self.layer.groups
        grouped = w.view(groups, w.shape[0] // groups, w.shape[1], *w.shape[2:])
        return (grouped * a.view(groups, 1, w.shape[1], *[1] * self.dims)).view(w.shape)

    def _pad(self, x: Tensor) -> Tensor:
        if self.pads is None:
            return x
        return F.pad(x, self.pads, mode="constant" if self.mode == "zeros" else self.mode)

    def _extra(self) -> list:
        """Arguments of the functional form after weight and bias."""
        layer = self.layer
        if self.transposed:
            return [layer.stride, self.padding, layer.output_padding, layer.groups, layer.dilation]
        return [layer.stride, self.padding, layer.dilation, layer.groups]

    def forward(self, xs, w, b):
        return getattr(F, self.name)(self._pad(xs[0]), w, b, *self._extra())

    def apply(self, xs, w):
        return self.forward(xs, w, None)

    def transpose(self, s, w, xs):
        layer, x, targets = self.layer, xs[0], s.shape[0]
        s = s.flatten(0, 1)
        shape = [len(s), *x.shape[1:]]
        padded = shape if self.pads is None else self._padded(shape)
        like = s.new_empty(1).expand(padded)  # only its shape is read
        output_padding = layer.output_padding if self.transposed else [0] * self.dims
        back = torch.ops.aten.convolution_backward(
            s, like, w, None, layer.stride, self.padding, layer.dilation,
            self.transposed, output_padding, layer.groups, [True, False, False],
        )[0]  # fmt: skip
        if self.pads is not None:
            back = self._unpad(back, shape)
        return [back.unflatten(0, (targets, -1))]

    def _padded(self, shape: list[int]) -> list[int]:
        extra = [a + b for a, b in zip(self.pads[::2], self.pads[1::2], strict=True)][::-1]
        return shape[:2] + [n + e for n, e in zip(shape[2:], extra, strict=True)]

    def _unpad(self, back: Tensor, shape: list[int]) -> Tensor:
        """Adjoint of the explicit padding: what went to a copied pixel returns to its original."""
        with torch.enable_grad():
            x = back.new_zeros(shape).requires_grad_()
            return torch.autograd.grad(self._pad(x), x, back)[0]


class Dense(Operator):
    """Linear on the last axis, with a BatchNorm folded in where one follows."""

    def __init__(self, layer, norm: nn.Module | None = None):
        self.layer, self.norm = layer, norm

    def weights(self):
        return folded(self.layer, self.norm, lambda w, a: w * a[:, None])

    def forward(self, xs, w, b):
        return F.linear(xs[0], w, b)

    def apply(self, xs, w):
        return F.linear(xs[0], w)

    def transpose(self, s, w, xs):
        return [s @ w]

    def broadcast(self, b, z):
        return b

    def bias_share(self, b, s):
        return (s @ b).reshape(*s.shape[:2], -1).sum(2)


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

    def bias_share(self, b, s):
        return (s * b).reshape(*s.shape[:2], -1).sum(2)


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
