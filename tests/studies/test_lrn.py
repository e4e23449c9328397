"""Rules at local response normalisation, against loops over pairs of units and the facts that follow from them.

A trial keeps the images that its network gets right, and treats all methods alike.
"""

import itertools
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net
from torch import nn

from lrp import LRP, DataError, LRPError, LRPWarning, UnsupportedOperation, composites, rules, splitting
from lrp.data import datasets, models
from lrp.evaluate import metrics
from lrp.studies import lrn
from lrp.studies.lrn import LRNGradient, LRNPath, LRNTaylor, LRNToolbox, Trial, WithinChannelLRN

RULES = [LRNTaylor(), LRNTaylor("uniform"), LRNPath(), LRNToolbox(), LRNGradient()]
LAYERS = {
    "across": nn.LocalResponseNorm(3, 2.0, 0.75, 1.0),
    "across, even": nn.LocalResponseNorm(4, 1.0, 0.6, 2.0),
    "wider than the channels": nn.LocalResponseNorm(9, 3.0, 1.0, 0.5),
    "one channel": nn.LocalResponseNorm(1, 1.5),
    "within": WithinChannelLRN(3, 4.0, 0.75),
    "within, even": WithinChannelLRN(2, 2.0, 0.5, 3.0),
}
SHAPES = {"across": (2, 5, 3, 2), "across, even": (2, 5, 4), "wider than the channels": (1, 4, 2, 2, 2)}


def pairs(layer, shape):
    """(k, j) for every unit k and every j of its neighbourhood, k included, as index tuples of one sample."""
    before, after = layer.size // 2, (layer.size - 1) // 2
    for k in itertools.product(*map(range, shape)):
        axes = (1, 2) if isinstance(layer, WithinChannelLRN) else (0,)
        for step in itertools.product(range(-before, after + 1), repeat=len(axes)):
            j = list(k)
            for axis, d in zip(axes, step, strict=True):
                j[axis] += d
            if all(0 <= index < size for index, size in zip(j, shape, strict=True)):
                yield k, tuple(j)


def coefficients(rule, layer, x):
    """z[k][j] of one sample, by the equations, with s, y and everything else worked out unit by unit."""
    b = layer.alpha / layer.size ** (2 if isinstance(layer, WithinChannelLRN) else 1)
    c, k0 = layer.beta, layer.k
    around = {}
    for k, j in pairs(layer, x.shape):
        around.setdefault(k, []).append(j)
    z = {}
    for k, members in around.items():
        v, s = float(x[k]), k0 + b * sum(float(x[j]) ** 2 for j in members)
        alone, y = v * (k0 + b * v * v) ** -c, v * s**-c
        others = [j for j in members if j != k]
        z[k] = dict.fromkeys(members, 0.0)
        z[k][k] = alone
        if isinstance(rule, LRNTaylor) and rule.zeroth == "uniform":
            z[k] = dict.fromkeys(members, alone / len(members))
        power = sum(float(x[j]) ** 2 for j in others)
        for j in others:
            u = float(x[j])
            inhibited = -2 * b * c * v * u * u / s ** (c + 1)
            z[k][j] += u * u / power * (y - alone) if isinstance(rule, LRNPath) else inhibited
    return z


def slow(rule, layer, x, R):
    """Relevance by a loop over pairs of units."""
    out = np.zeros(x.shape)
    for k, row in coefficients(rule, layer, x).items():
        total = 1.0 if isinstance(rule, LRNToolbox) else sum(row.values())
        for j, z in row.items():
            out[j] += z / total * float(R[k])
    return torch.as_tensor(out)


def share(rule, layer, x, R):
    if isinstance(rule, LRNGradient):
        return torch.autograd.functional.vjp(layer, x, R)[1]
    (found,) = rule.share([x], R[None], SimpleNamespace(layer=layer, call=layer))
    return found[0]


def case(name, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = SHAPES.get(name, (2, 3, 4, 5))
    return torch.randn(shape, generator=g, dtype=torch.float64), torch.randn(shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES[:-1], ids=repr)
@pytest.mark.parametrize("name", LAYERS)
def test_a_rule_is_its_loop_over_pairs(name, rule):
    x, R = case(name)
    fast = share(rule, LAYERS[name], x, R)
    for n in range(len(x)):
        assert torch.allclose(fast[n], slow(rule, LAYERS[name], x[n], R[n]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_the_derivative_in_the_equations_is_autograds(name):
    """d y_k / d x_j = delta_kj s^-c - 2 b c x_k x_j s^(-c-1), so the plain gradient is its transpose."""
    layer = LAYERS[name]
    x, R = case(name)
    b = layer.alpha / layer.size ** (2 if isinstance(layer, WithinChannelLRN) else 1)
    s = layer.k + b * sum_around(layer, x[0])
    expected = np.zeros(x[0].shape)
    for k, j in pairs(layer, x[0].shape):
        slope = -2 * b * layer.beta * x[0][k] * x[0][j] * s[k] ** (-layer.beta - 1)
        expected[j] += float(R[0][k] * (slope + (s[k] ** -layer.beta if j == k else 0)))
    assert torch.allclose(share(LRNGradient(), layer, x, R)[0], torch.as_tensor(expected), rtol=1e-10)


def sum_around(layer, x):
    total = torch.zeros_like(x)
    for k, j in pairs(layer, x.shape):
        total[k] += x[j] ** 2
    return total


@pytest.mark.parametrize("rule", RULES[:3], ids=repr)
@pytest.mark.parametrize("name", LAYERS)
def test_relevance_is_conserved_whatever_the_activations(name, rule):
    for scale in (0.0, 1e-3, 1.0, 300.0, 1e4):
        x, R = case(name)
        x, R = (scale * x).relu(), R  # relevance also at units that are zero
        shares = share(rule, LAYERS[name], x, R)
        assert torch.isfinite(shares).all()
        assert float(shares.sum() - R.sum()) == pytest.approx(0, abs=1e-10 * float(shares.abs().sum()))


@pytest.mark.parametrize("rule", [*RULES[:1], *RULES[2:3]], ids=repr)
def test_without_inhibition_it_is_the_identity(rule):
    x, R = case("within")
    for layer in (nn.LocalResponseNorm(5, 0.0), WithinChannelLRN(3, 0.0), LAYERS["one channel"]):
        assert torch.equal(share(rule, layer, x, R), R)
    near = share(rule, nn.LocalResponseNorm(5, 1e-9), x, R)
    assert torch.allclose(near, R, atol=1e-7) and not torch.equal(near, R)


@settings(max_examples=60, deadline=None)
@given(
    x=st.lists(st.floats(-300, 300), min_size=3, max_size=7),
    alpha=st.floats(1e-4, 10),
    c=st.floats(0.1, 3),
    size=st.integers(1, 6),
)
def test_facts_about_the_shares(x, alpha, c, size):
    """v_kk >= 1, neighbours <= 0, blind to the signs of x, and z / z_kk never below 1 - 2 (1 + 1/c)^-(c+1)."""
    layer = nn.LocalResponseNorm(size, alpha, c)
    x = torch.tensor(x, dtype=torch.float64)[None, :, None]
    bound = 1 - 2 * (1 + 1 / c) ** (-(c + 1))
    assert bound > 1 - 2 / math.e
    for k in range(x.shape[1]):
        R = torch.zeros_like(x)
        R[0, k] = 1
        v = share(LRNTaylor(), layer, x, R)
        assert float(v[0, k]) >= 1 - 1e-12 and float(v[0, k]) <= 1 / bound * (1 + 1e-9)
        assert float(v.sum() - v[0, k]) <= 1e-12 and (v.flatten()[torch.arange(x.shape[1]) != k] <= 0).all()
        flipped = x * torch.where(torch.arange(x.shape[1]) % 2 == 0, 1.0, -1.0).view(1, -1, 1)
        assert torch.allclose(share(LRNTaylor(), layer, flipped, R), v, rtol=1e-12, atol=0)


def test_the_largest_neighbour_share():
    """At w = 1/c: 1 / (1 - 2 (1 + 1/c)^-(c+1)) - 1, which is 0.8315 for c = 0.75."""
    c = 0.75
    x = torch.tensor([1e-9, math.sqrt(1 / c)], dtype=torch.float64).view(1, 2, 1)
    R = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 2, 1)
    share_of_neighbour = -float(share(LRNTaylor(), nn.LocalResponseNorm(3, 3.0, c), x, R)[0, 1])
    assert share_of_neighbour == pytest.approx(1 / (1 - 2 * (1 + 1 / c) ** (-(c + 1))) - 1, rel=1e-9)
    assert share_of_neighbour == pytest.approx(0.8315, abs=1e-4)


def test_the_paths_shares_add_up_to_the_output():
    """Not so the expansion's: (1 + w)^c - 2 c w / (1 + w) of it."""
    x, _ = case("across")
    layer = LAYERS["across"]
    y = layer(x)
    for k, row in coefficients(LRNPath(), layer, x[0]).items():
        assert sum(row.values()) == pytest.approx(float(y[0][k]), rel=1e-9)
    rows = coefficients(LRNTaylor(), layer, x[0])
    b = layer.alpha / layer.size
    w = b * (sum_around(layer, x[0]) - x[0] ** 2) / (layer.k + b * x[0] ** 2)
    ratio = (1 + w) ** layer.beta - 2 * layer.beta * w / (1 + w)
    for k, row in rows.items():
        assert sum(row.values()) / float(y[0][k]) == pytest.approx(float(ratio[k]), rel=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_relevance_of_silent_units(rule):
    """x = 0: nothing is NaN and, as R = 0 there, nothing is created."""
    layer = nn.LocalResponseNorm(3, 1.0)
    x, R = case("across")
    x[:, 2], R[:, 2] = 0, 0
    shares = share(rule, layer, x, R)
    assert torch.isfinite(shares).all()
    if rule != LRNTaylor("uniform"):
        assert (shares[:, 2] == 0).all()
    assert torch.isfinite(share(rule, layer, 0 * x, R)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES[:4], ids=repr)
def test_lower_precision(rule, dtype):
    x, R = case("across")
    layer = nn.LocalResponseNorm(5, 1e-4)
    x = (300 * x).to(dtype)
    exact = share(rule, layer, x.double(), R)
    rough = share(rule, layer, x, R.to(dtype))
    assert rough.dtype == dtype
    assert float((rough.double() - exact).abs().max() / exact.abs().max()) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_scale_of_one_hides_the_treatment():
    """alpha = 1e-4 on activations of order 1: Taylor and identity agree to 2e-3; at Caffe's scale they don't."""
    x = torch.randn(50, 96, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()
    layer, R = nn.LocalResponseNorm(5, 1e-4, 0.75), torch.ones_like(x)
    assert torch.allclose(share(LRNTaylor(), layer, x, R), R, atol=2e-3)
    toolbox = {scale: float(share(LRNToolbox(), layer, scale * x, layer(scale * x)).sum() / layer(scale * x).sum())
               for scale in (1, 30, 100, 300)}  # fmt: skip
    assert toolbox == pytest.approx({1: 1.24, 30: 33, 100: 61, 300: 76}, rel=0.05)
    moved = 1 - float(share(LRNTaylor(), layer, 100 * x, R).clamp(max=1).mean())
    assert moved > 0.1


def network(layer=None, functional=False):
    torch.manual_seed(0)
    layer = nn.LocalResponseNorm(5, 1.0) if layer is None else layer
    call = (lambda m, x: F.local_response_norm(x, 5, alpha=1.0)) if functional else (lambda m, x: m.lrn(x))
    return Net(
        lambda m, x: m.head(m.second(call(m, m.first(x).relu())).relu().mean((2, 3))),
        first=nn.Conv2d(3, 8, 3),
        lrn=layer,
        second=nn.Conv2d(8, 6, 3),
        head=nn.Linear(6, 4),
    ).double().eval()  # fmt: skip


def test_through_a_network_in_both_spellings():
    x = 5 * torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    module, functional = network(), network(functional=True)
    functional.load_state_dict(module.state_dict())
    composite = composites.EpsilonPlus(lrn=LRNTaylor(), bias="exclude")
    e = LRP(module, composite).explain(x, [0, 3])
    assert torch.allclose(LRP(functional, composite).attribute(x, [0, 3]), e.relevance, rtol=1e-12)
    assert e.imbalance < 1e-12 and torch.allclose(e.relevance.sum((2, 3, 4)), e.seed, rtol=1e-5)
    assert not torch.allclose(LRP(module, composites.EpsilonPlus(bias="exclude")).attribute(x, [0, 3]), e.relevance)
    assert e.ledger_of().loc["lrn", "rule"] == repr(LRNTaylor())


@pytest.mark.parametrize("rule", [LRNToolbox(), LRNGradient()], ids=repr)
def test_the_ledger_shows_the_leak(rule):
    x = 5 * torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with pytest.warns(LRPWarning, match="unaccounted for, most of it at node `lrn`"):
        e = LRP(network(), composites.EpsilonPlus(lrn=rule)).explain(x)
    books = e.ledger_of()
    assert e.imbalance > 1e-3
    assert books.drop(index="lrn").lost.abs().max() < 1e-9 * abs(e.totals["seed"])


def test_within_channels_too():
    x = 5 * torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = network(WithinChannelLRN(3, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e = LRP(model, composites.EpsilonPlus(lrn=LRNTaylor(), bias="exclude")).explain(x)
    assert e.imbalance < 1e-12


def test_what_a_layer_receives_and_divides_by():
    x = 5 * torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = network()
    ((name, (layer, a)),) = lrn.inputs(model, x).items()
    assert name == "lrn" and layer is model.lrn and torch.equal(a, model.first(x).relu())
    assert not layer._forward_pre_hooks
    assert torch.allclose(a / lrn.denominators(layer, a), layer(a), rtol=1e-12)
    for rule, formula in ((LRNTaylor(), lrn.taylor_share), (LRNPath(), lrn.path_share)):
        for k in ((0, 3, 2, 2), (1, 7, 0, 5)):
            R = torch.zeros_like(a)
            R[k] = 1
            v = share(rule, layer, a, R)
            assert float(formula(lrn.inhibition(layer, a), layer.beta)[k]) == pytest.approx(float(v[k]) - 1, abs=1e-12)
    with pytest.raises(LRPError, match="Linear has no local response normalisation"):
        lrn.inputs(nn.Linear(2, 2), torch.ones(1, 2))


def test_refusals():
    model = network()
    with pytest.raises(LRPError, match="is a rule for lrn; `second` is convolution"):
        LRP(model, composites.EpsilonPlus(overrides={"second": LRNTaylor()}))
    with pytest.raises(ValueError, match="zeroth must be 'self' or 'uniform', not 'none'"):
        LRNTaylor("none")
    with pytest.raises(UnsupportedOperation, match="ReLU is no local response normalisation"):
        share(LRNTaylor(), nn.ReLU(), torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    assert isinstance(rules.Pass(), rules.Rule) and not isinstance(rules.Pass(), splitting.Told)


@pytest.mark.parametrize("name", ["caffe_cifar10_full", "bvlc_googlenet"])
def test_on_trained_networks_the_treatment_matters(lrp_data, name):
    """Conserved by Taylor and path, leaking under toolbox; and the maps differ (cosine)."""
    model, normalizer = models.load(name), models.normalizer(name)
    images = datasets.cifar10(n=6).images if "cifar" in name else datasets.imagenet_val(n=3).images
    x = normalizer(images)
    plain = LRP(model, composites.EpsilonAlpha2Beta1(bias="exclude")).attribute(x)
    for rule in (LRNTaylor(), LRNPath()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            e = LRP(model, composites.EpsilonAlpha2Beta1(bias="exclude", lrn=rule)).explain(x)
        assert e.imbalance < 1e-4 and torch.allclose(e.relevance.sum((1, 2, 3)), e.seed[0].float(), rtol=1e-2)
        assert float(metrics.cosine(e.relevance, plain).mean()) < 0.999
    with pytest.warns(LRPWarning, match="unaccounted for"):
        assert LRP(model, composites.EpsilonAlpha2Beta1(lrn=LRNToolbox())).explain(x).imbalance > 1


# ---------------------------------------------------------------- trials


def test_a_trial_keeps_what_the_network_gets_right():
    scenes = datasets.scenes(40, seed=3, split="test")
    labels = scenes.labels[:, 0].clone()
    labels[::2] = (labels[::2] + 1) % 10  # wrong on purpose
    trial = Trial.of("scene_vgg", scenes.images, labels, steps=3, region=16, seed=1)
    with torch.no_grad():
        right = models.load("scene_vgg")(scenes.inputs).argmax(1) == labels
    assert 10 <= len(trial) == int(right.sum()) <= 20
    assert torch.equal(trial.x, scenes.inputs[right]) and torch.equal(trial.labels, labels[right])
    maps = trial.maps(composites.EpsilonPlus(), batch=7)
    expected = LRP(trial.model, composites.EpsilonPlus()).attribute(trial.x, trial.labels).sum(1)
    assert torch.allclose(maps, expected, rtol=1e-4, atol=1e-6)
    curves = trial.flip(maps)
    assert curves.scores.shape == (len(trial), 4) and curves.order == "morf" and curves.region == 16
    assert torch.equal(curves.scores, trial.flip(maps).scores)  # the same noise again
    logits = trial.model(trial.x).detach().gather(1, trial.labels[:, None])[:, 0].double()
    assert torch.allclose(curves.scores[:, 0], logits, atol=1e-5)


def test_nothing_right_is_an_error():
    scenes = datasets.scenes(3, seed=3, split="test")
    with torch.no_grad():
        wrong = (models.load("scene_vgg")(scenes.inputs).argmax(1) + 1) % 10
    with pytest.raises(DataError, match="scene_vgg gets none of the 3 images right"):
        Trial.of("scene_vgg", scenes.images, wrong)
