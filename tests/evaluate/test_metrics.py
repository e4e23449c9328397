"""Numbers for maps: intervals against resampling by hand, structural similarity against its formula."""

import warnings

import numpy as np
import pytest
import torch

from lrp.errors import LRPError
from lrp.evaluate import metrics

H, W = 9, 11


def pictures(n):
    return torch.randn(n, 2, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- intervals


def percentile(values, q):
    """By linear interpolation between the sorted values."""
    at = q * (len(values) - 1)
    below = sorted(values)[int(at)]
    return below + (at - int(at)) * (sorted(values)[min(int(at) + 1, len(values) - 1)] - below)


@pytest.mark.parametrize("n", [2, 3, 17, 60])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_interval_is_that_of_draws_written_out(n, level):
    """Draw d takes row d of the generator's integers: the recorded numbers of all notebooks rest on it."""
    values = np.random.default_rng(n).normal(size=n)
    drawn = np.random.default_rng(3).integers(0, n, (200, n))
    means = [sum(values[i] for i in row) / n for row in drawn]
    got = metrics.interval(values, level=level, draws=200, seed=3)
    assert got.mean == pytest.approx(values.mean(), rel=1e-12) and (got.n, got.left_out) == (n, 0)
    assert got.low == pytest.approx(percentile(means, (1 - level) / 2), rel=1e-9)
    assert got.high == pytest.approx(percentile(means, (1 + level) / 2), rel=1e-9)


def test_several_samples_are_drawn_together():
    a, b = np.random.default_rng(0).normal(size=(2, 30)) + 5
    drawn = np.random.default_rng(1).integers(0, 30, (300, 30))
    ratios = [a[row].sum() / b[row].sum() for row in drawn]
    got = metrics.bootstrap(lambda a, b, axis: a.mean(axis) / b.mean(axis), a, b, draws=300, seed=1)
    assert got.mean == pytest.approx(a.sum() / b.sum(), rel=1e-12)
    assert got.low == pytest.approx(percentile(ratios, 0.025), rel=1e-9)
    assert got.high == pytest.approx(percentile(ratios, 0.975), rel=1e-9)


def test_samples_without_a_value_are_left_out_and_counted():
    values = torch.tensor([1.0, torch.nan, 4.0, torch.inf, 2.5])
    got, known = metrics.interval(values, seed=2), metrics.interval(values[[0, 2, 4]], seed=2)
    assert (got.mean, got.low, got.high, got.n) == (known.mean, known.low, known.high, 3)
    assert (got.left_out, known.left_out) == (2, 0)
    with pytest.raises(LRPError, match="no sample has a value"):
        metrics.interval(values[[1, 3]])


def test_one_sample_and_equal_samples_have_no_width_and_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, equal = metrics.interval([0.7]), metrics.interval([0.7] * 5)
        unknown = metrics.bootstrap(lambda v, axis: v.mean(axis) * np.nan, np.arange(4.0))
    assert (one.mean, one.low, one.high, one.n) == (0.7, 0.7, 0.7, 1)
    assert (equal.low, equal.high) == (pytest.approx(0.7), pytest.approx(0.7))
    assert np.isnan([unknown.mean, unknown.low, unknown.high]).all()


# ---------------------------------------------------------------- two maps


def test_ssim_of_a_map_with_itself_its_double_and_its_negative():
    R = pictures(3)[:, 0]
    assert torch.allclose(metrics.ssim(R, 5 * R), torch.ones(3).double())
    assert (metrics.ssim(R, -R) < -0.5).all() and (metrics.ssim(R.abs(), -R.abs()) < 0).all()
    assert metrics.ssim(R, pictures(9)[6:, 1]).abs().max() < 0.4
    assert metrics.ssim(R, 0 * R).isnan().all()
    sizes = torch.tensor([1.0, 10.0, 1000.0])[:, None, None]
    assert torch.allclose(metrics.ssim(sizes * R, pictures(6)[3:, 0]), metrics.ssim(R, pictures(6)[3:, 0]))


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
    assert float(metrics.ssim(R, S)) == pytest.approx(float(torch.stack(values).mean()))


def test_maps_that_cannot_be_compared_are_named():
    R = pictures(3)
    with pytest.raises(LRPError, match="two maps of the same shape"):
        metrics.ssim(R, R[:, :, :5])
    with pytest.raises(LRPError, match="of 3 x 3 pixels or more"):
        metrics.ssim(R[..., :2], R[..., :2])
    with pytest.raises(LRPError, match=r"maps \[0, 2\] hold NaN or infinity"):
        metrics.ssim(R, R / torch.tensor([0, 1, 0]).view(3, 1, 1, 1))
