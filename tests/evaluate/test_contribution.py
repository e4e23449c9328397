"""Contributions of patches against a loop that replaces them, and agreement against closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from lrp import InputError, LRPError
from lrp.data import models
from lrp.evaluate import contribution


def linear(size=(9, 7)):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 4)).double().eval()


def images(size=(9, 7), n=3):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_loop(model, x, target, region, baseline):
    rows = []
    with torch.no_grad():
        before = model(x)[:, target]
        for i in range(0, x.shape[2], region):
            for j in range(0, x.shape[3], region):
                less = x.clone()
                less[:, :, i : i + region, j : j + region] = baseline
                rows.append(before - model(less)[:, target])
    return torch.stack(rows, 1)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("region", [1, 2, 4])
def test_contributions_are_those_of_a_loop_over_patches_also_where_the_border_cuts_them(region, baseline):
    model, x = linear(), images()
    C = contribution.contributions(model, x, 2, region=region, baseline=baseline)
    assert C.shape == (3, -(-9 // region), -(-7 // region)) and C.dtype == torch.float64
    assert torch.allclose(C.flatten(1), by_loop(model, x, 2, region, baseline), atol=1e-10)


def test_contributions_of_a_network_are_those_of_a_loop():
    model = models.load("scene_vgg")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    colour = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    C = contribution.contributions(model, x, 3, region=32, baseline=colour)
    assert torch.allclose(C.flatten(1), by_loop(model, x, 3, 32, colour).double(), atol=1e-5)


def test_for_a_linear_model_gradient_x_input_agrees_completely_and_its_negative_not_at_all():
    model, x = linear(), images()
    C = contribution.contributions(model, x, 1, region=2)
    R = model[1].weight[1].detach().view(3, 9, 7) * x
    agreed, opposed = (contribution.agreement(maps, C, region=2) for maps in (R, -R))
    for name in ("rank correlation", "signs", "signs by weight"):
        assert torch.allclose(agreed[name], torch.ones(3, dtype=torch.float64))
        assert torch.allclose(opposed[name], torch.full((3,), -1.0 if "rank" in name else 0.0, dtype=torch.float64))


def test_agreement_is_what_scipy_and_counting_say():
    maps, C = images((6, 6))[:, 0], images((3, 3), 3)[:, 1]
    found = contribution.agreement(maps, C, region=2)
    sums = maps.unflatten(2, (3, 2)).unflatten(1, (3, 2)).sum((2, 4))
    for n in range(3):
        r, c = sums[n].flatten(), C[n].flatten()
        assert found["rank correlation"][n].item() == pytest.approx(spearmanr(r, c).statistic)
        right = [(a > 0) == (b > 0) for a, b in zip(r.tolist(), c.tolist(), strict=True)]
        assert found["signs"][n].item() == pytest.approx(sum(right) / 9)
        weight = sum(abs(b) for b, yes in zip(c.tolist(), right, strict=True) if yes) / c.abs().sum().item()
        assert found["signs by weight"][n].item() == pytest.approx(weight)


@given(factor=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_agreement_does_not_depend_on_the_units(factor, seed):
    generator = torch.Generator().manual_seed(seed)
    maps, C = torch.randn(2, 4, 4, generator=generator), torch.randn(2, 2, 2, generator=generator).double()
    one, other = contribution.agreement(maps, C, 2), contribution.agreement(maps.double() * factor, C / factor, 2)
    assert all(torch.allclose(one[name], other[name]) for name in one)


def test_no_value_agrees_with_nothing_and_a_positive_map_gets_the_share_that_helps():
    C = torch.tensor([[[1.0, -2.0], [3.0, 0.5]]], dtype=torch.float64)
    flat = contribution.agreement(torch.zeros(1, 2, 2), C, 1)
    assert flat["rank correlation"].isnan().all() and flat["signs"].item() == 0
    assert contribution.agreement(torch.ones(1, 2, 2), C, 1)["signs"].item() == 0.75


def test_patches_that_differ_and_values_that_are_not_finite_are_named():
    C = torch.ones(2, 3, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"patches \(2, 6, 6\), the contributions \(2, 3, 3\)"):
        contribution.agreement(torch.ones(2, 6, 6), C, 1)
    with pytest.raises(LRPError, match="finite"):
        contribution.agreement(torch.full((2, 3, 3), torch.nan), C, 1)
