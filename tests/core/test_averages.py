"""Averages with weights of both signs: bicubic resampling is shared as its dense matrix is."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import nn

from lrp import LRP, LRPError, composites, rules, seeds
from lrp.network import kinds

RESAMPLED = {
    "up": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "corners": lambda x: F.interpolate(x, size=(7, 9), mode="bicubic", align_corners=True),
    "down": lambda x: F.interpolate(x, (3, 4), None, "bicubic"),
    "antialiased": lambda x: F.interpolate(x, size=(3, 5), mode="bicubic", antialias=True),
    "triangles": lambda x: F.interpolate(x, size=(3, 5), mode="bilinear", antialias=True),
    "nearest": lambda x: F.interpolate(x, size=(7, 9)),
}


def matrix(f, shape):
    """The map as a matrix (outputs, inputs), for values with axes of this shape."""
    size = torch.Size(shape).numel()
    return f(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


def shares(C, R):
    """Relevance R (outputs,) by the contributions C (outputs, inputs) of one sign, or of whichever there are."""
    z = C.sum(1, keepdim=True)
    return (C / z.masked_fill(z == 0, 1) * R[:, None]).sum(0)


def by_hand(rule, W, x, R):
    C = torch.where(W.abs() > 1e-12, W, 0) * x  # without rounding noise, as of antialiasing
    up, down = C.clamp(min=0), C.clamp(max=0)
    if isinstance(rule, rules.Gamma):
        positive = (C.sum(1) >= 0)[:, None]
        return shares(C + rule.gamma * torch.where(positive, up, down), R)
    if isinstance(rule, rules.AlphaBeta):
        both = (up.sum(1) > 0) & (down.sum(1) < 0)
        alone = torch.where((up.sum(1) > 0)[:, None], up, down)
        mixed = rule.alpha * shares(up, R * both) - rule.beta * shares(down, R * both)
        return mixed + shares(alone, R * ~both)
    if isinstance(rule, rules.ZPlus):
        return shares(torch.where((up.sum(1) > 0)[:, None], up, down), R)
    return shares(C.abs() if isinstance(rule, rules.Ratio) else C, R)


RULES = [rules.ZPlus(), rules.AlphaBeta(2, 1), rules.Gamma(0.5, 1e-12), rules.Ratio(), rules.Epsilon(1e-12)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", RESAMPLED)
def test_resampling_is_shared_as_its_matrix(name, rule):
    """Negative weights are negative parts, for inputs of both signs and for inputs >= 0."""
    f, shape = RESAMPLED[name], (2, 5, 6)
    W = matrix(f, shape)
    assert (W.min() < 0) == (name not in ("triangles", "nearest"))
    composite = composites.Composite([("dense", rules.Epsilon(1e-12)), ("any", rule)])
    for before in (torch.relu, torch.clone):
        model = Net(lambda m, x, before=before: m.head(f(before(x)).flatten(1)), head=nn.Linear(len(W), 3, bias=False))
        model, x = model.double().eval(), torch.randn(3, *shape, dtype=torch.float64)
        found = LRP(model, composite).explain(x, [0, 2]).relevance
        for t, target in enumerate((0, 2)):
            for n in range(3):
                h = before(x[n]).flatten()
                expected = by_hand(rule, W, h, W @ h * model.head.weight[target].detach()).view(shape)
                assert torch.allclose(found[t, n], expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def test_negated_weights_of_a_resampling():
    """At the end of a network, Contrastive(kind=2) asks for the shares with negated weights."""
    model = Net(lambda m, x: RESAMPLED["up"](torch.relu(m.a(x))).mean((2, 3)), a=nn.Conv2d(2, 3, 3)).double().eval()
    e = LRP(model).explain(torch.randn(2, 2, 5, 5).double(), 1, seed=seeds.Contrastive(kind=2))
    assert torch.isfinite(e.relevance).all() and e.imbalance < 1e-9


@pytest.mark.parametrize("rule", [*RULES, rules.Flat(), rules.WSquare()], ids=repr)
@pytest.mark.parametrize("f", [lambda x: x.cumsum(1), lambda x: x.diff(), lambda x: x - x.roll(1, 1).cumsum(1)])
def test_a_linear_function_by_override_is_its_dense_layer(f, rule):
    """Whatever the signs of its weights: the map is that of nn.Linear with the same matrix."""
    W = matrix(f, (6,))
    layer = nn.Linear(6, len(W), bias=False)
    layer.weight.data = W
    parts = {"a": nn.Linear(5, 6), "head": nn.Linear(len(W), 3), "f": layer}
    call = Net(lambda m, x: m.head(m.g(m.a(x))), g=Function(f), **parts).double().eval()
    twin = Net(lambda m, x: m.head(m.f(m.a(x))), **parts).double().eval()
    one = composites.Composite([("any", rules.Epsilon())], overrides={"g": rule})
    other = composites.Composite([("any", rules.Epsilon())], overrides={"f": rule})
    x = torch.randn(4, 5, dtype=torch.float64)
    with leaf(Function):
        found = LRP(call, one).explain(x, [0, 2]).relevance
    assert torch.allclose(found, LRP(twin, other).explain(x, [0, 2]).relevance, rtol=1e-9)


def test_a_function_without_a_matrix_is_refused_by_rules_that_split():
    model = Net(lambda m, x: m.head(m.a(x).cumsum(0)), a=nn.Linear(5, 6), head=nn.Linear(6, 3)).double().eval()
    explainer = LRP(model, composites.EpsilonPlus(overrides={"cumsum": rules.ZPlus()}))
    with pytest.raises(LRPError, match=r"`cumsum` mixes what stands along its first axis; rules.Epsilon"):
        explainer.explain(torch.randn(4, 5, dtype=torch.float64), 0)


class Function(nn.Module):
    """A leaf that the package does not know."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


@contextmanager
def leaf(module):
    kinds.REGISTERED[module] = kinds.UNKNOWN
    try:
        yield
    finally:
        del kinds.REGISTERED[module]
