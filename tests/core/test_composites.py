"""Which rule where: conditions, overrides by name and by glob, and what is said about mistakes in them."""

import pytest
import torch
from torch import nn

from lrp import LRP, LRPError, composites, rules


class Block(nn.Module):
    """A residual block with every kind of node that an override may or may not mean."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 2, 1)
        self.relu, self.pool, self.fc = nn.ReLU(), nn.AvgPool2d(2), nn.Linear(8, 3)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.conv2(y) + y)
        return self.fc(self.pool(y).flatten(1))


def chosen(composite):
    """{node: rule} of the rules in force, where nodes do not just pass relevance on in their own way."""
    explainer = LRP(Block().eval(), composite)
    assert all(explainer.rules.values()), "every node has a rule"
    return {node.name: rule for node, rule in explainer.rules.items() if not isinstance(rule, rules.Pass | rules.Own)}


def test_the_first_match_holds_and_first_means_nearest_to_the_input():
    got = chosen(composites.EpsilonGammaBox(-1, 1, gamma=0.5, epsilon=0.1))
    assert got == {
        "conv1": rules.ZBox(-1, 1),
        "conv2": rules.Gamma(0.5, 0.1),
        "add": rules.Ratio(),
        "pool": rules.Gamma(0.5, 0.1),
        "fc": rules.Epsilon(0.1),
    }


def test_a_condition_may_be_a_function_and_the_list_may_be_edited():
    composite = composites.EpsilonPlus()
    composite.rules.insert(0, (lambda node: node.name == "conv2", rules.Flat()))
    assert chosen(composite)["conv2"] == rules.Flat()
    assert chosen(composite)["conv1"] == rules.ZPlus()


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("conv1", {"conv1"}),
        ("bn1", {"conv1"}),  # folded into conv1
        ("conv*", {"conv1", "conv2"}),
        ("*", {"conv1", "conv2", "pool", "fc"}),  # a glob leaves sums and activations alone
        ("add", {"add"}),
        ("[cp]*", {"conv1", "conv2", "pool"}),
    ],
)
def test_overrides_by_name_and_by_glob(pattern, meant):
    got = chosen(composites.EpsilonPlus(overrides={pattern: rules.WSquare()}))
    assert {name for name, rule in got.items() if rule == rules.WSquare()} == meant


def test_of_two_overrides_the_first_holds():
    got = chosen(composites.EpsilonPlus(overrides={"conv2": rules.Flat(), "conv*": rules.WSquare()}))
    assert (got["conv1"], got["conv2"]) == (rules.WSquare(), rules.Flat())


def test_an_override_that_matches_nothing_is_an_error_with_near_names():
    with pytest.raises(LRPError, match=r"'conv3' matches no node of Block; similar names: .*conv"):
        LRP(Block().eval(), composites.EpsilonPlus(overrides={"conv3": rules.Flat()}))


def test_a_sharing_rule_has_no_meaning_at_an_activation():
    with pytest.raises(LRPError, match=r"`relu` \(activation\) hands relevance on as it is; Gamma"):
        LRP(Block().eval(), composites.EpsilonPlus(overrides={"relu": rules.Gamma()}))
    LRP(Block().eval(), composites.EpsilonPlus(overrides={"relu": rules.Pass()}))


def test_the_lrn_rule_is_pass_or_the_local_linearisation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LocalResponseNorm(3, alpha=0.5), nn.Flatten()).double().eval()
    x = torch.randn(1, 4, 1, 1).double().requires_grad_()
    output = model(x)
    identity = LRP(model, composites.EpsilonPlus()).attribute(x.detach(), 2)
    assert identity.flatten().tolist() == [0, 0, output[0, 2].item(), 0]
    gradient = torch.autograd.grad(output[0, 2], x)[0] * x.detach()
    e = LRP(model, composites.EpsilonPlus(lrn=rules.Epsilon(1e-12)))
    with pytest.warns(UserWarning, match="unaccounted"):
        assert torch.allclose(e.attribute(x.detach(), 2), gradient, rtol=1e-9)


def test_a_composite_prints_its_rules_in_order():
    text = str(composites.EpsilonPlusFlat(bias="exclude", overrides={"conv2": rules.Gamma(2.0)}))
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["EpsilonPlusFlat(bias='exclude')"]
    assert [row[0] for row in rows[1:]] == ["conv2", "first", "dense", "any", "addition", "lrn"]


def test_pieces_used_as_a_whole_are_refused_with_the_way_out():
    class Whole(nn.Module):
        def forward(self, x):
            return torch.cat(x.chunk(2, 1), 1)

    with pytest.raises(LRPError, match=r"several tensors that are used as a whole: take them out one by one"):
        LRP(Whole().eval())
