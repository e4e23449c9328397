"""A network frozen at its input and made linear, with one mask per filter: its gradient, and the masks' own.

At x, a piecewise linear network is affine: F(x) = <W, x> + b_eff, where W is the gradient. Freeze which units are on
and which ones win a pool, drop the constants, and multiply each unit behind a ReLU by the mask of its filter::

    h_l = m_l G_l (A_l h_{l-1}),    y(m) = w_c h_L,    W(m) = d y(m) / d x,    sum W(m) x = y(m),    W(1) = d F / d x.

W(m) is backpropagation with masks. A loss of W has its derivative by the masks from one more pass, forward: with
V = d loss / d W, t_0 = V and t_l = m_l G_l (A_l t_{l-1}), ::

    d loss / d m_l = sum over space of (G_l g_l) (A_l t_{l-1}),

where g_l is what arrives at h_l on the way back. No graph of a backward pass is ever built: one evaluation costs as
much as a forward pass and an input gradient, in memory that does not grow with their number.
Both passes go over the steps of the graph (`lrp.nodes.steps`), each with the rule `rules.Adjoint()`.
Source: ruiz2021generating for masked backpropagation (reconstructed: see `dmbp`); this project for its derivative.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..composites import Composite
from ..errors import UnsupportedOperation
from ..network import kinds as v
from ..network.graph import Graph, Node
from ..nodes.amounts import total
from ..nodes.propagate import Shares
from ..nodes.refusals import no_rule
from ..nodes.steps import Step
from ..plan import Plan
from ..rules import Adjoint
from ..walk import forward
from .lrn import denominators

PIECEWISE_LINEAR = set(  # activations with a mask, under their names as modules and as functions
    "relu relu6 leakyrelu leaky_relu prelu rrelu hardtanh hardsigmoid threshold clamp clamp_min clamp_max clip "
    "hardshrink softshrink abs absolute".split()
)
PASSING = v.LINEAR_NAMES | set("alphadropout alpha_dropout featurealphadropout feature_alpha_dropout".split())
LINEAR = (*v.LINEAR, v.SCALE, v.MAXIMUM, v.REARRANGE)  # a pool is, once its winners are fixed


def require_piecewise_linear(graph: Graph, freeze_lrn: bool = False) -> None:
    """Raise UnsupportedOperation, naming the node and the way out, for a network that cannot be frozen, or masked."""
    for node in graph.nodes:
        if not node.carries or node.kind in (v.INPUT, *LINEAR):
            continue
        if node.kind == v.ACTIVATION and len(node.inputs) == 1 and all(map(_is_piecewise_linear, _parts(node))):
            continue
        if node.kind == v.PIECES:
            raise no_rule(node)
        if node.kind == v.LRN:
            if freeze_lrn:
                continue
            raise UnsupportedOperation(
                f"node `{node.name}` is a local response normalisation, which is not piecewise linear: pass "
                "freeze_lrn=True to count its denominators at x as constants (the mapping then is not the gradient)"
            )
        if node.kind == v.PRODUCT:
            raise UnsupportedOperation(
                f"node `{node.name}` ({node.op}) multiplies a signal with another, as squeeze-excitation does: that is "
                "not piecewise linear, and the masks of both factors would mix. Explain this network by `lrp.LRP`, "
                "whose rules know gates, or put a constant in the place of the gate"
            )
        hint = "explain this network by `lrp.LRP` or by gradient x input, or put a ReLU in its place and train again"
        if node.op in v.SOFTMAXES:
            hint = "take the softmax off the end of the model, so that it returns logits"
        raise UnsupportedOperation(
            f"node `{node.name}` calls {node.op}, which is not piecewise linear: there is no linear mapping to split; "
            + hint
        )
    if not any(map(has_slopes, graph.nodes)):
        raise UnsupportedOperation(
            "the network has no ReLU, so there is no filter to mask: its gradient is all there is"
        )


def has_slopes(node: Node) -> bool:
    """Is this an activation with a slope that depends on the input, so that its units may have masks?"""
    chosen = (v.MAXIMUM, v.REARRANGE)  # max(x, 0.1 * x), where(x > 0, x, 0.1 * x)
    return node.kind == v.ACTIVATION and any(p.op in PIECEWISE_LINEAR or p.kind in chosen for p in _parts(node))


def _parts(node: Node) -> tuple[Node, ...]:
    return node.parts or (node,)


def _is_piecewise_linear(part: Node) -> bool:
    return part.op in PIECEWISE_LINEAR | PASSING or bool(part.signs) or part.kind in LINEAR


class Slope(Step):
    """A factor f for each unit: the slope of an activation at x, or one over the denominators of an LRN."""

    def forward(self, values):
        (source,) = self.sources
        x = values[source]
        if self.node.kind == v.LRN:
            factor = 1 / denominators(self.node.layer(values), x)
            y = x * factor
        else:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                y = self.node.run({**values, source: leaf})
            factor, y = torch.autograd.grad(y, leaf, torch.ones_like(y))[0], y.detach()
        offset = y - factor * x
        self.offset = offset if offset.any() else None
        self.factor = factor  # as numbers: choosing by a mask of bits takes several times as long as a product
        return y

    def back(self, R, last=True):
        return Shares([R * self.factor])

    def forth(self, ts):
        return self.back(ts[0]).relevance[0]

    def constant(self, R):
        return None if self.offset is None else total(R * self.offset).to(R.dtype)


class Sloped(Adjoint):
    """The adjoint of an activation, or of an LRN with its denominators at x as constants."""

    at, step = (v.ACTIVATION, v.LRN), Slope


class Gradients(Composite):
    """The vector-Jacobian product at every node: the walk back is backpropagation."""

    def __init__(self):
        super().__init__(
            [("any", Adjoint())], addition=Adjoint(), lrn=Sloped(), norm=Adjoint(), matmul=Adjoint(), softmax=Adjoint()
        )

    def rule(self, node, first):
        return Sloped() if node.kind == v.ACTIVATION else super().rule(node, first) or Adjoint()


# ---------------------------------------------------------------- the network


class MaskedNetwork:
    """The graph's linear map at x (N, ...), with a mask for each filter behind a ReLU.

    `masked` maps the nodes that carry masks to their numbers of filters: channels, or features behind dense layers.
    A ReLU module that is called twice makes two of them. `output` is F(x), (N, K); `frozen` names the LRNs whose
    denominators count as constants. Raises UnsupportedOperation for nodes that are not piecewise linear, and where the
    first axis of a value is not the batch.
    """

    @torch.no_grad()
    def __init__(self, graph: Graph, x: Tensor, freeze_lrn: bool = False):
        require_piecewise_linear(graph, freeze_lrn)
        plan = Plan(graph, Gradients()).ready((x,))
        (x,) = plan.laid((x,))
        self.graph, self.x = graph, x
        run = forward(plan, (x,))
        self.steps, self.output = run.steps, run.output
        for node in run.samples:
            raise UnsupportedOperation(f"node `{node.name}` does not have the samples of the batch on its first axis")
        self.frozen = [node.name for node in self.steps if node.kind == v.LRN]
        self.masked: dict[Node, int] = {}
        self.views: dict[Node, list[int]] = {}  # shape of a mask (N, C) beside the values (N, C, ...) of its node
        for node in self.steps:
            if has_slopes(node):
                self._mask(node, run.shapes[node])
        self.uses = dict.fromkeys([graph.input, *self.steps], 0)
        for step in self.steps.values():
            for source in step.sources:
                self.uses[source] += 1

    def _mask(self, node: Node, shape: torch.Size) -> None:
        """One mask for each channel, or for each feature behind dense layers on three axes."""
        fed = self.graph.feeding(node)
        axis = 2 if len(shape) == 3 and fed and all(n.kind == v.DENSE for n in fed) else 1
        self.masked[node] = shape[axis]
        self.views[node] = [size if i in (0, axis) else 1 for i, size in enumerate(shape)]

    def ones(self) -> list[Tensor]:
        """Masks that hide nothing, (N, C) for each of `masked`, in its order."""
        return [self.x.new_ones(len(self.x), filters) for filters in self.masked.values()]

    def mapping(self, seed: Tensor, masks: list[Tensor]) -> Tensor:
        """W(m), shaped like x, of the output weighted by seed (N, K); differentiable by the masks (N, C), once."""
        return _Mapping.apply(self, seed, *masks)

    @torch.no_grad()
    def gradient(self, seed: Tensor) -> tuple[Tensor, Tensor]:
        """W(1), shaped like x, and what the constants contribute, `b_eff = sum_l <b_l, d F / d z_l>`, (N,)."""
        constants = [self.x.new_zeros(len(self.x))]
        W, _ = self.back(seed, self.ones(), constants)
        return W, sum(constants)

    def back(self, seed: Tensor, masks: list[Tensor], constants: list | None = None) -> tuple[Tensor, dict]:
        """W(m), and G g by masked node; `constants`, if given, receives what each node's constant contributes."""
        masks, gated, arrived = dict(zip(self.masked, masks, strict=True)), {}, {self.graph.output: seed[None]}
        for node, step in reversed(self.steps.items()):
            g = arrived.pop(node, None)
            if g is None:
                continue
            if constants is not None and (constant := step.constant(g)) is not None:
                constants.append(constant[0])
            shares = step.back(g, last=False).relevance
            if node in masks:
                gated[node] = shares[0][0]
                shares = [shares[0] * masks[node].view(self.views[node])]
            for source, share in zip(step.sources, shares, strict=True):
                arrived[source] = arrived[source] + share if source in arrived else share
        W = arrived.get(self.graph.input)
        return (torch.zeros_like(self.x) if W is None else W[0]), gated

    def forth(self, V: Tensor, masks: list[Tensor], gated: dict[Node, Tensor]) -> list[Tensor]:
        """Derivative of <V, W(m)> by each mask, (N, C), from what `back` kept for these masks."""
        by_node, found = dict(zip(self.masked, masks, strict=True)), {}
        values, uses = {self.graph.input: V}, dict(self.uses)
        for node, step in self.steps.items():
            ts = [values[source] for source in step.sources]
            if node in by_node:
                view = self.views[node]
                found[node] = (gated[node] * ts[0]).sum_to_size(view).view(by_node[node].shape)
                if len(found) == len(by_node):
                    break
                values[node] = step.forth(ts) * by_node[node].view(view)
            else:
                values[node] = step.forth(ts)
            for source in step.sources:
                uses[source] -= 1
                if not uses[source]:
                    del values[source]
        return [found[node] for node in by_node]


class _Mapping(torch.autograd.Function):
    @staticmethod
    def forward(ctx, net, seed, *masks):
        W, ctx.gated = net.back(seed, masks)
        ctx.net = net
        ctx.save_for_backward(*masks)
        return W

    @staticmethod
    @once_differentiable
    def backward(ctx, V):
        return None, None, *ctx.net.forth(V, ctx.saved_tensors, ctx.gated)
