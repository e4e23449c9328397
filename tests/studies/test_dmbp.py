"""DMBP (reconstructed): its loss by hand, its result, its optimisation, and what it refuses. See also test_masked."""

import inspect
import math

import pandas as pd
import pytest
import torch
from networks import Net, state
from test_masked import build, images, inception, odds, vgg
from torch import nn

from lrp import InputError, LRPError, TargetError, UnsupportedOperation
from lrp.data import datasets, models
from lrp.studies import dmbp, dmbp_result
from lrp.studies.dmbp import DMBP, Weights
from lrp.studies.dmbp_result import DMBPResult

TENSORS = ("pos_mapping", "neg_mapping", "nuisance_mapping", "mapping", "pos_attribution", "neg_attribution", "b_eff")


def toy():
    """Four convolutions, a pool, BatchNorm: small enough for hundreds of iterations."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return build(toy)


@pytest.fixture(scope="module")
def run(model):
    """Six images, 60 iterations."""
    return DMBP(model).attribute(images(6, 12), num_its=60, progress=False)


# ---------------------------------------------------------------- the loss


def test_the_terms_by_hand():
    P = torch.tensor([[[3.0, -1.0]], [[0.0, 2.0]]])
    N = torch.tensor([[[-4.0, 1.0]], [[0.0, 0.0]]])
    y, S, scale = torch.tensor([1.0, 4.0]), torch.tensor([10.0, 4.0]), torch.tensor([2.0, 4.0])
    assert dmbp.completeness(P, N, y, scale).tolist() == [((3 - 1 - 4 + 1 - 1) / 2) ** 2, 0.25]
    assert dmbp.wrong_sign(P, N, S).tolist() == pytest.approx([(1 + 1) / 10, 0])
    assert dmbp.evidence(P, N, S).tolist() == pytest.approx([(3 + 4) / 10, 0.5])
    assert dmbp.extremes(P, N, S).tolist() == pytest.approx([(-3 - 2) / 10, -0.5])
    masks = torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]]])
    assert dmbp.mean_mask(masks).tolist() == [0.5]


@pytest.mark.parametrize("kind", dmbp.MASKS)
def test_the_first_row_of_the_history_is_the_loss_of_the_start(model, kind):
    x, weights = images(2, 12), Weights(2, 3, 0.7, 0.4)
    r = DMBP(model, kind, weights, start=0.5).attribute(x, 1, num_its=0)
    m = math.exp(0.5) / (2 * math.exp(0.5) + 1) if kind == "softmax" else 1 / (1 + math.exp(-0.5))
    assert all(torch.allclose(part, torch.full_like(part, m)) for part in r.masks.values())
    P, N, S = r.pos_attribution, r.neg_attribution, r.gradient_x_input.abs().sum((1, 2, 3))
    f = model(x)[:, 1].detach()
    scale = torch.maximum(f.abs(), dmbp_result.FLOOR * S)
    terms = {
        "completeness": dmbp.completeness(P, N, r.gradient_x_input.sum((1, 2, 3)), scale),
        "mean_mask": torch.full((), m),
        "wrong_sign": dmbp.wrong_sign(P, N, S),
        "evidence": dmbp.evidence(P, N, S),
        "extremes": dmbp.extremes(P, N, S),
    }
    by = {"completeness": 2, "wrong_sign": 3, "evidence": -0.7, "mean_mask": 0.4}
    by = {"extremes": 0.7, "mean_mask": 0.4} if kind == "maxmin" else by
    row = r.history.iloc[0]
    assert list(r.history.columns[:2]) == ["iteration", "loss"] and set(by) < set(row.index) and len(r.history) == 1
    assert row.loss == pytest.approx(sum(w * float(terms[name].mean()) for name, w in by.items()))
    assert row.purity == pytest.approx(float(r.purity.mean())) and r.num_its == 0
    assert row.completeness_error == pytest.approx(float(r.completeness_error.mean()))


def test_a_tiny_score_does_not_blow_completeness_up(model):
    model, f = build(toy), model(images(1, 12))[0, 0].item()
    model = nn.Sequential(model, nn.Linear(5, 1)).double().eval()
    model[1].weight.data, model[1].bias.data = torch.eye(1, 5).double(), torch.full((1,), -f).double()
    r = DMBP(model).attribute(images(1, 12), num_its=1)
    S, gap = r.gradient_x_input.abs().sum(), (r.pos_attribution + r.neg_attribution - r.gradient_x_input).sum().abs()
    assert abs(r.output.item()) < 1e-6 * S
    assert r.completeness_error.item() == pytest.approx(float(100 * gap / S))


# ---------------------------------------------------------------- the result


def test_the_parts_add_up_to_the_gradient(model, run):
    """Acceptance tests 3, 5, 9."""
    x = images(6, 12)
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    expected = torch.autograd.grad(output.amax(1).sum(), leaf)[0]
    assert torch.allclose(run.mapping, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(run.pos_mapping + run.neg_mapping + run.nuisance_mapping, run.mapping, rtol=1e-13, atol=1e-15)
    assert torch.equal(run.target, output.argmax(1)) and torch.allclose(run.output, output.detach())
    f = output.amax(1).detach()
    assert torch.allclose(run.gradient_x_input.sum((1, 2, 3)) + run.b_eff, f)
    for name in TENSORS:
        tensor = getattr(run, name)
        assert tensor.shape == (x.shape if name != "b_eff" else (6,)) and not tensor.requires_grad
    for sign in ("pos", "neg"):
        assert torch.equal(getattr(run, f"{sign}_attribution"), getattr(run, f"{sign}_mapping") * x)
    assert {name: tuple(m.shape) for name, m in run.masks.items()} == {
        "2": (2, 6, 8), "4": (2, 6, 8), "7": (2, 6, 12), "9": (2, 6, 12)}  # fmt: skip
    assert all(not m.requires_grad and (m > 0).all() and (m < 1).all() for m in run.masks.values())


def test_the_loss_falls_and_the_positive_mapping_becomes_purer(model, run):
    """Acceptance test 4."""
    history = run.history
    assert isinstance(history, pd.DataFrame) and list(history.iteration) == list(range(61))
    assert history.loss.iloc[-1] < history.loss.iloc[0] - 0.05 and history.loss.diff().median() < 0
    longer = DMBP(model).attribute(images(6, 12), num_its=200)
    assert longer.completeness_error.max() < 0.1
    assert (longer.purity > longer.gradient_purity + 0.05).sum() >= 5
    G = longer.gradient_x_input
    assert torch.allclose(longer.gradient_purity, G.clamp(min=0).sum((1, 2, 3)) / G.abs().sum((1, 2, 3)))
    P, N = longer.pos_attribution, longer.neg_attribution
    right = P.clamp(min=0).sum((1, 2, 3)) - N.clamp(max=0).sum((1, 2, 3))
    assert torch.allclose(longer.joint_purity, right / (P.abs() + N.abs()).sum((1, 2, 3)))
    assert torch.allclose(longer.negative_share, longer.neg_attribution.abs().sum((1, 2, 3)) / G.abs().sum((1, 2, 3)))


def test_without_negative_evidence_the_negative_mapping_is_empty():
    """Acceptance test 6."""
    model = build(toy)
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
        model[1].running_mean.neg_().clamp_(max=0)
    r = DMBP(model).attribute(images(2, 12).abs(), num_its=150)
    assert (r.gradient_purity == 1).all() and (r.negative_share < 0.01).all() and (r.completeness_error < 0.05).all()


def test_the_map_for_display_by_hand(run):
    shown = run.map(0.95)
    assert shown.shape == (6, 12, 12) and shown.abs().max() <= 1
    for n in range(6):
        a = []
        for sign, R in ((1, run.pos_attribution), (-1, run.neg_attribution)):
            one = sign * R[n].mean(0)
            limit = float(torch.quantile(one.abs().flatten(), 0.95))
            one = one.clamp(-limit, limit)
            a.append(one - one.min())
        assert torch.allclose(shown[n], (a[0] - a[1]) / max(float(a[0].max()), float(a[1].max())))
    assert run.map().shape == (6, 12, 12)
    for wrong in (0, 1.5, "a"):
        with pytest.raises(LRPError, match="quantile"):
            run.map(wrong)
    flat = DMBP(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval())
    with pytest.raises(LRPError, match=r"attributions \(N, C, H, W\)"):
        flat.attribute(torch.rand(2, 4), num_its=2).map()


def test_an_image_of_zeros_has_an_empty_map(model):
    r = DMBP(model).attribute(torch.zeros(1, 3, 12, 12).double(), num_its=3)
    assert not r.map().any() and r.purity.isnan().all() and r.completeness_error.item() == 0
    assert torch.isfinite(r.pos_mapping).all() and "nan" in repr(r)


def test_everywhere_it_says_that_it_is_reconstructed(run):
    """Acceptance test 10."""
    said = "DMBP (reconstructed objective; the original code and text were not available)"
    for text in (dmbp.__doc__, DMBP.__doc__, DMBPResult.__doc__, repr(run)):
        assert said in text
    assert "(reconstructed)" in inspect.getdoc(Weights)
    for word in ("completeness error", "purity", "negative share", "6 x (3, 12, 12), 60 iterations"):
        assert word in repr(run)


# ---------------------------------------------------------------- the optimisation


@pytest.mark.parametrize("kind", dmbp.MASKS)
def test_a_batch_is_its_images_one_by_one(model, kind):
    """Acceptance test 7."""
    x, target = images(3, 12), torch.tensor([0, 4, 2])
    method = DMBP(model, kind, noise=0.3, seed=2)
    whole, again = (method.attribute(x, target, num_its=25) for _ in range(2))
    for n in range(3):
        one = method.attribute(x[n : n + 1], int(target[n]), num_its=25)
        for name in TENSORS:
            assert torch.allclose(getattr(one, name)[0], getattr(whole, name)[n], rtol=1e-6, atol=1e-9)
    for name in TENSORS:
        assert torch.equal(getattr(whole, name), getattr(again, name))
    other = DMBP(model, kind, noise=0.3, seed=3).attribute(x, target, num_its=0)
    assert not torch.allclose(other.pos_mapping, method.attribute(x, target, num_its=0).pos_mapping)


@pytest.mark.parametrize("kind", dmbp.MASKS)
def test_masks_are_taken_up_where_they_were_left(model, kind):
    x, method = images(2, 12), DMBP(model, kind)
    first = method.attribute(x, num_its=30)
    same = method.attribute(x, num_its=0, masks=dict(reversed(first.masks.items())))
    assert torch.allclose(same.pos_mapping, first.pos_mapping, rtol=1e-6, atol=1e-9)
    assert torch.allclose(same.neg_mapping, first.neg_mapping, rtol=1e-6, atol=1e-9)
    further = method.attribute(x, num_its=30, masks=first.masks)
    assert further.history.loss.iloc[0] == pytest.approx(first.history.loss.iloc[-1])
    assert further.history.loss.iloc[-1] < first.history.loss.iloc[-1]
    for masks, match in (
        ({}, r"masks of `2` have shape None; \(2, 2, 8\) is needed"),
        ({**first.masks, "x": torch.ones(1)}, "`x`"),
        ({name: m + 0.5 for name, m in first.masks.items()}, "from 0 to 1"),
    ):
        with pytest.raises(InputError, match=match):
            method.attribute(x, masks=masks)


def test_it_stops_where_nothing_falls(model):
    x = images(2, 12)
    still = DMBP(model, rate=1e-9).attribute(x, num_its=50, patience=4)
    assert still.num_its == 4 and len(still.history) == 5
    assert len(DMBP(model, rate=1e-9).attribute(x, num_its=8).history) == 9
    assert DMBP(model).attribute(x, num_its=12, patience=4).num_its == 12


def test_the_start_and_the_weights_matter(model, run):
    x = images(6, 12)
    zero = DMBP(model, start=0.0).attribute(x, num_its=0)
    assert all(torch.allclose(m, torch.full_like(m, 0.5)) for m in zero.masks.values())
    nothing = DMBP(model, weights=Weights(completeness=0, keep=0)).attribute(x, num_its=60)
    kept = [r.pos_attribution.abs().sum() + r.neg_attribution.abs().sum() for r in (nothing, run)]
    assert kept[0] < 0.5 * kept[1]


@pytest.mark.parametrize("make", [vgg, inception, odds])
def test_the_model_is_only_read(make):
    """Acceptance test 8."""
    model = build(make).requires_grad_(True)
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *a: None)
    x = images().requires_grad_()
    before = state(model)
    with torch.inference_mode():
        DMBP(model, noise=0.1).attribute(x, num_its=2)
    r = DMBP(model).attribute(x, num_its=2)
    assert state(model) == before and x.grad is None and not r.pos_mapping.requires_grad


def test_it_sees_new_weights(model):
    model, x = build(toy), images(1, 12)
    method = DMBP(model)
    before = method.attribute(x, 0, num_its=0)
    with torch.no_grad():
        model[12].weight.mul_(2)
    assert torch.allclose(method.attribute(x, 0, num_its=0).mapping, 2 * before.mapping)


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_is_refused(model):
    x, method = images(2, 12), DMBP(model)
    for options, match in (
        ({"masks": "soft"}, "no kind of masks is called 'soft'"),
        ({"weights": (1, 2)}, "weights are dmbp.Weights"),
        ({"start": math.nan}, "start is a finite number"),
        ({"rate": 0}, "rate is a finite number above 0"),
        ({"noise": -1}, "noise"),
        ({"seed": 0.5}, "seed is a whole number"),
    ):
        with pytest.raises(LRPError, match=match):
            DMBP(model, **options)
    for options in ({"num_its": -1}, {"num_its": 1.5}, {"patience": 0}):
        with pytest.raises(LRPError, match=f"{next(iter(options))} is a whole number"):
            method.attribute(x, **options)
    with pytest.raises(LRPError, match="the weight of keep"):
        Weights(keep=-1)
    for bad, match in (
        (x.float(), "the input is torch.float32"), (x[0, 0, 0], "must be a batch"), (x * math.nan, "NaN"),
        (x[:, :2], "cannot take an input of shape"), ([x], "must be a tensor"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            method.attribute(bad)
    for target, match in (([0, 1], "one target per image"), (5, "none of the 5"), (0.5, "a target is")):
        with pytest.raises(TargetError, match=match):
            method.attribute(x, target)
    with pytest.raises(InputError, match="training mode"):
        DMBP(build(toy).train())
    learning = build(toy)
    method = DMBP(learning)
    learning[1].train()
    with pytest.raises(InputError, match="`1` is in training mode"):
        method.attribute(x)
    learning.eval()[12].weight.data[0, 0] = math.inf
    with pytest.raises(InputError, match=r"`12.weight`.*NaN or infinite"):
        method.attribute(x)
    with pytest.raises(InputError, match="float32 or float64"):
        DMBP(build(toy).bfloat16()).attribute(x.bfloat16())


def test_networks_that_cannot_be_are_refused_before_they_run():
    gelu = Net(lambda m, x: m.act(m.fc(x)), fc=nn.Linear(3, 2), act=nn.GELU()).eval()
    with pytest.raises(UnsupportedOperation, match="`act` calls gelu"):
        DMBP(gelu)
    lrn = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.Flatten(), nn.Linear(800, 4)).eval()
    with pytest.raises(UnsupportedOperation, match="freeze_lrn=True"):
        DMBP(lrn)
    r = DMBP(lrn, freeze_lrn=True).attribute(images(1, 12).float(), num_its=1)
    assert r.frozen == ["2"] and "LRN frozen at 2: W(1) is not the exact gradient" in repr(r)


# ---------------------------------------------------------------- trained networks


@pytest.mark.parametrize("name", ["scene_resnet", "scene_vgg"])
def test_on_scenes_the_mappings_become_complete_and_purer(name):
    scenes = datasets.scenes(4, seed=3, split="test")
    r = DMBP(models.load(name)).attribute(scenes.inputs, num_its=40, progress=False)
    first, last = r.history.iloc[0], r.history.iloc[-1]
    assert last.loss < first.loss and last.completeness_error < first.completeness_error
    sign = r.gradient_x_input.sum((1, 2, 3)).sign()[:, None, None, None]  # where y(1) < 0, it is N that carries the map

    def purity(R):
        return (sign * R).relu().sum((1, 2, 3)) / R.abs().sum((1, 2, 3))

    carrier = torch.where(sign > 0, r.pos_attribution, r.neg_attribution)
    assert (purity(carrier) > purity(r.gradient_x_input)).all()
    assert purity(carrier).mean() > purity(r.gradient_x_input).mean() + 0.03


# ---------------------------------------------------------------- as a method beside others


def test_as_a_method_it_gives_one_value_per_pixel_of_the_side_that_is_asked_for(model):
    x, target = images(3, 12), torch.tensor([0, 4, 2])
    found = DMBP(model).attribute(x, target, num_its=5, progress=False)
    P, N = found.pos_attribution, found.neg_attribution
    for side, expected in {"both": P + N, "positive": P, "negative": -N}.items():
        assert torch.equal(dmbp.dmbp_method(side, num_its=5)(model, x, target), expected.sum(1))
    with pytest.raises(LRPError, match="no side is called 'left': there are both, positive, negative"):
        dmbp.dmbp_method("left")


def test_a_method_follows_to_another_model(model):
    method, other, x = dmbp.dmbp_method(num_its=0), build(toy, seed=1), images(2, 12)
    first = method(model, x)
    assert not torch.equal(method(other, x), first) and torch.equal(method(model, x), first)
