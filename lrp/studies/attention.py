"""Attention: what relevance does where two signals meet (beyond the five papers: ali2022xai, achtibat2024attnlrp).

At a product, a softmax and a LayerNorm, gradient x input does not give back what it was given. CP-LRP counts one of the
signals as a constant, AttnLRP shares; `forward` is a second derivation of the first, by autograd alone, and `keepers`
names what keeps a share in either.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from .. import composites, rules
from ..composites import Composite
from ..errors import LRPError
from ..evaluate import baselines, cost, insertion, metrics
from ..evaluate.metrics import Interval
from ..explanation import Explanation
from .comparison import BLUR, LOCALISATION, PROTOCOLS, Contender, Images, explain, localisation_of

Held = Literal["attention", "norm", "activation"]
HELD: tuple[Held, ...] = ("attention", "norm", "activation")  # all three: CP-LRP with epsilon -> 0
REPAIRS = {"nothing held": (), "attention held": HELD[:1], "norms held": HELD[1:2], "both held": HELD[:2]}
CONVOLUTION, LINEAR = (0.1, 0.25, 100.0), (0.0, 0.01, 0.05, 0.1, 1.0)  # the gammas of LXT's example

# ---------------------------------------------------------------- by hand


class Product(nn.Module):
    """y = a b: (N, 2) -> (N, 1). Two signals, none of them a gate."""

    def forward(self, x):
        return x[:, :1] * x[:, 1:]


class Gate(nn.Module):
    """y = sigmoid(a) b: (N, 2) -> (N, 1)."""

    def forward(self, x):
        return x[:, :1].sigmoid() * x[:, 1:]


class Head(nn.Module):
    """One query: scores and values (N, 2, n) -> y = sum_i softmax(scores)_i v_i, (N, 1)."""

    def forward(self, x):
        scores, values = x[:, :1], x[:, 1]
        return (scores.softmax(-1) @ values[:, :, None])[:, 0]


def toys(points: int = 61) -> dict[str, tuple[str, nn.Module, Tensor, Tensor]]:
    """{title: (name of the axis, model, values on the axis (N,), inputs of the model (N, ...))}: product, head, norm.

    Three tokens have scores 1, 0, -1, times the axis, and values 3, -2, 2. The norm has epsilon 1.
    """
    b, sharp, deviation = torch.linspace(-3, 3, points), torch.linspace(0, 4, points), torch.linspace(0.1, 4, points)
    heads = torch.stack([sharp[:, None] * torch.tensor([1.0, 0, -1]), torch.tensor([3.0, -2, 2]).expand(points, 3)], 1)
    norm = nn.Sequential(nn.LayerNorm(2, eps=1.0, elementwise_affine=False), nn.Linear(2, 1, bias=False)).eval()
    norm[1].weight.data = torch.tensor([[1.0, -1.0]])
    return {
        "$y = ab$, with $a = 2$": ("$b$", Product().eval(), b, torch.stack([torch.full_like(b, 2.0), b], 1)),
        "three tokens, one query": ("sharpness of the scores", Head().eval(), sharp, heads),
        "LayerNorm": ("deviation of its input", norm, deviation, deviation[:, None] * torch.tensor([1.0, -1.0])),
    }


def gradient_x_input(model: nn.Module, x: Tensor, target: Tensor | int = 0) -> Tensor:
    """x * d f_t / d x, shaped like x."""
    x = x.detach().clone().requires_grad_()
    f = model(x)
    t = torch.as_tensor(target, device=f.device).expand(len(f))
    return x.detach() * torch.autograd.grad(f.gather(1, t[:, None]).sum(), x)[0]


def covariance(scores: Tensor, values: Tensor) -> Tensor:
    """Cov_s(x, v) = sum s x v - sum s x sum s v of scores x and values v (N, n), s = softmax(x): (N,).

    It is what gradient x input gives to all scores together.
    """
    s = scores.softmax(-1)
    return (s * scores * values).sum(-1) - (s * scores).sum(-1) * (s * values).sum(-1)


# ---------------------------------------------------------------- the failure


def forward(vit: VisionTransformer, x: Tensor, hold: Collection[Held] = ()) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of torchvision's Vision Transformer, and its tokens (N, tokens, width) by station, input first.

    What is in `hold` counts as a constant of the gradient: the weights of the "attention", the deviation of a "norm",
    the ratio GELU(z) / z of an "activation".
    """
    if unknown := set(hold) - set(HELD):
        raise LRPError(f"cannot hold {', '.join(sorted(unknown))}; there are {', '.join(HELD)}")

    def held(t: Tensor, part: Held) -> Tensor:
        return t.detach() if part in hold else t

    def norm(layer: nn.LayerNorm, h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
        return centred / held(deviation, "norm") * layer.weight + layer.bias

    def attention(layer: nn.MultiheadAttention, h: Tensor) -> Tensor:
        split = F.linear(h, layer.in_proj_weight, layer.in_proj_bias).unflatten(-1, (3, layer.num_heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (N, heads, tokens, width / heads) each
        A = held((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), "attention")
        return layer.out_proj((A @ v).transpose(1, 2).flatten(2))

    def mlp(block: nn.Sequential, h: Tensor) -> Tensor:
        z = block[0](h)
        return block[3](z * held(torch.special.ndtr(z), "activation"))  # GELU(z) = z * Phi(z)

    h = vit._process_input(x)
    h = torch.cat([vit.class_token.expand(len(h), -1, -1), h], 1) + vit.encoder.pos_embedding
    stations = {"tokens": h}
    for i, block in enumerate(vit.encoder.layers, start=1):
        h = h + attention(block.self_attention, norm(block.ln_1, h))
        h = h + mlp(block.mlp, norm(block.ln_2, h))
        stations[f"block {i}"] = h
    stations["last norm"] = h = norm(vit.encoder.ln, h)
    return vit.heads(h[:, 0]), stations


def totals(
    vit: VisionTransformer, x: Tensor, target: Tensor, hold: Collection[Held] = ()
) -> dict[str, tuple[Tensor, Tensor]]:
    """{station: (sum, sum of sizes)} of gradient x value there as shares of the logit, (N,) each, from the top down.

    The last station is "pixels". In a sum of tokens every channel is a summand.
    """
    x = x.detach().clone().requires_grad_()
    f, stations = forward(vit, x, hold)
    logit = f.gather(1, target[:, None])[:, 0]
    places = {"pixels": x} | stations
    gradients = torch.autograd.grad(logit.sum(), list(places.values()))
    R = {name: (h * g).flatten(1).detach() for (name, h), g in zip(places.items(), gradients, strict=True)}
    seed = logit.detach()
    return {name: (R[name].sum(1) / seed, R[name].abs().sum(1) / seed.abs()) for name in reversed(R)}


# ---------------------------------------------------------------- the ledger


KEEPERS = {  # {kind of a node: what keeps relevance there}
    "softmax": "softmax", "dense": "biases of dense layers", "norm": "means and biases of norms",
    "convolution": "biases of the stem", "rearrange": "class token", "batchnorm": "position embedding",
}  # fmt: skip


def keepers(explanation: Explanation) -> dict[str, Tensor]:
    """{what: its share of the seed, (N,)}: the pixels, every keeper by name, and the rest; they sum to one.

    In torchvision's Vision Transformers the class token is what a `cat` adds, and the position embedding an affine map.
    """
    seed = explanation.seed[0]
    found = {"pixels": explanation.received[0] / seed} | {name: seed * 0 for name in KEEPERS.values()}
    for row in explanation.rows:
        if name := KEEPERS.get(row.kind):
            found[name] = found[name] + torch.as_tensor(row.bias).expand(1, len(seed))[0] / seed
    return found | {"rest": 1 - sum(found.values())}


# ---------------------------------------------------------------- the methods


def plain(**options) -> Composite:
    """LRP-epsilon with the two rules of AttnLRP at products and softmaxes, and norms passed as they are."""
    return composites.AttnLRP(0, 0, norm=rules.Pass(), **options)


def presets(cp: tuple[float, float] = (0.25, 0.05), attn: tuple[float, float] = (0.25, 0.05)) -> dict[str, Composite]:
    """The LRP of the comparison; `cp` and `attn` are the gammas of convolutions and of dense layers."""
    return {
        "plain ε": plain(), "CP-LRP, ε": composites.CPLRP(0, 0), "AttnLRP, ε": composites.AttnLRP(0, 0),
        "CP-LRP, γ": composites.CPLRP(*cp), "AttnLRP, γ": composites.AttnLRP(*attn),
    }  # fmt: skip


def contenders(
    cp: tuple[float, float], attn: tuple[float, float], tokens: Mapping = (), *, slow: int | None = 8
) -> list[Contender]:
    """Controls, gradients and occlusion of `baselines`, the attention methods `tokens`, and LRP's `presets`."""
    base = baselines.METHODS
    gradients = ("gradient", "gradient x input", "integrated gradients")
    families = {"control": ("random", "centre"), "gradient": gradients}
    rows = [Contender(name, family, base[name]) for family, names in families.items() for name in names]
    rows.append(Contender("occlusion", "patch", base["occlusion"], slow))
    rows += [Contender(name, "attention", method) for name, method in dict(tokens).items()]
    return rows + [Contender(n, "LRP", baselines.lrp_method(c)) for n, c in presets(cp, attn).items()]


# ---------------------------------------------------------------- the measurement


def sweep(
    model: nn.Module,
    images: Images,
    black: Tensor | float,
    *,
    convolution: Sequence[float] = CONVOLUTION,
    linear: Sequence[float] = LINEAR,
    step: int = 256,
) -> pd.DataFrame:
    """Localisation and the ID scores of CP-LRP and AttnLRP for all pairs of gammas, one row per image and metric."""
    makes = {"CP-LRP": composites.CPLRP, "AttnLRP": composites.AttnLRP}
    rows, label = [], images.labels[0]
    for name, make, gamma, dense in ((*m, g, d) for m in makes.items() for g in convolution for d in linear):
        R = explain(model, baselines.lrp_method(make(gamma, dense)), images.x, label)
        found = {LOCALISATION: localisation_of(R, images)}
        for metric, protocol in PROTOCOLS.items():
            options = {"protocol": protocol, "step": step, "black": black, "progress": False}
            found[metric] = insertion.measure(model, images.x, R, label, **options).id_score()
        head = {"preset": name, "gamma": gamma, "gamma_linear": dense}
        rows += [
            head | {"metric": m, "sample": i, "value": float(v)} for m, by in found.items() for i, v in enumerate(by)
        ]
    return pd.DataFrame(rows)


def chosen(rows: pd.DataFrame, metric: str = BLUR) -> dict[str, tuple[float, float]]:
    """{preset: (gamma, gamma_linear)} with the largest mean of a metric in a `sweep`."""
    means = rows[rows.metric == metric].groupby(["preset", "gamma", "gamma_linear"], sort=False).value.mean()
    return {name: means[name].idxmax() for name in means.index.unique("preset")}


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values of a family of tests, adjusted by Holm's step-down method."""
    p = np.asarray(p, float)
    order = p.argsort()
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return steps[order.argsort()]


def sign_flips(differences: np.ndarray, *, draws: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences: how often flipped signs give one as far from 0."""
    d = np.asarray(differences, float)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (draws, len(d)))
    return float((1 + (np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)).sum()) / (draws + 1))


def paired(rows: pd.DataFrame, metric: str, ours: str) -> dict[str, tuple[Interval, float]]:
    """{rival: (ours - rival with its interval, p after Holm)} over the images that both explained; no controls."""
    part = rows[(rows.metric == metric) & (rows.family != "control")]
    wide = part.pivot(index="sample", columns="method", values="value")[part.method.unique()]
    gaps = {name: (wide[ours] - wide[name]).dropna().to_numpy() for name in wide if name != ours}
    adjusted = holm([sign_flips(d) for d in gaps.values()])
    return {name: (metrics.interval(d), float(p)) for (name, d), p in zip(gaps.items(), adjusted, strict=True)}


def price(model: nn.Module, methods: Mapping, x: Tensor, target: Tensor) -> dict[str, float]:
    """Seconds of each method in units of one forward pass with one gradient of the input, least of three."""
    unit = cost.quickest(lambda: gradient_x_input(model, x, target))
    return {name: cost.quickest(lambda m=method: m(model, x, target)) / unit for name, method in methods.items()}
