"""The order of flips against sorted lists, the loop against images made one by one, and what it refuses."""

import pytest
import torch
from networks import Net, sound

from lrp.errors import InputError
from lrp.evaluate import flipping
from lrp.evaluate.flipping import Flips, ranks, region_sums

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def classifier():
    """Three logits that depend on every value of x."""

    def logits(_, x):
        part = x.flatten(1) * torch.linspace(1, 2, x[0].numel()).to(x)
        return torch.stack([part.sum(1), part.tanh().sum(1), part.cos().sum(1)], 1)

    return sound(Net(logits))


# ---------------------------------------------------------------- the loop


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    n=st.integers(1, 4),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
    same=st.booleans(),
)
def test_scores_are_those_of_images_made_one_by_one(size, n, batch, seed, same):
    """Each point alone: its first pixels of one image, the rest of the other; points that are not asked for are 0."""
    ahead, behind = normal(1 if same else n, *size, seed=seed), normal(n, *size, seed=seed + 1)
    rank = ranks(normal(n, *size[1:], seed=seed + 2))
    counts = torch.randint(0, size[1] * size[2] + 1, (n, 6), generator=rng(seed))
    points = torch.rand(n, 6, generator=rng(seed)) < 0.6
    sizes, model = [], classifier()
    flips = Flips(model, behind, 1, output="probability", batch=batch)
    torch.testing.assert_close(flips.untouched, model(behind).softmax(1)[:, 1])
    hook = model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    found = flips.scores(points, counts, rank, ahead, behind)
    hook.remove()
    assert sum(sizes) == int(points.sum()) and all(s == batch for s in sizes[:-1])
    for i in range(n):
        for p in range(6):
            image = behind[i].clone()
            for row, column in (rank[i] < counts[i, p]).nonzero().tolist():
                image[:, row, column] = ahead[0 if same else i, :, row, column]
            expected = model(image[None]).softmax(1)[0, 1] if points[i, p] else torch.tensor(0.0).double()
            torch.testing.assert_close(found[i, p], expected, rtol=1e-12, atol=1e-12)


def test_at_once_is_eight_photographs_or_as_many_values():
    assert flipping.at_once(torch.zeros(1, 3, 224, 224)) == 8
    assert flipping.at_once(torch.zeros(1, 1, 112, 112)) == 8 * 3 * 4
    assert flipping.at_once(torch.zeros(1, 3, 2000, 2000)) == 1


def test_what_is_refused_names_option_value_and_choices():
    with pytest.raises(InputError, match="no order is called 2: there are morf, lerf, minabs, random"):
        ranks(torch.zeros(1, 2, 2), 2)
    with pytest.raises(InputError, match=r"got \{'step': 0, 'batch': 2.0\}"):
        flipping.whole_numbers(step=0, batch=2.0, steps=None, repeats=3)
    with pytest.raises(InputError, match="the score of image 1 is not finite at point 2"):
        flipping.sound(torch.tensor([[0, 0, 0], [0, 0, torch.inf]]), "at point {}")


# ---------------------------------------------------------------- orders


def test_region_sums_count_every_pixel_once():
    R = normal(2, 3, 7, 11)
    sums = region_sums(R, 4)
    assert sums.shape == (2, 2, 3)
    torch.testing.assert_close(sums[:, 0, 0], R[:, :, :4, :4].sum((1, 2, 3)))
    torch.testing.assert_close(sums[:, 1, 2], R[:, :, 4:, 8:].sum((1, 2, 3)))
    torch.testing.assert_close(sums.sum((1, 2)), R.sum((1, 2, 3)))
    torch.testing.assert_close(region_sums(R.sum(1), 4), sums)
    assert torch.equal(region_sums(R[:, 0]), R[:, 0])


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    region=st.integers(1, 4),
    order=st.sampled_from([*flipping.ORDERS, *flipping.ALIASES]),
    seed=st.integers(0, 99),
)
def test_ranks_are_strict_whatever_the_ties(height, width, region, order, seed):
    R = normal(3, height, width, seed=seed).round()
    rank = ranks(R, order, region, rng(seed))
    corners = rank[:, ::region, ::region]
    assert rank.shape == R.shape
    assert all(sorted(row.flatten().tolist()) == list(range(row.numel())) for row in corners)
    assert torch.equal(rank, corners.repeat_interleave(region, 1).repeat_interleave(region, 2)[:, :height, :width])


def test_orders_sort_by_their_key_and_ties_go_as_one_reads():
    R = torch.tensor([[[0.0, 2.0, -3.0], [2.0, -0.0, 1.0]]])
    assert ranks(R, "morf").tolist() == [[[3, 0, 5], [1, 4, 2]]]
    assert ranks(R, "lerf").tolist() == [[[1, 4, 0], [5, 2, 3]]]
    assert ranks(R, "minabs").tolist() == [[[0, 3, 5], [4, 1, 2]]]
    assert torch.equal(ranks(R, "max"), ranks(R, "morf"))
    for order in flipping.KEYS:
        assert ranks(torch.zeros(1, 2, 3), order).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    many = torch.zeros(1, 40, 40)  # long enough for an unstable sort to show
    many[0, ::2] = 1
    rank = ranks(many, "morf")[0]
    assert torch.equal(torch.cat([rank[::2].flatten(), rank[1::2].flatten()]), torch.arange(1600))


def test_random_orders_are_uniform_and_differ_between_images():
    rank = ranks(torch.zeros(4000, 1, 3), "rand", generator=rng())[:, 0]
    share = torch.stack([(rank == k).double().mean(0) for k in range(3)])
    assert (share - 1 / 3).abs().max() < 0.03  # four standard deviations
    assert not torch.equal(rank[0].expand_as(rank), rank)
