"""Softmax, products of two matrices, norms with a fixed deviation; CP-LRP and AttnLRP on whole transformers.

Each rule is held to a dense Jacobian, or to x times the gradient of the network in which what counts as constant is
detached: CP-LRP as epsilon goes to 0, with deviations and attention weights detached, is exactly that.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
import torchvision
from derivation import relevance
from networks import Net
from torch import Tensor, nn
from torch.func import jacrev

from lrp import LRP, composites, rules
from lrp.data import datasets, models
from lrp.errors import LRPError, UnsupportedOperation

TINY = 1e-14
LRP_0 = {"gamma": 0, "gamma_linear": 0, "epsilon": TINY}
CP, ATTN = composites.CPLRP(**LRP_0), composites.AttnLRP(**LRP_0)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def vit(seed: int = 0, spread: float = 0.2, **options) -> nn.Module:
    """torchvision's vision transformer in miniature, in float64, with biases, gains and a head that are not trivial."""
    torch.manual_seed(seed)
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
    model = torchvision.models.VisionTransformer(**sizes | {"num_classes": 5} | options).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * torch.randn_like(p))
    return model


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


# ---------------------------------------------------------------- one rule at a time


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_taylor_at_a_softmax_is_the_gradient_with_its_constant_left_out(dim):
    """R_i = x_i sum_j (ds_j / dx_i) R_j / s_j, by a dense Jacobian; the ledger's line says what the constant keeps."""
    torch.manual_seed(0)
    model = Net(lambda m, x: m.f(x.softmax(dim).flatten(1)), f=nn.Linear(12, 3)).double().eval()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    composite = composites.Epsilon(TINY, softmax=rules.Taylor())
    e = LRP(model, composite).explain(x, 1)
    for n in range(2):
        s = x[n].softmax(dim if dim < 0 else dim - 1)
        R_s = s * model.f.weight[1].view_as(s)
        J = jacrev(lambda x: x.softmax(dim if dim < 0 else dim - 1))(x[n])
        assert close(e.relevance[n], x[n] * torch.einsum("abij,ab->ij", J, R_s / s))
        kept = e.ledger_of(sample=n).loc["softmax", "bias"]
        assert kept == pytest.approx(float(R_s.sum() - e.relevance[n].sum()), abs=1e-12)


def test_a_softmax_without_a_rule_is_refused_by_name():
    model = Net(lambda m, x: m.f(x.softmax(1)), f=nn.Linear(4, 3)).eval()
    with pytest.raises(UnsupportedOperation, match=r"`softmax`.*has no rule"):
        LRP(model).attribute(torch.randn(2, 4), 1)


def test_both_factors_of_a_matrix_product_get_half_by_contributions():
    """A and V of O = A V, each A_ji V_ip / (2 O_jp) R_jp, in slow loops."""
    torch.manual_seed(0)
    model = Net(lambda m, x: m.f((x[:, :2] @ x[:, 2:]).flatten(1)), f=nn.Linear(6, 3)).double().eval()
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    e = LRP(model, composites.Epsilon(TINY, matmul=rules.Uniform(TINY))).explain(x, 1)
    A, V = x[0, :2], x[0, 2:]
    out = A @ V
    R, want = out * model.f.weight[1].view(2, 3), torch.zeros(5, 3, dtype=torch.float64)
    for j in range(2):
        for i in range(3):
            for p in range(3):
                part = A[j, i] * V[i, p] / (2 * out[j, p]) * R[j, p]
                want[j, i] += part
                want[2 + i, p] += part
    assert close(e.relevance[0], want)


@pytest.mark.parametrize("rule", [rules.SignalTakesAll(TINY), rules.Uniform(TINY)])
@pytest.mark.parametrize(
    "call",
    [
        lambda a, v: a @ v,
        lambda a, v: torch.bmm(a, v),
        lambda a, v: torch.einsum("nji,nip->njp", a, v),
        lambda a, v: torch.einsum("nip,nji->njp", v, a),
        lambda a, v: torch.baddbmm(torch.zeros(()).to(v), a, v),
        lambda a, v: (v.mT @ a.mT).mT,
        lambda a, v: (a[..., None] * v[:, None]).sum(2),
        lambda a, v: (v[:, None] * a.unsqueeze(-1)).sum(-2),
        lambda a, v: torch.stack([(a[:, j, :, None] * v).sum(1) for j in range(5)], 1),
    ],
)
def test_the_same_product_otherwise_has_the_same_map(rule, call):
    """What a softmax made is the gate, on whichever side it stands."""

    def model(product):
        torch.manual_seed(0)
        parts = {"g": nn.Linear(4, 5), "v": nn.Linear(4, 3), "f": nn.Linear(3, 2)}
        return Net(lambda m, x: m.f(product(m.g(x).softmax(-1), m.v(x)).mean(1)), **parts).double().eval()

    x = torch.randn(2, 5, 4, dtype=torch.float64)
    composite = composites.Epsilon(TINY, matmul=rule, softmax=rules.Taylor())
    plain, other = (LRP(model(p), composite).attribute(x, 1) for p in (lambda a, v: a @ v, call))
    assert close(other, plain)


def test_heads_that_are_mixed_after_the_softmax_still_are_the_gate():
    """Talking heads: a linear map of attention weights is no probability any more, but no value either."""
    torch.manual_seed(0)
    parts = {"g": nn.Linear(4, 5), "mix": nn.Linear(5, 5), "v": nn.Linear(4, 3), "f": nn.Linear(3, 2)}
    model = Net(lambda m, x: m.f((m.mix(m.g(x).softmax(-1)) @ m.v(x)).mean(1)), **parts).double().eval()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    e = LRP(model, composites.Epsilon(TINY)).explain(x, 1)
    leaf = x.clone().requires_grad_()
    weights = model.mix(model.g(x).softmax(-1)).detach()
    y = model.f((weights @ model.v(leaf)).mean(1))[:, 1].sum()
    assert close(e.relevance, x * torch.autograd.grad(y, leaf)[0])


def test_linear_attention_has_no_gate_in_its_second_product():
    """softmax(k)^T V is made of values: q and it meet as two signals, in halves, and V gets its half."""
    torch.manual_seed(0)
    parts = {k: nn.Linear(4, 4) for k in "qkv"}
    model = Net(
        lambda m, x: m.f((m.q(x) @ (m.k(x).softmax(1).transpose(1, 2) @ m.v(x))).mean(1)), **parts, f=nn.Linear(4, 2)
    )
    model, x = model.double().eval(), torch.randn(2, 5, 4, dtype=torch.float64)
    e = LRP(model, composites.Epsilon(TINY)).explain(x, 1, layers=["q", "k", "v"])
    q, v = (e.layers[name].sum((1, 2)) for name in "qv")
    assert close(q, v) and not e.layers["k"].any()
    assert close(e.relevance, relevance(model, x, F.one_hot(torch.tensor([1, 1]), 2)).relevance, 1e-8)


@pytest.mark.parametrize("order", ["njp", "jnp", "jpn", "pnj"])
@pytest.mark.parametrize("n", [3, 5])
def test_an_einsum_may_put_samples_on_any_axis(order, n):
    """Each keeps its own scale, also where there are as many samples as queries: one is a million times larger."""
    torch.manual_seed(0)
    parts = {"g": nn.Linear(4, 5), "v": nn.Linear(4, 3), "f": nn.Linear(3, 2)}

    def call(m, x):
        o = torch.einsum(f"nji,nip->{order}", m.g(x).softmax(-1), m.v(x))
        return m.f(o.permute(*(order.index(axis) for axis in "njp")).mean(1))

    model = Net(call, **parts).double().eval()
    x = torch.randn(n, 5, 4, dtype=torch.float64)
    x[1] *= 1e6
    for composite in (composites.AttnLRP(0, 0, 1e-3), composites.CPLRP(0, 0, 1e-3)):
        explainer = LRP(model, composite)
        e = explainer.explain(x, 1)
        assert close(explainer.attribute(x[2:3], 1), e.relevance[2:3]) and e.imbalance < 1e-9


@pytest.mark.parametrize("product", [lambda a, v: a @ v, lambda a, v: (a[..., None] * v[:, None]).sum(2)])
def test_a_softmax_by_hand_is_the_gate_too(product):
    def model(softmax):
        torch.manual_seed(0)
        parts = {"g": nn.Linear(4, 5), "v": nn.Linear(4, 3), "f": nn.Linear(3, 2)}
        return Net(lambda m, x: m.f(product(softmax(m.g(x)), m.v(x)).mean(1)), **parts).double().eval()

    def by_hand(s):
        e = (s - s.amax(-1, keepdim=True)).exp()
        return e / e.sum(-1, keepdim=True)

    x = torch.randn(2, 5, 4, dtype=torch.float64)
    plain, other = (LRP(model(way), CP).attribute(x, 1) for way in (lambda s: s.softmax(-1), by_hand))
    assert close(other, plain)


def _fixed_norm(module: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm, GroupNorm, InstanceNorm with the deviation detached, from the definition."""
    if isinstance(module, nn.LayerNorm):
        axes = tuple(range(-len(module.normalized_shape), 0))
        mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        y = (x - mean) / (var + module.eps).sqrt().detach()
        return y * module.weight + module.bias
    groups = getattr(module, "num_groups", x.shape[1])
    rows = x.reshape(len(x), groups, -1)
    y = (rows - rows.mean(2, keepdim=True)) / (rows.var(2, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
    shape = [1, -1] + [1] * (x.dim() - 2)
    return y.view(x.shape) * module.weight.view(shape) + module.bias.view(shape)


NORMS = {
    "layer": (lambda: nn.LayerNorm(6), (3, 6)),
    "layer over two axes": (lambda: nn.LayerNorm((3, 6)), (3, 6)),
    "group": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "instance": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 5)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("bias", ["absorb", "exclude"])
def test_a_norm_under_epsilon_is_linear_with_a_fixed_deviation(name, bias):
    torch.manual_seed(0)
    make, shape = NORMS[name]
    norm = make()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    size = int(torch.tensor(shape).prod())
    model = Net(lambda m, x: m.f(m.n(x).flatten(1)), n=norm, f=nn.Linear(size, 3, bias=False)).double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64)
    e = LRP(model, composites.Epsilon(TINY, norm=rules.Epsilon(TINY), bias=bias)).explain(x, 1)
    leaf = x.clone().requires_grad_()
    y = _fixed_norm(model.n, leaf)
    shift = y.detach() if bias == "absorb" else _fixed_norm(model.n, x).detach() - _bias(model.n, x)
    R = y.detach() * model.f.weight[1].view(shape)
    want = x * torch.autograd.grad(y, leaf, R / shift)[0]
    assert close(e.relevance, want) and e.imbalance < 1e-12


def _bias(module: nn.Module, x: Tensor) -> Tensor:
    shape = module.bias.shape if isinstance(module, nn.LayerNorm) else [1, -1] + [1] * (x.dim() - 2)
    return module.bias.detach().view(shape)


@pytest.mark.parametrize("norm", [nn.RMSNorm(6), lambda x: F.normalize(x, dim=-1)])
def test_a_norm_that_only_scales_is_the_identity_under_both_rules(norm):
    model = Net(lambda m, x: m.f(norm(x)), f=nn.Linear(6, 3)).double().eval()
    x = torch.randn(2, 6, dtype=torch.float64)
    maps = [LRP(model, composites.Epsilon(TINY, norm=r)).attribute(x, 1) for r in (rules.Pass(), rules.Epsilon(TINY))]
    assert torch.equal(*maps)


def test_what_has_no_meaning_is_refused_by_name():
    model = Net(lambda m, x: m.f(m.n(x)), n=nn.LayerNorm(6), f=nn.Linear(6, 3)).eval()
    with pytest.raises(LRPError, match=r"ZPlus\(\) has no meaning at the norm `n`: there are Pass\(\) and Epsilon"):
        LRP(model, composites.Epsilon(norm=rules.ZPlus())).attribute(torch.randn(2, 6), 1)
    with pytest.raises(LRPError, match=r"Uniform.* is a rule for matmul and product; `f` is dense"):
        LRP(model, composites.Epsilon(overrides={"f": rules.Uniform()}))
    with pytest.raises(TypeError, match="is no rule"):
        composites.Epsilon(softmax=rules.Taylor)


def test_halves_at_an_elementwise_product_if_asked_for():
    model = Net(lambda m, x: m.f(m.a(x) * m.b(x).sigmoid()), **{k: nn.Linear(3, 3) for k in "abf"}).double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    e = LRP(model, composites.Epsilon(TINY, overrides={"mul": rules.Uniform()})).explain(x, 1, layers=["a", "b"])
    assert torch.allclose(e.layers["a"].sum(), e.layers["b"].sum()) and float(e.layers["b"].abs().sum()) > 0


# ---------------------------------------------------------------- whole transformers


def _detached(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """x times the gradient of torchvision's ViT with attention weights and deviations detached, written out."""
    model = model.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    tokens = model.conv_proj(leaf).flatten(2).mT
    h = torch.cat([model.class_token.expand(len(x), -1, -1), tokens], 1) + model.encoder.pos_embedding
    for block in model.encoder.layers:
        a = block.self_attention
        z = _fixed_norm(block.ln_1, h)
        q, k, v = (F.linear(z, *wb) for wb in zip(a.in_proj_weight.chunk(3), a.in_proj_bias.chunk(3), strict=True))
        q, k, v = (t.unflatten(-1, (a.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).detach()
        h = h + a.out_proj((weights @ v).transpose(1, 2).flatten(2))
        z = block.mlp[0](_fixed_norm(block.ln_2, h))
        h = h + block.mlp[3](z * (F.gelu(z) / z).detach())
    y = model.heads(_fixed_norm(model.encoder.ln, h)[:, 0])
    return x * torch.autograd.grad(y[:, target].sum(), leaf)[0]


def test_cplrp_is_x_times_the_gradient_of_the_network_with_its_constants_detached():
    model, x = vit(), images()
    e = LRP(model, CP).explain(x, 1)
    assert close(e.relevance, _detached(model, x, 1)) and e.imbalance < 1e-10


def _without_biases(model: nn.Module) -> nn.Module:
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    return model


@pytest.mark.parametrize("bias", ["absorb", "exclude"])
def test_cplrp_conserves_but_for_what_constants_keep(bias):
    """Without biases only the class token and the position embedding keep a share, each on its line of the ledger."""
    model = _without_biases(vit())
    composite = composites.CPLRP(0.25, 0.05, TINY, bias=bias)
    rows = LRP(model, composite).explain(images(), 1).ledger
    assert set(rows.index[rows.bias.abs() > 1e-12]) <= {"cat", "encoder.add"}
    assert abs(rows.loc["cat", "bias"]) > 1e-6
    e = LRP(model, composite).explain(images(), 1)
    kept = rows.loc[["cat", "encoder.add"], "bias"].sum()
    assert float(e.seed.sum()) == pytest.approx(float(e.received.sum()) + kept, rel=1e-9)


def test_what_attnlrp_does_not_conserve_stands_in_the_lines_of_the_softmaxes():
    model = _without_biases(vit())
    e = LRP(model, composites.AttnLRP(0.25, 0.05, TINY)).explain(images(), 1)
    by_kind = e.ledger.groupby("kind").bias.sum()
    missing = float(e.seed.sum() - e.received.sum()) - by_kind[["rearrange", "batchnorm"]].sum()
    assert abs(by_kind["softmax"]) > 1e-6 and missing == pytest.approx(by_kind["softmax"], rel=1e-9)


@pytest.mark.parametrize("composite", [CP, composites.AttnLRP(), composites.EpsilonPlus()])
def test_relevance_is_permuted_as_tokens_are(composite):
    """A transformer without positions does not know the order of its tokens: neither do its maps."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Net(lambda m, x: m.f(m.e(x).mean(1)), e=encoder, f=nn.Linear(8, 3)).double().eval()
    x, order = torch.randn(2, 6, 8, dtype=torch.float64), torch.tensor([3, 1, 5, 0, 2, 4])
    explainer = LRP(model, composite)
    assert close(explainer.attribute(x[:, order], 1), explainer.attribute(x, 1)[:, order], 1e-8)


def test_what_is_added_to_scores_belongs_to_the_softmax():
    """A mask and a position bias, in either order, and a scale: one map; and minus infinity harms nothing."""
    mask = torch.zeros(5, 5, dtype=torch.float64)
    mask[:, 3] = -torch.inf
    bias = torch.randn(5, 5, dtype=torch.float64)
    ways = [
        lambda s: (s * 0.5 + bias + mask).softmax(-1),
        lambda s: (mask + (bias + s / 2)).softmax(-1),
        lambda s: ((s * 0.5 + bias).masked_fill(mask < 0, -torch.inf)).softmax(-1),
    ]
    maps = []
    for way in ways:
        torch.manual_seed(0)
        parts = {k: nn.Linear(4, 4) for k in "qkv"}
        model = Net(lambda m, x, way=way: m.f((way(m.q(x) @ m.k(x).mT) @ m.v(x)).mean(1)), **parts, f=nn.Linear(4, 2))
        x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
        e = LRP(model.double().eval(), ATTN).explain(x, 1)
        assert e.imbalance < 1e-10 and torch.isfinite(e.relevance).all()
        maps.append(e.relevance)
    assert close(maps[1], maps[0]) and close(maps[2], maps[0], 1e-6)


def test_a_masked_token_gets_nothing():
    torch.manual_seed(0)
    padded = torch.tensor([[False] * 4 + [True] * 2])
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Net(
        lambda m, x: m.f(m.a(x, x, x, key_padding_mask=m.p.expand(len(x), -1))[0][:, :4].mean(1)),
        a=attention, p=padded, f=nn.Linear(8, 3),
    ).double().eval()  # fmt: skip
    for composite in (CP, ATTN, composites.EpsilonPlus()):
        R = LRP(model, composite).attribute(torch.randn(2, 6, 8, dtype=torch.float64), 1)
        assert not R[:, 4:].any() and R[:, :4].any()


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "swin_v2_t", "maxvit_t"])
@pytest.mark.slow
def test_torchvisions_transformers_balance(name):
    """Random weights: finite, balanced, the same for one as for many, the model untouched; windows, shifts, cosines."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).double().eval()
    if hasattr(model, "heads"):  # torchvision starts this head at zero
        nn.init.normal_(model.heads.head.weight, std=0.02)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    for composite in (composites.CPLRP(), composites.AttnLRP()):
        explainer = LRP(model, composite)
        e = explainer.explain(x, 1)
        assert torch.isfinite(e.relevance).all() and e.imbalance < 1e-4
        assert close(explainer.attribute(x[1:], 1), e.relevance[1:], 1e-4)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_scene_vit_is_explained_with_its_books():
    """The committed checkpoint: what biases, softmaxes, class token and positions keep adds up with the input's."""
    model, scenes = models.load("scene_vit"), datasets.scenes(4, split="test")
    for composite in (composites.CPLRP(), composites.AttnLRP(), composites.EpsilonPlus()):
        e = LRP(model, composite).explain(scenes.inputs)
        assert e.imbalance < 1e-4 and torch.isfinite(e.relevance).all()
        kinds = set(e.ledger.index[e.ledger.kind == "softmax"])
        assert len(kinds) == (3 if isinstance(composite, composites.AttnLRP) else 0)


# ---------------------------------------------------------------- beside LXT

LXT = """
    import copy, json, sys
    import torch
    from torch import nn
    from torchvision.models import vision_transformer as vt
    from lxt.efficient import monkey_patch, monkey_patch_zennit
    from zennit.composites import LayerMapComposite
    import zennit.rules as z
    from test_attention import images, vit
    monkey_patch(vt), monkey_patch_zennit()
    found = []
    for conv, linear in json.loads(sys.argv[1]):
        model, x = vit(), images().requires_grad_()
        hooks = LayerMapComposite([(nn.Conv2d, z.Gamma(conv)), (nn.Linear, z.Gamma(linear))])
        hooks.register(model)
        model(x)[:, 1].sum().backward()
        found.append((x.grad * x).tolist())
    print(json.dumps(found))
"""


def test_agrees_with_lxt():
    """LXT 2.1's own preset for torchvision's vision transformers, at three pairs of gammas: cosine above 0.999999.

    Its gammas do not reach the projections inside nn.MultiheadAttention, which are no modules: `composites.LXTViT`
    does the same. With these at gamma, too, the cosine is 0.98.
    """
    pytest.importorskip("lxt", reason="needs lxt (pip install lxt zennit==0.5.1 transformers==4.53.3)")
    gammas = [(0, 0), (0.25, 0.05), (100, 1)]
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LXT), json.dumps(gammas)]
    run = subprocess.run(command, capture_output=True, text=True, cwd="tests/core", env=_paths())
    assert run.returncode == 0, run.stderr
    for pair, theirs in zip(gammas, json.loads(run.stdout), strict=True):
        ours = LRP(vit(), composites.LXTViT(*pair, epsilon=1e-12)).attribute(images(), 1)
        likeness = F.cosine_similarity(ours.flatten(1), torch.tensor(theirs, dtype=torch.float64).flatten(1))
        assert float(likeness.min()) > 0.999999, (pair, likeness)


def _paths() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), "tests", *sys.path])}
