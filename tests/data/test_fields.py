"""Synthetic fields whose answer is known, and the small networks that are trained on them."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrp import LRP, DataError, InputError, LRPError, composites, rules, seeds
from lrp.composites import Composite
from lrp.data import fields, geospatial
from lrp.data.field_networks import FieldCNN, LinearMLP, ReLUMLP, accuracy, train
from lrp.data.fields import enso_like, squares

# ---------------------------------------------------------------- squares


def test_squares_pixel_by_pixel():
    data = squares(6, seed=1)
    assert data.images.shape == (6, 100, 100) and data.images.dtype == torch.float32 and len(data) == 6
    assert data.inputs.shape == (6, 1, 100, 100) and data.targets.tolist() == [1, -1, 1, -1, 1, -1]
    for image, target in zip(data.images.tolist(), data.targets.tolist(), strict=True):
        for row in range(100):
            for column in range(100):
                middle, kind = 0.0, None
                if 45 <= row <= 54 and 20 <= column <= 29:
                    middle, kind = 0.5 * target, "mask"
                if 70 <= column <= 79 and (20 <= row <= 29 or 70 <= row <= 79):
                    middle, kind = (0.5, "bright") if row < 50 else (-0.5, "dark")
                assert abs(image[row][column] - middle) <= 0.1 + 1e-6
                assert bool(data.mask[row, column]) == (kind == "mask")
                assert data.decoys[:, row, column].tolist() == [kind == "bright", kind == "dark"]


def test_only_the_mask_knows_the_class():
    data = squares(400)
    means = torch.stack([data.images[data.targets == sign].mean(0) for sign in (1, -1)])
    gap = (means[0] - means[1]).abs()
    assert gap[data.mask].min() > 0.95 and gap[~data.mask].max() < 0.05
    assert data.images.abs().max() <= 0.6 and data.images.std() > 0.05


def test_an_image_depends_on_its_number_and_seed_alone():
    few, many, other = squares(3), squares(7), squares(3, seed=1)
    assert torch.equal(few.images, many.images[:3]) and torch.equal(few.targets, many.targets[:3])
    assert not torch.equal(few.images, other.images) and len(few.images.unique(dim=0)) == 3
    assert squares(2, noise=0).images.unique().tolist() == [-0.5, 0, 0.5]


@pytest.mark.parametrize("options", [{"n": 0}, {"noise": -0.1}])
def test_impossible_squares(options):
    with pytest.raises(DataError, match="squares need"):
        squares(**options)


# ---------------------------------------------------------------- months like those of El Nino

ALL = tuple(fields.REGIONS)


@pytest.fixture(scope="module")
def ocean():
    return enso_like(240, distractors=ALL)


def test_the_tongue_by_its_formula():
    lat, lon = fields.GRIDS["pacific"]
    found = fields.tongue(lat, lon)
    for i, y in enumerate(lat):
        for j, x in enumerate(lon):
            g = np.exp(-0.5 * (y / 7) ** 2) * np.sin(np.pi * (x - 160) / 130) ** 2 if 160 <= x <= 290 else 0
            assert found[i, j] == pytest.approx(g, abs=1e-12)


def test_the_parts_are_what_the_formula_says():
    rng = np.random.default_rng(0)
    series = fields.autoregressive(100_000, rng)
    assert series.mean() == pytest.approx(0, abs=0.05) and series.std() == pytest.approx(1, abs=0.03)
    for lag in (1, 2, 5):
        assert np.corrcoef(series[:-lag], series[lag:])[0, 1] == pytest.approx(0.9**lag, abs=0.02)
    noise = fields.smooth_noise(3000, (8, 9), rng)
    np.testing.assert_allclose(noise.std(0), 1, atol=0.06)  # the edge is like the middle
    for apart in (1, 3, 6):  # two Gaussian filters of 3 cells: a correlation of exp(-d^2 / 4 s^2)
        found = np.corrcoef(noise[:, 4, 0], noise[:, 4, apart])[0, 1]
        assert found == pytest.approx(np.exp(-(apart**2) / 36), abs=0.06)


def test_without_noise_the_field_is_index_times_tongue():
    data = enso_like(24, smooth=0, white=0, land=False)
    expected = data.hidden.values[:, None, None] * data.tongue.values
    np.testing.assert_allclose(data["field"], expected, atol=1e-6)
    np.testing.assert_allclose(np.corrcoef(data.hidden, data["index"])[0, 1], 1)


def test_the_truth_by_a_slow_loop(ocean):
    field, lat, lon = ocean["field"].values.astype(float), ocean.lat.values, ocean.lon.values
    cells = [(i, j) for i, y in enumerate(lat) for j, x in enumerate(lon) if abs(y) <= 5 and 190 <= x <= 240]
    means = np.array([np.mean([month[cell] for cell in cells]) for month in field])
    np.testing.assert_allclose(ocean["index"], (means - means.mean()) / means.std(), rtol=1e-9)
    for t in (0, 100, 239):
        truth = np.zeros(field.shape[1:])
        for cell in cells:
            truth[cell] = field[t][cell] / len(cells) / means.std()
        np.testing.assert_allclose(ocean.truth[t], truth, rtol=1e-9)
    assert len(cells) == 6 * 26 and ocean.box.sum() == pytest.approx(1)


def test_the_truth_adds_up_and_is_what_a_change_of_a_cell_does(ocean):
    total = ocean.truth.sum(("lat", "lon")) + ocean.offset
    np.testing.assert_allclose(total, ocean["index"], rtol=1e-12, atol=1e-12)
    sigma = float(geospatial.nino34(ocean["field"]).std())
    for cell in ((14, 40), (3, 40)):  # in the box, outside of it
        changed = ocean["field"].copy(deep=True)
        changed[7, *cell] += 1
        effect = float((geospatial.nino34(changed) - geospatial.nino34(ocean["field"]))[7]) / sigma
        assert effect == pytest.approx(float(ocean.box[cell]) / sigma, abs=1e-6)
        assert (effect > 0) == (cell == (14, 40))


def test_distractors_are_what_they_say(ocean):
    bare = enso_like(240)
    added = (ocean["field"] - bare["field"]).fillna(0)
    where = ocean.regions.any("region")
    assert float(np.abs(added.where(~where, 0)).max()) == 0  # they change their regions only
    series = {name: added.where(ocean.regions.sel(region=name)).mean(("lat", "lon")).values for name in ALL}
    box = geospatial.nino34(ocean["field"]).values
    beyond = box - ocean.hidden.values * float((ocean.box * ocean.tongue).sum())
    assert abs(np.corrcoef(series["independent"], box)[0, 1]) < 1e-5
    assert np.corrcoef(series["noise"], beyond)[0, 1] > 0.9999
    assert np.ptp(series["constant"]) < 1e-5 and series["constant"][0] == pytest.approx(1, abs=1e-5)
    assert all(np.std(series[name]) == pytest.approx(1, abs=1e-4) for name in ("independent", "noise"))
    assert np.array_equal(ocean["index"], bare["index"]) and np.array_equal(ocean.truth, bare.truth)
    ground = geospatial.land(ocean["field"])
    for name in ALL:
        region = ocean.regions.sel(region=name)
        assert region.sum() > 50 and not (region & (ocean.box > 0)).any() and not (region & ground).any()
        assert float(ocean.tongue.where(region).max()) < 0.06


def test_land_labels_and_grids(ocean):
    ground = geospatial.land(ocean["field"])
    assert (
        0.05 < ground.mean() < 0.25
        and not (ground & (ocean.box > 0)).any()
        and (ocean.truth.values[:, ground] == 0).all()
    )
    assert not geospatial.land(enso_like(3, land=False)["field"]).any()
    assert np.array_equal(ocean.label, np.sign(ocean["index"]) * (np.abs(ocean["index"]) >= 0.5))
    assert set(ocean.label.values.tolist()) == {1, 0, -1}
    assert ocean["field"].shape == (240, 30, 84) and ocean["field"].dtype == np.float32
    world = enso_like(3, grid="global", distractors=ALL)
    assert world["field"].shape == (3, 89, 180) and world.regions.any(("lat", "lon")).all()
    like = enso_like(3, grid=ocean["field"][:, 5:25])
    assert np.array_equal(like.lat, ocean.lat[5:25]) and np.array_equal(like.lon, ocean.lon)


def test_months_by_seed():
    one, again, other = enso_like(6, seed=3), enso_like(6, seed=3), enso_like(6, seed=4)
    xr.testing.assert_identical(one, again)
    assert not np.allclose(one["field"].fillna(0), other["field"].fillna(0))


def test_months_are_saved_and_read_back(tmp_path, ocean):
    ocean.to_netcdf(tmp_path / "ocean.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "ocean.nc", engine="scipy") as again:
        for name in ("field", "truth", "index", "regions"):
            assert np.array_equal(again[name], ocean[name], equal_nan=True), name
    field = geospatial.load(tmp_path / "ocean.nc", "field")
    assert np.array_equal(field, ocean["field"], equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distractors": ("moon",)}, "no distractor is called moon: there are independent, noise, constant"),
        ({"grid": "mars"}, "grid 'mars' is none of pacific, global"),
        ({"n": 1}, "two months or more"),
        ({"grid": xr.Dataset(coords={"lat": [10.0, 0, -10], "lon": [0.0, 90]})}, "does not cover the box of the index"),
        (
            {"grid": xr.Dataset(coords={"lat": [5.0, 0, -5], "lon": np.arange(180.0, 260)}), "distractors": ("noise",)},
            "no cell in -29--17 N, 166-190 E, where 'noise' belongs",
        ),
    ],
)
def test_impossible_months(options, message):
    with pytest.raises(DataError, match=message):
        enso_like(**{"n": 5} | options)


# ---------------------------------------------------------------- networks


def task(n=96, seed=0):
    """Inputs (n, 12) and the targets a linear function of three of them gives."""
    x = torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))
    return x, x[:, 2] - 0.5 * x[:, 5] + 0.25 * x[:, 7] + 0.3


def with_biases(net, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=generator)
    return net.double().eval()


def test_the_linear_network_is_one_linear_layer():
    net = with_biases(LinearMLP(12))
    w, b = net.effective()
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.allclose(net(x)[:, 0], x @ w + b, rtol=1e-12)
    assert sum(p.numel() for p in LinearMLP(10988).parameters()) == 87_993  # as landthayen2022layer counts them
    with pytest.raises(LRPError, match="ReLUMLP is not linear"):
        ReLUMLP(12).effective()
    small = LinearMLP(12, scale=0.01).dense[0].weight
    assert torch.allclose(small, 0.01 * LinearMLP(12).dense[0].weight)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), bias=st.booleans(), n=st.integers(1, 20))
def test_z_rule_of_a_linear_network_is_input_times_effective_weight(seed, bias, n):
    """Acceptance test 3: with absorbed biases, whatever they are; W1 W2 W3 by hand."""
    net = with_biases(LinearMLP(n, bias=bias, seed=seed), seed)
    x = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    W1, W2, W3 = (layer.weight for layer in net.dense)
    expected = (x * (W3 @ W2 @ W1)).detach()
    found = LRP(net, composites.Epsilon(0)).attribute(x)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13 * float(expected.abs().max()))
    assert torch.allclose(found, x * net.effective()[0], rtol=1e-10, atol=1e-13)


def test_excluded_biases_are_shared_among_the_inputs():
    net, x = with_biases(LinearMLP(12)), torch.randn(4, 12, dtype=torch.float64)
    absorbed, excluded = (LRP(net, composites.Epsilon(0, bias=b)).attribute(x) for b in ("absorb", "exclude"))
    y = net(x)[:, 0].detach()
    assert torch.allclose(excluded.sum(1), y, rtol=1e-8)
    assert torch.allclose(absorbed.sum(1), y - net.effective()[1], rtol=1e-8)
    assert not torch.allclose(absorbed, excluded, rtol=1e-2)


@pytest.mark.parametrize("make", [LinearMLP, ReLUMLP])
def test_w_square_does_not_look_at_the_input(make):
    """Acceptance test 4: the same map for any input, up to the seed; by hand, the chain of squared weights."""
    net = with_biases(make(12))
    x = torch.randn(6, 12, dtype=torch.float64)
    blind = Composite([("any", rules.WSquare())], bias="exclude")
    maps = LRP(net, blind).attribute(x, seed=seeds.OneHot())
    shares = [layer.weight.detach() ** 2 for layer in net.dense]
    expected = torch.ones(1, 1, dtype=torch.float64)
    for square in reversed(shares):
        expected = expected @ (square / square.sum(1, keepdim=True))
    assert torch.allclose(maps, expected.expand_as(maps), rtol=1e-10)
    y = net(x).detach()
    assert torch.allclose(LRP(net, blind).attribute(x), y * expected, rtol=1e-10)
    seeing = LRP(net, composites.Epsilon(0)).attribute(x, seed=seeds.OneHot())
    assert not torch.allclose(seeing / seeing.abs().max(), seeing.flip(0) / seeing.abs().max(), atol=0.01)


CUTS = (
    *({}, {"padding": "valid"}, {"stride": 2}, {"kernel": 5}, {"kernel": 2, "padding": "valid"}),
    *({"pooling": "average"}, {"pooling": "none"}, {"head": "global"}),
)


Z_TYPE = {
    "z+": composites.EpsilonPlus(),
    "epsilon": composites.Epsilon(),
    "epsilon, no bias": composites.Epsilon(bias="exclude"),
    "alpha-beta": Composite([("any", rules.AlphaBeta(2, 1))]),
}


@pytest.mark.parametrize("switches", CUTS, ids=str)
def test_zero_pixels_get_zero_relevance_under_z_type_rules(switches):
    """Acceptance test 10, first half: a continent and islands; two counter-examples."""
    net = with_biases(FieldCNN((18, 24), **switches))
    x = torch.randn(2, 1, 18, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ground = torch.rand(18, 24, generator=torch.Generator().manual_seed(1)) < 0.2
    ground[:9, :10] = True
    x[..., ground] = 0
    for name, composite in Z_TYPE.items():
        R = LRP(net, composite).attribute(x)
        assert (R[..., ground] == 0).all() and R.abs().sum() > 0, name
    flat = Composite([("first", rules.Flat()), ("any", rules.ZPlus())])
    for blind in (flat, composites.EpsilonPlus(bias="exclude")):  # z+ shares by |w| where inputs are all 0
        assert LRP(net, blind).attribute(x)[..., ground].abs().sum() > 0


def test_the_switches_do_what_they_say():
    x = torch.zeros(1, 1, 20, 30)
    sizes = {str(s): FieldCNN((20, 30), **s).features(x).shape[2:] for s in CUTS}
    assert [tuple(size) for size in sizes.values()] == [
        *((5, 7), (3, 6), (1, 2), (5, 7), (4, 6), (5, 7), (20, 30), (5, 7)),
    ]  # fmt: skip
    assert FieldCNN((20, 30), head="global").head.in_features == 16
    assert FieldCNN((20, 30)).head.in_features == 16 * 5 * 7
    kinds = [type(m) for m in FieldCNN((20, 30), pooling="average").features]
    assert nn.AvgPool2d in kinds and nn.MaxPool2d not in kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "full"}, "'full' is not among same, valid"),
        ({"pooling": "sum"}, "'sum' is not among max, average, none"),
        ({"head": "mean"}, "'mean' is not among flatten, global"),
        ({"kernel": 4}, "padding 'same' needs an odd kernel, not 4"),
        ({"shape": (3, 3), "padding": "valid"}, r"fields of \(3, 3\) are too small for these layers"),
    ],
)
def test_impossible_networks(options, message):
    with pytest.raises(LRPError, match=message):
        FieldCNN(**{"shape": (20, 30)} | options)


@pytest.mark.parametrize("make", [lambda seed: LinearMLP(12, seed=seed), lambda seed: ReLUMLP(12, seed=seed)])
def test_training_is_repeatable_and_leaves_other_random_numbers_alone(make):
    x, y = task()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, again, other = (train(make(s), x, y, seed=s, epochs=3).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["dense.0.weight"], other["dense.0.weight"])
    order = train(make(0), x, y, seed=1, epochs=3).state_dict()
    assert not torch.equal(one["dense.0.weight"], order["dense.0.weight"])


def test_training_finds_the_weights():
    x, y = task(512)
    net = train(LinearMLP(12), x, y, lr=1e-2, epochs=25)
    expected = torch.zeros(12)
    expected[[2, 5, 7]] = torch.tensor([1.0, -0.5, 0.25])
    w, b = net.effective()
    assert torch.allclose(w, expected, atol=0.02) and b == pytest.approx(0.3, abs=0.02)
    assert not net.training and accuracy(net, x, y) > 0.98
    small, large = (
        train(LinearMLP(12), x, y, lr=1e-2, epochs=15, weight_decay=decay).dense[0].weight.norm() for decay in (0.1, 0)
    )
    assert small < 0.9 * large


def test_accuracy_counts_signs_and_leaves_zeros_out():
    net = nn.Identity()
    assert accuracy(net, torch.tensor([[1.0], [-2.0], [3.0], [4.0]]), torch.tensor([0.1, -5.0, -1.0, 0.0])) == 2 / 3
    with pytest.raises(InputError, match="no target has a sign"):
        accuracy(net, torch.ones(2, 1), torch.zeros(2))


def test_training_on_what_does_not_fit():
    x, y = task()
    with pytest.raises(InputError, match="96 inputs and 95 targets"):
        train(LinearMLP(12), x, y[1:])
    with pytest.raises(InputError, match=r"gives \(32, 12\) for 32 inputs, not \(N, 1\)"):
        train(nn.Linear(12, 12), x, y)
    with pytest.raises(InputError, match="the loss became nan"):
        train(LinearMLP(12), x * torch.nan, y, epochs=1)


def test_a_network_reads_the_box_and_weight_decay_shows_it():
    """The map's rank correlation with the truth grows as the weights that data does not need go to 0."""
    from lrp.studies import artifacts

    data = enso_like(240)
    x, y = geospatial.inputs(data["field"]), torch.tensor(data["index"].values).float()
    (train_x, test_x), (train_y, test_y) = geospatial.split(x.vectors, y)
    truth = torch.from_numpy(data.truth.values[len(train_y) :])
    found = {}
    for decay in (0.0, 0.1):
        net = train(LinearMLP(train_x.shape[1]), train_x, train_y, epochs=30, weight_decay=decay)
        assert accuracy(net, test_x, test_y) > 0.9
        R = geospatial.as_field(LRP(net, composites.Epsilon(0)).attribute(test_x), data["field"][len(train_y) :])
        found[decay] = artifacts.truth_overlap(torch.from_numpy(R.values), truth)
    assert found[0.1].auc.mean() > found[0.0].auc.mean() + 0.05 and found[0.1].auc.mean() > 0.7
    assert found[0.1].rank.mean() > found[0.0].rank.mean()
