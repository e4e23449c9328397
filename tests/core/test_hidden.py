"""Relevance that starts inside the network: at a unit, a channel, or one place of it."""

import pytest
import torch
from networks import small
from torch import nn

from lrp import LRP, InputError, LRPError, TargetError, composites, rules, seeds

PLUS = composites.Composite([("any", rules.ZPlus())])


class Head(nn.Module):
    """The network up to a module, as a model of its own."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x):
        kept = []
        hook = self.model.get_submodule(self.name).register_forward_hook(lambda m, i, o: kept.append(o.clone()))
        self.model(x)
        hook.remove()
        return kept[0]


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(20, 7), nn.ReLU(inplace=True), nn.Linear(7, 3),
    ).double().eval()  # fmt: skip


def upto(model, end):
    """The first modules of a Sequential as a network of their own."""
    return nn.Sequential(*list(model)[:end]).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seed", [None, seeds.OneHot(), seeds.Contrastive(kind=2), seeds.Contrastive(kind=1)], ids=repr)
@pytest.mark.parametrize("name", ["6", "7", "8"])
def test_a_hidden_unit_is_the_output_of_a_shorter_network(name, seed, x):
    model = two_layers()
    short = upto(model, int(name) + 1)
    for target in (0, torch.tensor([2, 1]), [0, 2], None):
        e = LRP(model, PLUS).explain(x, target, seed, start=name)
        expected = LRP(short, PLUS).explain(x, target, seed)
        assert torch.equal(e.relevance, expected.relevance) and torch.equal(e.target, expected.target)
        assert torch.equal(e.output, short(x)) and e.ledger_of().equals(expected.ledger_of())


@pytest.mark.parametrize("name", ["0", "3", "4"])
def test_channels_and_places_of_a_convolution(name, x):
    """A place's relevance is that of a seed tensor zero elsewhere, a channel's the sum over its places."""
    model = two_layers()
    short = upto(model, int(name) + 1)
    y, explainer = short(x), LRP(model, PLUS)
    places = [(2, i, j) for i in range(y.shape[2]) for j in range(y.shape[3])]
    maps = explainer.attribute(x, places, start=name)
    for place, R in zip(places, maps, strict=True):
        seed = torch.zeros_like(y)
        seed[(slice(None), *place)] = y[(slice(None), *place)]
        assert torch.allclose(LRP(short, PLUS).attribute(x, seed=seed), R, rtol=1e-12, atol=1e-15)
    channel = explainer.explain(x, 2, start=name)
    assert channel.relevance.shape == x.shape
    assert torch.allclose(channel.relevance, maps.sum(0), rtol=1e-10, atol=1e-13)
    assert torch.allclose(channel.seed[0], y[:, 2].sum((1, 2)))
    one = explainer.attribute(x, (2, 0, 1), start=name)
    assert torch.equal(one, maps[1])


def test_the_opposite_of_a_channel(x):
    """Contrastive(kind=2) at a convolution: its weights negated, wherever it looks."""
    model = two_layers()
    signed = LRP(model, PLUS).attribute(x, (1, 1, 0), seeds.Contrastive(kind=2, positive=False), start="3")
    plain = LRP(model, PLUS).attribute(x, (1, 1, 0), start="3")
    negated = two_layers()
    with torch.no_grad():
        negated[3].weight.neg_(), negated[3].bias.neg_()
    y = upto(model, 4)(x)
    seed = torch.zeros_like(y)
    seed[:, 1, 1, 0] = y[:, 1, 1, 0]
    dual = LRP(upto(negated, 4), PLUS).attribute(x, seed=seed)
    assert torch.allclose(signed, plain - dual, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["pool", "relu", "depth_norm", "head"])
def test_modules_of_any_kind(name, x):
    """Also those in the middle of branches, folded or overwritten in place; what lies above is not visited."""
    model, x = small()
    value = Head(model, name)(x)
    target = 1 if value.dim() == 2 else (1, 0, 2)
    e = LRP(model, composites.EpsilonPlus(bias="exclude")).explain(x, target, layers=["pool"], start=name)
    assert torch.allclose(e.output, value, rtol=1e-10) and e.imbalance < 1e-9
    assert torch.allclose(e.relevance.sum((1, 2, 3)), e.seed[0], rtol=1e-4)
    assert name == "head" or "head.1" not in e.ledger_of().index


def test_layers_above_the_start_have_no_relevance(x):
    e = LRP(two_layers(), PLUS).explain(x, 0, layers=["2", "8"], start="6")
    assert set(e.layers) == {"2"}


def test_refusals(x):
    explainer = LRP(two_layers())
    with pytest.raises(InputError, match="no module or node named `features`"):
        explainer.attribute(x, 0, start="features")
    for target in (None, (1, 2), 1.5, (0, True, 0), torch.tensor([1, 2])):
        with pytest.raises(
            TargetError, match=r"`3` gives \(N, 5, 2, 2\): there a target is a channel, or a tuple of 3"
        ):
            explainer.attribute(x, target, start="3")
    for target in (5, (0, 2, 0), -1):
        with pytest.raises(TargetError, match="is no unit of `3`"):
            explainer.attribute(x, target, start="3")
    with pytest.raises(LRPError, match=r"identically zero under Epsilon.* at layer `6`, where relevance starts"):
        explainer.attribute(x, 0, seeds.Contrastive(kind=2), start="6")
