"""Steps where two signals meet: gates, products of matrices, and the softmax that makes the weights of attention.

Three more rows for the table of `lrp.nodes.steps`::

    step      at                        with                       what the sources get of R
    Gate      elementwise product       SignalTakesAll, Uniform    R for the signal, or halves
    Matmul    product of two matrices   SignalTakesAll, Uniform    by contributions a_ji v_ip, to V or in halves
    Softmax   softmax                   Taylor                     x_i (R_i - s_i sum R); the rest stays there
"""

import torch

from ..network.operators import reduce_to
from ..network.relating import softmax_axis
from ..rules import Uniform
from .amounts import stabilise, total
from .propagate import Shares
from .steps import Local, Step, value_of


class Gate(Step):
    """A product: all to the signal, none to the gate; halves where nothing tells them apart (achtibat2024attnlrp)."""

    @staticmethod
    def possible(node, rule):
        return node.inputs if isinstance(rule, Uniform) else node.signals

    def back(self, R, last=True):
        a, b = self.likes
        gate = self.node.gate
        if gate is None and a.numel() != b.numel():
            gate = 0 if a.numel() < b.numel() else 1
        if isinstance(self.rule, Uniform):
            gate = None
        if gate is None:
            return Shares([reduce_to(R / 2, a), reduce_to(R / 2, b)])
        signal = reduce_to(R, self.likes[1 - gate])
        return Shares([None, signal] if gate == 0 else [signal, None])


class Matmul(Local):
    """A product of two matrices that both carry: R goes to the signal, or in halves, by contributions a_ji v_ip."""

    def __init__(self, plan, node):
        super().__init__(plan, node)
        self.sources = tuple(dict.fromkeys(self.possible(node, self.rule)))

    @staticmethod
    def possible(node, rule):
        return Gate.possible(node, rule)

    reached = possible

    def forward(self, values):
        self.z = super().forward(values)
        return self.z

    def back(self, R, last=True):
        z = stabilise(self.z, self.rule.epsilon, self.rule.relative, self.samples)
        s = R / z
        parts = 1 if len(self.possible(self.node, self.rule)) == 1 else 2
        shares = [g.mul_(x.detach() / parts) for x, g in zip(self.leaves, self.transpose(s), strict=True)]
        return Shares(shares, stabiliser=total(s * (z - self.z), self.samples))


class Softmax(Local):
    """A softmax by its Taylor expansion at x: R_i = x_i (R_i - s_i sum R), through the maps folded in before it."""

    def forward(self, values):
        self.leaves = [values[self.sources[0]].detach().requires_grad_()]
        with torch.enable_grad():
            self.y = self.node.padded(self.leaves[0], values)
        self.s = value_of(self.node, values)
        return self.s

    def back(self, R, last=True):
        x, dim = self.leaves[0].detach(), softmax_axis(self.node, self.s.dim())
        g = R - self.s * R.sum(dim, keepdim=True)
        shares = [share.mul_(x.masked_fill(x.isinf(), 0.0)) for share in self.transpose(g)]
        return Shares(shares, self.kept(R, shares))
