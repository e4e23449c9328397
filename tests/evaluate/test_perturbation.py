"""Curves of replaced pixels against known answers: constant, linear and one-pixel models, and a slow loop."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from networks import Net, sound
from torch import nn

from lrp.data.datasets import SCENE
from lrp.errors import InputError, LRPError, TargetError
from lrp.evaluate import perturbation
from lrp.evaluate.flipping import ranks
from lrp.evaluate.metrics import interval
from lrp.evaluate.perturbation import Curves, compare, curves, relative_area

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

READ_OFFS = {  # binder2016layer, Fig. 2, and the areas they must give
    "max": ([4.5, 2.4, 1.58, 1.1, 0.82, 0.58], 37.5),
    "rand": ([4.5, 3.95, 3.1, 2.3, 1.6, 1.1], 61.1),
    "minabs": ([4.5, 4.1, 3.75, 3.4, 3.1, 2.9], 80.2),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


class Linear(nn.Module):
    """Logit k of x is sum(w_k x), (N, C, H, W) -> (N, K): each pixel's part in it is known."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)
        self.eval()

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.w)


class Spy(nn.Module):
    """A linear model that keeps every image it is shown."""

    def __init__(self, shape, seed=0):
        super().__init__()
        self.linear, self.seen = Linear(normal(2, *shape, seed=seed)), []
        self.eval()

    def forward(self, x):
        self.seen.append(x.clone())
        return self.linear(x)

    def frames(self, n):
        """Images after k = 1..L replacements, one repeat: (N, L, C, H, W); the first n images shown are untouched."""
        return torch.cat(self.seen)[n:].unflatten(0, (n, -1))


def made(scores, **other):
    fields = {"order": "morf", "region": 1, "replace": "uniform", "output": "logit", "repeats": 1}
    return Curves(torch.as_tensor(scores, dtype=torch.float64), **fields | other)


@pytest.fixture
def problem():
    """A linear model of 3 x 4 x 5 images, its images, and the exact relevance of logit 1."""
    model = Linear(normal(3, 3, 4, 5))
    x = normal(6, 3, 4, 5, seed=1)
    return model, x, (x * model.w[1]).detach()


# ---------------------------------------------------------------- known answers


def test_a_constant_model_has_a_flat_curve():
    model = sound(Net(lambda m, x: x.new_tensor([[2.0, 0.5]]).expand(len(x), -1)))
    c = curves(model, normal(3, 2, 5, 5), normal(3, 5, 5), 0, steps=20, low=-1, high=1)
    assert c.scores.shape == (3, 21) and c.scores.dtype == torch.float64 and (c.scores == 2).all()
    assert c.auc().mean == c.auc().low == c.auc().high == 20
    assert c.aopc().mean == 0 and len(c) == 3 and c.steps == 20


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_linear_model_loses_each_pixel_s_part_in_order(problem, value):
    model, x, _ = problem
    part = ((x - value) * model.w[1]).sum(1).flatten(1).detach()  # what the replacement of a pixel takes away
    expected = {}
    for order, descending in {"morf": True, "lerf": False}.items():
        taken = part.sort(descending=descending).values.cumsum(1)
        f0 = (x * model.w[1]).sum((1, 2, 3), keepdim=True).flatten(1).detach()
        expected[order] = torch.cat([f0, f0 - taken], 1)
        c = curves(model, x, part.view(6, 4, 5), 1, order=order, replace="constant", value=value)
        torch.testing.assert_close(c.scores, expected[order], rtol=1e-12, atol=1e-12)
        L = 20
        weight = torch.arange(L, 0, -1, dtype=torch.float64) / (L + 1)  # pixel j is missing in L - j of L + 1 terms
        closed = (part.sort(descending=descending).values * weight).sum(1)
        torch.testing.assert_close(c.aopc_per_sample(), closed, rtol=1e-12, atol=1e-12)
        assert c.aopc().mean == pytest.approx(closed.mean().item(), rel=1e-12)
    below = expected["morf"][:, 1:-1] < expected["lerf"][:, 1:-1]
    assert below.all()


@pytest.mark.parametrize("region", [1, 3])
def test_one_pixel_counts_and_its_region_goes_first_or_last(region):
    w = torch.zeros(1, 2, 6, 9, dtype=torch.float64)
    w[0, :, 4, 5] = 1
    x = torch.ones(2, 2, 6, 9, dtype=torch.float64)
    L = 54 // region**2
    morf, lerf = (
        curves(Linear(w), x, x * w, 0, order=order, steps=L, region=region, replace="constant")
        for order in ("morf", "lerf")
    )
    assert morf.scores[0].tolist() == [2.0] + [0.0] * L
    assert lerf.scores[0].tolist() == [2.0] * L + [0.0]
    assert morf.auc().mean == 0.5 and lerf.auc().mean == L - 0.5
    assert compare(morf, lerf).mean == 1 - L
    assert compare(morf, lerf, "aopc").mean == pytest.approx(2 * (L - 1) / (L + 1))


def test_probability_is_the_softmax_of_the_target(problem):
    model, x, R = problem
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    logit, probability = (
        curves(model, x, R, target, replace="constant", output=output) for output in ("logit", "probability")
    )
    untouched = model(x).detach()
    torch.testing.assert_close(logit.scores[:, 0], untouched[range(6), target])
    torch.testing.assert_close(probability.scores[:, 0], untouched.softmax(1)[range(6), target])
    torch.testing.assert_close(probability.scores[:, -1], torch.full((6,), 1 / 3, dtype=torch.float64))
    predicted = curves(model, x, R, replace="constant")
    torch.testing.assert_close(predicted.scores[:, 0], untouched.max(1).values)


def test_two_branches_of_a_non_linear_model():
    """f = max(x_0, x_1): the score falls only when both are gone."""
    model = sound(Net(lambda m, x: x.flatten(2).sum(1)[:, :2].max(1, keepdim=True).values))
    x = torch.tensor([[[[3.0, 2.0, 1.0]]]], dtype=torch.float64)
    assert curves(model, x, x, 0, replace="constant").scores.tolist() == [[3.0, 2.0, 0.0, 0.0]]
    assert curves(model, x, x, 0, order="lerf", replace="constant").scores.tolist() == [[3.0, 3.0, 3.0, 0.0]]


# ---------------------------------------------------------------- a second derivation


def slowly(model, x, R, target, order, region, steps, new):
    """The same curve by loops: sums of regions, sorted lists, one image at a time."""
    scores = torch.empty(len(x), steps + 1, dtype=torch.float64)
    for n, image in enumerate(x):
        t, cells = int(target[n]), []
        for top in range(0, x.shape[2], region):
            for left in range(0, x.shape[3], region):
                inside = [
                    (row, column)
                    for row in range(top, min(top + region, x.shape[2]))
                    for column in range(left, min(left + region, x.shape[3]))
                ]
                total = sum(float(R[n, c, row, column]) for row, column in inside for c in range(R.shape[1]))
                cells.append(({"morf": -total, "lerf": total, "minabs": abs(total)}[order], len(cells), inside))
        image = image.clone()
        scores[n, 0] = model(image[None])[0, t]
        for k, (_, _, inside) in enumerate(sorted(cells)[:steps], start=1):
            for row, column in inside:
                image[:, row, column] = new[n, :, row, column]
            scores[n, k] = model(image[None])[0, t]
    return scores


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7)),
    region=st.integers(1, 4),
    order=st.sampled_from(["morf", "lerf", "minabs"]),
    coarse=st.booleans(),
    seed=st.integers(0, 99),
    batch=st.integers(1, 30),
    share=st.floats(0, 1),
)
def test_equals_a_slow_loop(size, region, order, coarse, seed, batch, share):
    """Any size (divisible or not), any batch; coarse relevance has many ties."""
    x, R, new = (normal(2, *size, seed=seed + s) for s in (0, 1, 2))
    R = R.sign().cumsum(3) if coarse else R
    model = sound(Net(lambda m, x: m.linear(x).tanh(), linear=Linear(normal(2, *size, seed=seed + 3))))
    regions = -(-size[1] // region) * -(-size[2] // region)
    steps, target = max(1, round(share * regions)), torch.tensor([1, 0])
    fast = curves(model, x, R, target, order=order, region=region, steps=steps, replace=lambda _: new, batch=batch)
    with torch.no_grad():
        slow = slowly(model, x, R, target, order, region, steps, new)
    torch.testing.assert_close(fast.scores, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("region", [1, 2, 3])
def test_after_k_steps_exactly_the_first_k_regions_are_new_in_all_channels(region):
    x, R = normal(2, 3, 5, 4), normal(2, 3, 5, 4, seed=1)
    model = Spy((3, 5, 4))
    c = curves(model, x, R, 0, region=region, low=5, high=6)
    rank, frames = ranks(R, "morf", region), model.frames(2)
    assert frames.shape[1] == c.steps == -(-5 // region) * -(-4 // region)
    for k in range(1, c.steps + 1):
        changed = frames[:, k - 1] != x
        assert torch.equal(changed, (rank < k)[:, None].expand_as(x))
    assert (frames[:, -1] >= 5).all()
    for earlier, later in zip(frames.unbind(1), frames.unbind(1)[1:], strict=False):
        assert torch.equal(later[earlier != x], earlier[earlier != x])  # what is replaced stays so


# ---------------------------------------------------------------- replacements


def last_frame(x, **options):
    model = Spy(x.shape[1:])
    curves(model, x, torch.zeros_like(x), 0, steps=x[0, 0].numel(), **options)
    return model.frames(len(x))[:, -1]


def test_bounds_may_differ_from_place_to_place():
    """As with a mean image: low and high of x's own shape."""
    low = normal(1, 2, 3, 4)
    got = last_frame(normal(5, 2, 3, 4), low=low, high=low + 1e-9)
    torch.testing.assert_close(got, low.expand(5, 2, 3, 4), atol=1e-8, rtol=0)


def test_uniform_noise_fills_the_range_of_each_channel():
    x = normal(2, 3, 40, 40)
    low, high = SCENE.bounds(x)
    low, high = low + torch.tensor([0, 1, 2]).view(1, 3, 1, 1), high + torch.tensor([0, 1, 5]).view(1, 3, 1, 1)
    model = Spy((3, 40, 40))
    curves(model, x, torch.zeros_like(x), 0, region=20, low=low, high=high)
    new = model.frames(2)[:, -1]
    assert ((low <= new) & (new <= high)).all()
    unit = (new - low) / (high - low)
    assert (unit.mean((0, 2, 3)) - 0.5).abs().max() < 0.02 and (unit.var((0, 2, 3)) - 1 / 12).abs().max() < 0.005
    assert len(new.unique()) == new.numel()  # a draw for every pixel, channel and image
    flat = last_frame(x[:, :, :4, :5], low=low.flatten(), high=high.flatten())
    assert ((low <= flat) & (flat <= high)).all()


def test_mean_constant_and_callable():
    x = normal(2, 3, 4, 5)
    torch.testing.assert_close(last_frame(x, replace="mean"), x.mean((2, 3), keepdim=True).expand_as(x))
    assert (last_frame(x, replace="constant", value=0.25) == 0.25).all()
    value = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(last_frame(x, replace="constant", value=value)[1, :, 0, 0], value.double())
    before = x.clone()
    assert torch.equal(last_frame(x, replace=lambda x: x.mul_(-1).float()), (-before).float().double())
    assert torch.equal(x, before)


def test_blur_is_a_gaussian_of_the_image_itself():
    x = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    x[..., 10, 10] = 1
    model = Spy((1, 21, 21))
    curves(model, x, x, 0, region=21, replace="blur", sigma=1.5)
    got = model.frames(1)[0, 0, 0]
    d = torch.arange(-10, 11, dtype=torch.float64)
    g = torch.exp(-(d**2) / (2 * 1.5**2)) * (d.abs() <= 5)
    torch.testing.assert_close(got, (g / g.sum())[:, None] * (g / g.sum()), rtol=1e-6, atol=1e-9)
    flat = torch.full((1, 2, 3, 4), 0.3, dtype=torch.float64)  # smaller than the kernel
    torch.testing.assert_close(last_frame(flat, replace="blur"), flat)


# ---------------------------------------------------------------- batches, seeds, repeats


@pytest.mark.parametrize("order", perturbation.ORDERS)
def test_batches_do_not_matter(problem, order):
    model, x, R = problem
    one, seven, all_ = (
        curves(model, x, R, 1, order=order, low=-2, high=2, repeats=2, batch=batch).scores for batch in (1, 7, 1000)
    )
    torch.testing.assert_close(one, seven, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, all_, rtol=1e-12, atol=1e-12)


def test_a_hundred_steps_by_default_and_a_silent_bar(capsys):
    model = Linear(normal(1, 1, 11, 10))
    assert curves(model, normal(1, 1, 11, 10), normal(1, 11, 10), replace="mean").steps == 100
    assert curves(model, normal(1, 1, 11, 10), normal(1, 11, 10), replace="mean", region=4).steps == 9
    assert capsys.readouterr() == ("", "")  # the bar is for runs of more than five seconds


def test_no_batch_is_larger_than_asked():
    model = Spy((1, 3, 3))
    curves(model, normal(5, 1, 3, 3), normal(5, 3, 3), 0, low=0, high=1, batch=4)
    sizes = [len(batch) for batch in model.seen]
    assert max(sizes) == 4 and sum(sizes) == 5 * 10 and sizes.count(4) == len(sizes) - 2


def test_a_seed_repeats_and_leaves_the_users_random_numbers_alone(problem):
    model, x, R = problem
    state = torch.get_rng_state()
    for order in ("morf", "random"):
        a, b, other = (curves(model, x, R, 1, order=order, low=-2, high=2, seed=seed).scores for seed in (3, 3, 4))
        assert torch.equal(a, b) and not torch.allclose(a, other)
    assert torch.equal(state, torch.get_rng_state())


def test_noise_is_shared_by_orders_and_by_fewer_images():
    x, R = normal(4, 2, 3, 3), normal(4, 3, 3, seed=1)
    noise = last_frame(x, low=0, high=1)
    assert torch.equal(noise, last_frame(x, low=0, high=1, order="minabs"))
    assert torch.equal(noise, last_frame(x, low=0, high=1, order="random", repeats=1))
    assert torch.equal(noise[:2], last_frame(x[:2], low=0, high=1))
    model = Linear(normal(1, 2, 3, 3))
    all_, few = (curves(model, x[:n], R[:n], 0, order="random", repeats=1, low=0, high=1).scores for n in (4, 2))
    torch.testing.assert_close(all_[:2], few)


def test_repeats_average():
    model, x = Linear(torch.ones(1, 1, 2, 2, dtype=torch.float64)), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    values = iter([1.0, 2.0, 6.0])
    c = curves(model, x, x, 0, replace=lambda x: torch.full_like(x, next(values)), repeats=3)
    assert c.scores.tolist() == [[0, 3, 6, 9, 12]] and c.repeats == 3 and c.replace == "callable"
    spread = [
        torch.stack([curves(model, x, x, 0, low=0, high=1, seed=seed, repeats=n).scores for seed in range(60)])[
            :, 0, -1
        ]
        for n in (1, 16)
    ]
    assert spread[0].std() / spread[1].std() == pytest.approx(4, rel=0.35)
    assert spread[1].mean() == pytest.approx(2, abs=0.1)


def test_a_random_order_is_linear_on_average_and_needs_no_relevance():
    """Each of 16 pixels is gone after k steps with probability k / 16; ten repeats unless asked otherwise."""
    model, x = Linear(normal(2, 1, 4, 4)), normal(1, 1, 4, 4, seed=1)
    c = curves(model, x, None, 0, order="rand", replace="constant")
    assert c.order == "random" and c.repeats == 10
    c = curves(model, x, None, 0, order="rand", replace="constant", repeats=3000)
    f0 = model(x)[0, 0].item()
    line = f0 * (1 - torch.arange(17, dtype=torch.float64) / 16)
    assert (c.scores[0] - line).abs().max() < 0.15 and c.scores[0, -1].abs() < 1e-9


def test_model_and_input_stay_as_they_were():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten())
    model = nn.Sequential(nn.ReLU(inplace=True), model, nn.Linear(18, 2)).double().eval()
    x = normal(3, 1, 3, 3).requires_grad_()
    R = normal(3, 1, 3, 3, seed=1).requires_grad_()
    state, before = {k: v.clone() for k, v in model.state_dict().items()}, x.detach().clone()
    c = curves(model, x, R, 0, low=-1, high=1)
    assert not c.scores.requires_grad and torch.equal(x.detach(), before) and x.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(problem):
    model, x, R = problem
    for order in perturbation.ORDERS:
        cpu = curves(model.cpu(), x, R, 1, order=order, low=-2, high=2)
        gpu = curves(model.cuda(), x.cuda(), R, 1, order=order, low=-2, high=2)
        torch.testing.assert_close(gpu.scores, cpu.scores, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- areas and intervals


@pytest.mark.parametrize("order", READ_OFFS)
def test_area_of_the_published_curves(order):
    scores, area = READ_OFFS[order]
    assert round(relative_area(range(0, 101, 20), scores), 1) == area
    assert relative_area([0, 1, 4], [2.0, 1.0, 0.0]) == (1.5 + 1.5) / 2


def test_auc_is_the_area_of_the_mean_curve_over_its_start():
    c = made(normal(9, 13).abs() + 0.5)
    mean = c.scores.mean(0)
    torch.testing.assert_close(c.mean_curve, mean)
    by_hand = (mean[1:-1].sum() + (mean[0] + mean[-1]) / 2) / mean[0]
    assert c.auc().mean == pytest.approx(by_hand.item(), rel=1e-12)
    assert c.auc().mean == pytest.approx(relative_area(range(13), c.mean_curve), rel=1e-12)
    each = torch.tensor([relative_area(range(13), row) for row in c.scores], dtype=torch.float64)
    assert c.auc().mean != pytest.approx(each.mean().item(), rel=1e-3)  # the two readings differ


def test_aopc_includes_the_untouched_image():
    c = made([[3.0, 1.0, 0.0], [1.0, 1.0, 4.0]])
    assert c.aopc_per_sample().tolist() == [5 / 3, -1.0]
    assert c.aopc().mean == pytest.approx(1 / 3)


def test_intervals_are_those_of_the_metrics_where_all_start_alike():
    scores = normal(12, 8).abs()
    scores[:, 0] = 2
    c = made(scores)
    each = torch.tensor([relative_area(range(8), row) for row in scores], dtype=torch.float64)
    expected = interval(each, level=0.9, draws=500, seed=7)
    got = c.auc(level=0.9, draws=500, seed=7)
    for end in ("mean", "low", "high"):
        assert getattr(got, end) == pytest.approx(getattr(expected, end), rel=1e-12)
    assert (got.n, got.left_out) == (12, 0)
    assert c.aopc(seed=3) == interval(c.aopc_per_sample(), seed=3)


def test_numerator_and_denominator_are_resampled_together():
    """Curves that are multiples of one shape: the ratio is the same in every resample."""
    shape = torch.tensor([1.0, 0.6, 0.3])
    c = made(torch.tensor([[1.0], [10.0], [100.0]]) * shape)
    assert c.auc().low == pytest.approx(c.auc().high, rel=1e-6) == pytest.approx(1.25)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng_ = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        start = rng_.uniform(1, 3, 40)
        end = start * 0.5 + rng_.normal(0, 0.5, 40)
        got = made(np.stack([start, end], 1)).auc(draws=400)
        hits += got.low < 0.75 < got.high
    assert 0.88 <= hits / 200 <= 0.99


def test_compare_pairs_the_images():
    scores = normal(20, 6).abs() + 1
    better = scores.clone()
    better[:, 1:] -= 0.2
    a, b = made(better), made(scores, order="random")
    paired, alone = compare(a, b), a.auc()
    assert paired.mean == pytest.approx(a.auc().mean - b.auc().mean, rel=1e-12) and paired.mean < 0
    assert paired.high < 0 and paired.high - paired.low < 0.2 * (alone.high - alone.low)
    area = compare(a, b, "aopc")
    assert area.mean == pytest.approx(0.2 * 5 / 6) and area.high - area.low < 1e-9
    assert compare(a, a).low == compare(a, a).high == 0
    assert compare(b, a).mean == -paired.mean


def test_starts_at_or_below_zero():
    c = made([[4.0, 1.0], [-1.0, 1.0], [0.0, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = c.auc()  # some resamples hold no positive start: the point is known, the interval is not
    assert got.mean == pytest.approx(1.0) and np.isnan(got.low) and np.isnan(got.high)
    with pytest.raises(LRPError, match=r"score -1 on average.*output='probability', or aopc"):
        made([[-1.0, 1.0]]).auc()
    with pytest.raises(LRPError, match="score 0 on average"):
        made([[0.0, 1.0]]).auc()


def test_curves_are_frozen_and_short_to_print():
    c = made([[1.0, 0.5]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.order = "lerf"
    assert repr(c) == "Curves(order='morf', region=1, replace='uniform', output='logit', repeats=1)"


# ---------------------------------------------------------------- what is refused

X, R = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
NAN = R.clone()
NAN[1, 0, 0, 0] = torch.nan
WRONG = {
    "order": ({"order": "most"}, "no order is called 'most': there are morf, lerf, minabs, random"),
    "replacement": ({"replace": "zero"}, "no replacement is called 'zero': there are uniform, mean, blur, constant"),
    "output": ({"output": "softmax"}, "no output is called 'softmax': there are logit, probability"),
    "steps": ({"steps": 17}, r"steps=17, but images of \(4, 4\) hold 16 regions of side 1"),
    "steps of regions": ({"steps": 5, "region": 3}, "hold 4 regions of side 3"),
    "no steps": ({"steps": 0}, r"at least 1 .*'steps': 0"),
    "half a region": ({"region": 1.5}, r"whole numbers .*'region': 1.5"),
    "repeats": ({"repeats": 0}, "'repeats': 0"),
    "batch": ({"batch": -1}, "'batch': -1"),
    "no range": ({"high": None}, r"uniform noise needs the valid range of x: `low, high = normalizer.bounds\(\)`"),
    "channels": ({"low": torch.zeros(2)}, "low is one number, 3, one per channel, or an image; got 2"),
    "endless": ({"high": float("inf")}, "high must be finite; got inf"),
    "value": ({"replace": "constant", "value": torch.zeros(4)}, "value is one number, 3, one per channel"),
    "callable": ({"replace": lambda x: x[:1]}, r"its input's shape \(2, 3, 4, 4\); it has"),
    "no tensor": ({"replace": lambda x: None}, "it has None"),
    "map": ({"relevance": R[:, :, :3]}, r"relevance must have shape \(2, 3, 4, 4\), as x, or \(2, 4, 4\)"),
    "targets axis": ({"relevance": R[None]}, "relevance must have shape"),
    "no map": ({"relevance": None}, "relevance must have shape .* it has None"),
    "NaN": ({"relevance": NAN}, "the relevance of image 1 holds NaN"),
    "NaN input": ({"x": NAN}, "the input holds 1 values that are NaN"),
    "one image": ({"x": X[0], "relevance": R[0]}, r"x must be images \(N, C, H, W\)"),
    "dtype": ({"x": X.float()}, "the input is torch.float32"),
    "class": ({"target": 2}, "target 2 is none of the 2 classes"),
    "targets": ({"target": [0, 1]}, "one target per call"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_by_name(case):
    change, message = WRONG[case]
    call = {"model": Linear(normal(2, 3, 4, 4)), "x": X, "relevance": R, "target": 0, "low": -1, "high": 1} | change
    kind = TargetError if "target" in change else InputError if {"x", "relevance"} & {*change} else LRPError
    with pytest.raises(kind, match=message):
        curves(**call)


def test_models_that_cannot_be_scored_are_refused():
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2)).double()
    with pytest.raises(InputError, match=r"training mode: call model.eval\(\)"):
        curves(model, X, R, 0, low=-1, high=1)
    assert model.training
    with pytest.raises(InputError, match="not \\(N, K\\)"):
        curves(sound(Net(lambda m, x: x.sum(1))), X, R, 0, low=-1, high=1)
    blind = sound(Net(lambda m, x: (1 / x.abs().amin((1, 2, 3)))[:, None].expand(-1, 2)))
    with pytest.raises(InputError, match="the score of image 0 is not finite after 1 replacements"):
        curves(blind, X, R, 0, replace="constant")


def test_pairs_that_do_not_match_are_refused():
    a = made([[2.0, 1.0], [1.0, 0.0]])
    with pytest.raises(LRPError, match=r"'images': 2.*'images': 1"):
        compare(a, made([[2.0, 1.0]]))
    for other in ({"region": 3}, {"output": "probability"}):
        with pytest.raises(LRPError, match="different kinds"):
            compare(a, made(a.scores, **other))
    with pytest.raises(LRPError, match="the untouched images score differently"):
        compare(a, made([[1.0, 1.0], [2.0, 0.0]]))
    with pytest.raises(LRPError, match="no statistic is called 'area': there are auc, aopc"):
        compare(a, a, "area")


@pytest.mark.parametrize(
    "x, y", [([0], [1.0]), ([0, 1], [1.0]), ([1, 0], [1.0, 1.0]), ([0, 1], [0.0, 1.0]), ([[0, 1]], [[1.0, 1.0]])]
)
def test_read_offs_that_are_no_curve_are_refused(x, y):
    with pytest.raises(LRPError, match="a curve is at least two points"):
        relative_area(x, y)
