"""The comparison of all methods: metrics against plain loops, and what is made of them."""

import pandas as pd
import pytest
import torch

from lrp import LRPError, composites
from lrp.data import datasets, models
from lrp.evaluate import baselines, insertion, localisation, metrics
from lrp.studies import comparison
from lrp.studies.comparison import BLACK, CLASS, COST, LOCALISATION, METRICS, SANITY, Contender, Images


@pytest.fixture(scope="module")
def vgg():
    return models.load("scene_vgg")


@pytest.fixture(scope="module")
def singles():
    return Images.of(datasets.scenes(4, seed=1, split="test"))


@pytest.fixture(scope="module")
def pairs():
    return Images.of(datasets.scenes(4, digits=2, seed=1, split="test"))


def bounds(name="scene_vgg"):
    return models.normalizer(name).bounds()


LEFT_OUT = {(): {"splitting", "attention"}, ("residual",): {"attention"}, ("tokens",): {"splitting", "masks"}}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_every_family_takes_part_where_a_network_has_what_it_needs(kind):
    methods = comparison.contenders(*bounds(), **dict.fromkeys(kind, True))
    assert {m.family for m in methods} == set(comparison.FAMILIES) - LEFT_OUT[kind]
    assert len({m.name for m in methods}) == len(methods)


def test_every_method_for_tokens_explains_scene_vit(singles):
    vit = models.load("scene_vit")
    for contender in comparison.contenders(*bounds("scene_vit"), tokens=True):
        if contender.name not in ("SmoothGrad", "integrated gradients", "occlusion"):  # slow, and tested elsewhere
            R = contender.method(vit, singles.x, singles.labels[0])
            assert R.shape == (4, 64, 64) and R.isfinite().all() and R.abs().sum() > 0, contender.name


def test_images_that_do_not_belong_together_are_refused(singles):
    with pytest.raises(LRPError, match="belong together"):
        Images(singles.x, singles.labels, singles.masks[:, :2])
    assert len(singles[:3].x) == 3 and singles[:3].masks.shape[1] == 3


def test_measure_is_what_the_metrics_say_one_by_one(vgg, singles, pairs):
    low, high = bounds()
    method = baselines.lrp_method(composites.EpsilonGammaBox(low, high))
    rows = comparison.measure(
        vgg, [Contender("box", "LRP", method)], singles, pairs, low, step=1024, sanity=2, progress=False
    )
    found = {metric: torch.tensor(part.value.to_numpy()) for metric, part in rows.groupby("metric")}
    assert set(found) == {*METRICS, COST}
    R = method(vgg, singles.x, singles.labels[0])
    for n in range(len(R)):
        inside = R[n].clamp(min=0)[singles.masks[0, n]].sum() / R[n].clamp(min=0).sum()
        assert found[LOCALISATION][n] == pytest.approx(inside.item(), rel=1e-5)
    scores = insertion.measure(vgg, singles.x, R, singles.labels[0], protocol="strict", step=1024, black=low)
    assert torch.allclose(found[BLACK], scores.id_score())
    hits = [
        localisation.pointing_game(method(vgg, pairs.x[n : n + 1], int(k)), pairs.masks[t, n : n + 1]).item()
        for n in range(4)
        for t, k in enumerate(pairs.labels[:, n])
    ]
    assert torch.allclose(found[CLASS], torch.tensor(hits, dtype=torch.double).view(4, 2).mean(1))
    assert len(found[SANITY]) == 2 and ((found[SANITY] > 0) & (found[SANITY] <= 1)).all()


def test_slow_methods_explain_fewer_images(vgg, singles, pairs):
    slow = Contender("centre", "control", baselines.METHODS["centre"], at_most=2)
    rows = comparison.measure(vgg, [slow], singles, pairs, bounds()[0], step=1024, sanity=4, progress=False)
    assert rows.groupby("metric").size().to_dict() == {**dict.fromkeys(METRICS, 2), SANITY: 1, COST: 1}


def test_class_sensitivity_of_an_oracle_of_its_opposite_and_of_indifference(vgg, pairs):
    asked, other = pairs.masks, pairs.masks.flip(0)

    def marks(masks):
        """A method that finds the image by its pixels, and marks a mask of it."""

        def method(model, x, target):
            n = [int((pairs.x == one).flatten(1).all(1).nonzero()) for one in x]
            t = [int((pairs.labels[:, i] == k).nonzero()) for i, k in zip(n, target, strict=True)]
            return masks[t, n].double()

        return method

    both = pairs.masks.any(0).expand(2, -1, -1, -1)
    scores = [comparison.class_sensitivity_of(vgg, marks(m), pairs).mean().item() for m in (asked, other, both)]
    assert scores[:2] == [1, 0]
    areas = pairs.masks.flatten(2).sum(2).double()  # a tie over both boxes counts by their areas
    assert scores[2] == pytest.approx((areas / areas.sum(0)).mean().item())


def test_sanity_is_zero_for_a_map_that_ignores_the_network_and_one_for_no_likeness(vgg, singles):
    strangers = comparison.randomised(vgg, singles.x, seed=3)
    assert len(strangers) == 3
    edges = baselines.METHODS["edges"]
    R = edges(vgg, singles.x, singles.labels[0])
    assert comparison.sanity_of(strangers, edges, R, singles).abs().max() < 1e-12
    assert comparison.sanity_of(strangers, lambda net, x, t: -R, R, singles).abs().max() < 1e-12
    assert (comparison.sanity_of(strangers, lambda net, x, t: torch.ones_like(R), R, singles) == 1).all()


def test_the_last_stranger_has_nothing_left_of_the_network(vgg, singles):
    *_, last = comparison.randomised(vgg, singles.x)
    first = next(iter(vgg.parameters()))
    same = [torch.equal(a, b) for a, b in zip(vgg.parameters(), last.parameters(), strict=True) if a.dim() > 1]
    assert not any(same) and torch.equal(first, next(iter(models.load("scene_vgg").parameters())))


@pytest.mark.parametrize(
    ("name", "cost"), [("random", 0), ("gradient", 1), ("gradient x input", 1), ("SmoothGrad", 25)]
)
def test_cost_is_counted_in_gradients(vgg, singles, name, cost):
    x, label = singles.x[:1], singles.labels[0, :1]
    assert comparison.cost_of(vgg, baselines.METHODS[name], x, label) == pytest.approx(cost, rel=1e-6)


def test_cost_of_lrp_is_that_of_its_passes(vgg, singles):
    x, label = singles.x[:1], singles.labels[0, :1]
    method = baselines.lrp_method(composites.Epsilon())
    method(vgg, x, label)
    assert comparison.cost_of(vgg, method, x, label) == pytest.approx(1, rel=1e-6)  # forward, and one transpose each
    costly = baselines.lrp_method(composites.EpsilonAlpha2Beta1())
    costly(vgg, x, label)
    assert 1.5 < comparison.cost_of(vgg, costly, x, label) < 4


def frame(values):
    """Rows of one metric from {method: values by sample}."""
    rows = [(m, "LRP", CLASS, i, v) for m, by in values.items() for i, v in enumerate(by)]
    return pd.DataFrame(rows, columns=["method", "family", "metric", "sample", "value"])


def test_cheapness_is_logarithmic():
    rows = frame({"random": [0.0], "gradient": [1.0], "ten": [10.0], "hundred": [100.0]}).assign(metric=COST)
    assert comparison.cheapness(rows) == pytest.approx({"random": 1, "gradient": 1, "ten": 0.5, "hundred": 0})


def test_leaders_are_the_best_and_those_that_pairs_do_not_separate():
    ups = [0.9, 0.1] * 10
    rows = frame(
        {"best": ups, "shifted": [v - 0.05 for v in ups], "noisy": [v - 0.01 for v in ups[::-1]], "few": [1.0, 1.0]}
    )
    assert set(comparison.leaders(rows)[CLASS]) == {"best", "noisy"}  # paired, a small steady gap decides
    table = comparison.table(pd.concat([rows, rows.assign(metric=LOCALISATION)]))
    assert table.loc["best", CLASS].endswith("★") and not table.loc["few", CLASS].endswith("★")
    assert table.images.to_dict() == {"best": 20, "shifted": 20, "noisy": 20, "few": 2}


def test_scaled_puts_the_best_control_at_zero_and_the_best_method_at_one():
    rows = comparison.summary(frame({"random": [0.1, 0.1], "centre": [0.3, 0.3], "a": [0.4, 0.6], "b": [0.2, 0.2]}))
    assert comparison.scaled(rows, ("random", "centre"))[CLASS] == pytest.approx(
        {"random": -1, "centre": 0, "a": 1, "b": -0.5}
    )
    with pytest.raises(LRPError, match="no method is above the controls"):
        comparison.scaled(rows, ("random", "a"))


def test_agreement_is_a_rank_correlation():
    one = {name: metrics.Interval(v, v, v, 2) for name, v in zip("abcd", (1, 2, 3, 4), strict=True)}
    squares = {name: metrics.Interval(i.mean**2, 0, 0, 2) for name, i in one.items()}
    falling = {name: metrics.Interval(-i.mean, 0, 0, 2) for name, i in one.items()}
    found = comparison.agreement({"x": one, "y": squares, "z": falling})
    assert found.loc["x", "y"] == pytest.approx(1) and found.loc["x", "z"] == pytest.approx(-1)
    assert comparison.agreement({"x": one, "y": squares}, without=["a"]).shape == (2, 2)
