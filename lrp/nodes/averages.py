"""Linear maps without a layer, by the small graph of autograd that a step has kept: averages, and any function at x."""

import torch
from torch import Tensor

from ..errors import LRPError
from ..network.graph import Node
from ..network.operators import Operator
from ..parts import same
from ..rules import Rule

LARGEST = 2**26  # numbers in the matrices of one function at x


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


class Resampling(Averaging):
    """A linear map of both signs over height and width (bicubic upsampling): the difference of two with weights >= 0.

    Its weight is (1, -1), one number for the positive weights and one for the negative ones, so that a rule's weight
    part takes them apart: w+ is (1, 0).
    """

    def weights(self):
        return torch.tensor([1.0, -1.0], dtype=self.like.dtype, device=self.like.device), None

    def apply(self, xs, w):
        return self.call(xs) if w.tolist() == [1, -1] else self._split(xs[0], w, *self._lines())

    def transpose(self, s, w, xs):
        if w.tolist() == [1, -1]:
            return self.back(s)
        return [self._split(s, w, *(line.mT for line in self._lines()))]

    def _lines(self) -> tuple[Tensor, Tensor]:
        """The map along each axis, (H', H) and (W', W): the map of an image that is constant along the other."""
        h, w = self.like.shape[2:]
        eye = {"dtype": self.like.dtype, "device": self.like.device}
        down, across = torch.eye(h, **eye)[:, None, :, None], torch.eye(w, **eye)[:, None, None, :]
        return self.call([down.expand(h, 1, h, w)])[:, 0, :, 0].mT, self.call([across.expand(w, 1, h, w)])[:, 0, 0].mT

    @staticmethod
    def _split(x: Tensor, w: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """w_0 times what the positive weights make of x (..., H, W), and w_1 times the negative ones, by magnitude."""
        rows = {sign: (sign * down).clamp(min=0) @ x for sign in (1, -1)}
        columns = {sign: (sign * across).clamp(min=0).mT for sign in (1, -1)}
        same = rows[1] @ columns[1] + rows[-1] @ columns[-1]
        return w[0] * same + w[1] * (rows[1] @ columns[-1] + rows[-1] @ columns[1])


class Jacobian(Operator):
    """Any function of one value at x, as a matrix (N, outputs, inputs) for each sample, with weights of both signs."""

    cacheable = fresh = False

    def __init__(self, node: Node, local, x: Tensor):
        self.node, self.local, self.x, self.y = node, local, x, local.y

    def weights(self):
        x, y, name = self.x, self.y, self.node.name
        inputs, outputs = x[0].numel(), y[0].numel()
        if len(self.local.sources) > 1 or len(x) != len(y) or len(x) * inputs * outputs > LARGEST:
            raise self._refused(f"`{name}` takes {tuple(x.shape)} to {tuple(y.shape)}: no matrix of moderate size")
        eye = torch.eye(outputs, dtype=x.dtype, device=x.device).view(outputs, 1, *y.shape[1:])
        w = self.local.transpose(eye.expand(outputs, *y.shape))[0].flatten(2).movedim(0, 1)
        there, again = self.local.forth([x]), self.apply([x], w)
        if not torch.allclose(there, again, rtol=1e-3, atol=1e-3 * float(there.abs().max())):
            raise self._refused(f"`{name}` mixes what stands along its first axis")
        return w, None

    def apply(self, xs, w):
        return torch.einsum("noi,ni->no", w, xs[0].flatten(1)).view(self.y.shape)

    def transpose(self, s, w, xs):
        return [torch.einsum("noi,tno->tni", w, s.flatten(2)).view(len(s), *self.x.shape)]

    def _refused(self, why: str) -> LRPError:
        return LRPError(f"a rule that splits weights by their sign needs those of node {why}; rules.Epsilon() does not")


def splits(rule: Rule) -> bool:
    """Does the rule look at the weights one by one?"""
    return any(part.w is not same for _, group in rule.groups for part in group.parts)
