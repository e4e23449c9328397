"""Every rule against a second implementation: dense matrices and the textbook formula.

A layer's matrix W (outputs, inputs) is read off its answers to unit vectors, its bias b off its answer to zero. An
oracle then says which fraction of a unit's relevance each input gets, and which the bias keeps.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrp import LRP, composites, rules, seeds

ORACLES = {}


def oracle(rule_type):
    """Register the dense twin of a rule: f(rule, x, W, b, ones) -> (fractions (out, in), bias' fractions (out,))."""

    def register(function):
        ORACLES[rule_type] = function
        return function

    return register


def fractions(n, bias):
    """n_ij / (sum_i n_ij + bias_j), and where that denominator is not 0."""
    z = n.sum(1) + bias
    there = z.abs() > 1e-12 * max(float(z.abs().max()), 1e-300)
    safe = torch.where(there, z, torch.ones_like(z))
    return torch.where(there[:, None], n / safe[:, None], 0), torch.where(there, bias / safe, 0), there


def first_that_is_there(*groups):
    """Per unit, the fractions of the first group that has contributions at all."""
    share, kept, done = fractions(*groups[0])
    for group in groups[1:]:
        s, k, there = fractions(*group)
        share = torch.where((there & ~done)[:, None], s, share)
        kept = torch.where(there & ~done, k, kept)
        done = done | there
    return share, kept


@oracle(rules.Epsilon)
def epsilon(rule, x, W, b, ones):
    z = W @ x + b
    step = rule.epsilon * (z.square().mean().sqrt() if rule.relative else 1.0)
    z = torch.where(z >= 0, z + step, z - step)
    z = torch.where(z == 0, torch.inf, z)  # LRP-0: 0 / 0 is 0
    return W * x / z[:, None], b / z


@oracle(rules.Gamma)
def gamma(rule, x, W, b, ones):
    g, Wp, Wn, xp, xn = rule.gamma, W.clamp(min=0), W.clamp(max=0), x.clamp(min=0), x.clamp(max=0)
    up = xp * (W + g * Wp) + xn * (W + g * Wn)
    down = xp * (W + g * Wn) + xn * (W + g * Wp)
    active = W @ x + b >= 0
    n = torch.where(active[:, None], up, down)
    nb = torch.where(active, b + g * b.clamp(min=0), b + g * b.clamp(max=0))
    return fractions(n, nb)[:2]


@oracle(rules.ZPlus)
def zplus(rule, x, W, b, ones):
    c = W * x
    return first_that_is_there((c.clamp(min=0), b.clamp(min=0)), (c.clamp(max=0), b.clamp(max=0)), (W.abs(), 0 * b))


@oracle(rules.AlphaBeta)
def alpha_beta(rule, x, W, b, ones):
    if rule.beta == 0:
        return zplus(rule, x, W, b, ones)
    c = W * x
    p, pb, has_p = fractions(c.clamp(min=0), b.clamp(min=0))
    n, nb, has_n = fractions(c.clamp(max=0), b.clamp(max=0))
    share, kept = rule.alpha * p - rule.beta * n, rule.alpha * pb - rule.beta * nb
    share = torch.where((has_p & has_n)[:, None], share, p + n)  # one of them is 0 there
    kept = torch.where(has_p & has_n, kept, pb + nb)
    u, ub, _ = fractions(W.abs(), 0 * b)
    none = ~(has_p | has_n)
    return torch.where(none[:, None], u, share), torch.where(none, ub, kept)


@oracle(rules.ZBox)
def zbox(rule, x, W, b, ones):
    n = W * x - rule.low * W.clamp(min=0) - rule.high * W.clamp(max=0)
    return first_that_is_there((n, 0 * b), (W.abs(), 0 * b))


@oracle(rules.WSquare)
def wsquare(rule, x, W, b, ones):
    return fractions(W**2, b**2)[:2]


@oracle(rules.Flat)
def flat(rule, x, W, b, ones):
    return fractions(ones, 0 * b)[:2]


@oracle(rules.Ratio)
def ratio(rule, x, W, b, ones):
    return first_that_is_there(((W * x).abs(), b.abs()), (W.abs(), 0 * b))


RULES = [
    *(rules.Epsilon(0.1), rules.Epsilon(0.3, relative=False), rules.Epsilon(0.0)),
    *(rules.Gamma(0.3, epsilon=1e-13), rules.Gamma(4.0, epsilon=1e-13)),
    *(rules.AlphaBeta(2, 1), rules.AlphaBeta(1, 0), rules.AlphaBeta(1.4, 0.4)),
    *(rules.ZPlus(), rules.ZBox(-2.1, 1.7), rules.WSquare(), rules.Flat(), rules.Ratio()),
]


def normed(layer, norm):
    """The layer and a BatchNorm after it, with statistics that matter and scales of both signs."""
    norm.running_mean.normal_(0, 0.5)
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(*layer, norm)


def build(name):
    """A linear layer in float64 and the shape of its input."""
    C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d
    T1, T2, T3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    layers = {
        "linear": lambda: (nn.Linear(7, 5), (7,)),
        "linear, no bias": lambda: (nn.Linear(7, 5, bias=False), (7,)),
        "linear on the last of three axes": lambda: (nn.Linear(5, 3), (2, 5)),
        "conv1d": lambda: (C1(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 9)),
        "conv2d": lambda: (C2(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 6, 5)),
        "conv2d, no bias": lambda: (C2(3, 4, 3, padding=1, bias=False), (3, 4, 4)),
        "depthwise": lambda: (C2(3, 6, 3, padding=1, groups=3), (3, 4, 4)),
        "conv3d": lambda: (C3(2, 3, 2, stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 3, 2)),
        "same, even kernel": lambda: (C2(2, 3, (2, 4), padding="same"), (2, 4, 5)),
        "same, dilated": lambda: (C1(2, 3, 4, padding="same", dilation=3), (2, 11)),
        "circular": lambda: (C2(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 5)),
        "reflect": lambda: (C2(2, 3, (3, 2), padding=(2, 1), padding_mode="reflect"), (2, 4, 5)),
        "replicate": lambda: (C2(2, 3, 3, padding=1, stride=2, padding_mode="replicate"), (2, 4, 5)),
        "circular and same": lambda: (C1(2, 3, 4, padding="same", padding_mode="circular"), (2, 7)),
        "transposed1d": lambda: (T1(4, 6, 3, 3, padding=1, output_padding=2, groups=2, dilation=2), (4, 4)),
        "transposed2d": lambda: (T2(2, 3, (3, 2), stride=2, padding=1, output_padding=(1, 0)), (2, 3, 3)),
        "transposed3d": lambda: (T3(2, 2, 2, stride=(2, 1, 1), padding=(0, 1, 0), bias=False), (2, 2, 2, 3)),
        "conv, norm folded": lambda: (
            normed([C2(3, 4, 3, padding=1)], nn.BatchNorm2d(4)),
            (3, 4, 4),
        ),
        "transposed groups, norm folded": lambda: (
            normed([T2(4, 6, 2, stride=2, groups=2, bias=False)], nn.BatchNorm2d(6)),
            (4, 2, 3),
        ),
        "linear, norm folded": lambda: (normed([nn.Linear(7, 5)], nn.BatchNorm1d(5)), (7,)),
        "norm1d": lambda: (normed([], nn.BatchNorm1d(5)), (5,)),
        "norm2d": lambda: (normed([], nn.BatchNorm2d(3)), (3, 2, 3)),
        "norm of sequences": lambda: (normed([], nn.BatchNorm1d(3)), (3, 4)),
        "average pool": lambda: (nn.AvgPool2d(3, 2, 1), (2, 5, 4)),
        "adaptive average": lambda: (nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 4)),
        "upsampling": lambda: (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 2)),
    }
    if name is None:
        return list(layers)
    torch.manual_seed(0)
    layer, shape = layers[name]()
    return layer.double().eval(), shape


def explicit_padding(layer, shape):
    """Padding that copies pixels as a step of its own: the function that pads, and the layer without it."""
    mode = getattr(layer, "padding_mode", "zeros")
    if mode == "zeros":
        return (lambda x: x), layer
    bare = copy.deepcopy(layer)
    total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    pairs = [(t // 2, t - t // 2) for t in total] if layer.padding == "same" else [(p, p) for p in layer.padding]
    bare.padding, bare.padding_mode = (0,) * len(pairs), "zeros"
    bare._reversed_padding_repeated_twice = [0] * 2 * len(pairs)
    return (lambda x: F.pad(x, [p for pair in pairs[::-1] for p in pair], mode=mode)), bare


@torch.no_grad()
def matrix(f, shape):
    """W (out, in) and b (out,) of an affine map, by unit vectors."""
    n = math.prod(shape)
    b = f(torch.zeros(1, *shape).double()).flatten()
    return (f(torch.eye(n).double().view(n, *shape)).flatten(1) - b).T, b


def matrices(layer, shape):
    """Padding P, weights W and bias b of a layer, and what its weights are when each connection counts as one."""
    pad, bare = explicit_padding(layer, shape)
    P, _ = matrix(pad, shape)
    W, b = matrix(bare, pad(torch.zeros(1, *shape)).shape[1:])
    return P, W, b, (W != 0).double()


@torch.no_grad()
def dense(rule, layer, x, R, absorb, known=None):
    """Relevance of x (N, ...) and the bias' part, from R (T, N, out), one sample after the other."""
    P, W, b, ones = known or matrices(layer, x.shape[1:])
    b = b if absorb else torch.zeros_like(b)
    if not list(layer.parameters()):  # the weights of an average are connections with a strength, not parameters
        ones, W = W, W.sqrt() if isinstance(rule, rules.WSquare) else W
    relevance, kept = torch.zeros(len(R), *x.shape).double(), 0.0
    for n in range(len(x)):
        share, bias = ORACLES[type(rule)](rule, P @ x[n].flatten(), W, b, ones)
        if rule.one_sided:  # a unit to which nothing is connected is its bias alone
            bias = torch.where(ones.sum(1) == 0, 1.0, bias)
        relevance[:, n] = (R[:, n] @ share @ P).view(len(R), *x.shape[1:])
        kept = kept + float((R[:, n] @ bias).sum())
    return relevance, kept


CASES = {}


def case(name):
    """Layer, input and matrices of a case, made once."""
    if name not in CASES:
        layer, shape = build(name)
        CASES[name] = layer, torch.randn(2, *shape).double().clamp(-2, 1.6), matrices(layer, shape)
    return CASES[name]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", build(None))
def test_rule_equals_dense_formula(name, rule):
    """Two targets, two samples, both bias policies; inputs of both signs, and inputs that a ReLU made >= 0."""
    layer, x, known = case(name)
    swap = (build(None).index(name) + RULES.index(rule)) % 2  # all four combinations, over the whole table
    for policy, before in zip(("absorb", "exclude"), ([], [nn.ReLU()])[:: -1 if swap else 1], strict=True):
        model = nn.Sequential(*before, layer, nn.Flatten()).eval()
        with torch.no_grad():
            z = model(x) if policy == "absorb" else model(x) - model(-torch.ones_like(x) if before else 0 * x)
        R = torch.randn(2, *z.shape).double()
        if isinstance(rule, (rules.Epsilon, rules.Gamma)):
            R = R * (z.abs() > 1e-3 * z.abs().max())  # where z = 0 the stabiliser alone decides
        e = LRP(model, composites.Composite([("any", rule)], bias=policy)).explain(x, seed=R)
        expected, kept = dense(rule, layer, x.relu() if before else x, R, policy == "absorb", known)
        size = float(expected.abs().max())
        assert torch.allclose(e.relevance, expected, rtol=1e-9, atol=1e-9 * size)
        assert e.totals["bias"] == pytest.approx(kept, rel=1e-9, abs=1e-9 * size)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_norm_between_layers_has_a_rule_of_its_own(rule):
    """fold_batchnorm=False: the dense layer's rule with raw weights, then the rule on the diagonal of the norm."""
    model, shape = build("linear, norm folded")
    x = torch.randn(2, *shape).double().clamp(-2, 1.6)
    middle = model[0](x)
    R = torch.randn(2, 2, 5).double()
    e = LRP(model, composites.Composite([("batchnorm", rules.Ratio()), ("any", rule)], fold_batchnorm=False))
    R_middle, _ = dense(rules.Ratio(), model[1], middle, R, True)
    expected, _ = dense(rule, model[0], x, R_middle, True)
    assert torch.allclose(e.attribute(x, seed=R), expected, rtol=1e-9, atol=1e-10)


def unit(weight, x, rule, bias=None, policy="absorb"):
    """Relevance of the inputs of one neuron that holds relevance 1."""
    layer = nn.Linear(len(weight), 1, bias=bias is not None).double().eval()
    layer.weight.data[0] = torch.tensor(weight).double()
    if bias is not None:
        layer.bias.data[:] = bias
    explainer = LRP(nn.Sequential(layer).eval(), composites.Composite([("any", rule)], bias=policy))
    return explainer.attribute(torch.tensor([x], dtype=torch.float64), 0, seed=seeds.OneHot())[0].tolist()


@pytest.mark.parametrize(
    ("rule", "weight", "x", "bias", "policy", "expected"),
    [
        # only negative contributions (-1, -3): shared by magnitude
        (rules.ZPlus(), [-1.0, 3.0], [1.0, -1.0], None, "absorb", (0.25, 0.75)),
        (rules.AlphaBeta(2, 1), [-1.0, 3.0], [1.0, -1.0], None, "absorb", (0.25, 0.75)),
        (rules.AlphaBeta(1, 0), [-1.0, 3.0], [1.0, -1.0], None, "absorb", (0.25, 0.75)),
        # only positive ones: once, not alpha times; in exact arithmetic (1.4 is no float32 number)
        (rules.AlphaBeta(2, 1), [1.0, 3.0], [1.0, 1.0], None, "absorb", (0.25, 0.75)),
        (rules.AlphaBeta(1.4, 0.4), [1.0, 3.0], [1.0, 1.0], None, "absorb", (0.25, 0.75)),
        # nothing contributes: by |w|
        (rules.ZPlus(), [-1.0, 3.0], [0.0, 0.0], None, "absorb", (0.25, 0.75)),
        (rules.AlphaBeta(2, 1), [-1.0, 3.0], [0.0, 0.0], None, "absorb", (0.25, 0.75)),
        (rules.Ratio(), [-1.0, 3.0], [0.0, 0.0], None, "absorb", (0.25, 0.75)),
        (rules.ZBox(-1.0, 2.0), [-1.0, 3.0], [2.0, -1.0], None, "absorb", (0.25, 0.75)),
        # the bias alone is positive and keeps all; excluded, the inputs share
        (rules.ZPlus(), [-1.0, 3.0], [1.0, -1.0], 2.0, "absorb", (0.0, 0.0)),
        (rules.ZPlus(), [-1.0, 3.0], [1.0, -1.0], 2.0, "exclude", (0.25, 0.75)),
        (rules.ZPlus(), [-1.0, 3.0], [1.0, -1.0], -4.0, "absorb", (0.125, 0.375)),
        # conventions for the bias
        (rules.Epsilon(0.0), [1.0, 2.0], [1.0, 1.0], 1.0, "absorb", (0.25, 0.5)),
        (rules.Gamma(1.0, 0.0), [1.0, 2.0], [1.0, 1.0], 1.0, "absorb", (0.25, 0.5)),
        (rules.Gamma(1.0, 0.0), [1.0, -2.0], [1.0, 1.0], -1.0, "absorb", (-0.2, 0.8)),
        (rules.WSquare(), [1.0, 2.0], [9.0, 9.0], 3.0, "absorb", (1 / 14, 4 / 14)),
        (rules.WSquare(), [1.0, 2.0], [9.0, 9.0], 3.0, "exclude", (0.2, 0.8)),
        (rules.Flat(), [1.0, 2.0], [9.0, 9.0], 3.0, "absorb", (0.5, 0.5)),
        (rules.ZBox(0.0, 1.0), [1.0, -2.0], [1.0, 0.5], 3.0, "absorb", (0.5, 0.5)),
        (rules.Ratio(), [1.0, -2.0], [1.0, 1.0], -1.0, "absorb", (0.25, 0.5)),
    ],
)
def test_fallbacks_and_bias_conventions_by_hand(rule, weight, x, bias, policy, expected):
    assert unit(weight, x, rule, bias, policy) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_zbox_takes_bounds_as_tensors_and_numbers_in_full_precision():
    """low = 0.1 is no float32 number: at x = low a pixel's positive weight gets exactly nothing."""
    assert unit([1.0, 1.0], [0.1, 0.5], rules.ZBox(0.1, 1.0)) == pytest.approx((0, 1), abs=1e-14)
    layer = nn.Conv2d(2, 1, 1, bias=False).double()
    layer.weight.data[:] = 1
    low, high = torch.tensor([0.0, -1.0]).view(2, 1, 1), torch.tensor([1.0, 4.0]).view(1, 2, 1, 1)
    model = nn.Sequential(layer, nn.Flatten()).eval()
    explainer = LRP(model, composites.Composite([("any", rules.ZBox(low, high))]))
    R = explainer.attribute(torch.ones(1, 2, 1, 1).double(), 0, seed=seeds.OneHot())
    assert R.flatten().tolist() == pytest.approx((1 / 3, 2 / 3))  # (1 - 0) : (1 - -1)


def test_zero_sample_is_explained_by_epsilon_too():
    """A no-data tile: z = 0 everywhere, the stabiliser keeps all, and no 0 * inf appears."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double().eval()
    e = LRP(model, composites.Epsilon()).explain(torch.zeros(1, 3).double(), 0, seed=seeds.OneHot())
    assert e.relevance.abs().max() == 0 and e.totals["stabiliser"] == pytest.approx(1)


@pytest.mark.parametrize(
    "rule",
    [rules.ZPlus(), rules.AlphaBeta(2, 1), rules.ZBox(-2, 2), rules.WSquare(), rules.Flat(), rules.Ratio()],
    ids=str,
)
@pytest.mark.parametrize("policy", ["absorb", "exclude"])
def test_a_unit_whose_weights_are_all_zero_loses_nothing(rule, policy):
    """Pruned filters that only their bias lets be active exist in trained networks (MobileNetV2 has one)."""
    layer = nn.Linear(2, 2).double().eval()
    layer.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    layer.bias.data[:] = 2
    explainer = LRP(nn.Sequential(layer).eval(), composites.Composite([("any", rule)], bias=policy))
    e = explainer.explain(torch.ones(1, 2).double(), 0, seed=seeds.OneHot())
    assert e.totals["input"] + e.totals["bias"] == pytest.approx(1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: rules.AlphaBeta(2, 2),
        lambda: rules.AlphaBeta(0.5, -0.5),
        lambda: rules.Epsilon(-1e-3),
        lambda: rules.Epsilon(float("nan")),
        lambda: rules.Gamma(-1),
        lambda: rules.ZBox(1.0, 0.0),
        lambda: rules.ZBox(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])),
    ],
)
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be"):
        wrong()
    assert rules.AlphaBeta(2.3, 1.3).alpha == 2.3  # alpha - beta = 1 up to rounding
