"""The model is only read, whatever happens; and what others change about it is seen."""

import copy

import pytest
import torch
from networks import PRESETS, Small, small, state
from torch import nn

from lrp import LRP, LRPError, composites, seeds


class Constants(Small):
    """Makes a tensor in its forward, which torch.fx likes to store on the model."""

    def forward(self, x):
        return super().forward(x * torch.tensor(1.5, dtype=x.dtype if isinstance(x, torch.Tensor) else torch.float64))


@pytest.mark.parametrize("kind", [Small, Constants])
def test_the_model_is_never_changed(kind):
    model = kind().double().eval().requires_grad_(True)
    model.head[1].weight.requires_grad_(False)
    model.conv.register_forward_hook(lambda *a: None)
    x = torch.randn(2, 3, 8, 8).double()
    before = state(model)
    for preset in PRESETS.values():
        LRP(model, preset()).explain(x, [0, 1], layers=["conv"])
    assert state(model) == before
    with pytest.raises(LRPError):
        LRP(model, composites.Epsilon()).explain(x, 0, seed=seeds.Contrastive(kind=2))  # fails in mid-walk
    with pytest.raises(LRPError):
        LRP(model).explain(x[:, :2])
    assert state(model) == before
    assert torch.is_grad_enabled()


def double_head(model):
    model.head[1].weight.mul_(2)


def load(model):
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()})


def through_data(model):
    model.conv.weight.data.mul_(2)


def one_value_through_data(model):
    model.head[1].weight.data[2, 7] += 3.0


def one_weight_of_a_convolution(model):
    model.conv.weight.data[3, 4, 1, 2] += 5.0


def swap_two_weights(model):
    w = model.conv.weight.data
    w[0], w[1] = w[1].clone(), w[0].clone()


def replace(model):
    model.grow.weight = nn.Parameter(-model.grow.weight.detach())


def statistics(model):
    model.norm.running_mean.add_(1)


def shift_statistics(model):
    model.norm.running_var.data[4] = 9.0


CHANGES = [double_head, load, through_data, one_value_through_data, one_weight_of_a_convolution, swap_two_weights]


@pytest.mark.parametrize("change", [*CHANGES, replace, statistics, shift_statistics], ids=lambda f: f.__name__)
def test_changed_weights_are_seen(change):
    model, x = small()
    explainer = LRP(model, composites.EpsilonAlpha2Beta1())
    before = explainer.attribute(x, 2)
    with torch.no_grad():
        change(model)
    e = explainer.explain(x, 2)
    assert torch.allclose(e.output, model(x), rtol=1e-12)
    fresh = LRP(copy.deepcopy(model), composites.EpsilonAlpha2Beta1()).attribute(x, 2)
    assert torch.equal(e.relevance, fresh) and not torch.allclose(before, fresh)


def test_works_inside_and_after_inference_mode():
    model, x = small()
    expected = LRP(model).attribute(x, 1)
    with torch.inference_mode():
        inside = LRP(model).attribute(x, 1)
        made_there = x.clone()
    assert torch.equal(inside, expected)
    assert torch.equal(LRP(model).attribute(made_there, 1), expected)
