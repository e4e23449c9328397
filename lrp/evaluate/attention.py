"""What LRP is compared with on vision transformers: raw attention, rollout, Chefer et al., Grad-CAM of tokens.

`TOKEN_METHODS` maps names to methods, called as those of `baselines`: x is (N, C, H, W), target None (the predicted
class), an int or a LongTensor (N,), and the map is (N, H, W). Each gives one value per patch, and bilinear upsampling
(without aligned corners) brings the patches to the image's size, for all of them alike. Raw attention and rollout do
not depend on the target.

Attention is read in the captured graph, into which all forms of it are opened (`lrp.network.opened`). Needed is a
transformer whose first token is the class token, the only one that its head reads, and whose other tokens are a square
of patches in rows. The model is only read. A batch of N gives the maps of N single images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks, seeds, walk
from ..composites import AttnLRP, Composite
from ..engine import LRP, Target, full_precision
from ..errors import InputError, LRPError
from ..network import kinds as v
from ..network import samples
from ..network.graph import Graph, Node, ancestors, reachable
from . import flipping

WAY_OUT = "take LRP, or a method of lrp.evaluate.baselines"


class Block(NamedTuple):
    """An attention: its node's name, the weights A (N, heads, T, T), one row per query, and d f_t / d A."""

    name: str
    weights: Tensor
    gradient: Tensor


class Tokens(NamedTuple):
    """What a block reads: the name of a node, its values Z (N, T, D), and d f_t / d Z."""

    name: str
    values: Tensor
    gradient: Tensor


@dataclass
class Seen:
    """One run of the captured graph: the attentions, first block first, and the tokens that the last one reads.

    `tokens` is None where no LayerNorm, or the like, makes them. `where` tells, by name, where the samples are in the
    values of nodes that do not have them on the first axis.
    """

    explainer: LRP
    x: Tensor
    target: Tensor
    blocks: list[Block]
    tokens: Tokens | None
    where: dict[str, samples.Samples]


@dataclass(frozen=True)
class TokenMethod:
    """A named method: `raw` gives one value per patch, (N, patches), from a run; the map is (N, H, W).

    Raises InputError for a model in training mode, an input that is not a sound (N, C, H, W) and a network without
    such tokens, TargetError for targets that are no classes of the output, LRPError where the map is not finite.
    """

    name: str
    raw: Callable[..., Tensor]

    def __call__(self, model: nn.Module, x: Tensor, target: Target = None, **options) -> Tensor:
        """The map (N, H, W); options are those of `raw`, such as `composite` of Chefer et al."""
        R = self.raw(look(model, x, target), **options).detach()
        side = round(R.shape[1] ** 0.5)
        R = F.interpolate(R.unflatten(1, (1, side, side)), tuple(x.shape[2:]), mode="bilinear", align_corners=False)
        if not torch.isfinite(R).all():
            raise LRPError(f"the map of {self.name} is not finite")
        return R[:, 0]


# ---------------------------------------------------------------- one run with autograd on


def attentions(model: nn.Module, x: Tensor, target: Target = None) -> list[Block]:
    """The attention weights of every block, and the gradient of the target's output with respect to them."""
    return look(model, x, target).blocks


def look(model: nn.Module, x: Tensor, target: Target = None) -> Seen:
    """Run the captured graph once, and go back by autograd; raises InputError for networks without such tokens."""
    flipping.images(model, x, target)
    with torch.inference_mode(False), torch.enable_grad(), full_precision(x), checks.no_autocast():
        x = x.detach().clone()
        with torch.no_grad():
            explainer = LRP(model, AttnLRP())
            plan = explainer.plans.ready((x,))
            where = walk.forward(plan, (x,)).samples
        graph, values = plan.graph, {plan.graph.input: x.clone().requires_grad_().clone()}  # may be written over
        for node in graph.nodes:
            values[node] = values[node] if node in values else node.run(values)
        f = values[graph.output]
        checks.logits(f, model)
        targets = checks.targets(target, f)[0][0]
        maps = _maps(explainer.plans.model, graph, values)
        read = _read(graph, maps[-1], values)
        wanted = [*maps, read] if read else maps
        chosen = f.gather(1, targets[:, None]).sum()
        found = torch.autograd.grad(chosen, [values[n] for n in wanted], allow_unused=True, materialize_grads=True)

    where = {node.name: where[node] for node in wanted if node in where}
    pairs = [
        (n.name, *(by_sample(z, where.get(n.name), 1 if n is read else 2) for z in (values[n], gradient)))
        for n, gradient in zip(wanted, found, strict=True)
    ]
    blocks = [Block(*pair) for pair in pairs[: len(maps)]]
    if blocks[-1].gradient[:, :, 1:].any():
        raise InputError(
            f"the head of {type(explainer.plans.model).__name__} reads more tokens than the first, as behind a mean "
            f"over tokens: these methods follow a class token; {WAY_OUT}"
        )
    return Seen(explainer, x, targets, blocks, Tokens(*pairs[-1]) if read else None, where)


def _maps(model: nn.Module, graph: Graph, values: dict) -> list[Node]:
    """The nodes of attention weights, in order of computation; InputError for other tokens than those needed."""
    maps = [node for node in graph.nodes if node.kind == v.SOFTMAX and values[node].dim() > 2]
    if not maps:
        raise InputError(f"{type(model).__name__} has no attention (no softmax over tokens): {WAY_OUT}")
    count = values[maps[-1]].shape[-1]
    for node in maps:
        A = values[node].detach()
        rows = A.shape[-2:] == (count, count) and bool((A.sum(-1) - 1).abs().max() < 0.05)
        if not rows or count < 2 or round((count - 1) ** 0.5) ** 2 != count - 1:
            raise InputError(
                f"the attention {node.called} of {type(model).__name__} has weights {tuple(A.shape)}: these methods "
                "need (N, heads, T, T), the same T in all blocks and one row per query, where T is one class token and "
                f"a square of patches; {WAY_OUT}"
            )
    return maps


def _read(graph: Graph, last: Node, values: dict) -> Node | None:
    """The last norm through which all of the last attention comes: not one of queries, nor one beside a skip."""
    product = next((n for n in graph.nodes if n.kind == v.MATMUL and last in ancestors(n)), last)

    def passes(norm: Node) -> bool:
        return graph.input not in reachable(product, lambda node: () if node is norm else node.inputs)

    norms = [n for n in graph.nodes if n.kind == v.NORM and values[n].dim() == 3]
    return next((n for n in reversed(norms) if n in ancestors(last) and passes(n)), None)


def by_sample(value: Tensor, where: samples.Samples | None, axes: int) -> Tensor:
    """The value as (N, all other axes as one, the last axes): weights (N, heads, T, T), or tokens (N, T, D)."""
    return samples.rows(value.detach(), where).unflatten(1, (-1, *value.shape[-axes:]))


def class_row(maps: list[Tensor]) -> Tensor:
    """The row of the class token in A_B ... A_2 A_1, maps (N, T, T) of the first block first: (N, T)."""
    row = maps[-1][:, :1]
    for A in reversed(maps[:-1]):
        row = row @ A
    return row[:, 0]


# ---------------------------------------------------------------- methods


def _raw_attention(seen: Seen) -> Tensor:
    """R = the class token's row of A in the last block, mean over heads; what abnar2020quantifying starts from."""
    return seen.blocks[-1].weights.mean(1)[:, 0, 1:]


def _rollout(seen: Seen) -> Tensor:
    """R = the class token's row of a product over blocks of A + I, rows normalised (abnar2020quantifying).

    A is the mean over heads, and later blocks stand to the left.
    """
    means = [block.weights.mean(1) for block in seen.blocks]
    return class_row([F.normalize(A + torch.eye(A.shape[-1]).to(A), p=1, dim=-1) for A in means])[:, 1:]


def _chefer(seen: Seen, composite: Composite | None = None) -> Tensor:
    """R = the class token's row of a product over blocks of I + E_h max(0, dA * R_A) (chefer2021transformer).

    dA is the gradient of f_t, R_A the relevance of the weights, from 1 at the target, and E_h the mean over heads.
    Later blocks stand to the left, and what is positive is taken before the mean, as in the authors' program.

    composite: how relevance gets to the weights, by default `composites.AttnLRP()`. The product of weights and values
    is shared as in the paper, whose normalisation gives halves there. Deviations of the default: linear layers have
    signed shares by LRP-gamma, and biases keep theirs (paper: positive contributions alone, no bias); sums have signed
    shares (paper: rescaled by the size of their totals, `splitting.GlobalRatio`); a softmax goes by its Taylor
    expansion and LayerNorm is a linear map (authors' program: both pass relevance through); divisions are stabilised
    by a relative epsilon. The first two, and LayerNorm's, can be undone by `Composite([("any", rules.ZPlus())],
    addition=splitting.GlobalRatio(), norm=rules.Pass(), matmul=rules.Uniform(), softmax=rules.Taylor(),
    bias="exclude")`.
    """
    explainer = seen.explainer if composite is None else LRP(seen.explainer.model, composite)
    e = explainer.explain(seen.x, seen.target, seeds.OneHot(), [block.name for block in seen.blocks])
    graph = explainer.graph
    if not any(graph.find(block.name) in explainer.plan.reach(graph.output) for block in seen.blocks):
        raise LRPError(f"no relevance gets to the attention by {explainer.composite!r}: give it matmul=rules.Uniform()")
    maps = []
    for block in seen.blocks:
        R = by_sample(e.layers[block.name], seen.where.get(block.name), 2)
        maps.append((block.gradient * R).clamp(min=0).mean(1))
    return class_row([A + torch.eye(A.shape[-1]).to(A) for A in maps])[:, 1:]


def _grad_cam(seen: Seen) -> Tensor:
    """R = max(0, sum_k Z_k mean(d f_t / d Z_k)) of the patches' tokens Z (selvaraju2017grad).

    Z is what the last block reads, behind its LayerNorm: behind the last block, the head reads the class token alone,
    and the gradient of all patches is exactly 0. The mean is one over patches.
    """
    if seen.tokens is None:
        raise InputError(f"no LayerNorm makes what `{seen.blocks[-1].name}` reads: Grad-CAM needs it; {WAY_OUT}")
    Z, gradient = seen.tokens.values[:, 1:], seen.tokens.gradient[:, 1:]
    return (Z * gradient.mean(1, keepdim=True)).sum(2).clamp(min=0)


_TABLE = (
    TokenMethod("raw attention", _raw_attention),
    TokenMethod("attention rollout", _rollout),
    TokenMethod("Chefer et al.", _chefer),
    TokenMethod("Grad-CAM of tokens", _grad_cam),
)
TOKEN_METHODS: dict[str, TokenMethod] = {method.name: method for method in _TABLE}
