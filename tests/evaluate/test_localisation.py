"""Localisation and contributions: known answers, slow loops, properties, and Quantus where it is right."""

import math

import numpy as np
import pytest
import torch
from networks import Net, state
from scipy.stats import spearmanr
from torch import nn

from lrp import InputError, LRPError, TargetError
from lrp.data import models
from lrp.evaluate import localisation as loc
from lrp.evaluate import metrics

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

H, W = 9, 11


def blank(n=1, dtype=torch.float64):
    return torch.zeros(n, H, W, dtype=dtype)


def box(y0, y1, x0, x1):
    mask = blank(dtype=torch.bool)
    mask[0, y0:y1, x0:x1] = True
    return mask


@st.composite
def cases(draw, ties=True):
    """Maps of small integers (many ties, exact sums) or of different numbers, with masks that may be empty."""
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    values = rng.integers(-3, 4, (n, h, w)) if ties else rng.permutation(n * h * w).reshape(n, h, w) - n * h * w // 3
    masks = rng.random((n, h, w)) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    return torch.from_numpy(values).double(), torch.from_numpy(masks)


def known(values):
    return values[~values.isnan()]


# ---------------------------------------------------------------- pointing game


def test_pointing_game_on_known_maps():
    maps, masks = blank(4), torch.cat([box(2, 4, 3, 6)] * 4)
    maps[0, 3, 5] = 2  # inside
    maps[1, 4, 5] = 2  # one below the mask
    maps[2, 3, 5] = maps[2, 0, 0] = maps[2, 8, 8] = 1  # one of three tied maxima inside
    maps[3] = -1
    maps[3, 2, 3] = -0.5  # the maximum of a negative map
    assert loc.pointing_game(maps, masks).tolist() == pytest.approx([1, 0, 1 / 3, 1])
    assert loc.pointing_game(maps, masks, 1).tolist() == pytest.approx([1, 1, 1 / 3, 1])
    assert loc.pointing_game(torch.stack([maps, -maps, maps], 1), masks).tolist() == pytest.approx([1, 0, 1 / 3, 1])


def test_a_flat_map_scores_chance_and_an_empty_mask_nothing():
    masks = torch.cat([box(2, 4, 3, 6), box(0, 0, 0, 0), box(0, H, 0, W)])
    for tolerance in (0, 2):
        hits, level = loc.pointing_game(blank(3), masks, tolerance), loc.chance(masks, tolerance)
        assert hits[[0, 2]].tolist() == level[[0, 2]].tolist() and hits[1].isnan() and level[1].isnan()
    assert loc.chance(masks)[0] == 6 / 99 and loc.chance(masks, 1)[0] == (6 + 10) / 99


@pytest.mark.parametrize("tolerance", [0, 0.9, 1, 1.42, 2.3, 5, 30])
def test_tolerance_is_a_euclidean_distance(tolerance):
    mask = box(2, 4, 3, 6)
    mask[0, 8, 10] = True
    grown, points = loc.dilate(mask, tolerance)[0], mask[0].nonzero().tolist()
    for y in range(H):
        for x in range(W):
            assert grown[y, x] == (min(math.dist((y, x), p) for p in points) <= tolerance)


def test_averages_over_samples_and_over_classes():
    masks = torch.cat([box(0, 3, 0, 11)] * 6)
    masks[5] = False
    maps, labels = blank(6), torch.tensor([7, 7, 7, 2, 2, 9])
    maps[[0, 1, 3], 0, 0] = 1  # hits
    maps[[2, 4], 8, 8] = 1
    hits = loc.pointing_game(maps, masks)
    assert loc.by_class(hits, labels).nan_to_num(-1).tolist() == pytest.approx([0.5, 2 / 3, -1])
    score = loc.score(hits, masks, labels)
    assert score.micro.mean == pytest.approx(3 / 5) and (score.micro.n, score.micro.left_out) == (5, 1)
    assert score.macro.mean == pytest.approx((1 / 2 + 2 / 3) / 2) and score.macro.left_out == 1
    assert score.chance.mean == pytest.approx(1 / 3) and score.chance.n == 5
    assert (
        loc.score(hits, masks, tolerance=1).chance.mean == pytest.approx(4 / 9) and loc.score(hits, masks).macro is None
    )
    maps[0] = 0  # no energy, though its mask is not empty
    masks[0, 3:8] = True
    score = loc.score(loc.energy_hits(maps, masks, [0.5])[:, 0], masks)
    assert score.micro.n == score.chance.n == 4 and score.chance.mean == pytest.approx(1 / 3)
    with pytest.raises(LRPError, match="no sample has a value"):
        loc.score(loc.pointing_game(maps[5:], masks[5:]), masks[5:])


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0, 1, 2.5]))
def test_properties_of_the_pointing_game(case, tolerance):
    maps, masks = case
    hits = loc.pointing_game(maps, masks, tolerance)
    assert torch.equal(hits.isnan(), ~masks.flatten(1).any(1))
    assert (known(hits) >= 0).all() and (known(hits) <= 1).all()
    assert (known(loc.pointing_game(maps, masks, tolerance + 1)) >= known(hits)).all()
    same = loc.pointing_game(7 * maps - 3, masks, tolerance)
    assert torch.equal(hits.nan_to_num(-1), same.nan_to_num(-1))
    single = torch.cat([loc.pointing_game(m[None], k[None], tolerance) for m, k in zip(maps, masks, strict=True)])
    assert torch.equal(hits.nan_to_num(-1), single.nan_to_num(-1))


# ---------------------------------------------------------------- energy


def slow_energy_hit(R, mask, p):
    """As the protocol has it: keep pixels, strongest first, until they hold p of the energy."""
    v = [max(0.0, float(r)) for r in R.flatten()]
    order = sorted(range(len(v)), key=lambda i: (-v[i], i))
    if sum(v) == 0 or not mask.any():
        return math.nan
    held, kept = 0.0, []
    for i in order:
        held += v[i]
        kept.append(i)
        if held >= p * sum(v) - 1e-9:
            break
    return float(all(bool(mask.flatten()[i]) for i in kept))


@settings(max_examples=150, deadline=None)
@given(cases(), st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.9, 0.99, 1.0]), min_size=1, max_size=4))
def test_energy_hits_against_a_slow_loop(case, p):
    maps, masks = case
    hits = loc.energy_hits(maps, masks, p)
    slow = [[slow_energy_hit(R, mask, q) for q in p] for R, mask in zip(maps, masks, strict=True)]
    assert hits.nan_to_num(-1).tolist() == torch.tensor(slow).nan_to_num(-1).tolist()
    for factor in (1e-3, 0.7, 1234.5):
        assert torch.equal(loc.energy_hits(factor * maps, masks, p).nan_to_num(-1), hits.nan_to_num(-1))


@settings(max_examples=60, deadline=None)
@given(cases(ties=False))
def test_energy_hits_without_energy_are_the_pointing_game_and_fall_with_p(case):
    maps, masks = case
    defined = (maps.amax((1, 2)) > 0) & masks.flatten(1).any(1)
    hits = loc.energy_hits(maps, masks)[defined]
    assert torch.equal(hits[:, 0], loc.pointing_game(maps, masks)[defined])
    assert torch.equal(loc.energy_hits(maps, masks, [1e-9])[defined][:, 0], hits[:, 0])
    assert (hits.diff(dim=1) <= 0).all()


def test_energy_hits_on_a_known_map():
    maps, mask = blank(), box(0, 1, 0, 3)
    maps[0, 0, :5] = torch.tensor([4.0, 3.0, 1.0, 1.0, 1.0])  # of ten; the last two are outside
    maps[0, 5, 5] = -50
    p = [0, 0.4, 0.41, 0.7, 0.8, 0.81, 1]
    assert loc.energy_hits(maps, mask, p)[0].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert loc.energy_hits(maps, mask).shape == (1, 10)
    maps[0, 0, :5] = 0.1 * torch.tensor([9.0, 3.0, 1.0, 0.0, 0.0]).double()  # the first has 9/13, but for rounding
    assert loc.energy_hits(maps, box(0, 1, 0, 1), [9 / 13]).item() == 1
    assert loc.energy_hits(-maps.abs(), mask).isnan().all()
    with pytest.raises(LRPError, match="shares of the energy, from 0 to 1"):
        loc.energy_hits(maps, mask, [0.5, 90])


def test_energy_keeps_signs_apart():
    maps, mask = blank(2), torch.cat([box(0, 2, 0, 2), box(0, 0, 0, 0)])
    maps[:, 0, 0], maps[:, 5, 5], maps[:, 1, 1], maps[:, 7, 7] = 3, 1, -1, -4
    e = loc.energy(maps, mask)
    assert (e["positive"][0], e["negative"][0], e["balance"][0]) == (0.75, 0.2, pytest.approx(4 / 9))
    assert e["positive"][1].isnan() and e["negative"][1].isnan()
    assert torch.equal(e["positive"][:1], metrics.inside(maps[:1], mask[:1]))
    assert loc.energy(maps.abs(), mask)["negative"].isnan().all()


def test_rank_accuracy_on_known_maps():
    maps, mask = blank(3), torch.cat([box(0, 1, 0, 4)] * 3)
    maps[0, 0, :4] = torch.tensor([9.0, 8.0, 0.1, 7.0])
    maps[0, 4, 4] = 1  # pushes one of the four out
    maps[1, 0, 0] = 5  # three places for 98 pixels that tie, 3 of them inside
    assert loc.rank_accuracy(maps, mask).tolist() == pytest.approx([3 / 4, (1 + 3 * 3 / 98) / 4, 4 / 99])
    assert loc.rank_accuracy(-maps[:1], mask[:1]).item() == 0
    assert loc.rank_accuracy(maps[:1], mask[:1] & False).isnan().all()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_rank_accuracy_is_the_mean_over_orders_of_ties(case):
    maps, masks = case
    R, mask = maps[0].flatten(), masks[0].flatten()
    got, size = loc.rank_accuracy(maps[:1], masks[:1])[0], int(mask.sum())
    if not size:
        assert got.isnan()
        return
    last = R.sort(descending=True).values[size - 1]
    above, tied = (R > last).nonzero()[:, 0].tolist(), (R == last).nonzero()[:, 0].tolist()
    tops = [above + (tied[i:] + tied[:i])[: size - len(above)] for i in range(len(tied))]  # each has its turn
    assert float(got) == pytest.approx(np.mean([float(mask[top].double().mean()) for top in tops]))


# ---------------------------------------------------------------- Quantus


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["PointingGame", "RelevanceRankAccuracy", "RelevanceMassAccuracy"])
def test_scores_agree_with_quantus_where_it_is_right(name):
    """No empty masks, no ties, and positive maps for the mass."""
    quantus = pytest.importorskip("quantus")
    rng = np.random.default_rng(0)
    maps, masks = rng.random((40, H, W)), np.zeros((40, H, W), bool)
    for mask, (y, x) in zip(masks, rng.integers(0, 6, (40, 2)), strict=True):
        mask[y : y + 4, x : x + 5] = True
    metric = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True)
    arrays = {"x_batch": np.zeros((40, 1, H, W)), "a_batch": maps[:, None], "s_batch": masks[:, None]}
    theirs = metric(model=None, y_batch=np.zeros(40, int), **arrays)
    maps, masks = torch.from_numpy(maps), torch.from_numpy(masks)
    ours = {
        "PointingGame": lambda: loc.pointing_game(maps, masks),
        "RelevanceRankAccuracy": lambda: loc.rank_accuracy(maps, masks),
        "RelevanceMassAccuracy": lambda: loc.energy(maps, masks)["positive"],
    }[name]()
    assert ours.numpy() == pytest.approx(np.asarray(theirs, float))
    assert 0 < ours.mean() < 1


# ---------------------------------------------------------------- ablation


def linear(classes=3):
    model = Net(lambda m, x: m.head(x.flatten(1)), head=nn.Linear(2 * H * W, classes)).double().eval()
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model


def pictures(n):
    return torch.randn(n, 2, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("patch", [1, 3, 9])
@pytest.mark.parametrize(
    "fill", [0.0, torch.tensor([0.5, -1.0])[:, None, None], torch.linspace(0, 1, 198).view(2, H, W)]
)
def test_ablation_on_a_linear_model(patch, fill):
    """The drop is w (x - fill) over the patch, cut at the borders."""
    model, x, target = linear(), pictures(4), torch.tensor([0, 2, 1, 1])
    maps, places, r = blank(4), [(4, 5), (0, 0), (8, 10), (1, 9)], patch // 2
    expected = []
    for i, (y, c) in enumerate(places):
        maps[i, y, c] = 1
        window = (slice(None), slice(max(0, y - r), y + r + 1), slice(max(0, c - r), c + r + 1))
        change = (x[i] - fill)[window] * model.head.weight.detach()[target[i]].view(2, H, W)[window]
        expected.append(float(change.sum()))
    drops = loc.ablation(model, x, maps, target, patch=patch, fill=fill)
    assert drops.tolist() == pytest.approx(expected) and drops.dtype == torch.float64
    assert torch.allclose(drops, loc.ablation(model, x, maps, target, patch=patch, fill=fill, batch=3))


def test_ablation_explains_the_prediction_on_the_whole_image():
    model, x, maps = linear(), pictures(5), pictures(5)
    drops = loc.ablation(model, x, maps, fill=100.0)
    assert torch.allclose(drops, loc.ablation(model, x, maps, model(x).argmax(1), fill=100.0))
    assert torch.allclose(loc.ablation(model, x, maps.sum(1), 1), loc.ablation(model, x, maps, 1))


def test_ablation_of_equal_maxima_and_of_flat_maps():
    model, x, maps = linear(), pictures(2), blank(2)
    maps[0, 3, 2] = maps[0, 3, 7] = maps[0, 6, 0] = 1
    first = blank(2)
    first[0, 3, 2] = 1
    drops = loc.ablation(model, x, maps, 0)
    assert drops[0] == loc.ablation(model, x, first, 0)[0] and drops[1].isnan()
    assert metrics.interval(drops).left_out == 1


def test_the_random_control_is_uniform_and_repeats():
    model = Net(lambda m, x: m.head(x.flatten(1)), head=nn.Linear(2 * H * W, 1)).double().eval()
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.weight[0, : H * W] = torch.arange(H * W)  # the drop tells the place
    drops = loc.ablation(model, torch.ones(4000, 2, H, W).double(), None, 0, patch=1)
    counts = torch.bincount(drops.long(), minlength=H * W)
    assert len(counts) == H * W and ((counts - 4000 / 99).abs() < 5 * (4000 / 99) ** 0.5).all()
    again = loc.ablation(model, torch.ones(10, 2, H, W).double(), None, 0, patch=1)
    assert torch.equal(again, drops[:10])
    assert not torch.equal(loc.ablation(model, torch.ones(10, 2, H, W).double(), None, 0, patch=1, seed=1), again)


def test_ablation_leaves_the_model_alone_and_names_what_is_wrong():
    model, x, maps = linear(), pictures(2), blank(2)
    before = state(model)
    loc.ablation(model, x, pictures(2), 0), loc.ablation(model, x, None)
    assert state(model) == before
    for error, message, arguments in (
        (LRPError, "an odd side; got 8", {"patch": 8}),
        (LRPError, r"maps of 2 images of 9 x 11 pixels are \(2, 9, 11\)", {"maps": maps[:1]}),
        (LRPError, "hold NaN", {"maps": maps / 0}),
        (TargetError, "one target per call", {"target": [0, 1]}),
        (TargetError, "target 3 is none of the 3 classes", {"target": 3}),
        (InputError, "x must be images", {"x": x.flatten(2)}),
        (InputError, "training mode", {"model": linear().train()}),
    ):
        with pytest.raises(error, match=message):
            loc.ablation(**{"model": model, "x": x, "maps": maps, "target": 0} | arguments)


# ---------------------------------------------------------------- contributions


def one_layer(size=(9, 7)):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 4)).double().eval()


def small_images(size=(9, 7), n=3):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_patches(model, x, target, region, baseline):
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
    model, x = one_layer(), small_images()
    C = loc.contributions(model, x, 2, region=region, baseline=baseline)
    assert C.shape == (3, -(-9 // region), -(-7 // region)) and C.dtype == torch.float64
    assert torch.allclose(C.flatten(1), by_patches(model, x, 2, region, baseline), atol=1e-10)


def test_contributions_of_a_network_are_those_of_a_loop():
    model = models.load("scene_vgg")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    colour = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    C = loc.contributions(model, x, 3, region=32, baseline=colour)
    assert torch.allclose(C.flatten(1), by_patches(model, x, 3, 32, colour).double(), atol=1e-5)


def test_for_a_linear_model_gradient_x_input_agrees_completely_and_its_negative_not_at_all():
    model, x = one_layer(), small_images()
    C = loc.contributions(model, x, 1, region=2)
    R = model[1].weight[1].detach().view(3, 9, 7) * x
    agreed, opposed = (loc.agreement(maps, C, region=2) for maps in (R, -R))
    for name in ("rank correlation", "signs", "signs by weight"):
        assert torch.allclose(agreed[name], torch.ones(3, dtype=torch.float64))
        assert torch.allclose(opposed[name], torch.full((3,), -1.0 if "rank" in name else 0.0, dtype=torch.float64))


def test_agreement_is_what_scipy_and_counting_say():
    maps, C = small_images((6, 6))[:, 0], small_images((3, 3), 3)[:, 1]
    found = loc.agreement(maps, C, region=2)
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
    one, other = loc.agreement(maps, C, 2), loc.agreement(maps.double() * factor, C / factor, 2)
    assert all(torch.allclose(one[name], other[name]) for name in one)


def test_no_value_agrees_with_nothing_and_a_positive_map_gets_the_share_that_helps():
    C = torch.tensor([[[1.0, -2.0], [3.0, 0.5]]], dtype=torch.float64)
    flat = loc.agreement(torch.zeros(1, 2, 2), C, 1)
    assert flat["rank correlation"].isnan().all() and flat["signs"].item() == 0
    assert loc.agreement(torch.ones(1, 2, 2), C, 1)["signs"].item() == 0.75


def test_patches_that_differ_and_values_that_are_not_finite_are_named():
    C = torch.ones(2, 3, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"patches \(2, 6, 6\), the contributions \(2, 3, 3\)"):
        loc.agreement(torch.ones(2, 6, 6), C, 1)
    with pytest.raises(LRPError, match="finite"):
        loc.agreement(torch.full((2, 3, 3), torch.nan), C, 1)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("f", [loc.pointing_game, loc.energy_hits, loc.energy, loc.rank_accuracy])
def test_wrong_maps_and_masks_are_named(f):
    maps, mask = blank(2), torch.cat([box(0, 2, 0, 2)] * 2)
    maps[1, 0, 0] = torch.nan
    with pytest.raises(LRPError, match=r"maps \[1\] hold NaN"):
        f(maps, mask)
    with pytest.raises(LRPError, match=r"masks are bool, shaped like the maps \(2, 9, 11\); got torch.float64"):
        f(blank(2), mask.double())
    with pytest.raises(LRPError, match="masks are bool, shaped like the maps"):
        f(blank(2), mask[:1])
    with pytest.raises(LRPError, match="got shape"):
        f(blank(2)[0], mask[0])
