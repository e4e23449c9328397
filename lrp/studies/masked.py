"""A network frozen at its input and made linear, with one mask per filter: its gradient, and the masks' own.

At x, a piecewise linear network is affine: F(x) = <W, x> + b_eff, where W is the gradient. Freeze which units are on
and which ones win a pool, drop the constants, and multiply each unit behind a ReLU by the mask of its filter:

    h_l = m_l G_l (A_l h_{l-1}),    y(m) = w_c h_L,    W(m) = d y(m) / d x,    sum W(m) x = y(m),    W(1) = d F / d x.

W(m) is backpropagation with masks. A loss of W has its derivative by the masks from one more pass, forward: with
V = d loss / d W, t_0 = V and t_l = m_l G_l (A_l t_{l-1}),

    d loss / d m_l = sum over space of (G_l g_l) (A_l t_{l-1}),

where g_l is what arrives at h_l on the way back. No graph of a backward pass is ever built: one evaluation costs as
much as a forward pass and an input gradient, in memory that does not grow with their number.
Where paths meet, both passes go node by node over the captured graph.
Source: ruiz2021generating for masked backpropagation (reconstructed: see `dmbp`); this project for its derivative.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import kinds as v
from ..errors import UnsupportedOperation
from ..graph import Graph, Node
from ..walk import no_rule, readable
from .lrn import denominators

PIECEWISE_LINEAR = set(  # activations with a mask, under their names as modules and as functions
    "relu relu6 leakyrelu leaky_relu prelu rrelu hardtanh hardsigmoid threshold clamp clamp_min clamp_max clip "
    "hardshrink softshrink".split()
)
PASSING = v.KEEPS_SIGN_NAMES | set(
    "neg float double type_as alphadropout alpha_dropout featurealphadropout feature_alpha_dropout".split()
)
LINEAR = (*v.LINEAR, v.SCALE, v.MAXIMUM, v.REARRANGE)  # a pool is, once its winners are fixed


def require_piecewise_linear(graph: Graph, freeze_lrn: bool = False) -> None:
    """Raise UnsupportedOperation, naming the node and the way out, for a network that cannot be frozen, or masked."""
    for node in graph.nodes:
        if not node.carries or node.kind in (v.INPUT, *LINEAR):
            continue
        if node.kind == v.ACTIVATION and node.op in PIECEWISE_LINEAR | PASSING and len(node.inputs) == 1:
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
        if "softmax" in node.op:
            hint = "take the softmax off the end of the model, so that it returns logits"
        raise UnsupportedOperation(
            f"node `{node.name}` calls {node.op}, which is not piecewise linear: there is no linear mapping to split; "
            + hint
        )
    if not any(node.kind == v.ACTIVATION and node.op in PIECEWISE_LINEAR for node in graph.nodes):
        raise UnsupportedOperation(
            "the network has no ReLU, so there is no filter to mask: its gradient is all there is"
        )


# ---------------------------------------------------------------- the nodes, frozen


class _Operated:
    """A convolution, dense layer, BatchNorm or sum: the linear map is its operator's."""

    def __init__(self, node: Node, values: dict):
        self.sources = readable(node)
        xs = [values[n] for n in self.sources]
        if node.kind == v.DENSE and node.norm is not None and xs[0].dim() > 2:
            raise UnsupportedOperation(
                f"BatchNorm `{node.aliases[-1]}` follows dense layer `{node.name}` on more than two axes and cannot be "
                "folded into it: flatten the samples' places into the batch before the layer"
            )
        nothing = dict.fromkeys(self.sources, xs[0].new_empty(0))  # the operator shall not keep the inputs
        self.operator = node.operator({**values, **nothing})
        self.w, self.b = self.operator.weights()
        self.likes = [torch.empty_like(x, device="meta") for x in xs]
        self.value = self.operator.forward(xs, self.w, self.b)

    def back(self, g: Tensor) -> list[Tensor]:
        return [share[0] for share in self.operator.transpose(g[None], self.w, self.likes)]

    def forth(self, ts: list[Tensor]) -> Tensor:
        return self.operator.apply(ts, self.w)

    def constant(self, g: Tensor) -> Tensor | None:
        return None if self.b is None else self.operator.kept(self.b, g[None])[0]


class _Elementwise:
    """A factor for each unit: the slope of an activation, or one over the denominators of an LRN."""

    def __init__(self, node: Node, values: dict, factor: Tensor | None = None):
        self.sources = node.inputs
        x = values[node.inputs[0]]
        if factor is None:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                self.value = node.run({**values, node.inputs[0]: leaf})
            factor = torch.autograd.grad(self.value, leaf, torch.ones_like(self.value))[0]
            self.value = self.value.detach()
        else:
            self.value = x * factor
        self.gates = bool(((factor == 0) | (factor == 1)).all())
        self.factor = factor.bool() if self.gates else factor
        self.offset = _nonzero(self.value - factor * x)

    def back(self, g: Tensor) -> list[Tensor]:
        return [torch.where(self.factor, g, 0) if self.gates else g * self.factor]

    def forth(self, ts: list[Tensor]) -> Tensor:
        return self.back(ts[0])[0]

    def constant(self, g: Tensor) -> Tensor | None:
        return None if self.offset is None else (g * self.offset).flatten(1).sum(1)


class _Local:
    """Pools, averages, rearrangements and the like: the linearisation at x, kept as a graph of this one node.

    The way back g -> J^T g is linear in g, so its own derivative is the way forth, t -> J t, winners and all.
    """

    def __init__(self, node: Node, values: dict):
        self.sources = node.sources
        leaves = {n: values[n].detach().requires_grad_() for n in self.sources}
        with torch.enable_grad():
            y = node.run({**values, **leaves})
            self.value, self.y, self.leaves = y.detach(), y, list(leaves.values())
            self.probe, found = torch.zeros_like(y).requires_grad_(), [None] * len(leaves)
            if y.requires_grad:
                found = torch.autograd.grad(y, self.leaves, self.probe, create_graph=True, allow_unused=True)
        self.used = [i for i, f in enumerate(found) if f is not None and f.requires_grad]
        self.adjoint = [found[i] for i in self.used]
        # averages are linear as they stand, and what is left of them is rounding
        linear = self.value if node.kind == v.AVERAGE else self.forth([leaf.detach() for leaf in self.leaves])
        self.offset = _nonzero(self.value - linear)

    def back(self, g: Tensor) -> list[Tensor]:
        shares = [None] * len(self.leaves)
        if self.used:
            leaves = [self.leaves[i] for i in self.used]
            found = torch.autograd.grad(self.y, leaves, g, retain_graph=True)
            for i, share in zip(self.used, found, strict=True):
                shares[i] = share
        return [torch.zeros_like(x) if s is None else s for s, x in zip(shares, self.leaves, strict=True)]

    def forth(self, ts: list[Tensor]) -> Tensor:
        if not self.used:
            return torch.zeros_like(self.y)
        return torch.autograd.grad(self.adjoint, self.probe, [ts[i] for i in self.used], retain_graph=True)[0]

    constant = _Elementwise.constant


def _nonzero(offset: Tensor) -> Tensor | None:
    return offset if offset.any() else None


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
        self.graph, self.x, self.steps, self.frozen = graph, x, {}, []
        self.masked: dict[Node, int] = {}
        self.views: dict[Node, list[int]] = {}  # shape of a mask (N, C) beside the values (N, C, ...) of its node
        values, uses = {}, dict(graph.users)
        uses[graph.output] += 1
        for node in graph.nodes:
            values[node] = self._freeze(node, values)
            for source in graph.reads[node]:
                uses[source] -= 1
                if not uses[source]:
                    del values[source]
        self.output = values[graph.output]
        self.uses = dict.fromkeys([node for node in graph.nodes if node.carries], 0)
        for step in self.steps.values():
            for source in step.sources:
                self.uses[source] += 1

    def _freeze(self, node: Node, values: dict) -> object:
        if not node.carries:
            return node.run(values)
        if node.kind == v.INPUT:
            return self.x
        if node.kind in (*v.WEIGHTED, v.BATCHNORM, v.ADD):
            step = _Operated(node, values)
        elif node.kind == v.LRN:
            step = _Elementwise(node, values, 1 / denominators(node.layer(values), values[node.inputs[0]]))
            self.frozen.append(node.name)
        elif node.kind == v.ACTIVATION and node.op in PIECEWISE_LINEAR:
            step = _Elementwise(node, values)
        else:
            step = _Local(node, values)
        value, self.steps[node] = step.value, step
        del step.value
        if value.dim() == 0 or len(value) != len(self.x):
            raise UnsupportedOperation(
                f"node `{node.name}` has shape {tuple(value.shape)}, whose first axis is not the batch of "
                f"{len(self.x)}: keep samples along the first axis throughout the network"
            )
        if node.kind == v.ACTIVATION and node.op in PIECEWISE_LINEAR:
            fed = self.graph.feeding(node)
            axis = 2 if value.dim() == 3 and fed and all(n.kind == v.DENSE for n in fed) else 1
            self.masked[node] = value.shape[axis]
            self.views[node] = [value.shape[i] if i in (0, axis) else 1 for i in range(value.dim())]
        return value

    def ones(self) -> list[Tensor]:
        """Masks that hide nothing, (N, C) for each of `masked`, in its order."""
        return [self.x.new_ones(len(self.x), filters) for filters in self.masked.values()]

    def mapping(self, seed: Tensor, masks: list[Tensor]) -> Tensor:
        """W(m), shaped like x, of the output weighted by seed (N, K); differentiable by the masks (N, C), once."""
        return _Mapping.apply(self, seed, *masks)

    @torch.no_grad()
    def gradient(self, seed: Tensor) -> tuple[Tensor, Tensor]:
        r"""W(1), shaped like x, and what the constants contribute, b_eff = \sum_l <b_l, d F / d z_l>, (N,)."""
        constants = [self.x.new_zeros(len(self.x))]
        W, _ = self.back(seed, self.ones(), constants)
        return W, sum(constants)

    def back(self, seed: Tensor, masks: list[Tensor], constants: list | None = None) -> tuple[Tensor, dict]:
        """W(m), and G g by masked node; `constants`, if given, receives what each node's constant contributes."""
        masks, gated, found = dict(zip(self.masked, masks, strict=True)), {}, {self.graph.output: seed}
        for node in reversed(self.graph.nodes):
            g = found.pop(node, None)
            if g is None:
                continue
            if node.kind == v.INPUT:
                return g, gated
            step = self.steps[node]
            if constants is not None and (constant := step.constant(g)) is not None:
                constants.append(constant)
            shares = step.back(g)
            if node in masks:
                gated[node] = shares[0]
                shares = [shares[0] * masks[node].view(self.views[node])]
            for source, share in zip(step.sources, shares, strict=True):
                found[source] = found[source] + share if source in found else share
        return torch.zeros_like(self.x), gated

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
