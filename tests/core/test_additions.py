"""Rules at sums, by hand, and golden values of small networks that any implementation has to give."""

import pytest
import torch
from torch import nn

from lrp import LRP, composites, rules, seeds


class Call(nn.Module):
    """A model whose forward is the function it is given; x (N, 2, K) holds two summands a and b."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x[:, 0], x[:, 1])


def added(function, rule, a, b, policy="absorb"):
    """Relevance of a and b at a sum that holds relevance 1, and the bias' share."""
    explainer = LRP(Call(function).eval(), composites.Composite([("batchnorm", rule)], addition=rule, bias=policy))
    x = torch.tensor([[a, b]]).double()
    e = explainer.explain(x, seed=torch.ones(1, len(a)).double())
    return e.relevance[0, 0].tolist(), e.relevance[0, 1].tolist(), e.totals["bias"]


@pytest.mark.parametrize("plus", [lambda a, b: a + b, torch.add, lambda a, b: a.clone().add_(b)])
def test_rules_at_additions(plus):
    """a = (3, 3, 2, 0), b = (1, -1, -2, 0): same signs, opposite signs, a == -b, and 0 / 0."""
    a, b = [3.0, 3.0, 2.0, 0.0], [1.0, -1.0, -2.0, 0.0]
    assert added(plus, rules.Ratio(), a, b)[0] == pytest.approx([0.75, 0.75, 0.5, 0.5])
    assert added(plus, rules.Ratio(), a, b)[1] == pytest.approx([0.25, 0.25, 0.5, 0.5])
    assert added(plus, rules.Flat(), a, b)[0] == pytest.approx([0.5] * 4)
    assert added(plus, rules.ZPlus(), a, b)[0] == pytest.approx([0.75, 1.0, 1.0, 0.5])
    assert added(plus, rules.AlphaBeta(2, 1), a, b)[:2] == (
        pytest.approx([0.75, 2.0, 2.0, 0.5]),
        pytest.approx([0.25, -1.0, -1.0, 0.5]),
    )
    signed = added(plus, rules.Epsilon(0.0), a[:2], b[:2])
    assert signed[:2] == (pytest.approx([0.75, 1.5]), pytest.approx([0.25, -0.5]))
    assert rules.Symmetric is rules.Flat


def test_subtraction_and_alpha_weigh_the_summands():
    a, b = [3.0, 3.0], [1.0, -1.0]
    assert added(lambda a, b: a - b, rules.Epsilon(0.0), a, b)[:2] == (
        pytest.approx([1.5, 0.75]),
        pytest.approx([-0.5, 0.25]),
    )
    assert added(lambda a, b: a - b, rules.ZPlus(), a, b)[1] == pytest.approx([0, 0.25])
    for double in (lambda a, b: torch.add(a, b, alpha=2), lambda a, b: torch.add(a, other=b, alpha=2)):
        assert added(double, rules.Epsilon(0.0), a, b)[0] == pytest.approx([0.6, 3.0])
    assert added(lambda a, b: torch.rsub(a, b, alpha=2), rules.Ratio(), a, b)[0] == pytest.approx([6 / 7] * 2)
    assert added(lambda a, b: torch.sub(a, b, alpha=3), rules.Ratio(), a, b)[1] == pytest.approx([0.5] * 2)


@pytest.mark.parametrize("add", [lambda a, b: a + 2, lambda a, b: 2 + a, lambda a, b: a.sub(-2)])
def test_constant_summands_are_a_bias(add):
    """a = 3 plus the constant 2: relevance 3/5 to a, 2/5 kept; excluded, a gets everything."""
    for rule in (rules.Ratio(), rules.Epsilon(0.0), rules.ZPlus()):
        got, other, kept = added(add, rule, [3.0], [7.0])
        assert (got, other, kept) == (pytest.approx([0.6]), [0.0], pytest.approx(0.4))
        assert added(add, rule, [3.0], [7.0], "exclude")[0] == pytest.approx([1.0])
    assert added(lambda a, b: 1 - a, rules.Epsilon(0.0), [3.0], [0.0])[::2] == (
        pytest.approx([1.5]),
        pytest.approx(-0.5),
    )


def test_a_constant_is_taken_in_the_precision_of_the_network():
    """0.1 in float32 is off by 1.5e-9: the books of a float64 network would show it."""
    model = Call(lambda a, b: a * 1e-3 + 0.1).eval()
    composite = composites.Composite([("batchnorm", rules.Epsilon(0.0))])
    e = LRP(model, composite).explain(torch.ones(1, 2, 1).double(), 0, seed=seeds.OneHot())
    assert e.totals["bias"] == pytest.approx(0.1 / 0.101, rel=1e-12)
    assert abs(e.totals["lost"]) < 1e-12


def test_broadcast_summands_collect_what_their_copies_get():
    """b is one number added to four: it gets the sum of its four shares."""
    model = Call(lambda a, b: a + b.mean(1, keepdim=True))
    x = torch.tensor([[[1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 2.0, 2.0]]]).double()
    composite = composites.Composite([("any", rules.Epsilon(0.0))], addition=rules.Ratio())
    R = LRP(model.eval(), composite).attribute(x, seed=torch.ones(1, 4).double())[0]
    assert R[0].tolist() == pytest.approx([1 / 3, 1 / 2, 3 / 5, 3 / 4])
    assert R[1].tolist() == pytest.approx([(2 / 3 + 1 / 2 + 2 / 5 + 1 / 4) / 4] * 4)


def network(first=2.0):
    """Linear 3->3 all 2 (its first weight may differ), ReLU, Linear 3->1 all 3, no bias."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double().eval()
    model[0].weight.data.fill_(2)
    model[0].weight.data[0, 0] = first
    model[2].weight.data.fill_(3)
    return model


@pytest.mark.parametrize(
    ("first", "rule", "x", "expected"),
    [
        (2.0, rules.Epsilon(1e-12), (1, 2, 3), (18, 36, 54)),
        (2.0, rules.Epsilon(1e-12), (3, 6, 9), (54, 108, 162)),
        (-2.0, rules.Gamma(1.0, 1e-12), (1, 2, 3), (28 / 3, 104 / 3, 52)),
        (-2.0, rules.AlphaBeta(1, 0), (1, 2, 3), (12, 33.6, 50.4)),
    ],
)
def test_golden_values_of_a_small_network(first, rule, x, expected):
    explainer = LRP(network(first), composites.Composite([("any", rule)]))
    assert explainer.attribute(torch.tensor([x]).double(), 0)[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_golden_values_of_a_neuron_and_a_skip():
    """One neuron w = (1, -1), b = -1 with relevance -1; and x + Wx with W all 5, x = (2, 3), target 1."""
    neuron = nn.Sequential(nn.Linear(2, 1)).double().eval()
    neuron[0].weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    neuron[0].bias.data[:] = -1
    for rule, expected in ((rules.AlphaBeta(1, 0), (-1, 0)), (rules.AlphaBeta(2, 1), (-2, 0.5))):
        explainer = LRP(neuron, composites.Composite([("any", rule)]))
        R = explainer.attribute(torch.ones(1, 2).double(), seed=-torch.ones(1, 1).double())
        assert R[0].tolist() == pytest.approx(expected)

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False).double()
            self.layer.weight.data.fill_(5)

        def forward(self, x):
            return x + self.layer(x)

    explainer = LRP(Skip().eval(), composites.Epsilon(1e-12, addition=rules.Epsilon(1e-12)))
    assert explainer.attribute(torch.tensor([[2.0, 3.0]]).double(), 1)[0].tolist() == pytest.approx((10, 18))
