"""Agreement with other implementations where they are right: zennit 0.5.1 and captum, when installed.

Where they are known to differ, this file keeps away: units with contributions of one sign only, skips, BatchNorm.
"""

import pytest
import torch
from torch import nn

from lrp import LRP, composites, rules, seeds

TINY = 1e-12
LOW, HIGH = -3.0, 4.0


def network():
    """Convolutions with biases, stride and dilation, both pools, two dense layers; no unit without positive input."""
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, stride=2, padding=2, dilation=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5)),
    ]
    return nn.Sequential(*layers).double().eval()


def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 16, 16).double().clamp(LOW + 0.01, HIGH - 0.01)


def agree(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-6, atol=1e-8 * float(theirs.abs().max()))


def zennit_relevance(composite, model, x, target):
    attribution = pytest.importorskip("zennit.attribution")
    with attribution.Gradient(model, composite) as attributor:
        return attributor(x.clone(), torch.eye(5).double()[target])[1]


ZENNIT_RULES = {
    "Epsilon": (rules.Epsilon(0.25, relative=False), {"epsilon": 0.25}),
    "ZPlus": (rules.ZPlus(), {"stabilizer": TINY}),
    "Gamma": (rules.Gamma(0.4, TINY), {"gamma": 0.4, "stabilizer": TINY}),
    "AlphaBeta": (rules.AlphaBeta(2, 1), {"alpha": 2, "beta": 1, "stabilizer": TINY}),
    "WSquare": (rules.WSquare(), {"stabilizer": TINY}),
    "Flat": (rules.Flat(), {"stabilizer": TINY}),
    "ZBox": (rules.ZBox(LOW, HIGH), {"low": LOW, "high": HIGH, "stabilizer": TINY}),
}


@pytest.mark.parametrize("bias", ["absorb", "exclude"])
@pytest.mark.parametrize("name", ZENNIT_RULES)
def test_rules_agree_with_zennit(name, bias):
    """The rule in the first layer (any input), LRP-epsilon above."""
    theirs_rules = pytest.importorskip("zennit.rules")
    theirs_composites, types = pytest.importorskip("zennit.composites"), pytest.importorskip("zennit.types")
    ours, arguments = ZENNIT_RULES[name]
    zero = {"zero_params": "bias" if bias == "exclude" else None}
    above = theirs_rules.Epsilon(epsilon=TINY, **zero)
    passing = [(types.Activation, theirs_rules.Pass()), (types.AvgPool, theirs_rules.Norm(TINY))]
    theirs = theirs_composites.SpecialFirstLayerMapComposite(
        first_map=[(types.Linear, getattr(theirs_rules, name)(**arguments, **zero))],
        layer_map=[*passing, (types.Linear, above)],
    )
    model, x, target = network(), images(), torch.tensor([1, 3])
    composite = composites.Composite([("first", ours), ("any", rules.Epsilon(TINY))], bias=bias)
    R = LRP(model, composite).attribute(x, target, seed=seeds.OneHot())
    assert agree(R, zennit_relevance(theirs, model, x, target))


@pytest.mark.parametrize("bias", ["absorb", "exclude"])
@pytest.mark.parametrize(
    ("name", "positional"),
    [
        ("EpsilonPlus", {}),
        ("EpsilonPlusFlat", {}),
        ("EpsilonGammaBox", {"low": LOW, "high": HIGH}),
        ("EpsilonAlpha2Beta1", {}),
        ("EpsilonAlpha2Beta1Flat", {}),
    ],
)
def test_composites_agree_with_zennit(name, positional, bias):
    """All layers by the preset of the same name, default gamma included."""
    if name == "EpsilonGammaBox" and bias == "exclude":
        pytest.skip("zennit lets the biases decide which units count as active, also where they are set to zero")
    theirs = pytest.importorskip("zennit.composites")
    low_high = {k: torch.full((1, 3, 1, 1), v).double() for k, v in positional.items()}
    zero = "bias" if bias == "exclude" else None
    peer = getattr(theirs, name)(epsilon=TINY, stabilizer=TINY, zero_params=zero, **low_high)
    model, x, target = network(), images(), torch.tensor([0, 4])
    composite = getattr(composites, name)(epsilon=TINY, bias=bias, **low_high)
    R = LRP(model, composite).attribute(x, target, seed=seeds.OneHot())
    assert agree(R, zennit_relevance(peer, model, x, target))


class Plain(nn.Module):
    """captum knows no Flatten module, so this one flattens in forward."""

    def __init__(self, bias):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 8, 3, stride=2, bias=bias)
        self.r, self.s, self.t = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool, self.c, self.d = nn.MaxPool2d(2), nn.Linear(72, 12, bias=bias), nn.Linear(12, 5, bias=bias)

    def forward(self, x):
        x = self.s(self.b(self.pool(self.r(self.a(x)))))
        return self.d(self.t(self.c(x.flatten(1))))


@pytest.mark.parametrize(
    ("name", "arguments", "ours", "bias"),
    [
        ("EpsilonRule", {"epsilon": 0.2}, rules.Epsilon(0.2, relative=False), True),
        ("EpsilonRule", {"epsilon": TINY}, rules.Epsilon(TINY), True),
        ("GammaRule", {"gamma": 0.5}, rules.Gamma(0.5, TINY), False),
        ("Alpha1_Beta0_Rule", {}, rules.AlphaBeta(1, 0), False),
    ],
)
def test_rules_agree_with_captum(name, arguments, ours, bias):
    """Positive inputs; convolutions by the rule, dense layers by LRP-0. captum starts at the logit, as we do."""
    attr = pytest.importorskip("captum.attr")
    peers = pytest.importorskip("captum.attr._utils.lrp_rules")
    torch.manual_seed(0)
    model, x, target = Plain(bias).double().eval(), images().abs(), torch.tensor([2, 0])
    layers = [("convolution", ours), ("any", rules.Epsilon(TINY))]
    R = LRP(model, composites.Composite(layers)).attribute(x, target)
    for layer in (model.a, model.b):
        layer.rule = getattr(peers, name)(**arguments)
    for layer in (model.c, model.d):
        layer.rule = peers.EpsilonRule(TINY)
    assert agree(R, attr.LRP(model).attribute(x, target=target).detach())
