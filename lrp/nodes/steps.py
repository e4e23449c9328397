"""One node, forward and back: with the table of kinds in `lrp.plan`, the place that asks which kind a node is of.

A step stands at one node, for one input x. `forward` computes the node's value, and holds what the way back will need;
`back` hands the relevance of the value, R (T, N, ...), down to the node's sources. Steps that are linear at x have two
more: `forth`, the same map for a small change of the sources, and `constant`, what the rest of the value adds::

    step      at                                       with                       what the sources get of R
    Linear    convolution, dense, BatchNorm, sum       Adjoint                    transpose(R, w)
    Ruled     the same, average, LRN, norm, unknown    a rule with groups         shares by the rule (propagate)
    Through   activation, scale, norm; by override     Pass                       R
    Local     pooling, views; all but linear maps      their own way; Adjoint     J^T R, by a small graph of autograd
    Say       sum, LRN, max pooling                    a rule that says shares    what the rule says
    Refused   unknown, pieces                          -                          an error that names the way out

Gates, products of matrices and softmaxes are in `lrp.nodes.products`. A new kind of node is a class with `back`, and
one call of `lrp.plan.add_kind`.
"""

from collections.abc import Iterable
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LRPError, UnsupportedOperation, warn
from ..network import kinds as v
from ..network.affine import operator
from ..network.gates import overshoots
from ..network.graph import Node
from ..network.operators import reduce_to
from ..rules import Rule
from .amounts import total
from .averages import Averaging, Jacobian, Resampling, splits
from .norms import Normalising
from .propagate import Applied, Shares, reads_output
from .refusals import no_rule, no_single_value

OVERWRITING = {"relu": torch.relu_, "relu6": partial(F.hardtanh_, min_val=0.0, max_val=6.0)}  # torch's, in place


class Step:
    """Base of all steps; `plan` (`lrp.plan`) gives the rule of the node and its weights."""

    def __init__(self, plan, node: Node):
        self.plan, self.node, self.rule = plan, node, plan.rules[node]
        self.sources = node.inputs  # who gets the shares, in the order of `Shares.relevance`
        self.samples = None  # where the samples are in the node's value, and, below, in those of its sources
        self.below: list = []

    def forward(self, values: dict[Node, object]) -> object:
        """The node's value from those of the nodes before it."""
        self.likes = [like_of(values[n]) for n in self.sources if isinstance(values[n], Tensor)]
        return value_of(self.node, values)

    def back(self, R: Tensor, last: bool = True) -> Shares:
        """Shares of the sources, from relevance R (T, N, ...); `last` says that no further call follows."""
        raise NotImplementedError

    def opposite(self, R: Tensor) -> Shares:
        """The shares with negated weights, for Contrastive(kind=2); raises LRPError where they are the same."""
        raise LRPError(
            f"Contrastive(kind=2) is identically zero under {self.rule!r} at layer `{self.node.name}`, where relevance "
            "starts: negated weights give the same shares. Give that layer another rule, as in "
            f"overrides={{'{self.node.name}': rules.ZPlus()}}"
        )

    @staticmethod
    def possible(node: Node, rule: Rule) -> Iterable[Node]:
        """The inputs that relevance may reach from this node."""
        return node.inputs

    @staticmethod
    def reached(node: Node, rule: Rule) -> Iterable[Node]:
        """The inputs that it surely reaches; of a product, the signal, where the graph tells it."""
        return () if node.kind == v.PRODUCT and node.gate is None else node.signals


class Through(Step):
    """Relevance passes unchanged, R_i = R_j, to the one source of the same shape; copies by broadcasting add up."""

    def __init__(self, plan, node):
        super().__init__(plan, node)
        self.sources = tuple(dict.fromkeys(node.signals))

    def forward(self, values):
        if self.node not in self.plan.overwriting:
            return super().forward(values)
        self.likes = [like_of(values[n]) for n in self.sources]  # nothing else reads the source: write over it
        return OVERWRITING[self.node.op](values[self.sources[0]])

    def back(self, R, last=True):
        same = [like.shape == R.shape[1:] for like in self.likes]
        if sum(same) == 1:
            return Shares([R if fits else None for fits in same])
        shape = self.likes[0].shape
        if len(same) == 1 == R.dim() - len(shape) and all(a in (1, b) for a, b in zip(shape, R.shape[1:], strict=True)):
            return Shares([reduce_to(R, self.likes[0])])
        raise UnsupportedOperation(
            f"Pass() at node `{self.node.name}` needs one input shaped like its output {tuple(R.shape[1:])}; its "
            "inputs are "
            + ", ".join(f"{n.name} {tuple(x.shape)}" for n, x in zip(self.sources, self.likes, strict=True))
        )


class Local(Step):
    """The node's linearisation at x, as a small graph of autograd: R_i = sum_j (d y_j / d x_i) R_j.

    Max pooling gives R to the winner; views move it with the values; what padding adds keeps its part, like a bias.
    The map R -> J^T R is linear, so its own derivative is the way forth, t -> J t.
    """

    def __init__(self, plan, node):
        super().__init__(plan, node)
        self.sources = node.sources

    def forward(self, values):
        leaves = {n: values[n].detach().requires_grad_() for n in self.sources}
        with torch.enable_grad():
            self.y = value_of(self.node, {**values, **leaves})
        self.leaves = list(leaves.values())
        return self.y.detach()

    def transpose(self, R: Tensor) -> list[Tensor]:
        """Vector-Jacobian products: (T, N, ...) -> one (T, N, ...) for each source."""
        rows = []
        if self.node.kind == v.NORM:
            R = R.contiguous()  # torch 2.15 takes other strides of one sample for channels-last: wrong values
        if self.y.requires_grad:
            rows = [torch.autograd.grad(self.y, self.leaves, r, retain_graph=True, allow_unused=True) for r in R]
        shares = []
        for leaf, *g in zip(self.leaves, *rows, strict=True):
            if not g or g[0] is None:
                shares.append(R.new_zeros(len(R), *leaf.shape))
            else:
                shares.append(g[0][None] if len(g) == 1 else torch.stack(g))
        return shares

    def back(self, R, last=True):
        shares = self.transpose(R)
        return Shares(shares, self.kept(R, shares) if self.node.fills else 0.0)

    def kept(self, R: Tensor, shares: list[Tensor]) -> Tensor:
        """What of R the sources do not get, (T, N)."""
        below = self.below or [None] * len(shares)
        return total(R, self.samples) - sum(total(share, s) for share, s in zip(shares, below, strict=True))

    @cached_property
    def adjoint(self) -> dict[int, Tensor]:
        """J^T probe, by the index of the source, as a graph that can be differentiated by the probe."""
        self.probe = torch.zeros_like(self.y).requires_grad_()
        if not self.y.requires_grad:
            return {}
        with torch.enable_grad():
            found = torch.autograd.grad(self.y, self.leaves, self.probe, create_graph=True, allow_unused=True)
        return {k: f for k, f in enumerate(found) if f is not None and f.requires_grad}

    def forth(self, ts):
        if not self.adjoint:
            return torch.zeros_like(self.y)
        used = [ts[k] for k in self.adjoint]
        return torch.autograd.grad(list(self.adjoint.values()), self.probe, used, retain_graph=True)[0]

    @cached_property
    def offset(self) -> Tensor | None:
        """y - J x, (N, ...); None where it is zero."""
        if self.node.kind == v.AVERAGE:  # linear as it stands; the difference would be rounding
            return None
        offset = self.y.detach() - self.forth([leaf.detach() for leaf in self.leaves])
        return offset if offset.any() else None

    def constant(self, R):
        return None if self.offset is None else total(R * self.offset, self.samples).to(R.dtype)


class Linear(Step):
    """A convolution, dense layer, BatchNorm or sum as a linear map: y = A x + b, R_i = (A^T R)_i."""

    def open(self, values) -> list[Tensor]:
        """Find the operator and its weights; returns the inputs."""
        node, xs = self.node, [values[n] for n in self.sources]
        self.operator = operator(node, values)
        (self.w, self.b), self.parts = self.plan.weights(node, self.operator)
        return xs

    def forward(self, values):
        xs = self.open(values)
        self.likes = [like_of(x) for x in xs]
        return self.operator.forward(xs, self.w, self.b)

    def back(self, R, last=True):
        return Shares(self.operator.transpose(R, self.w, self.likes))

    def forth(self, ts):
        return self.operator.apply(ts, self.w)

    def constant(self, R):
        return None if self.b is None else self.operator.bias_share(self.b, R, self.samples)


class Ruled(Linear):
    """A rule with groups at a linear map."""

    def forward(self, values):
        xs = self.open(values)
        applied = self.applied = self._apply(xs)
        if self.rule.complete and xs[0].element_size() >= 4:  # in half precision, rounded parts add up too roughly
            return applied.forward()
        if applied.absorb or self.b is None or not reads_output(self.rule):
            value = z = self.operator.forward(xs, self.w, self.b)
        else:
            z = self.operator.apply(xs, self.w)
            value = z + self.operator.broadcast(self.b, z)
        applied.z = z if reads_output(self.rule) else None
        return value

    def _apply(self, xs: list[Tensor], sign: int = 1) -> Applied:
        """The rule at these inputs, or with negated weights."""
        w, b, parts = self.w, self.b, self.parts
        if sign < 0:
            w, b, parts = -w, None if b is None else -b, {}
        absorb, known = self.plan.composite.bias == "absorb", [n.nonnegative for n in self.sources]
        return Applied(self.rule, self.operator, xs, None, (w, b), parts, absorb, known, self.samples)

    def back(self, R, last=True):
        self.applied.samples = self.samples
        if last and (complaint := self.rule.complaint(self.applied.xs)):
            warn(f"node `{self.node.name}`: {complaint}")
        return self.applied.back(R, last)

    def opposite(self, R):
        return self._apply(self.applied.xs, -1).back(R) if self.rule.sign_selective else super().opposite(R)


class RuledNorm(Ruled):
    """`Epsilon` at a norm, whose deviation counts as a constant: mean and bias take part, as in a linear layer."""

    def __init__(self, plan, node):
        super().__init__(plan, node)
        if splits(self.rule):
            raise LRPError(f"{self.rule!r} has no meaning at the norm `{node.name}`: there are Pass() and Epsilon()")

    def open(self, values):
        x = values[self.sources[0]]
        self.operator = Normalising(self.node, self.node.layer(values), x)
        (self.w, self.b), self.parts = self.operator.weights(), {}
        return [x]


class RuledLocal(Ruled):
    """A rule with groups at the linearisation of a node: an average, or an unknown function by override."""

    def forward(self, values):
        local, node = Local(self.plan, self.node), self.node
        self.sources, value = local.sources, local.forward(values)
        held = {n: values[n] for n in self.plan.graph.reads[node]}
        xs, sources = [held[n] for n in self.sources], self.sources

        def call(xs: list[Tensor]) -> Tensor:  # it must not know this step: in a circle, memory would wait to be found
            return node.run(held | dict(zip(sources, xs, strict=True)))

        if node.kind != v.AVERAGE and splits(self.rule):
            self.operator = Jacobian(node, local, xs[0])
        else:
            self.operator = (Resampling if overshoots(node) else Averaging)(call, local.transpose, xs[0])
        (self.w, self.b), self.parts = self.operator.weights(), {}
        self.applied = self._apply(xs)
        self.applied.z = value if reads_output(self.rule) else None
        return value


class Say(Step):
    """A rule that says the shares itself, `splitting.Told`; it may ask this step for `layer`, `call` and `skips`."""

    def forward(self, values):
        self.held = {n: values[n] for n in self.plan.graph.reads[self.node]}
        return self.node.run(values)

    layer = property(lambda self: self.node.layer(self.held))
    skips = property(lambda self: self.plan.graph.skips(self.node))

    def call(self, x: Tensor) -> Tensor:
        return self.node.run({**self.held, self.sources[0]: x})

    def back(self, R, last=True):
        xs = [self.held[n] for n in self.sources]
        signed = [sign * x.expand(R.shape[1:]) for sign, x in zip(self.node.signs, xs, strict=False)]
        parts = self.rule.share(signed or xs, R, self)
        return Shares([reduce_to(part, x) if signed else part for part, x in zip(parts, xs, strict=True)])


class Refused(Step):
    """Relevance must not get here: the plan says so before anything is computed."""

    def back(self, R, last=True):
        raise no_rule(self.node)


# ---------------------------------------------------------------- what they share


def may_overwrite(node: Node) -> bool:
    """Is this torch's own ReLU (not a class or function that shares its name), behind a value that is new memory?"""
    own = node.module is None or type(node.module) in (nn.ReLU, nn.ReLU6)
    relu = node.kind == v.ACTIVATION and node.op in OVERWRITING and own
    return relu and node.inputs[0].kind in (*v.WEIGHTED, v.BATCHNORM)


def value_of(node: Node, values: dict) -> Tensor:
    """The node's value, if it is one tensor."""
    value = node.run(values)
    if not isinstance(value, Tensor):
        raise no_single_value(node, value)
    return value


def like_of(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")  # a shape, without memory
