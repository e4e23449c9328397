"""Scores of artifacts against slow loops and closed forms; maps of shuffled labels; coverage by counting placements."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from lrp import LRP, LRPError, composites
from lrp.data.field_networks import FieldCNN, LinearMLP, accuracy, train
from lrp.data.fields import squares
from lrp.data.geospatial import split
from lrp.studies import artifacts, echo_state
from lrp.studies.artifacts import (
    artifact_map,
    border_energy,
    coverage,
    first_share,
    grid_energy,
    object_shares,
    row_norm_correlation,
    row_profile,
    truth_overlap,
)


def column_profile(R):
    """The profile that studies of sweeps use, of the shares of |R|."""
    return echo_state.column_profile(artifacts.shares(R))


sizes = st.tuples(st.integers(1, 4), st.integers(5, 9), st.integers(5, 9))


def maps(n=3, h=6, w=8, seed=0):
    return torch.randn(n, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- stripes


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 1000))
def test_profiles_by_a_slow_loop(size, seed):
    R = maps(*size, seed=seed)
    columns, rows = column_profile(R), row_profile(R)
    for m, c, r in zip(R.tolist(), columns, rows, strict=True):
        total = sum(abs(value) for row in m for value in row)
        for j in range(size[2]):
            assert c[j] == pytest.approx(sum(abs(row[j]) for row in m) / total)
        for i in range(size[1]):
            assert r[i] == pytest.approx(sum(abs(value) for value in m[i]) / total)
    assert torch.allclose(columns.sum(1), torch.ones(size[0], dtype=torch.float64))
    assert torch.equal(first_share(R), columns[:, 0]) and torch.equal(first_share(R, "right"), columns[:, -1])
    assert torch.equal(first_share(R, "top"), rows[:, 0]) and torch.equal(first_share(R, "bottom"), rows[:, -1])


SCORES = {
    "column_profile": column_profile,
    "first_share": first_share,
    "border_energy": border_energy,
    "grid_energy": lambda R: grid_energy(R, 2),
    "object_shares": lambda R: object_shares(R, torch.ones(1, *R.shape[-2:], dtype=torch.bool).tril()),
    "row_norms": lambda R: row_norm_correlation(R, torch.arange(R.shape[-2] * 3.0).view(-1, 3)),
    "truth": lambda R: torch.stack(truth_overlap(R, torch.eye(*R.shape[-2:], dtype=torch.bool)), 1),
}


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(1e-6, 1e6))
def test_scores_know_neither_scale_nor_sign_and_score_each_map_alone(name, seed, factor):
    score, R = SCORES[name], maps(seed=seed)
    found = score(R)
    assert found.dtype == torch.float64 and len(found) == 3 and torch.isfinite(found).all()
    for other in (factor * R, -R, (R / 2)[:, None].expand(-1, 2, -1, -1), torch.stack([score(m[None])[0] for m in R])):
        again = other if other.shape == found.shape else score(other)
        assert torch.allclose(again, found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_a_map_without_relevance_has_no_score(name):
    R = torch.cat([maps(1), torch.zeros(1, 6, 8)])
    found = SCORES[name](R)
    assert torch.isfinite(found[0]).all()
    if name == "truth":  # the AUC of a map that says nothing is one half
        assert found[1, 0].isnan() and found[1, 1] == 0.5
    else:
        assert found[1].isnan().all()


def test_row_norms_against_scipy():
    R, W_in = maps(4), torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    found = row_norm_correlation(R, W_in)
    for m, rho in zip(R, found, strict=True):
        expected = spearmanr(m.abs().sum(1).numpy(), W_in.abs().sum(1).numpy()).statistic
        assert rho == pytest.approx(expected)
    stripes = W_in.double().abs().sum(1, keepdim=True).expand(1, 6, 8)
    assert row_norm_correlation(stripes, W_in).item() == pytest.approx(1)
    rows = torch.tensor([True, True, True, True, False, False])
    assert torch.allclose(row_norm_correlation(R, W_in, rows), row_norm_correlation(R[:, :4], W_in[:4]))
    assert row_norm_correlation(stripes.mT, W_in[:1].expand(8, -1)).isnan().all()  # a constant has no correlation
    with pytest.raises(LRPError, match=r"one row per row of the map, \(6, units\), not \(300, 6\): is it transposed"):
        row_norm_correlation(R, W_in.T)


def test_an_unknown_side():
    with pytest.raises(LRPError, match="no side is called 'north': there are left, right, top, bottom"):
        first_share(maps(), "north")


# ---------------------------------------------------------------- borders and grids


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 2), st.integers(0, 1000))
def test_borders_by_a_slow_loop(size, width, seed):
    R = maps(*size, seed=seed)
    n, h, w = size
    for m, found in zip(R, border_energy(R, width), strict=True):
        inside = cells = 0.0
        for i in range(h):
            for j in range(w):
                if min(i, j, h - 1 - i, w - 1 - j) < width:
                    inside, cells = inside + abs(float(m[i, j])), cells + 1
        assert found == pytest.approx(inside / float(m.abs().sum()) / (cells / (h * w)))
    assert torch.allclose(border_energy(torch.ones(n, h, w), width), torch.ones(n, dtype=torch.float64))


def test_land_is_no_part_of_a_map():
    R = maps(2, 8, 8).abs() * 0 + 1
    R[:, :3] = torch.nan
    assert torch.allclose(border_energy(R), torch.ones(2, dtype=torch.float64))
    assert column_profile(R).sum(1).tolist() == pytest.approx([1, 1]) and row_profile(R)[0, :3].tolist() == [0, 0, 0]
    truth = torch.arange(64.0).view(8, 8)
    some = torch.where(R.isnan(), torch.nan, truth)
    assert truth_overlap(some, truth).rank.tolist() == pytest.approx([1, 1])
    assert truth_overlap(truth.expand(2, 8, 8), some).rank.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("width", [0, 3, 9])
def test_a_border_leaves_a_middle(width):
    with pytest.raises(LRPError, match=rf"a border of {width} leaves no middle in maps of \(6, 8\)"):
        border_energy(maps(), width)


@settings(max_examples=30, deadline=None)
@given(h=st.integers(6, 14), w=st.integers(6, 14), period=st.integers(2, 5), seed=st.integers(0, 1000))
def test_grids_by_the_spectrum(h, w, period, seed):
    R = maps(2, h, w, seed)
    whole = R[:, : h // period * period, : w // period * period].abs()
    H, W = whole.shape[1:]
    power = torch.fft.fft2(whole).abs().square()
    expected = power[:, :: H // period, :: W // period].sum((1, 2)) / power[:, 0, 0] - 1
    assert torch.allclose(grid_energy(R, period), expected, rtol=1e-8, atol=1e-10)
    dots = torch.zeros(1, h, w)
    dots[:, ::period, ::period] = -1
    assert grid_energy(dots, period).item() == pytest.approx(period**2 - 1)
    assert abs(grid_energy(torch.ones(1, h, w), period).item()) < 1e-12


@pytest.mark.parametrize("period", [0, 1, 7])
def test_a_grid_has_a_period(period):
    with pytest.raises(LRPError, match=rf"a grid of period {period} has no meaning in maps of \(6, 8\)"):
        grid_energy(maps(), period)


# ---------------------------------------------------------------- truth


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_overlap_against_scipy_and_scikit_learn(seed, ties):
    R, truth = maps(seed=seed), maps(seed=seed + 1)
    truth = torch.where(truth > 0.5, truth, 0.0)
    truth[:, 0, 0], truth[:, 0, 1] = 1.0, 0.0
    R = R.round() if ties else R
    found = truth_overlap(R, truth)
    for m, t, rank, auc in zip(R.flatten(1), truth.flatten(1), *found, strict=True):
        assert rank == pytest.approx(spearmanr(m.numpy(), t.numpy()).statistic)
        assert auc == pytest.approx(roc_auc_score((t != 0).numpy(), m.abs().numpy()))
    masked = truth_overlap(R, truth != 0)
    assert torch.allclose(masked.auc, found.auc)
    for m, t, rank in zip(R.flatten(1), truth.flatten(1), masked.rank, strict=True):
        assert rank == pytest.approx(spearmanr(m.abs().numpy(), (t != 0).numpy()).statistic)


def test_the_best_and_the_worst_map():
    truth = torch.zeros(6, 8)
    truth[2:4, 3:5] = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    for sign in (1, -1):
        found = truth_overlap(sign * truth[None], truth)
        assert found.rank.item() == pytest.approx(sign) and found.auc.item() == 1
    assert truth_overlap((truth == 0).float()[None], truth).auc.item() == 0
    assert truth_overlap(torch.ones(1, 6, 8), truth).auc.item() == 0.5
    assert truth_overlap(maps(1), torch.zeros(6, 8)).auc.isnan().all()
    assert truth_overlap(torch.full((1, 6, 8), torch.nan), truth).auc.isnan().all()
    assert len(truth_overlap(torch.zeros(0, 6, 8), truth).rank) == 0
    with pytest.raises(LRPError, match=r"the truth has shape \(8, 6\), the maps \(3, 6, 8\)"):
        truth_overlap(maps(), truth.T)


def test_shares_of_objects():
    data = squares(4)
    masks = torch.stack([data.mask, *data.decoys])
    found = object_shares(data.inputs, masks)
    for image, row in zip(data.images, found.tolist(), strict=True):
        expected = [float(image[mask].abs().double().sum() / image.abs().double().sum()) for mask in masks]
        assert row == pytest.approx(expected)
    assert torch.equal(object_shares(data.images, masks.expand(4, 3, 100, 100)), found)
    each = torch.stack([masks.roll(shift, 0) for shift in range(4)])
    assert torch.allclose(object_shares(data.images, each)[1], found[1].roll(1))
    assert torch.allclose(object_shares(torch.ones(1, 100, 100), masks), torch.full((1, 3), 0.01).double())
    for wrong in (masks[:, :50], masks[0], masks.expand(3, 3, 100, 100)):
        with pytest.raises(LRPError, match="masks are"):
            object_shares(data.images, wrong)


# ---------------------------------------------------------------- maps of nothing


def epsilon(net, x):
    return LRP(net, composites.Epsilon(0)).attribute(x)


def linear(x, y, seed):
    return train(LinearMLP(x[0].numel(), seed=seed), x, y, seed, epochs=4)


@pytest.fixture(scope="module")
def twelve():
    data = squares(240)
    return data, artifact_map(linear, data.inputs, data.targets, epsilon, repeats=12)


def test_shuffled_labels_leave_chance_and_another_map(twelve):
    """Acceptance test 12: the mean over shuffles is at chance, and the square of the class loses its lead."""
    data, found = twelve
    assert found.accuracy == 1.0 and abs(found.accuracies.mean() - 0.5) < 0.15
    assert found.real.shape == (100, 100) and found.shuffled.shape == found.constant.shape == (12, 100, 100)
    for one in (found.real[None], found.shuffled, found.constant):
        assert torch.allclose(one.sum((1, 2)), torch.ones(len(one), dtype=torch.float64))
    masks = torch.stack([data.mask, *data.decoys])
    real, shuffled = object_shares(found.real[None], masks)[0], object_shares(found.shuffled, masks).mean(0)
    assert real[0] > 1.1 * real[1:].max() and real[0] > 1.3 * shuffled[0]
    assert (shuffled - shuffled.mean()).abs().max() < 0.1 * shuffled.mean()  # all three squares are alike
    flat = object_shares(found.constant, masks).mean(0)
    assert (flat < 0.02).all()  # a constant input has no squares, so its map has none
    lead = object_shares(found.corrected.clamp(min=0)[None], masks)[0]
    assert lead[0] > 1.5 * lead[1:].max()
    excess = found.corrected / found.shuffled.std(0)  # in standard deviations between the shuffled networks
    inside, outside = excess[data.mask], excess[~data.mask & (found.shuffled.std(0) > 0)]
    assert inside.isfinite().all() and inside.mean() > 0.5 > abs(outside.mean())


def test_artifact_maps_by_hand():
    """Two shuffles in a plain loop; the held-out fifth is explained, the first four are shuffled among themselves."""
    data = squares(40)
    x, y = data.inputs[..., ::4, ::4], data.targets
    found = artifact_map(linear, x, y, epsilon, repeats=2, seed=5, constant=0.25)
    (x, held), (y, held_y) = split(x, y)
    generator = torch.Generator().manual_seed(5)

    def share(R):
        R = R.sum(1).double().abs()
        return (R / R.sum((1, 2), keepdim=True)).mean(0)

    net = linear(x, y, 5)
    assert torch.allclose(found.real, share(epsilon(net, held))) and found.accuracy == accuracy(net, held, held_y)
    for r in range(2):
        net = linear(x, y[torch.randperm(32, generator=generator)], 5 + r)
        assert torch.allclose(found.shuffled[r], share(epsilon(net, held)))
        assert torch.allclose(found.constant[r], share(epsilon(net, torch.full((1, 1, 25, 25), 0.25))))
        assert found.accuracies[r] == accuracy(net, held, held_y)
    assert torch.allclose(found.corrected, found.real - (found.shuffled[0] + found.shuffled[1]) / 2)
    again = artifact_map(linear, data.inputs[..., ::4, ::4], data.targets, epsilon, repeats=2, seed=5, constant=0.25)
    assert torch.equal(again.shuffled, found.shuffled) and torch.equal(again.real, found.real)


def test_one_repeat_is_too_few():
    with pytest.raises(LRPError, match="repeats must be 2 or more, not 1"):
        artifact_map(linear, torch.ones(4, 1, 2, 2), torch.ones(4), epsilon, repeats=1)


# ---------------------------------------------------------------- coverage


@settings(max_examples=60, deadline=None)
@given(
    h=st.integers(4, 9),
    w=st.integers(4, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    channels=st.integers(1, 3),
)
def test_coverage_of_one_convolution_counts_placements(h, w, kernel, stride, padding, dilation, channels):
    """Acceptance test 11: by a slow loop over all placements."""
    reach = dilation * (kernel - 1) + 1
    if reach > min(h, w) + 2 * padding:
        return
    net = nn.Sequential(nn.Conv2d(1, channels, kernel, stride, padding, dilation)).eval()
    if padding >= reach:
        return  # windows of nothing but padding
    expected = torch.zeros(h, w, dtype=torch.float64)
    for top in range(-padding, h + padding - reach + 1, stride):
        for left in range(-padding, w + padding - reach + 1, stride):
            for a in range(kernel):
                for b in range(kernel):
                    i, j = top + a * dilation, left + b * dilation
                    if 0 <= i < h and 0 <= j < w:
                        expected[i, j] += channels
    assert torch.allclose(coverage(net, (h, w)), expected, rtol=1e-9)


def test_coverage_in_closed_form():
    found = coverage(nn.Sequential(nn.Conv2d(2, 1, 3, padding=1)).eval(), (2, 5, 6))
    sides = torch.tensor([2.0, 3, 3, 3, 2]), torch.tensor([2.0, 3, 3, 3, 3, 2])
    assert torch.allclose(found, 2 * torch.outer(*sides).double())  # two input channels
    valid = coverage(nn.Sequential(nn.Conv2d(1, 1, 3)).eval(), (5, 6))
    assert valid[0, 0] == 1 and valid[2, 2] == 9
    assert torch.allclose(coverage(LinearMLP(30), (5, 6)), torch.full((5, 6), 64.0).double())  # 8 x 8 ways


def test_coverage_of_deep_networks_is_the_gradient_of_all_ones():
    """Without max pooling the all-ones network is linear, and contributions are gradient x input."""
    for switches in ({"pooling": "none"}, {"pooling": "average", "head": "global"}, {"stride": 2, "pooling": "none"}):
        net = FieldCNN((16, 20), **switches)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        found = coverage(net, (16, 20))
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and net.training
        twin = FieldCNN((16, 20), **switches).double()
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                parameter.fill_(float(name.endswith("weight")))
        x = torch.ones(1, 1, 16, 20, dtype=torch.float64, requires_grad=True)
        twin(x).sum().backward()
        assert torch.allclose(found, x.grad[0, 0], rtol=1e-9)


def test_what_draws_grids_and_borders():
    """A7: max pooling and strides without overlap draw a grid, zero padding a dark border, averages no grid."""
    cover = {pooling: coverage(FieldCNN((24, 32), pooling=pooling), (24, 32))[None] for pooling in ("max", "average")}
    cover["stride"] = coverage(FieldCNN((24, 32), pooling="none", stride=2), (24, 32))[None]
    grid = {name: grid_energy(one, 4).item() for name, one in cover.items()}
    assert grid["max"] > 0.1 and grid["stride"] > 0.1 and grid["average"] < 0.01
    assert border_energy(cover["average"]).item() < 0.9
    assert border_energy(cover["average"] / cover["average"]).item() == pytest.approx(1)


def test_batchnorm_counts_as_the_identity():
    plain = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3))
    norm = nn.Sequential(plain[0], nn.BatchNorm2d(2), nn.ReLU(), plain[2])
    norm[1].running_mean.fill_(5.0), norm[1].running_var.fill_(7.0)
    assert torch.allclose(coverage(norm, (6, 7)), coverage(plain, (6, 7)), rtol=1e-9)
    assert (norm[1].running_mean == 5).all() and artifacts.coverage(plain, (6, 7)).dtype == torch.float64
