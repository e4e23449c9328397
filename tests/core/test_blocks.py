"""What only concerns memory changes no number: several walks over one tape, and the layout of tensors."""

import pytest
import torch
from networks import small

from lrp import LRP, composites, rules, seeds, walk
from lrp.nodes.propagate import Applied

TARGETS = [0, 3, torch.tensor([1, 2, 0]), None, 4]
COMPOSITES = {
    "Epsilon": composites.Epsilon(0.01),
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(bias="exclude"),
    "EpsilonGammaBox": composites.EpsilonGammaBox(-4.0, 4.0),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(bias="exclude"),
    "AlphaBeta everywhere": composites.Composite([("any", rules.AlphaBeta(1.5, 0.5))], addition=rules.Epsilon()),
}


def pruned():
    """The small network, with a filter whose units are all empty, so that every fallback is asked for."""
    model, x = small()
    with torch.no_grad():
        model.conv.weight[0] = 0
        model.grow.weight[1] = -model.grow.weight[1].abs()
        model.depth.weight[2] = 0
    return model, x


@pytest.mark.parametrize("seed", [None, seeds.SoftmaxGradient(), seeds.Contrastive(kind=1)], ids=repr)
@pytest.mark.parametrize("name", COMPOSITES)
def test_walks_of_their_own_are_one_walk(name, seed, monkeypatch):
    model, x = pruned()
    explainer = LRP(model, COMPOSITES[name])
    together = explainer.explain(x, TARGETS, seed, layers=["pool", "conv"])
    for targets_at_once in (1, 2):
        largest = 6 * x.shape[2] * x.shape[3] * len(x)
        monkeypatch.setitem(walk.LARGEST, "cpu", targets_at_once * largest)
        apart = explainer.explain(x, TARGETS, seed, layers=["pool", "conv"])
        assert torch.allclose(apart.relevance, together.relevance, rtol=1e-9, atol=1e-12)
        for layer in ("pool", "conv"):
            assert torch.allclose(apart.layers[layer], together.layers[layer], rtol=1e-9, atol=1e-12)
        assert [e.name for e in apart.rows] == [e.name for e in together.rows]
        for target in range(len(TARGETS)):
            a, b = apart.ledger_of(target).drop(columns="lost"), together.ledger_of(target).drop(columns="lost")
            assert ((a.select_dtypes("number") - b.select_dtypes("number")).abs().max() < 1e-9).all()


def test_the_opposite_class_too(monkeypatch):
    model, x = small()
    explainer = LRP(model, composites.Composite([("any", rules.ZPlus())]))
    together = explainer.attribute(x, TARGETS, seeds.Contrastive(kind=2))
    monkeypatch.setitem(walk.LARGEST, "cpu", 1)
    assert torch.allclose(explainer.attribute(x, TARGETS, seeds.Contrastive(kind=2)), together, rtol=1e-9, atol=1e-12)


def test_a_walk_carries_as_many_targets_as_memory_allows(monkeypatch):
    """No block is empty, and what a rule works out is worked out once for all of them."""
    model, x = small()
    explainer = LRP(model, composites.EpsilonPlus())
    explainer.attribute(x)
    walks, measured = [], []
    back, measure = walk._back, Applied.measure
    monkeypatch.setattr(walk, "_back", lambda run, R, *rest, **kw: walks.append(len(R)) or back(run, R, *rest, **kw))
    monkeypatch.setattr(Applied, "measure", lambda self, group: measured.append(group) or measure(self, group))
    explainer.attribute(x, [0, 1, 2, 3, 4])
    once = len(measured)
    monkeypatch.setitem(walk.LARGEST, "cpu", 2 * 6 * x.shape[2] * x.shape[3] * len(x))
    explainer.attribute(x, [0, 1, 2, 3, 4])
    assert walks == [5, 2, 2, 1] and len(measured) == 2 * once


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_layout_of_memory_does_not_matter(name):
    model, x = small()
    expected = LRP(model, COMPOSITES[name]).explain(x, TARGETS)
    laid_out = LRP(model.to(memory_format=torch.channels_last), COMPOSITES[name])
    e = laid_out.explain(x.to(memory_format=torch.channels_last), TARGETS)
    assert torch.allclose(e.relevance, expected.relevance, rtol=1e-9, atol=1e-12) and e.imbalance < 1e-9
