"""A tensor that another node still sees is never overwritten: a view of a layer's output gives the map of its copy."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrp import LRP, composites, rules

VIEWS = {
    "whole": lambda net, e: e,
    "slice": lambda net, e: e[:, :2],
    "part": lambda net, e: e[:, :, :, 1:],
    "chunk": lambda net, e: e.chunk(2, 1)[0],
    "split": lambda net, e: torch.split(e, 2, 1)[1],
    "narrow": lambda net, e: e.narrow(1, 1, 2),
    "select": lambda net, e: e.select(1, 0).unsqueeze(1),
    "permute": lambda net, e: e.permute(0, 1, 3, 2),
    "transpose": lambda net, e: e.transpose(2, 3),
    "reshape": lambda net, e: e.reshape(2, 2, -1, 6),
    "flatten": lambda net, e: e.flatten(2).unflatten(2, (6, 6)),
    "expand": lambda net, e: e[:, :1].expand(-1, 2, -1, -1),
    "dropout": lambda net, e: net.dropout(e),
    "identity": lambda net, e: net.identity(e),
    "detach": lambda net, e: e.detach(),
    "contiguous": lambda net, e: e.contiguous(),
    "to": lambda net, e: e.to(torch.float64),
    "max_pool": lambda net, e: F.max_pool2d(e, 1),
    "avg_pool": lambda net, e: F.avg_pool2d(e, 1),
    "view of a view": lambda net, e: e.permute(0, 2, 3, 1)[..., :2].permute(0, 3, 1, 2),
}
LAYERS = {
    "convolution": lambda: nn.Conv2d(3, 4, 3),
    "convolution with BatchNorm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    "BatchNorm alone": lambda: nn.Sequential(Four(), nn.ZeroPad2d((0, -2, 0, -2)), nn.BatchNorm2d(4)),
}
COMPOSITES = {
    "Epsilon": composites.Epsilon(),
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonGammaBox": composites.EpsilonGammaBox(-5.0, 5.0),
    "EpsilonAlpha2Beta1, excluded": composites.EpsilonAlpha2Beta1(bias="exclude"),
}


class Four(nn.Module):
    def forward(self, x):
        return torch.cat([x, x[:, :1]], 1)


class Reader(nn.Module):
    """A layer's output is read by a ReLU, and by a convolution through a view of it (or of a copy of it)."""

    def __init__(self, layer, view, early: bool, copy: bool):
        super().__init__()
        self.view, self.early, self.copy = view, early, copy
        self.layer, self.dropout, self.identity, self.relu = layer, nn.Dropout(), nn.Identity(), nn.ReLU()
        self.branch = nn.LazyConv2d(4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        e = self.layer(x)
        if self.early:  # the view is read before the ReLU runs
            a = self.branch(self.view(self, e.clone() if self.copy else e)).mean((2, 3))
            b = self.relu(e)
        else:  # the view is made before, and read after it
            v = self.view(self, e.clone() if self.copy else e)
            b = self.relu(e)
            a = self.branch(v).mean((2, 3))
        return self.head(torch.cat([a, b.mean((2, 3))], 1))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_gives_the_map_of_its_copy(view, layer):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for early, (name, composite) in itertools.product((True, False), COMPOSITES.items()):
        model = Reader(LAYERS[layer](), VIEWS[view], early, copy=True).double().eval()
        model(x)
        expected = LRP(model, composite).explain(x, target=0)
        model.copy = False
        found = LRP(model, composite).explain(x, target=0)
        assert torch.equal(found.output, expected.output), (name, early)
        assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12), (name, early)


def test_the_output_of_the_network_is_not_overwritten_either():
    """Relevance may start at a layer whose ReLU comes next, and rules may read it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for rule in (rules.Epsilon(), rules.Gamma(), rules.ZPlus()):
        explainer = LRP(model, composites.Composite([("any", rule)]))
        explainer.explain(x, target=0)
        e = explainer.explain(x, target=1, start="0")
        assert torch.equal(e.output, model[0](x))
