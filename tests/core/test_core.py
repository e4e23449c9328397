"""The engine as a whole: the books, LRP's known identities, seeds, and what must not change."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import PRESETS, small
from torch import nn

from lrp import LRP, LRPError, LRPWarning, composites, quantus_explain, rules, seeds


@pytest.mark.parametrize("bias", ["absorb", "exclude"])
@pytest.mark.parametrize("preset", PRESETS)
def test_books_balance(preset, bias):
    """seed = input + biases + stabiliser + lost per target and sample, nothing lost, and rows that follow on."""
    unbounded = bias == "exclude" and preset in ("epsilon", "signed")  # where z - b is small, shares are large
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3 if unbounded else 1e-4)):
        model, x = small(dtype=dtype)
        e = LRP(model, PRESETS[preset](bias=bias)).explain(x, [0, None, torch.tensor([1, 2, 3])])
        assert e.imbalance <= tolerance
        for t in range(3):
            for n in range(3):
                books = e.ledger_of(t, n)
                logit = float(e.output[n, e.target[t, n]])
                kept = books[["bias", "stabiliser", "lost"]].to_numpy().sum()
                arrived = float(e.relevance[t, n].double().sum())
                assert logit == pytest.approx(arrived + kept, rel=tolerance, abs=tolerance * abs(logit) * 50)
                rows = books.relevance_out - books.relevance_in - books.bias - books.stabiliser
                assert np.allclose(rows, books.lost, atol=1e-12)
        assert e.ledger.loc["head.1", "relevance_out"] == pytest.approx(float(e.seed.sum()))
        t = e.totals
        assert t["seed"] == pytest.approx(t["input"] + t["bias"] + t["stabiliser"] + t["lost"], rel=1e-6)
        if bias == "exclude" and preset != "unfolded":
            gone = e.ledger.bias.abs().sum()
            assert gone == 0


def test_ledger_of_a_tiny_net_by_hand():
    """x = 2 -> h = 3x + 1 = 7 -> ReLU -> f = 2h - 4 = 10, absolute epsilon 1 in the last layer, LRP-0 in the first.

    f: 10 / (10 + 1) is shared: h gets 14 * 10/11, the bias -4 * 10/11, the stabiliser 10 - 100/11 = 10/11.
    h: of R_h = 140/11 the input gets 6/7 = 120/11 and the bias 1/7 = 20/11.
    """
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    for layer, w, b in ((model[0], 3, 1), (model[2], 2, -4)):
        layer.weight.data.fill_(w), layer.bias.data.fill_(b)
    rule = {"2": rules.Epsilon(1.0, relative=False)}
    e = LRP(model, composites.Epsilon(0.0, overrides=rule)).explain(torch.full((1, 1), 2.0).double(), 0)
    amounts = e.ledger[["relevance_out", "relevance_in", "bias", "stabiliser", "lost"]].to_numpy() * 11
    assert list(e.ledger.index) == ["2", "1", "0"]
    assert np.allclose(amounts, [[110, 140, -40, 10, 0], [140, 140, 0, 0, 0], [140, 120, 20, 0, 0]], atol=1e-9)
    assert e.totals == pytest.approx(
        {"seed": 10, "input": 120 / 11, "bias": -20 / 11, "stabiliser": 10 / 11, "lost": 0}
    )
    assert all(text in repr(e) for text in ("seed        +10", "input       +10.9", "biases      -1.81", "109.1 %"))


class Exp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.b(torch.exp(self.a(x)))


def test_lost_relevance_is_counted_and_warned_about():
    """exp'(x) x is not exp(x): Epsilon at that node keeps x_i of every unit, and the ledger says what is missing."""
    torch.manual_seed(0)
    model, x = Exp().double().eval(), torch.randn(1, 3).double()
    explainer = LRP(model, composites.Epsilon(1e-12, overrides={"exp": rules.Epsilon(1e-12)}))
    with pytest.warns(LRPWarning, match=r"unaccounted for, most of it at node `exp`"):
        e = explainer.explain(x, 0)
    with torch.no_grad():
        a = model.a(x)
        arriving = a.exp() * model.b.weight[0]
    assert e.ledger.lost["exp"] == pytest.approx(float((arriving * (1 - a)).sum()), rel=1e-6)
    assert e.imbalance == pytest.approx(abs(e.ledger.lost["exp"] / e.totals["seed"]), rel=1e-6)


def test_quiet_where_nothing_is_lost():
    model, x = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LRP(model).explain(x)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        x = F.relu(x + self.n(self.a(x)))
        x = F.max_pool2d(F.leaky_relu(x - self.b(x) + 0.3, 1.0), 2)
        return self.head(x.mean((2, 3)))


def test_epsilon_is_gradient_times_input():
    torch.manual_seed(1)
    model, x = ResNet().double().eval(), torch.randn(2, 3, 4, 4).double().requires_grad_()
    model.n.running_mean.normal_(), model.n.running_var.uniform_(0.5, 2)
    expected = torch.autograd.grad(model(x)[:, 2].sum(), x)[0] * x
    R = LRP(model, composites.Epsilon(1e-13, addition=rules.Epsilon(1e-13))).attribute(x, 2)
    assert torch.allclose(R, expected.detach(), rtol=1e-8, atol=1e-10) and not R.requires_grad


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_has_one_map_alone_and_in_a_batch(preset):
    model, x = small()
    explainer = LRP(model, PRESETS[preset]())
    together = explainer.explain(x, torch.tensor([4, 0, 2]), layers=["conv"])
    for n, target in enumerate((4, 0, 2)):
        alone = explainer.explain(x[n : n + 1], target, layers=["conv"])
        assert torch.allclose(alone.relevance[0], together.relevance[n], rtol=1e-9, atol=1e-13)
        assert torch.allclose(alone.layers["conv"][0], together.layers["conv"][n], rtol=1e-9, atol=1e-13)
        assert np.allclose(alone.ledger.relevance_in, together.ledger_of(sample=n).relevance_in, atol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_several_targets_are_several_calls(preset):
    model, x = small()
    explainer = LRP(model, PRESETS[preset]())
    asked = [0, None, torch.tensor([1, 2, 3])]
    e = explainer.explain(x, asked, layers=["conv", "head"])
    for t, target in enumerate(asked):
        one = explainer.explain(x, target, layers=["conv", "head"])
        assert torch.allclose(e.relevance[t], one.relevance, rtol=1e-9, atol=1e-13)
        assert torch.equal(e.target[t], one.target)
        assert torch.allclose(e.layers["conv"][t], one.layers["conv"], rtol=1e-9, atol=1e-13)
        assert e.totals["seed"] != one.totals["seed"]


def test_relevance_scales_with_the_input():
    """Without biases a ReLU network is homogeneous, and so is LRP; epsilon is relative, so it does not interfere."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False)]
    model, x = nn.Sequential(*layers).double().eval(), torch.randn(2, 3, 4, 4).double()
    for composite in (composites.Epsilon(0.1), composites.EpsilonPlus(0.1), composites.EpsilonAlpha2Beta1(0.1)):
        R, R_scaled = (LRP(model, composite).attribute(s * x, 1) for s in (1, 1e-5))
        assert torch.allclose(R_scaled * 1e5, R, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", PRESETS)
def test_lower_precision_agrees_roughly(dtype, preset):
    """Finite, in the model's dtype, and close to the map of float64."""
    model, x = small()
    expected = LRP(model, PRESETS[preset]()).attribute(x, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LRPWarning)  # half precision may lose some
        R = LRP(model.to(dtype), PRESETS[preset]()).attribute(x.to(dtype), 1)
    assert R.dtype == dtype and torch.isfinite(R).all()
    alike = F.cosine_similarity(R.double().flatten(1), expected.flatten(1))
    least = {torch.float32: 1 - 1e-6, torch.bfloat16: 0.9, torch.float16: 0.99}[dtype]
    assert alike.min() > least, alike


def test_seeds_by_their_definitions():
    """The walk is linear in the seed, so each seed equals the tensor that its paper writes down."""
    model, x = small()
    explainer = LRP(model)
    f = model(x).detach()
    target = torch.tensor([1, 4, 0])
    rows = torch.arange(3)
    t = torch.zeros_like(f)
    t[rows, target] = 1
    leaf = f.clone().requires_grad_()
    slope = torch.autograd.grad(leaf.softmax(1)[rows, target].sum(), leaf)[0]
    f_t = f[rows, target][:, None]
    weights = (1 - t) * f.abs()
    expected = {
        seeds.Logit(): t * f,
        seeds.OneHot(): t,
        seeds.Probability(): t * f.softmax(1),
        seeds.SoftmaxGradient(): slope,
        seeds.Contrastive(positive=False): t * f - (1 - t) * f_t / 4,
        seeds.Contrastive(others="logit", positive=False): t * f - f_t * weights / weights.sum(1, keepdim=True),
    }
    for seed, tensor in expected.items():
        e = explainer.explain(x, target, seed=seed)
        by_tensor = explainer.explain(x, seed=tensor)
        assert torch.allclose(e.relevance, by_tensor.relevance, rtol=1e-10, atol=1e-14), seed
        assert torch.allclose(e.seed[0], tensor.sum(1), atol=1e-12) and by_tensor.target is None
    assert torch.equal(explainer.attribute(x, target), explainer.attribute(x, target, seed=seeds.Logit()))
    both = explainer.explain(x, seed=torch.stack([t, slope]))
    assert torch.allclose(both.relevance[1], explainer.attribute(x, seed=slope), rtol=1e-9, atol=1e-14)


def test_contrastive_in_one_pass_is_the_papers_two():
    """kind 1: max(0, R(target) - R(others with the same total)); kind 2: minus the walk with negated last weights."""
    model, x = small()
    composite = composites.EpsilonPlus(overrides={"head.1": rules.ZPlus()}, bias="exclude")
    explainer = LRP(model, composite)
    f_t = model(x).detach()[:, 2]
    others = torch.ones(3, 5).double() / 4 * f_t[:, None]
    others[:, 2] = 0
    target = explainer.attribute(x, 2)
    one = (target - explainer.attribute(x, seed=others)).clamp(min=0)
    assert torch.allclose(explainer.attribute(x, 2, seed=seeds.Contrastive()), one, atol=1e-12)
    negated = copy.deepcopy(model)
    negated.head[1].weight.data.neg_(), negated.head[1].bias.data.neg_()
    start = torch.zeros(3, 5).double()
    start[:, 2] = f_t
    two = (target - LRP(negated, composite).attribute(x, seed=start)).clamp(min=0)
    e = explainer.explain(x, 2, seed=seeds.Contrastive(kind=2))
    assert torch.allclose(e.relevance, two, atol=1e-12) and float(two.max()) > 0 and e.imbalance < 1e-9
    with pytest.raises(LRPError, match=r"identically zero under Epsilon.*layer `head\.1`.*rules\.ZPlus\(\)"):
        LRP(model).attribute(x, 2, seed=seeds.Contrastive(kind=2))


def test_layers_carry_what_the_ledger_says():
    model, x = small()
    e = LRP(model, composites.EpsilonPlus(bias="exclude")).explain(x, 1, layers=["stem", "pool", "conv", "head"])
    assert {k: tuple(v.shape) for k, v in e.layers.items()} == {
        "stem": (3, 6, 8, 8), "pool": (3, 6, 4, 4), "conv": (3, 6, 4, 4), "head": (3, 5)}  # fmt: skip
    for name, node in (("stem", "stem.2"), ("pool", "pool"), ("conv", "conv"), ("head", "head.1")):
        assert float(e.layers[name].sum()) == pytest.approx(e.ledger.relevance_out[node], rel=1e-10)
    assert float(e.layers["pool"].sum()) == pytest.approx(e.totals["seed"], rel=1e-5)


def test_captum_and_quantus_conventions():
    attr, metrics = pytest.importorskip("captum.attr"), pytest.importorskip("captum.metrics")
    model, x = small()
    explainer = LRP(model)
    smooth = attr.NoiseTunnel(explainer).attribute(x, nt_samples=4, stdevs=1e-9, target=1)
    assert torch.allclose(smooth, explainer.attribute(x, 1), rtol=1e-4, atol=1e-7)
    assert metrics.sensitivity_max(explainer.attribute, x, target=1).shape == (3,)
    assert torch.equal(explainer.attribute((x,), 1)[0], explainer.attribute(x, 1))
    y = np.array([0, 3, 1])
    R = quantus_explain(model, x.numpy(), y, composite=composites.Epsilon(), device="cpu", normalise=True)
    expected = LRP(model, composites.Epsilon()).attribute(x, torch.tensor(y))
    assert isinstance(R, np.ndarray) and np.array_equal(R, expected.numpy())
    assert np.array_equal(quantus_explain(model, x.float().numpy(), 2).shape, x.shape)
