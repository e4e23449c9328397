"""Insertion and deletion against loops written from the formulas, closed forms, and what ties do to the scores."""

import dataclasses
import math

import pytest
import torch
from networks import Net, sound
from torch import nn

from lrp.data.datasets import SCENE
from lrp.errors import InputError, LRPError, TargetError
from lrp.evaluate import insertion
from lrp.evaluate.insertion import (
    AUTHORS,
    PROTOCOLS,
    RISE,
    STRICT,
    Protocol,
    Scores,
    compare,
    heat_quantization,
    lowest_bin,
    measure,
)
from lrp.evaluate.metrics import interval

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

BOTH = Protocol("both ends", ties="strict", ends=True, insertion="black", deletion="black")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=rng(seed), dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def classifier(channels, height, width, classes=3, seed=0):
    """A small network that is not linear, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {"a": nn.Linear(channels * height * width, 8), "b": nn.Linear(8, classes)}
        return sound(Net(lambda m, x: 3 * m.b(m.a(x.flatten(1)).tanh()), **parts))


def half():
    """p_0 rises linearly with the share of white pixels, until that is a half: the toy score of the paper's notes."""

    def logits(_, x):
        p = (2 * x.mean((1, 2, 3))).clamp(max=1)
        return torch.stack([p, 1 - p], 1).log()

    return sound(Net(logits))


def made(curve, deletion=None, **other):
    curve = torch.as_tensor(curve, dtype=torch.float64)
    deletion = curve.flip(1) if deletion is None else torch.as_tensor(deletion, dtype=torch.float64)
    return Scores(curve, deletion, **{"protocol": BOTH, "step": 1, "pixels": 2, "evaluations": 6} | other)


def seen(model):
    """A list that grows by the size of every batch that the model is shown."""
    sizes = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


# ---------------------------------------------------------------- second derivations


@torch.no_grad()
def probability(model, image, target):
    return float(model(image[None]).softmax(1)[0, target])


def by_thresholds(model, x01, maps, targets, step):
    """The authors' curves, from the formulas: thresholds and products in pixel space, one image at a time."""
    curves = {"insertion": [], "deletion": []}
    for image, values, t in zip(x01, maps, targets, strict=True):
        descending = sorted(values.flatten().tolist(), reverse=True)
        shown, taken = [], []
        for i in range(math.ceil(len(descending) / step)):
            tau = descending[min(step * (i + 1), len(descending) - 1)]
            M = (values >= tau).double()
            shown.append(probability(model, SCENE(M * image), t))
            taken.append(probability(model, SCENE((1 - M) * image), t))
        curves["insertion"].append(shown), curves["deletion"].append(taken)
    return [torch.tensor(c, dtype=torch.float64) for c in curves.values()]


def by_lists(model, x, maps, targets, numbers, start, finish):
    """Curves of exact numbers of pixels, one pixel after the other; equal values as one reads."""
    curves = []
    for new, showing in ((start, True), (finish, False)):
        rows = []
        for n, t in enumerate(targets):
            height, width = maps.shape[1:]
            cells = sorted((-float(maps[n, r, c]), r, c) for r in range(height) for c in range(width))
            row = []
            for k in numbers:
                image = (new[n] if showing else x[n]).clone()
                for _, r, c in cells[:k]:
                    image[:, r, c] = (x[n] if showing else new[n])[:, r, c]
                row.append(probability(model, image, t))
            rows.append(row)
        curves.append(torch.tensor(rows, dtype=torch.float64))
    return curves


def blurred(x, side=11, sigma=5.0):
    """Convolution with a Gaussian of side x side, written out; nothing beyond the border."""
    out, r = torch.zeros_like(x), side // 2
    weight = {d: math.exp(-(d**2) / (2 * sigma**2)) for d in range(-r, r + 1)}
    total = sum(weight.values()) ** 2
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            for a in range(max(0, row - r), min(x.shape[2], row + r + 1)):
                for b in range(max(0, column - r), min(x.shape[3], column + r + 1)):
                    out[..., row, column] += weight[a - row] * weight[b - column] / total * x[..., a, b]
    return out


def assert_curves(scores, expected):
    for got, want in zip((scores.insertion, scores.deletion), expected, strict=True):
        assert got.dtype == torch.float64 and got.device.type == "cpu"
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(2, 6), st.integers(1, 7)),
    coarse=st.booleans(),
    seed=st.integers(0, 99),
    batch=st.integers(1, 30),
    share=st.floats(0, 1),
)
def test_authors_equals_thresholds_in_pixel_space(size, coarse, seed, batch, share):
    """Any size and step, with many ties and without; black in units of x is what their product gives."""
    x01, maps = uniform(2, 3, *size, seed=seed), normal(2, *size, seed=seed + 1)
    maps = maps.round() if coarse else maps
    step = max(1, round(share * (maps[0].numel() - 1)))
    model, (low, _) = classifier(3, *size, seed=seed), SCENE.bounds(x01)
    scores = measure(model, SCENE(x01), maps, torch.tensor([2, 0]), step=step, black=low, batch=batch)
    assert_curves(scores, by_thresholds(model, x01, maps, (2, 0), step))


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(2, 6), st.integers(1, 7)),
    coarse=st.booleans(),
    seed=st.integers(0, 99),
    batch=st.integers(1, 30),
    share=st.floats(0, 1),
)
def test_strict_and_rise_equal_lists_of_pixels(size, coarse, seed, batch, share):
    x, maps = normal(2, 2, *size, seed=seed), normal(2, *size, seed=seed + 1)
    maps = maps.round() if coarse else maps
    pixels, model, targets = maps[0].numel(), classifier(2, *size, seed=seed), torch.tensor([1, 2])
    step = max(1, round(share * (pixels - 1)))
    black, mean = torch.tensor([-1.5, -0.5], dtype=torch.float64), torch.tensor([0.25, 0.0], dtype=torch.float64)
    options = {"step": step, "black": black, "mean": mean, "batch": batch}
    dark, middle = (v.view(1, 2, 1, 1).expand_as(x) for v in (black, mean))
    inner = [min(step * (i + 1), pixels - 1) + 1 for i in range(math.ceil(pixels / step))]
    ends = [*range(0, pixels, step), pixels]
    strict, rise = (measure(model, x, maps, targets, protocol=p, **options) for p in (STRICT, RISE))
    assert_curves(strict, by_lists(model, x, maps, targets, inner, dark, dark))
    assert_curves(rise, by_lists(model, x, maps, targets, ends, blurred(x), middle))


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(2, 9), st.integers(1, 9)), seed=st.integers(0, 99), step=st.integers(1, 9))
def test_without_ties_strict_is_authors_exactly(size, seed, step):
    x, maps, step = normal(2, 1, *size), normal(2, *size, seed=seed), min(step, size[0] * size[1] - 1)
    model = classifier(1, *size)
    one, two = (measure(model, x, maps, protocol=p, step=step, black=0) for p in (STRICT, AUTHORS))
    assert torch.equal(one.insertion, two.insertion) and torch.equal(one.deletion, two.deletion)
    assert one.evaluations == two.evaluations


def test_the_blur_is_that_of_a_loop():
    x = normal(2, 3, 14, 5)
    torch.testing.assert_close(insertion._replacement("blur", x, RISE, None, 0), blurred(x), rtol=1e-12, atol=1e-12)
    flat = insertion._replacement("blur", torch.ones(1, 1, 30, 30), RISE, None, 0)[0, 0]
    assert float(flat[15, 15]) == pytest.approx(1) and 0.2 < float(flat[0, 0]) < 0.35  # a corner sees a quarter


# ---------------------------------------------------------------- known answers


def test_points_of_the_paper():
    x = torch.zeros(1, 1, 224, 224)
    model = Net(lambda m, x: x.mean((2, 3)).expand(-1, 2)).eval()
    sizes = seen(model)
    scores = measure(model, x, torch.arange(224.0 * 224).view(1, 224, 224), 0, black=0)
    assert scores.insertion.shape == scores.deletion.shape == (1, 101) and scores.step == 500
    assert scores.pixels == 50176 and scores.evaluations == 1 + 100 + 101  # the last insertion is the whole image
    assert sum(sizes) == 202 and max(sizes) == 24  # of one channel: as many values as eight images of three
    assert measure(model, x, x, 0, protocol=RISE).insertion.shape == (1, 102)
    assert measure(model, x[..., :64, :64], x[..., :64, :64], 0, black=0).step == 41


def test_a_constant_probability_gives_equal_areas():
    model = sound(Net(lambda m, x: x.new_tensor([[2.0, 0.5, -1.0]]).expand(len(x), -1)))
    x, maps = normal(4, 2, 6, 5), normal(4, 6, 5)
    p = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64).softmax(0)
    for protocol in PROTOCOLS.values():
        scores = measure(model, x, maps, torch.tensor([0, 1, 2, 0]), protocol=protocol, step=4, black=-1)
        torch.testing.assert_close(scores.insertion_auc(), p[[0, 1, 2, 0]])
        torch.testing.assert_close(scores.id_score(), torch.zeros(4).double(), atol=1e-15, rtol=0)


def test_one_pixel_that_counts_enters_first_and_leaves_first():
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    model = sound(Net(lambda m, x: torch.stack([x[:, 0, 1, 2] * 20 - 10, 0 * x[:, 0, 0, 0]], 1)))
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = 1
    low, high = 1 / (1 + math.exp(10)), 1 / (1 + math.exp(-10))
    scores = measure(model, x, maps, 0, protocol=BOTH, step=1, black=0)
    torch.testing.assert_close(scores.insertion, torch.tensor([[low] + [high] * 16], dtype=torch.float64))
    torch.testing.assert_close(scores.deletion, torch.tensor([[high] + [low] * 16], dtype=torch.float64))
    assert float(scores.id_score()) == pytest.approx(15 / 16 * (high - low))  # 1, but for half a step at each start
    last = measure(model, x, -maps, 0, protocol=BOTH, step=1, black=0)
    assert float(last.id_score()) == pytest.approx(-15 / 16 * (high - low))


def test_areas_and_summary():
    scores = made([[0.0, 0.5, 1.0], [0.2, 0.8, 0.4]], [[1.0, 0.0, 0.0], [0.4, 0.4, 0.4]])
    assert scores.insertion_auc().tolist() == pytest.approx([0.5, (0.2 + 0.8 + 0.4 - 0.3) / 2])
    assert scores.deletion_auc().tolist() == pytest.approx([0.25, 0.4])
    assert scores.id_score().tolist() == pytest.approx([0.25, 0.15])
    summary = scores.summary(draws=100, seed=3)
    assert list(summary) == ["insertion", "deletion", "ID"] and len(scores) == 2
    assert summary["ID"] == interval(scores.id_score(), draws=100, seed=3)
    assert summary["deletion"].mean == pytest.approx(0.325) and summary["insertion"].mean == pytest.approx(0.525)


def test_the_target_is_the_predicted_class_unless_told():
    model, x, maps = classifier(2, 5, 4), normal(6, 2, 5, 4), normal(6, 5, 4)
    logits = model(x).detach()
    p = logits.softmax(1)
    predicted = measure(model, x, maps, protocol=RISE, step=3)
    torch.testing.assert_close(predicted.insertion[:, -1], p.max(1).values)
    torch.testing.assert_close(predicted.deletion[:, 0], p.max(1).values)
    assert len(logits.argmax(1).unique()) > 1
    torch.testing.assert_close(measure(model, x, maps, 1, protocol=RISE, step=3).insertion[:, -1], p[:, 1])
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    each = measure(model, x, maps, labels, protocol="rise", step=3)
    torch.testing.assert_close(each.insertion[:, -1], p[range(6), labels])


def test_maps_of_several_channels_are_summed():
    """Not channel 0, as in the authors' program."""
    model, x, R = classifier(3, 4, 5), normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    whole, summed, first = (measure(model, x, m, 0, step=2, black=-1) for m in (R, R.sum(1), R[:, 0]))
    assert torch.equal(whole.insertion, summed.insertion) and not torch.equal(whole.insertion, first.insertion)


# ---------------------------------------------------------------- reversed maps


def test_a_reversed_map_swaps_the_curves_where_both_ends_are_in():
    """Exactly so where no values tie, both curves use one replacement, and the points are symmetric.

    That is: the step divides HW and both ends are points. Then what -map has left when k pixels are gone is what map
    shows first: the curve read backwards.
    """
    model, x, maps = classifier(2, 6, 4), normal(3, 2, 6, 4), normal(3, 6, 4)
    for ties in insertion.TIES:
        both = dataclasses.replace(BOTH, ties=ties)
        one, other = (measure(model, x, m, 0, protocol=both, step=4, black=-1) for m in (maps, -maps))
        torch.testing.assert_close(one.insertion, other.deletion.flip(1), rtol=1e-12, atol=0)
        torch.testing.assert_close(one.deletion, other.insertion.flip(1), rtol=1e-12, atol=0)
        torch.testing.assert_close(one.id_score(), -other.id_score(), rtol=1e-9, atol=1e-12)
        assert one.id_score().abs().min() > 1e-3


@pytest.mark.parametrize("protocol", [AUTHORS, STRICT], ids=lambda p: p.name)
def test_without_the_start_a_reversed_map_swaps_the_points_that_both_have(protocol):
    """With the step 1 the points are k = 2..HW, HW: those of k and HW - k mirror each other, the areas nearly."""
    model, x, maps = classifier(2, 6, 4), normal(3, 2, 6, 4), normal(3, 6, 4)
    one, other = (measure(model, x, m, 0, protocol=protocol, step=1, black=-1) for m in (maps, -maps))
    shown = {k: one.insertion[:, k - 2] for k in range(2, 23)}
    left = {24 - k: other.deletion[:, k - 2] for k in range(2, 23)}
    for k, p in shown.items():
        torch.testing.assert_close(p, left[k], rtol=1e-12, atol=0)


# ---------------------------------------------------------------- what ties do


def synthetic():
    """The first two maps of the measured table: a blob of 30 pixels with 5 % noise, and lognormal noise times it."""
    at = torch.arange(224.0) - 111.5
    blob = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * 30**2))
    noise = torch.rand(224, 224, generator=rng())
    return torch.stack([blob + 0.05 * noise, torch.randn(224, 224, generator=rng(1)).exp() * blob])


def test_quantized_maps_gain_where_ties_enter_together_as_measured():
    """Rows 1 and 2 of the table: share of the lowest bin, step of the whole image, Ins and Del before and after."""
    maps, x = synthetic(), torch.ones(2, 1, 224, 224)
    model = half().float()
    raw, quantized = (measure(model, x, m, 0, black=0) for m in (maps, heat_quantization(maps)))
    lowest = lowest_bin(maps)
    assert lowest.tolist() == pytest.approx([0.764, 0.997], abs=0.02)
    assert raw.insertion_auc().tolist() == pytest.approx([0.759] * 2, abs=2e-3)
    assert raw.deletion_auc().tolist() == pytest.approx([0.743] * 2, abs=2e-3)
    assert quantized.insertion_auc().tolist() == pytest.approx([0.843, 1.0], abs=0.02)
    assert quantized.deletion_auc().tolist() == pytest.approx([0.225, 0.0], abs=0.02)
    above = ((1 - lowest) * 50176).round()  # rank_i reaches the lowest level at the first i with 500 (i + 1) >= above
    assert [math.ceil(a / 500) - 1 for a in above.tolist()] == [23, 0]
    assert (quantized.deletion == 0).int().argmax(1).tolist() == [23, 0]  # nothing is left
    assert (raw.deletion == 0).int().argmax(1).tolist() == [100, 100]
    strict = measure(model, x, heat_quantization(maps), 0, protocol=STRICT, black=0)
    torch.testing.assert_close(strict.insertion, raw.insertion)  # exact numbers of pixels: nothing is gained
    torch.testing.assert_close(strict.deletion, raw.deletion)


def test_curves_of_tied_maps_follow_from_the_sizes_of_the_ties():
    """p depends on the number of pixels alone, so the number at each point can be read off."""
    maps = torch.tensor([[[3.0, 3, 1, 1], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    scores = measure(half(), x, maps, 0, step=2, black=0)  # ranks 2, 4, ..., 14, 15: values 2, 1, 0, ..., 0
    shown = torch.tensor([[3, 5, 16, 16, 16, 16, 16, 16]]).double() / 16
    torch.testing.assert_close(scores.insertion, (2 * shown).clamp(max=1))
    torch.testing.assert_close(scores.deletion, (2 * (1 - shown)).clamp(max=1))


def test_strict_scores_of_quantized_maps_agree_up_to_the_order_of_ties():
    """Wherever a level ends the same pixels are shown; between, the order of ties decides."""
    model, x = classifier(1, 12, 12), normal(1, 1, 12, 12)
    maps = normal(1, 12, 12, seed=1)
    few = heat_quantization(maps)
    raw, quantized = (measure(model, x, m, 0, protocol=BOTH, step=1, black=-1) for m in (maps, few))
    ends = {int((few >= level).sum()) for level in few.unique()}
    assert len(ends) > 4
    for k in {0, *ends}:
        torch.testing.assert_close(raw.insertion[:, k], quantized.insertion[:, k], rtol=1e-12, atol=0)
        torch.testing.assert_close(raw.deletion[:, k], quantized.deletion[:, k], rtol=1e-12, atol=0)
    assert (raw.insertion - quantized.insertion).abs().max() > 1e-3
    # within each level the values now fall as one reads, which is how ties go
    order = few.flatten().sort(descending=True, stable=True).indices
    fitting = torch.empty(144, dtype=torch.float64)
    fitting[order] = maps.flatten().sort(descending=True).values
    again = measure(model, x, fitting.view(1, 12, 12), 0, protocol=BOTH, step=1, black=-1)
    torch.testing.assert_close(again.insertion, quantized.insertion, rtol=1e-12, atol=0)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("quantized", [False, True])
def test_equal_masks_are_evaluated_once(protocol, quantized):
    model, x01, maps = classifier(3, 20, 20), uniform(3, 3, 20, 20), normal(3, 20, 20)
    maps, (low, _) = heat_quantization(maps) if quantized else maps, SCENE.bounds(x01)
    sizes = seen(model)
    scores = measure(model, SCENE(x01), maps, 0, protocol=protocol, step=4, black=low, batch=16)
    points = scores.insertion.shape[1]
    assert scores.evaluations == sum(sizes) and max(sizes) <= 16 and points == 100 + protocol.ends
    if quantized and protocol is AUTHORS:
        assert scores.evaluations <= 3 * (1 + 7 + 8)  # the image, and its levels; the last of them is the image
        assert_curves(scores, by_thresholds(model, x01, maps, (0, 0, 0), 4))  # without sharing: each point for itself
    else:
        # the last two points of 400 pixels are rank 396 and 399; the whole image was seen first
        assert scores.evaluations == 3 * (1 + 2 * points - (2 if protocol.ends else 1))


def test_a_flat_map_shows_all_at_once_or_goes_as_one_reads():
    model, x = classifier(1, 3, 4), normal(2, 1, 3, 4)
    flat, falling = torch.zeros(2, 3, 4), -torch.arange(12.0).view(1, 3, 4).expand(2, -1, -1)
    scores = measure(model, x, flat, 0, step=1, black=-1)
    assert (scores.insertion == scores.insertion[:, :1]).all() and (scores.deletion == scores.deletion[:, :1]).all()
    assert scores.evaluations == 2 + 2  # the images, and black
    strict, reading = (measure(model, x, m, 0, protocol=STRICT, step=1, black=-1) for m in (flat, falling))
    assert torch.equal(strict.insertion, reading.insertion)


# ---------------------------------------------------------------- Heat Quantization


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 999),
    levels=st.integers(2, 12),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 3e4]),
    shift=st.sampled_from([0.0, -0.3, 1.0, 1000.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_quantized_maps_keep_what_they_must(seed, levels, scale, shift, dtype):
    maps = ((normal(3, 5, 7, seed=seed) / 8 + shift) * scale).clamp(-6e4, 6e4).to(dtype)
    before, few = maps.clone(), heat_quantization(maps, levels)
    assert few.shape == maps.shape and few.dtype == dtype and torch.equal(maps, before)
    assert (few <= maps).all()  # down, never up
    for v, q in zip(maps, few, strict=True):
        width = (v.max().double() - v.min().double()) / (levels - 1)
        assert len(q.unique()) <= levels and q.max() == v.max() and q.min() == v.min()
        assert (q == q.max()).eq(v == v.max()).all()  # the maximum alone has the top level
        order = v.flatten().argsort()
        assert (q.flatten()[order].diff() >= 0).all()
        slack = 2 * torch.finfo(dtype).eps * float(v.abs().max())
        assert (v.double() - q.double() <= width + slack).all()
    assert torch.equal(heat_quantization(few, levels), few)


def test_levels_are_those_of_the_formula():
    v = normal(4, 9, 9)
    low, high = v.amin((1, 2), keepdim=True), v.amax((1, 2), keepdim=True)
    expected = low + ((v - low) / (high - low) * 7).floor() * (high - low) / 7
    torch.testing.assert_close(heat_quantization(v), expected, rtol=1e-12, atol=1e-12)
    exact = torch.arange(15.0).view(1, 3, 5)  # levels 0, 2, ..., 14: values on a level stay
    assert torch.equal(heat_quantization(exact), (exact / 2).floor() * 2)
    thirds = torch.linspace(0.1, 0.8, 8, dtype=torch.float64).view(1, 2, 4)
    assert heat_quantization(thirds).unique().numel() == 8


def test_constant_maps_stay_and_images_do_not_mix():
    maps = torch.stack([torch.full((2, 3), 0.1), torch.arange(6.0).view(2, 3), -torch.arange(6.0).view(2, 3) * 100])
    few = heat_quantization(maps, 2)
    assert torch.equal(few[0], maps[0])
    assert few[1].flatten().tolist() == [0, 0, 0, 0, 0, 5] and few[2].flatten().tolist() == [0] + [-500] * 5
    assert lowest_bin(maps, 2).tolist() == pytest.approx([1, 5 / 6, 5 / 6])


def test_the_signed_minimum_moves_zero():
    maps = torch.tensor([[[0.0, 0.0, 0.0, 0.7]], [[-0.1, 0.0, 0.0, 0.7]]], dtype=torch.float64)
    few = heat_quantization(maps)
    assert few[0, 0, 1] == 0 and few[1, 0, 1] < -0.05  # one negative pixel takes the level of zero away


# ---------------------------------------------------------------- batches, types, what is left alone


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_batches_do_not_matter(protocol):
    model, x, maps = classifier(2, 5, 6), normal(5, 2, 5, 6), normal(5, 5, 6).mul(2).round()
    options = {"protocol": protocol, "step": 3, "black": -1}
    one, seven, many = (measure(model, x, maps, 1, batch=batch, **options) for batch in (1, 7, 1000))
    for other in (seven, many):
        torch.testing.assert_close(one.insertion, other.insertion, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.deletion, other.deletion, rtol=1e-12, atol=0)
        assert one.evaluations == other.evaluations
    alone = [measure(model, x[[n]], maps[[n]], 1, **options).id_score() for n in range(5)]
    torch.testing.assert_close(torch.cat(alone), one.id_score(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_types_and_layouts(protocol, dtype, within):
    model = sound(Net(lambda m, x: m.b(m.a(x).relu().mean((2, 3))), a=nn.Conv2d(3, 8, 3), b=nn.Linear(8, 2)))
    x, maps = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1)
    exact = measure(model, x, maps, 0, protocol=protocol, step=8, black=-2)
    ranks = maps.sum(1).flatten(1).argsort().argsort().view(2, 8, 8)  # orders survive any type
    low = measure(model.to(dtype), x.to(dtype), ranks, 0, protocol=protocol, step=8, black=-2)
    assert low.insertion.dtype == torch.float64
    torch.testing.assert_close(low.insertion, exact.insertion, atol=within, rtol=0)
    last = x.to(dtype, memory_format=torch.channels_last)
    turned = measure(model, last, ranks, 0, protocol=protocol, step=8, black=-2)
    torch.testing.assert_close(turned.deletion, exact.deletion, atol=within, rtol=0)


def test_everything_is_left_as_it_was():
    model = sound(Net(lambda m, x: m.b(m.n(x).relu_().mean((2, 3))), n=nn.BatchNorm2d(2), b=nn.Linear(2, 2)))
    x, maps = normal(2, 2, 4, 4), normal(2, 2, 4, 4, seed=1).requires_grad_()
    low = torch.full((1, 2, 1, 1), -1.0)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before, random = (x.clone(), maps.detach().clone(), low.clone()), torch.get_rng_state()
    for protocol in PROTOCOLS:
        scores = measure(model, x, maps, 0, protocol=protocol, step=3, black=low)
        assert not scores.insertion.requires_grad and not scores.deletion.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (x, maps, low), strict=True))
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and not model.training and maps.grad is None


def test_your_own_protocol_mixes_what_there_is():
    mine = Protocol("mine", ties="together", ends=True, insertion="mean", deletion="blur")
    model, x, maps = classifier(1, 5, 5), normal(2, 1, 5, 5), normal(2, 5, 5)
    scores = measure(model, x, maps, 0, protocol=mine, step=5, mean=0.5)  # black is not asked for
    p = model(torch.cat([torch.full_like(x, 0.5), blurred(x)])).detach().softmax(1)[:, 0]
    torch.testing.assert_close(scores.insertion[:, 0], p[:2])
    torch.testing.assert_close(scores.deletion[:, -1], p[2:])
    assert scores.protocol is mine and "mine" in repr(scores) and "tensor" not in repr(scores)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.ties = "strict"
    assert {name: p.name for name, p in PROTOCOLS.items()} == {"authors": "authors", "strict": "strict", "rise": "rise"}


def test_pairs_resample_the_same_images():
    a, b = made([[0.0, 1.0], [0.2, 0.6], [0.1, 0.1]]), made([[0.1, 1.0], [0.3, 0.6], [0.2, 0.1]])
    got = compare(a, b, "insertion")
    assert got.mean == pytest.approx(-0.05) and got.high - got.low < 1e-12  # each image loses the same
    assert compare(a, b).mean == pytest.approx(0) and compare(a, a, "deletion", level=0.5).low == 0
    c = made([[0.1, 1.0], [0.3, 0.6], [0.2, 0.1]], [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert compare(c, a, "deletion", seed=1) == interval(c.deletion_auc() - a.deletion_auc(), seed=1)


# ---------------------------------------------------------------- what is refused

X, R = normal(2, 3, 4, 4), normal(2, 4, 4, seed=1)
NAN, ENDLESS = R.clone(), X.clone()
NAN[1, 0, 0], ENDLESS[0, 0, 0, 0] = torch.nan, torch.inf
WRONG = {
    "protocol": ({"protocol": "fair"}, LRPError, "no protocol is called 'fair': there are authors, strict, rise"),
    "no protocol": ({"protocol": None}, LRPError, "a protocol is a Protocol, or one of authors, strict, rise"),
    "no black": ({"black": None}, LRPError, r"'authors' replaces pixels by black.*`low, _ = normalizer.bounds\(\)`"),
    "channels": ({"black": torch.zeros(2)}, LRPError, "black is one number, 3, one per channel, or an image; got 2"),
    "mean": ({"protocol": "rise", "mean": torch.zeros(4)}, LRPError, "mean is one number, 3, one per channel"),
    "step 0": ({"step": 0}, LRPError, "whole numbers of at least 1 .*'step': 0"),
    "half a step": ({"step": 2.5}, LRPError, "'step': 2.5"),
    "one point": ({"step": 16}, LRPError, r"step=16, but images of \(4, 4\) hold 16 pixels"),
    "beyond": ({"step": 17, "protocol": "rise"}, LRPError, "step=17, but images"),
    "batch": ({"batch": 0}, LRPError, "'batch': 0"),
    "NaN": ({"maps": NAN}, InputError, "the map of image 1 holds NaN"),
    "shape": ({"maps": R[:, :3]}, InputError, r"maps must have shape \(2, 3, 4, 4\), as x, or \(2, 4, 4\)"),
    "one channel": ({"maps": R[:, None]}, InputError, "maps must have shape"),
    "no map": ({"maps": None}, InputError, "maps must have shape .* it has None"),
    "endless x": ({"x": ENDLESS}, InputError, "the input holds 1 values that are NaN or infinite"),
    "one image": ({"x": X[0], "maps": R[0]}, InputError, r"x must be images \(N, C, H, W\)"),
    "dtype": ({"x": X.float()}, InputError, "the input is torch.float32"),
    "class": ({"target": 3}, TargetError, "target 3 is none of the 3 classes"),
    "list": ({"target": [0, 1]}, TargetError, "one target per call: .*call once for each entry"),
    "labels": ({"target": torch.zeros(3).long()}, TargetError, r"one class per sample, \(2,\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case):
    change, kind, message = WRONG[case]
    call = {"model": classifier(3, 4, 4), "x": X, "maps": R, "target": 0, "step": 2, "black": -1} | change
    with pytest.raises(kind, match=message):
        measure(**call)


def test_models_that_cannot_be_scored_are_refused():
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2)).double()
    with pytest.raises(InputError, match=r"training mode: call model.eval\(\)"):
        measure(model, X, R, 0, black=-1)
    assert model.training
    with pytest.raises(InputError, match="not \\(N, K\\)"):
        measure(sound(Net(lambda m, x: x.sum(1))), X, R, 0, black=-1)
    blind = sound(Net(lambda m, x: (1 / x.abs().amin((1, 2, 3)) - 1 / x.abs().amin((1, 2, 3)))[:, None].expand(-1, 2)))
    with pytest.raises(InputError, match="the score of image 0 is not finite at point 0 of its insertion"):
        measure(blind, X, R, 0, black=0)


def test_protocols_and_levels_that_cannot_be_are_refused():
    with pytest.raises(LRPError, match="no treatment of ties is called 'random': there are together, strict"):
        Protocol("mine", "random", True, "black", "black")
    for wrong in (("grey", "black"), ("black", "grey")):
        with pytest.raises(LRPError, match="no replacement is called 'grey': there are black, mean, blur"):
            Protocol("mine", "strict", True, *wrong)
    for levels in (1, 0, 2.0, None):
        with pytest.raises(LRPError, match="levels is a whole number of at least 2"):
            heat_quantization(R, levels)
    with pytest.raises(LRPError, match="map 1 holds NaN"):
        lowest_bin(NAN)
    with pytest.raises(LRPError, match="map 0 holds NaN or infinite"):
        heat_quantization(ENDLESS.sum(1))
    for maps in (X, R.long(), [1.0]):
        with pytest.raises(LRPError, match=r"floating point \(N, H, W\), channels summed first"):
            heat_quantization(maps)


def test_pairs_that_do_not_match_are_refused():
    a = made([[0.0, 1.0], [0.0, 0.5]])
    with pytest.raises(LRPError, match=r"'images': 2.*'images': 1"):
        compare(a, made([[0.0, 1.0]]))
    with pytest.raises(LRPError, match=r"'images': 2.*'images': 3"):
        compare(a, made([[0.0, 1.0]] * 3))
    for other in ({"protocol": RISE}, {"step": 2}, {"pixels": 3}):
        with pytest.raises(LRPError, match="different kinds"):
            compare(a, made(a.insertion, **other))
    with pytest.raises(LRPError, match="the whole images score differently"):
        compare(a, made([[0.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(LRPError, match="no statistic is called 'auc': there are insertion, deletion, ID"):
        compare(a, a, "auc")
