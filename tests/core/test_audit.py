"""What is lost is said: the audit holds seed against input, biases and stabilisers, whatever cancels on the way."""

import inspect
import math
import warnings

import pytest
import torch
from torch import nn

from lrp import LRP, LRPError, LRPWarning, composites, register, rules, seeds
from lrp.network import kinds as v


class Difference(nn.Module):
    """x - x beside x: by the signed rule, parts of 1e152 times the seed meet at x and cancel."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1, bias=False)
        nn.init.ones_(self.head.weight)

    def forward(self, x):
        return self.head(torch.cat([x - x.flatten(1), x], 1))


class Doubler(nn.Module):
    """Twice its input, which nobody told the package: a name without a meaning."""

    def forward(self, x):
        return 2 * x


class Launchpad(Doubler):
    """The same under a name that holds the word "pad"."""


def test_what_cancels_between_nodes_is_lost():
    """Flat gives 1 to x - x and 1 to x; the stabiliser keeps one, the other drowns in the rounding of 1e152."""
    explainer = LRP(
        Difference().double().eval(), composites.Composite([("any", rules.Flat())], addition=rules.Epsilon())
    )
    with pytest.warns(LRPWarning, match=r"50 % of the relevance is unaccounted for, at no single node.*`sub`"):
        e = explainer.explain(torch.ones(1, 2, dtype=torch.float64), target=0)
    assert e.totals == {"seed": 2.0, "input": 0.0, "bias": 0.0, "stabiliser": 1.0, "lost": 1.0}
    assert float(e.share("lost")) == 0.5 and e.imbalance == 0.5
    assert float(e.ledger.lost.abs().sum()) == 0, "no node lost it"


def test_totals_always_balance():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double().eval()
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    for seed in (seeds.Logit(), seeds.Contrastive(kind=1), seeds.SoftmaxGradient()):
        t = LRP(model, composites.EpsilonPlus()).explain(x, target=[0, 2], seed=seed).totals
        assert math.isclose(t["seed"], t["input"] + t["bias"] + t["stabiliser"] + t["lost"], abs_tol=1e-9)
        assert abs(t["lost"]) < 1e-9


def test_a_ledger_that_is_no_number_is_an_error():
    """In float32 the mean square of 1e20 is infinite: the map would be zero, and the ledger NaN."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(
        LRPError, match=r"not finite from node `[02]` on.*too large or too small for torch.float32.*float64"
    ):
        LRP(model, composites.Epsilon()).explain(torch.full((1, 4), 1e20), target=0)
    e = LRP(model.double(), composites.Epsilon()).explain(torch.full((1, 4), 1e20, dtype=torch.float64), target=0)
    assert e.imbalance < 1e-9 and e.totals["input"] == pytest.approx(e.totals["seed"], rel=1e-3)


@pytest.mark.parametrize("kind", [Doubler, Launchpad])
def test_a_class_name_hides_no_loss(kind, monkeypatch):
    """Only torch's own padding keeps what goes to padded constants; it was asked for by name, "pad" in "launchpad"."""
    monkeypatch.setattr(v, "REGISTERED", dict(v.REGISTERED))
    register(kind, v.AVERAGE)
    model = nn.Sequential(nn.Linear(3, 3), kind(), nn.Linear(3, 2)).double().eval()
    register(kind, v.REARRANGE)
    with pytest.warns(LRPWarning, match="unaccounted for, most of it at node `1`"):
        e = LRP(model, composites.Epsilon()).explain(torch.randn(2, 3, dtype=torch.float64), target=0)
    row = e.ledger.loc["1"]
    assert row.bias == 0 and row.lost == pytest.approx(-row.relevance_out)


@pytest.mark.parametrize("pad", [nn.ZeroPad2d(1), nn.ConstantPad2d(1, 2.0), nn.ReflectionPad2d(1), nn.CircularPad2d(1)])
def test_torch_s_own_padding_keeps_what_goes_to_constants(pad):
    model = nn.Sequential(pad, nn.Flatten(), nn.Linear(64, 2)).double().eval()  # a convolution would take it in
    e = LRP(model, composites.Composite([("any", rules.Flat())])).explain(torch.rand(1, 1, 6, 6).double(), target=0)
    constant = isinstance(pad, nn.ConstantPad2d | nn.ZeroPad2d)
    assert (abs(e.ledger.bias["0"]) > 1e-3) == constant and e.imbalance < 1e-9


@pytest.mark.parametrize("call", ["attribute", "explain"])
def test_warnings_point_at_the_caller(call):
    """The nearest line outside the package and torch, from `attribute` and from `explain`."""
    box = composites.EpsilonGammaBox(0.0, 0.1)
    explainer = LRP(nn.Sequential(nn.Linear(3, 2)).double().eval(), box)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1
        getattr(explainer, call)(torch.ones(1, 3, dtype=torch.float64), 0)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)] and "box" in str(caught[0].message)
