"""How pictures lie in memory: faster inside, as they came outside, and never another map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrp import LRP, LRPError, composites, rules
from lrp.network import layout
from lrp.network.samples import Samples, rows, within
from lrp.nodes.amounts import rms, total

COMPOSITES = {
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
    "EpsilonGammaBox": composites.EpsilonGammaBox(-4.0, 4.0),
    "Epsilon": composites.Epsilon(),
}


class Net(nn.Module):
    """A stem, a depthwise convolution, a skip, a pool and a head, flattened by `end`."""

    def __init__(self, end=lambda x: x.flatten(1)):
        super().__init__()
        self.end = end
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.one = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8 * 25, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (x + self.one(self.deep(x).relu())).relu()
        return self.head(self.end(self.pool(x)))


def strided(x):
    """Right in the usual layout alone."""
    return x.as_strided((len(x), 200), (200, 1))


def made(end=None):
    torch.manual_seed(0)
    return (Net() if end is None else Net(end)).eval(), torch.randn(2, 3, 10, 10).clamp(-3, 3)


@pytest.mark.parametrize("name", COMPOSITES)
def test_both_layouts_give_one_map_and_it_lies_as_the_input_does(name):
    model, x = made()
    explainer, before = LRP(model, COMPOSITES[name]), x.clone()
    R = explainer.attribute(x, [0, 1])
    true = LRP(model.double(), COMPOSITES[name]).attribute(x.double(), [0, 1])
    model.float()
    assert explainer.plan.fast and R.is_contiguous() and torch.equal(x, before) and x.is_contiguous()
    wide = explainer.attribute(x.to(memory_format=torch.channels_last), [0, 1])
    assert wide[0].is_contiguous(memory_format=torch.channels_last)
    explainer.plan.fast = False
    usual = explainer.attribute(x, [0, 1])
    for found in (R, wide, usual):
        assert float((found - true).abs().max() / true.abs().max()) < 1e-5


def test_layers_and_outputs_come_back_in_the_usual_layout():
    model, x = made()
    e = LRP(model).explain(x, 0, layers=["deep"], start="pool")
    assert e.layers["deep"].is_contiguous() and e.output.is_contiguous() and e.output.shape == (2, 8, 5, 5)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.view(len(x), -1),
        lambda x: x.view((x.size(0), 200)),
        lambda x: x.view(size=(-1, 200)),
        lambda x: x.view_as(x.flatten(1)),
        lambda x: torch.Tensor.view(x, -1, 200),
        lambda x: x.view(2, 2, 4, 5, 5).transpose(1, 2).contiguous().view(x.shape).flatten(1),
    ],
    ids=["view", "a tuple", "by keyword", "view_as", "as a function", "shuffled channels"],
)
def test_views_that_ask_for_a_layout_are_reshapes_here(end):
    model, x = made(end)
    explainer = LRP(model, composites.EpsilonPlus())
    found = explainer.attribute(x, 1)
    assert explainer.plan.fast
    true = LRP(model.double(), composites.EpsilonPlus()).attribute(x.double(), 1)
    assert float((found - true).abs().max() / true.abs().max()) < 1e-5


def test_numbers_read_as_another_type_stay_a_view():
    class Bits(nn.Module):
        def forward(self, x):
            return x.flatten(1) * (x.flatten(1).view(torch.int32) >= 0)  # the sign bit

    x = torch.randn(2, 3, 4, 4)
    found = LRP(Bits().eval(), composites.Epsilon()).explain(x, 5)
    assert torch.equal(found.output, Bits()(x))


def test_a_network_that_needs_the_usual_layout_is_walked_in_it():
    model, x = made(strided)
    explainer = LRP(model, composites.Epsilon(overrides={"as_strided*": rules.Epsilon()}))
    found = explainer.explain(x, 0)
    assert not explainer.plan.fast
    model.end = lambda x: x.flatten(1)
    assert torch.allclose(found.relevance, LRP(model, composites.Epsilon()).attribute(x, 0), atol=1e-5)


def test_an_input_that_fails_in_either_layout_does_not_cost_the_fast_one():
    model, x = made()
    explainer = LRP(model)
    with pytest.raises(LRPError, match=r"not finite|NaN|infinite"):
        explainer.attribute(x * 3e38, 0)
    assert explainer.plan.fast
    explainer.attribute(x, 0)
    assert explainer.plan.fast


def test_only_float32_pictures_on_a_cpu_are_laid_anew():
    x = torch.randn(2, 3, 4, 5)
    for same in (x.double(), x.half(), x[0], x.to("meta"), x.to(memory_format=torch.channels_last)):
        assert layout.side_by_side((same,))[0] is same
    assert layout.side_by_side((x,))[0].is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- amounts without copies


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.booleans(),
    st.sampled_from([None, 0, 1]),
    st.integers(0, 99),
)
def test_amounts_are_those_of_rows(shape, wide, axis, seed):
    """Sums and norms over axes against those of a copy with one row for each sample."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if wide and z.dim() == 4:
        z = z.to(memory_format=torch.channels_last)
    samples = None if axis is None else Samples(shape[axis], axis, torch.arange(shape[axis]))
    each = rows(z, samples)
    assert torch.allclose(rms(z, samples).flatten(), each.square().mean(1).sqrt())
    assert torch.allclose(total(z[None], samples)[0], each.sum(1))
    values, axes = within(z, samples)
    assert torch.equal(values.amax(axes), each.amax(1))


class _Copies(TorchDispatchMode):
    """Counts the copies, in the same type, of tensors as large as a layer's values."""

    def __init__(self, least):
        super().__init__()
        self.least, self.found = least, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy):
            self.found += [function] * (out.numel() >= self.least and out.dtype == args[0].dtype)
        return out


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_walk_in_channels_last_copies_nothing(name):
    """Flattening for a sum, a norm or a minimum would copy a value from one layout to the other, at every node."""
    model, x = made()
    explainer = LRP(model, COMPOSITES[name])
    x = x.to(memory_format=torch.channels_last)
    explainer.attribute(x, 0)
    with _Copies(2 * 8 * 100) as copies:
        explainer.attribute(x, 0)
    assert not copies.found


def test_a_small_summand_is_no_rounding_noise():
    """Sums of few terms are exact: `Ratio` shares them by magnitude however small they are beside others."""

    class Skip(nn.Module):
        def forward(self, x):
            return x[:, :2] + x[:, 2:]

    x = torch.tensor([[1.0, 1e-9, 2.0, 3e-9], [0.0, 1.0, 0.0, 3.0]])
    R = LRP(Skip().eval(), composites.Epsilon(addition=rules.Ratio())).attribute(x, 1, seed=torch.ones(2, 2))
    assert torch.allclose(R, torch.tensor([[1 / 3, 0.25, 2 / 3, 0.75], [0.5, 0.25, 0.5, 0.75]]))
