"""Relevance at skip connections: how it grows, which way it goes, what it leaves on the pixels (otsuki2024layer).

`explain` is relevance splitting for any ResNet in one call. The rest measures it: `by_hand` and `character` at a sum
of two numbers, `growth` and `skip_share` in the network, `lattice` and `spectrum` on the map. The rules themselves are
in `lrp.splitting`.
"""

import copy
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..composites import Composite, RelevanceSplitting
from ..engine import LRP, Target
from ..errors import LRPError
from ..evaluate import metrics
from ..evaluate.baselines import REDUCTIONS, Method
from ..evaluate.insertion import heat_quantization
from ..network import kinds
from ..network.graph import Graph, Node, ancestors
from ..rules import Rule
from ..seeds import Logit, Probability, Seed
from ..splitting import Told

# ---------------------------------------------------------------- one call


def explain(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    faithful: bool = False,
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    levels: int | None = None,
    **options,
) -> Tensor:
    """Relevance splitting on a ResNet of any kind, depth and number of colours: (N, C, H, W) -> maps (N, H, W).

    `faithful` is the authors' program, from the probability of the class; else our corrected preset from its logit,
    which needs the bounds `low` and `high` of the input, in its own units. `options` are those of
    `composites.RelevanceSplitting`. `levels` quantizes the maps (the paper: 8); None leaves them as they are. Raises
    what `LRP.attribute` does. For many calls on one model, make the explainer once:
    `LRP(model, composites.RelevanceSplitting(...))`.
    """
    composite = RelevanceSplitting(faithful=faithful, low=low, high=high, **options)
    seed = Probability() if faithful else Logit()
    R = LRP(model, composite).attribute(x, target, seed=seed)
    R = R.sum(-3)  # over colours; a list of targets puts them in front
    return R if levels is None else heat_quantization(R.flatten(0, -3), levels).view_as(R)


# ---------------------------------------------------------------- at a sum of two numbers


class _Sum(nn.Module):
    def forward(self, x):
        return x[:, 0] + x[:, 1]


def by_hand(rule: Rule, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What an identity skip a and a branch b get of R = 1 at a + b, for N samples of F units: (N, F) each."""
    if isinstance(rule, Told):
        at = SimpleNamespace(skips=[True, False])
        R_a, R_b = rule.share([a, b], torch.ones(1, *a.shape, dtype=a.dtype), at)
        return R_a[0], R_b[0]
    R = LRP(_Sum().eval(), Composite([], addition=rule)).attribute(torch.stack([a, b], 1), seed=torch.ones_like(a))
    return R[:, 0], R[:, 1]


def character(rule: Rule, *, n: int = 41) -> dict[str, bool]:
    """Is the rule conserving, bounded, sign-aware? Tested on pairs of summands of all signs, some nearly cancelling.

    All pairs have a positive sum and are units of one sample. conserving: the shares add up to all that arrived.
    bounded: no share is larger than 3 R. sign-aware: a summand below zero, which is against the sum, gets none of
    its positive relevance.
    """
    axis = torch.linspace(-1, 1, n, dtype=torch.float64)
    a, b = (side.flatten() for side in torch.meshgrid(axis, axis + 1e-4, indexing="ij"))
    a, b = a[a + b > 0][None], b[a + b > 0][None]
    R_a, R_b = by_hand(rule, a, b)
    return {
        "conserving": bool(((R_a + R_b).mean() - 1).abs() < 1e-3),
        "bounded": bool(torch.stack([R_a, R_b]).abs().max() < 3),
        "sign-aware": bool(R_b[b < 0].max() < 1e-6),
    }


# ---------------------------------------------------------------- in the network


def growth(explainer: LRP, x: Tensor, target: Target = None, seed: Seed | None = None) -> dict[str, Tensor]:
    """Relevance that arrives at each sum and at last at the input, as a share of the seed: {node: (N,)}, top first."""
    e = explainer.explain(x, target, seed)
    arrived = {row.name: row.relevance_out for row in e.rows if row.kind == kinds.ADD}
    return {name: (R / e.seed).mean(0) for name, R in (arrived | {"input": e.received}).items()}


def skip_share(explainer: LRP, x: Tensor, target: Target = None, seed: Seed | None = None) -> dict[str, Tensor]:
    """Share of the relevance at each sum of two that goes to the skip, {node: (N,)}, in the order of the network.

    The skip is the identity; where no summand is, the one with fewer layers with weights. Raises LRPError
    where the network has no such sum.
    """
    e = explainer.explain(x, target, seed)
    graph = explainer.graph
    arrived = {row.name: row.relevance_out[0] for row in e.rows}
    found = {}
    for node in (node for node in graph.nodes if node.kind == kinds.ADD and len(node.sources) == 2):
        branch = node.inputs[1 - _skip(graph, node)]
        if node.name in arrived and graph.users[branch] == 1:  # all that arrives at the branch comes from this sum
            found[node.name] = 1 - arrived.get(branch.name, torch.zeros_like(arrived[node.name])) / arrived[node.name]
    if not found:
        raise LRPError("the network has no sum of a skip and a branch of its own, so no share can be computed")
    return found


def _skip(graph: Graph, node: Node) -> int:
    """Which of two summands is the skip: 0 or 1."""
    if True in (identities := graph.skips(node)):
        return identities.index(True)
    one, two = (ancestors(n) for n in node.inputs)
    layers = [sum(n.kind in kinds.WEIGHTED for n in side) for side in (one - two, two - one)]
    return layers.index(min(layers))


# ---------------------------------------------------------------- on the pixels


def lattice(maps: Tensor, period: int) -> Tensor:
    r"""How unevenly relevance sits on the places of a p x p cell: 0 for evenly, p^2 - 1 for one place only; (N,).

    .. math:: L = p^2 \sum_{\phi} \Big(\frac{R_\phi}{\sum R}\Big)^2 - 1

    with R_phi the sum over all pixels (i p + phi_1, j p + phi_2). By Parseval that is the power at the frequencies of
    the lattice over that at frequency zero. Maps (N, H, W) whose sides p divides; NaN where a map sums to zero. Raises
    LRPError for other sizes.
    """
    R = metrics.heat(maps).double()
    if period < 2 or R.shape[1] % period or R.shape[2] % period:
        raise LRPError(f"a lattice of period {period} must divide maps of {tuple(R.shape[1:])}: take another period")
    phases = R.unflatten(2, (-1, period)).unflatten(1, (-1, period)).sum((1, 3)).flatten(1)
    return period**2 * (phases / phases.sum(1, keepdim=True)).square().sum(1) - 1


def spectrum(maps: Tensor) -> Tensor:
    """Power of maps (N, H, W) at each frequency over that at zero, averaged over maps; zero in the middle, (H, W)."""
    power = torch.fft.fft2(metrics.heat(maps).double()).abs().square()
    return torch.fft.fftshift((power / power[:, :1, :1]).mean(0))


# ---------------------------------------------------------------- peers


def _captum_lrp(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """captum's LRP with its own rules, the "LRP" of the paper's tables. It has no rule for additions in functions."""
    from captum.attr import LRP as Captum

    return Captum(net).attribute(x, target=target)


CAPTUM = Method("LRP (captum)", _captum_lrp, "sum")


def zennit_lrp(model: nn.Module, x: Tensor, target: Tensor, canonizers: Sequence = ()) -> Tensor:
    """zennit's EpsilonPlus without biases, started from 1 at the target (N,): maps (N, H, W).

    Without the canonizer for its kind of ResNet, zennit does not see additions, and BatchNorm stays apart.
    """
    from zennit import attribution
    from zennit.composites import EpsilonPlus

    composite = EpsilonPlus(zero_params="bias", canonizers=[canonizer() for canonizer in canonizers])
    with attribution.Gradient(model=copy.deepcopy(model), composite=composite) as attributor:
        output = model(x)
        _, R = attributor(x.clone().requires_grad_(), nn.functional.one_hot(target, output.shape[1]).to(x))
    return REDUCTIONS["sum"](R.detach())
