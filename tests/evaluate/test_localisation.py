"""Localisation scores: known answers, slow loops, properties, and Quantus where it is right."""

import math

import numpy as np
import pytest
import torch
from networks import Net
from test_state import state
from torch import nn

from lrp import InputError, LRPError, TargetError
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
    drops = loc.ablation(model, x, maps, target, patch, fill)
    assert drops.tolist() == pytest.approx(expected) and drops.dtype == torch.float64
    assert torch.allclose(drops, loc.ablation(model, x, maps, target, patch, fill, batch=3))


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
        (InputError, "images are", {"x": x.flatten(2)}),
        (InputError, "training mode", {"model": linear().train()}),
    ):
        with pytest.raises(error, match=message):
            loc.ablation(**{"model": model, "x": x, "maps": maps, "target": 0} | arguments)


# ---------------------------------------------------------------- classes


def test_ssim_of_a_map_with_itself_its_double_and_its_negative():
    R = pictures(3)[:, 0]
    assert torch.allclose(loc.ssim(R, 5 * R), torch.ones(3).double())
    assert (loc.ssim(R, -R) < -0.5).all() and (loc.ssim(R.abs(), -R.abs()) < 0).all()
    assert loc.ssim(R, pictures(9)[6:, 1]).abs().max() < 0.4
    assert loc.ssim(R, 0 * R).isnan().all()
    sizes = torch.tensor([1.0, 10.0, 1000.0])[:, None, None]
    assert torch.allclose(loc.ssim(sizes * R, pictures(6)[3:, 0]), loc.ssim(R, pictures(6)[3:, 0]))


def test_ssim_against_its_formula():
    """Wang 2004 in every window of 7 x 7 pixels that fits, unbiased moments, averaged."""
    R, S = pictures(1)[:, 0], pictures(2)[1:, 0]
    a, b = (0.5 + M[0] / M.abs().max() / 2 for M in (R, S))
    c1, c2, values = 0.01**2, 0.03**2, []
    for y in range(H - 6):
        for x in range(W - 6):
            p, q = (M[y : y + 7, x : x + 7].flatten() for M in (a, b))
            (vp, vpq), (_, vq) = torch.cov(torch.stack([p, q]))
            m, k = p.mean(), q.mean()
            values.append((2 * m * k + c1) * (2 * vpq + c2) / ((m**2 + k**2 + c1) * (vp + vq + c2)))
    assert float(loc.ssim(R, S)) == pytest.approx(float(torch.stack(values).mean()))


def test_class_sensitivity_is_the_mean_over_pairs():
    a, b, c = (pictures(8)[i : i + 2, 0] for i in (0, 2, 4))
    alike = loc.class_sensitivity([a, b, c])
    for name, f in (("cosine", metrics.cosine), ("ssim", loc.ssim)):
        assert torch.allclose(alike[name], (f(a, b) + f(a, c) + f(b, c)) / 3) and alike[name].shape == (2,)
    same = loc.class_sensitivity(torch.stack([a, 2 * a]))
    assert all(torch.allclose(v, torch.ones(2).double()) for v in same.values())
    with pytest.raises(LRPError, match="two classes or more"):
        loc.class_sensitivity([a])
    with pytest.raises(LRPError, match="two maps of the same shape"):
        loc.ssim(a, b[:, :5])


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
