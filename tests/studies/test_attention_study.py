"""Attention: toys against closed forms, the network against the core, and the arithmetic of the comparison."""

import numpy as np
import pandas as pd
import pytest
import torch

from lrp import LRP, LRPError, composites
from lrp.data import datasets, models
from lrp.studies import attention
from lrp.studies.comparison import Images

DOUBLE = {"dtype": torch.float64}


@pytest.fixture(scope="module")
def vit():
    return models.load("scene_vit", **DOUBLE)


@pytest.fixture(scope="module")
def scenes():
    return datasets.scenes(4, seed=3, split="test")


def given(composite, model, x):
    return LRP(model, composite).attribute(x, 0)


def test_a_product_is_counted_twice_by_gradient_x_input_and_halved_by_both_presets():
    model, x = attention.Product().eval(), torch.tensor([[2.0, 3.0]], **DOUBLE)
    assert attention.gradient_x_input(model, x).tolist() == [[6.0, 6.0]]
    for make in (composites.CPLRP, composites.AttnLRP):
        assert torch.allclose(given(make(0, 0), model, x), torch.tensor([[3.0, 3.0]], **DOUBLE))
    assert given(composites.CPLRP(0, 0), attention.Gate().eval(), x)[0, 0] == 0


def test_scores_get_the_covariance_of_scores_and_values():
    model, x = attention.Head().eval(), torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0), **DOUBLE)
    y, cov = model(x)[:, 0], attention.covariance(x[:, 0], x[:, 1])
    by_sum = attention.gradient_x_input(model, x).sum(2)
    assert torch.allclose(by_sum, torch.stack([cov, y], 1), atol=1e-12)
    assert torch.allclose(given(composites.AttnLRP(0, 0), model, x).sum(2), by_sum / 2, rtol=1e-4, atol=1e-6)
    held = given(composites.CPLRP(0, 0), model, x).sum(2)
    assert torch.allclose(held, torch.stack([0 * y, y], 1), rtol=1e-4, atol=1e-6)


def test_scores_that_all_move_keep_their_sum():
    scores, values = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1), **DOUBLE)
    moved = attention.covariance(scores + 7, values)
    assert torch.allclose(moved, attention.covariance(scores, values), atol=1e-12)


def test_gradient_x_input_vanishes_at_a_norm():
    _, model, deviation, x = attention.toys()["LayerNorm"]
    y, total = model(x)[:, 0], attention.gradient_x_input(model, x).sum(1)
    assert torch.allclose(total, y / (1 + deviation**2), atol=1e-6)
    assert torch.allclose(given(composites.CPLRP(0, 0), model, x).sum(1), y.detach(), rtol=1e-4)


def test_the_forward_pass_is_the_networks_own_whatever_is_held(vit, scenes):
    x = scenes.inputs.double()
    for hold in ((), ("norm",), attention.HELD):
        assert torch.allclose(attention.forward(vit, x, hold)[0], vit(x), atol=1e-10)
    with pytest.raises(LRPError, match="cannot hold everything; there are attention"):
        attention.forward(vit, x, ["everything"])


def test_constants_that_are_held_make_gradient_x_input_cp_lrp(vit, scenes):
    x, target = scenes.inputs.double(), scenes.labels[:, 0]
    e = LRP(vit, composites.CPLRP(0, 0, epsilon=1e-12)).explain(x, target)
    found = attention.totals(vit, x, target, attention.HELD)
    assert torch.allclose(found["pixels"][0], e.received[0] / e.seed[0], atol=1e-6)
    assert torch.allclose(found["pixels"][1], e.relevance.abs().sum((1, 2, 3)) / e.seed[0].abs(), rtol=1e-5)
    assert torch.allclose(attention.totals(vit, x, target)["block 3"][0], torch.zeros(4, **DOUBLE), atol=1e-3)


@pytest.mark.parametrize("make", [composites.CPLRP, composites.AttnLRP])
def test_everything_that_keeps_a_share_has_a_name(vit, scenes, make):
    found = attention.keepers(LRP(vit, make()).explain(scenes.inputs.double(), scenes.labels[:, 0]))
    assert torch.allclose(sum(found.values()), torch.ones(4, **DOUBLE))
    assert found["rest"].abs().max() < 1e-3
    assert bool(found["softmax"].abs().max() > 0) == (make is composites.AttnLRP)


def test_sweep_and_choice(vit, scenes):
    model, images = models.load("scene_vit"), Images.of(scenes)[:2]
    rows = attention.sweep(model, images, -2.0, convolution=[0.1], linear=[0.0, 0.1], step=2048)
    assert len(rows) == 2 * 2 * 3 * 2 and rows.value.notna().all()
    made = pd.DataFrame(
        [("A", 0.1, g, "ID, blur", i, v) for g, v in ((0.0, 1.0), (1.0, 3.0)) for i in (0, 1)],
        columns=["preset", "gamma", "gamma_linear", "metric", "sample", "value"],
    )
    assert attention.chosen(made) == {"A": (0.1, 1.0)}


def test_holm_by_hand():
    assert attention.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert attention.holm([0.6, 0.7]).tolist() == [1.0, 1.0]


def test_sign_flips_find_a_shift_and_nothing_in_noise():
    noise = np.random.default_rng(0).normal(size=24)
    assert attention.sign_flips(noise - noise.mean()) > 0.9
    assert attention.sign_flips(noise + 3) == pytest.approx(1e-4)
    assert attention.sign_flips([1.0, 1.0]) == pytest.approx(0.5, abs=0.02)


def test_paired_leaves_controls_out_and_pairs_by_sample():
    rows = [("ours", "LRP", i, i + 1.0) for i in range(12)] + [("rival", "gradient", i, float(i)) for i in range(8)]
    rows += [("noise", "control", i, 0.0) for i in range(12)]
    table = pd.DataFrame(rows, columns=["method", "family", "sample", "value"]).assign(metric="m")
    found = attention.paired(table, "m", "ours")
    assert list(found) == ["rival"] and found["rival"][0].mean == 1 and found["rival"][0].n == 8
    assert found["rival"][1] < 0.05


def test_contenders_and_price(vit, scenes):
    methods = attention.contenders((0.1, 0.0), (0.1, 0.01), {"mine": lambda m, x, t: x.sum(1)}, slow=3)
    assert [m.at_most for m in methods if m.name == "occlusion"] == [3] and methods[-1].name == "AttnLRP, γ"
    assert {m.family for m in methods} == {"control", "gradient", "patch", "attention", "LRP"}
    x, target = scenes.inputs.double()[:1], scenes.labels[:1, 0]
    found = attention.price(vit, {"gradient": lambda m, x, t: attention.gradient_x_input(m, x, t)}, x, target)
    assert 0.3 < found["gradient"] < 3
