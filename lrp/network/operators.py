"""Linear maps, as the rules see them: apply with any weights, transpose, and say what the bias is.

A rule never looks at a layer. It asks an operator three things: its weight (which the rule splits into
parts), `apply(xs, w)`, which is the layer without bias but with the weight part w, and `transpose(s, w)`, which
sends s back along the same connections. Layers, affine maps that stand alone, additions and averages answer alike.

Shapes: xs is a list of inputs (N, ...), one entry for everything but an addition; s is (T, N, ...) with
a leading axis of targets, and so is what `transpose` returns.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import in_memory
from .samples import Samples, rows, within

Affine = tuple[Tensor | float, Tensor | float]  # a and b of y = a x + b, which broadcast over x


def reduce_to(s: Tensor, x: Tensor) -> Tensor:
    """Sum s (T, N, ...) over the axes along which x (N, ...) was broadcast, so that it fits x."""
    axes = [d for d in range(1, x.dim() + 1) if x.shape[d - 1] == 1 and s.shape[d] != 1]
    return s.sum(axes, keepdim=True) if axes else s


class Operator:
    """What all operators have; `weights` reads the module anew, so a changed parameter is seen."""

    cacheable = True  # weights do not depend on the input, so they may be kept until a parameter changes
    fresh = True  # what `transpose` returns is new memory that the caller may overwrite
    long = True  # sums have many terms, so that what is left where nothing contributes may be rounding noise
    axes: int | None = None  # number of the input's axes, where weights depend on it

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, affine maps folded in where some were handed over."""
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
        """View the bias so that it broadcasts over the output z (N, C, ...)."""
        return b

    def bias_share(self, b: Tensor, s: Tensor, samples: Samples | None = None) -> Tensor:
        """The part of s (T, N, ...) that the bias receives: sum of s b, (T, N)."""
        each, axes = within(s * b, samples, 1)
        return each.sum(axes)


class Layer(Operator):
    """A convolution or dense layer, and an affine map y = a x + b of its output that is folded in.

    `layer` is a module, or has a module's attributes. `affine` gives a and b; a has one value, or one for each channel
    (each output of a dense layer), while b may be a whole map.
    """

    behind = 0  # axes of the output behind that of the channels

    def __init__(self, layer, affine: Callable[[], Affine] | None = None):
        self.layer, self.affine = layer, affine

    def weights(self):
        w, b = self.layer.weight.detach(), None if self.layer.bias is None else self.layer.bias.detach()
        if self.affine is None:
            return w, b
        a, shift = self.affine()
        if isinstance(a, Tensor):
            a = a.to(w)
            w = w * (a.reshape(()) if a.numel() == 1 else self._beside(a.reshape(-1), w))
        elif a != 1:
            w = w * a
        if b is not None:
            shift = a * b.reshape(-1, *[1] * self.behind) + shift
        return w, self._flat(shift, w) if isinstance(shift, Tensor) or shift != 0 else None

    def _beside(self, a: Tensor, w: Tensor) -> Tensor:
        """One scale for each output (C,), beside the weights (outputs, inputs, ...)."""
        return a.view(-1, *[1] * (w.dim() - 1))

    def _flat(self, b: Tensor | float, w: Tensor) -> Tensor:
        """A bias with one value for each channel as (C,), as torch's functions take it; a whole map as it is."""
        b = torch.as_tensor(b, dtype=w.dtype, device=w.device)
        channels = b.shape[-1 - self.behind] if b.dim() > self.behind else 1
        if b.numel() == channels:
            return b.reshape(-1).expand(self.channels(w)).contiguous()
        return b[None] if b.dim() == 1 else b

    def channels(self, w: Tensor) -> int:
        """The number of outputs."""
        return len(w)

    def call(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """The layer as torch computes it, with a bias of (C,)."""
        raise NotImplementedError

    def forward(self, xs, w, b):
        flat = b is None or b.dim() == 1  # else not `+`, which would let a bias make the output larger
        return self.call(xs[0], w, b) if flat else self.call(xs[0], w, None).add_(b)

    def apply(self, xs, w):
        return self.call(xs[0], w, None)


Pad = tuple[Sequence[int], float]  # how much, in F.pad's order, and with which constant


class Convolution(Layer):
    """Conv1d-3d and their transposes, any stride, padding (mode), dilation and groups; `pads` go before it.

    Constants other than zero that are padded are a bias of their own, a map.
    """

    def __init__(self, layer, affine=None, pads: Sequence[Pad] = (), shape: Sequence[int] = ()):
        super().__init__(layer, affine)
        self.shape = shape  # of the input
        self.behind = dims = len(layer.stride)
        self.options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        self.function, self.output_padding = getattr(F, f"conv{dims}d"), [0] * dims
        if layer.transposed:
            self.function, self.output_padding = getattr(F, f"conv_transpose{dims}d"), layer.output_padding
            self.options["output_padding"] = self.output_padding
            self.moves, self.padding = [], layer.padding
        else:
            self.moves, self.padding = self._padding(dims, pads)
        self.cacheable = not any(value for _, _, value in self.moves)

    def _padding(self, dims: int, pads: Sequence[Pad]) -> tuple[list[tuple[list[int], str, float]], Sequence[int]]:
        """What F.pad has to do, (how much, mode, value), and the rest, which the convolution itself can pad."""
        own, mode = self._own(dims), getattr(self.layer, "padding_mode", "zeros").replace("zeros", "constant")
        moves = [([*pad, *[0] * (2 * dims - len(pad))], "constant", value or 0.0) for pad, value in pads]
        moves = [move for move in [*moves, (own, mode, 0.0)] if any(move[0])]
        total = [sum(each) for each in zip([0] * 2 * dims, *(move[0] for move in moves), strict=True)]
        zeros = all(mode == "constant" and value == 0 and min(pad) >= 0 for pad, mode, value in moves)
        if zeros and total[::2] == total[1::2]:
            return [], total[::-2]
        return moves, [0] * dims

    def _own(self, dims: int) -> list[int]:
        """The layer's own padding, in F.pad's order."""
        layer = self.layer
        if layer.padding == "valid":
            return [0] * 2 * dims
        if layer.padding == "same":  # with an even kernel, one more at the end than at the beginning
            total = [d * (k - 1) for d, k in zip(layer.dilation, layer.weight.shape[2:], strict=True)]
            return [p for t in reversed(total) for p in (t // 2, t - t // 2)]
        return [p for q in reversed(layer.padding) for p in (q, q)]

    def _pad(self, x: Tensor, constants: bool = False) -> Tensor:
        for pad, mode, value in self.moves:
            x = (
                F.pad(x, pad, mode=mode, value=value if constants else 0.0)
                if mode == "constant"
                else F.pad(x, pad, mode)
            )
        return x

    def weights(self):
        w, b = super().weights()
        if self.cacheable:
            return w, b
        nothing = self._pad(w.new_zeros(1, *self.shape[1:]), constants=True)
        padded = self.function(nothing, w, None, padding=self.padding, **self.options)
        return w, padded if b is None else padded + self.broadcast(b, padded)

    def _beside(self, a, w):
        if not self.layer.transposed:
            return super()._beside(a, w)
        groups = self.layer.groups  # weights are (inputs, outputs of the input's group, ...)
        scale = a.view(groups, -1).repeat_interleave(len(w) // groups, 0)
        return scale.view(*scale.shape, *[1] * (w.dim() - 2))

    def channels(self, w):
        return w.shape[1] * self.layer.groups if self.layer.transposed else len(w)

    def call(self, x, w, b):
        return self.function(self._pad(x), w, b, padding=self.padding, **self.options)

    def broadcast(self, b, z):
        return b.view(-1, *[1] * self.behind) if b.dim() == 1 else b

    def bias_share(self, b, s, samples=None):
        if b.dim() > 1:
            return super().bias_share(b, s, samples)
        return rows(s.sum(tuple(range(3, s.dim()))) @ b, samples, 1).sum(2)

    def transpose(self, s, w, xs):
        layer, targets = self.layer, s.shape[0]
        s = s.flatten(0, 1)
        layout = torch.channels_last if in_memory(s) is not s else torch.contiguous_format
        shape = len(s), *xs[0].shape[1:]  # nothing but shape and layout is read
        like = torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=layout)
        if self.moves:
            x = like.new_zeros(like.shape).requires_grad_()
            with torch.enable_grad():
                padded = self._pad(x)
            like = padded.detach()
        back = torch.ops.aten.convolution_backward(
            s, like, w, None, layer.stride, self.padding, layer.dilation,
            layer.transposed, self.output_padding, layer.groups, [True, False, False],
        )[0]  # fmt: skip
        if self.moves:  # what went to a copied pixel returns to its original
            back = torch.autograd.grad(padded, x, back)[0]
        return [back.unflatten(0, (targets, -1))]


class Dense(Layer):
    """Linear on the last axis."""

    def call(self, x, w, b):
        return F.linear(x, w, b)

    def transpose(self, s, w, xs):
        return [s @ w]

    def bias_share(self, b, s, samples=None):
        return rows(s @ b, samples, 1).sum(2) if b.dim() == 1 else super().bias_share(b, s, samples)


class Product(Layer):
    """Any other product of the input with a constant: of vectors, matrices on the left, batches of matrices, einsum."""

    def __init__(self, layer, affine=None):
        super().__init__(layer, affine)
        self.product = layer.product

    def call(self, x, w, b):
        z = self.product(x, w)
        return z if b is None else z.add_(b)

    def _flat(self, b, w):
        return torch.as_tensor(b, dtype=w.dtype, device=w.device)

    def transpose(self, s, w, xs):
        x = s.new_zeros(xs[0].shape).requires_grad_()
        with torch.enable_grad():
            z = self.product(x, w)
        return [torch.stack([torch.autograd.grad(z, x, row, retain_graph=True)[0] for row in s])]


class Scaling(Operator):
    """An affine map with constants that stands alone, y = a x + b: a diagonal linear map.

    `affine` gives a and b for an input of so many axes. BatchNorm leaves new memory in the usual order (`norm`).
    """

    def __init__(self, affine: Callable[[int], Affine], x: Tensor, norm: bool = False):
        self.affine, self.like, self.axes, self.norm = affine, x, x.dim(), norm

    def weights(self):
        as_like = {"dtype": self.like.dtype, "device": self.like.device}
        a, b = self.affine(self.axes)
        b = None if not isinstance(b, Tensor) and b == 0 else torch.as_tensor(b, **as_like)
        return torch.as_tensor(a, **as_like), b

    def apply(self, xs, w):
        return self._in_order(xs[0] * w, xs[0])

    def transpose(self, s, w, xs):
        return [reduce_to(s * w, xs[0])]

    def forward(self, xs, w, b):
        return self.apply(xs, w) if b is None else self._in_order(torch.addcmul(b, xs[0], w), xs[0])

    def _in_order(self, z: Tensor, x: Tensor) -> Tensor:
        wide = z.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return z if wide or not self.norm else z.contiguous()


class Addition(Operator):
    """Any number of summands with their signs.

    Every linear rule has a meaning here: `Epsilon` divides by the signed sum, `ZPlus` shares among the
    positive summands, `Flat` gives equal parts, `Ratio` goes by magnitude.
    """

    cacheable = fresh = long = False

    def __init__(self, signs: list[float]):
        self.signs = signs

    def weights(self):
        return torch.tensor(self.signs, dtype=torch.float64), None

    def apply(self, xs, w):
        first, *others = [x if v == 1 else x * v for x, v in zip(xs, w.tolist(), strict=True)]
        return sum(others, first)

    def transpose(self, s, w, xs):
        return [reduce_to(s if v == 1 else s * v, x) for x, v in zip(xs, w.tolist(), strict=True)]
