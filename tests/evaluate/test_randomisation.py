"""Parameter randomisation changes what it says, in the order of execution, and measures what it says."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from networks import Net, sound, state
from torch import nn

from lrp import InputError, LRPError, TargetError, composites
from lrp.evaluate import metrics, randomisation
from lrp.evaluate.baselines import METHODS, lrp_method
from lrp.evaluate.randomisation import calibrate, curve, degrade, layers, randomise, reset, similarity, spearman

N, H, W = 4, 16, 16


class Scaled(nn.Module):
    """A layer with a parameter of its own and no `reset_parameters`."""

    def __init__(self, n):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, n)[:, None, None])

    def forward(self, x):
        return x * self.scale


def network():
    """Registered in another order than executed; BatchNorm with and without affine; a head that is never called."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(
            lambda m, x: m.head(m.pool(m.relu(m.norm(m.late(m.relu(m.plain(m.scaled(m.early(x)))))))).flatten(1)),
            head=nn.Linear(6, 5),
            norm=nn.BatchNorm2d(6),
            late=nn.Conv2d(4, 6, 3),
            unused=nn.Linear(3, 3),
            early=nn.Conv2d(3, 4, 3),
            scaled=Scaled(4),
            relu=nn.ReLU(inplace=True),
            pool=nn.AdaptiveAvgPool2d(1),
        )
        sound(model).plain = nn.BatchNorm2d(4, affine=False).double().eval()
        return model


TOP_DOWN = ["head", "norm", "late", "scaled", "early"]


def images(n=N):
    return torch.randn(n, 3, H, W, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def changed(model, other):
    """Names of the tensors that differ, by module."""
    mine, theirs = model.state_dict(), other.state_dict()
    return {key.rpartition(".")[0] for key in mine if not torch.equal(mine[key], theirs[key])}


def parameters_changed(model, other):
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    return {key.rpartition(".")[0] for key in mine if not torch.equal(mine[key], theirs[key])}


# ---------------------------------------------------------------- what is changed


def test_layers_come_in_the_order_of_execution_from_the_output():
    assert layers(network(), images()) == TOP_DOWN
    twice = Net(lambda m, x: m.a(m.b(m.a(x))), a=nn.Linear(3, 3), b=nn.Linear(3, 3)).eval()
    assert layers(twice, torch.ones(1, 3)) == ["a", "b"]
    with pytest.raises(LRPError, match="no module of ReLU with parameters"):
        layers(nn.ReLU(), torch.ones(1, 3))


@pytest.mark.parametrize("statistics", [True, False])
def test_cascading_and_independent_change_exactly_their_layers(statistics):
    model, x = network(), images()
    for mode in randomisation.MODES:
        seen = []
        for name, net in degrade(model, x, mode, statistics=statistics):
            if not name:
                assert not changed(model, net) and net is not model
                continue
            seen.append(name)
            assert parameters_changed(model, net) == (set(seen) if mode == "cascading" else {name})
            for key, p in net.named_parameters():  # of a layer, every parameter
                layer = key.rpartition(".")[0]
                hit = layer in seen if mode == "cascading" else layer == name
                assert torch.equal(p, model.get_parameter(key)) != hit
            if not statistics:
                assert all(torch.equal(b, model.get_buffer(k)) for k, b in net.named_buffers())
        assert seen == TOP_DOWN


def test_only_batchnorms_with_another_input_get_other_statistics():
    model, x = network(), images()
    for mode, expected in (
        ("independent", {"late": {"norm"}, "scaled": {"norm", "plain"}, "early": {"norm", "plain"}}),
        ("cascading", {"late": {"norm"}, "scaled": {"norm", "plain"}, "early": {"norm", "plain"}}),
    ):
        for name, net in degrade(model, x, mode):
            buffers = {k.rpartition(".")[0] for k, b in net.named_buffers() if not torch.equal(b, model.get_buffer(k))}
            assert buffers == expected.get(name, set())
            for path in buffers:  # what they put out has mean 0 and variance 1 now, but for weight and bias
                outputs, norm = [], net.get_submodule(path)
                handle = norm.register_forward_hook(lambda m, i, o, outputs=outputs: outputs.append(o.detach().clone()))
                net(x), handle.remove()
                values = outputs[0].transpose(0, 1).flatten(1)
                bias, weight = (0.0, 1.0) if norm.bias is None else (norm.bias.detach(), norm.weight.detach().abs())
                assert torch.allclose(values.mean(1) - bias, torch.zeros(len(values)).double(), atol=1e-6)
                assert torch.allclose(values.std(1) / weight, torch.ones(len(values)).double(), rtol=1e-3)


def test_a_layer_gets_the_same_values_in_both_modes_and_others_with_another_seed():
    model, x = network(), images()
    one, two = ({n: copy.deepcopy(m.get_submodule(n)) for n, m in degrade(model, x, mode) if n}
                for mode in randomisation.MODES)  # fmt: skip
    assert all(not parameters_changed(one[name], two[name]) for name in TOP_DOWN)
    other = {n: copy.deepcopy(m.get_submodule(n)) for n, m in degrade(model, x, seed=1) if n}
    assert all(parameters_changed(one[name], other[name]) for name in TOP_DOWN)
    alike = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    *_, (_, net) = degrade(alike, torch.ones(2, 4))
    assert not torch.equal(net[0].weight, net[1].weight)  # not the same draw for every layer


def test_distributions_of_the_draws():
    norm = nn.BatchNorm2d(4000).double()
    mean = norm.running_mean.normal_().clone()
    reset(norm, 0)
    for p, (low, high) in ((norm.weight, (0.5, 1.5)), (norm.bias, (-0.5, 0.5))):
        p = p.detach()
        assert low <= p.min() < low + 0.01 and high - 0.01 < p.max() <= high
        assert abs(float(p.mean()) - (low + high) / 2) < 0.02 and abs(float(p.std()) - 12**-0.5) < 0.02
    assert torch.equal(norm.running_mean, mean)
    assert abs(float(torch.corrcoef(torch.stack([norm.weight, norm.bias]).detach())[0, 1])) < 0.06
    dense = nn.Linear(100, 300).double()
    nn.init.constant_(dense.weight, 7)
    reset(dense, 0)
    assert (
        0.0999 < float(dense.weight.detach().abs().max()) <= 0.1
        and abs(float(dense.weight.detach().std()) - 0.1 / 3**0.5) < 1e-3
    )
    scaled = Scaled(50)
    before = scaled.scale.detach().clone()
    reset(scaled, 0)
    assert not torch.equal(scaled.scale, before) and torch.equal(scaled.scale.flatten().sort().values, before.flatten())
    with pytest.raises(LRPError, match=r"Scaled\(\) is the same after .*leave it out"):
        reset(Scaled(1), 0)


def test_draws_repeat_and_leave_global_random_numbers_alone():
    one, two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    numbers = torch.get_rng_state()
    reset(one, [3, 4]), reset(two, [3, 4])
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
    assert torch.equal(torch.get_rng_state(), numbers)
    reset(two, [3, 5])
    assert not torch.equal(one.weight, two.weight)


def test_calibration_knows_each_call_of_a_shared_batchnorm():
    model = Net(lambda m, x: m.n(m.a(m.n(x))), n=nn.BatchNorm2d(3), a=nn.Conv2d(3, 3, 1)).double().eval()
    x, before = images(), copy.deepcopy(model.state_dict())
    known = calibrate(model, x)
    assert len(known["n"]) == 2
    calibrate(model, x, known)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    single = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).double().eval()
    assert calibrate(single, x[:1]) == {}


# ---------------------------------------------------------------- what is measured


def test_a_map_that_ignores_parameters_stays_the_same_at_all_depths():
    table = randomise(network(), images(), METHODS["edges"], draws=2)
    assert table.layer.unique().tolist() == TOP_DOWN and table.depth.unique().tolist() == [1, 2, 3, 4, 5]
    assert len(table) == 2 * 5 * N and set(table.draw) == {0, 1}
    assert np.allclose(table[["spearman", "spearman_abs", "ssim", "cosine"]], 1)
    assert (curve(table)[["mean", "low", "high"]] == 1).all(axis=None)


def test_random_maps_are_unlike():
    rng = np.random.default_rng(0)
    table = randomise(network(), images(20), lambda model, x, target: torch.from_numpy(rng.normal(size=(20, 32, 32))))
    means = table.groupby("depth")[["spearman", "spearman_abs", "ssim", "cosine"]].mean()
    assert (means.abs() < 0.05).all(axis=None) and len(means) == 5


def test_the_class_stays_that_of_the_original_prediction():
    model, x, asked = network(), images(), []
    predicted = model(x).argmax(1)

    def method(net, x, target):
        asked.append((target.clone(), net(x).argmax(1)))
        return METHODS["gradient"](net, x, target)

    randomise(model, x, method)
    assert len(asked) == 6 and all(torch.equal(target, predicted) for target, _ in asked)
    assert any(not torch.equal(now, predicted) for _, now in asked)  # others would be predicted by now
    asked.clear()
    randomise(model, x, method, target=3)
    assert all(target.tolist() == [3] * N for target, _ in asked)


@pytest.mark.parametrize("mode", randomisation.MODES)
def test_the_table_is_what_a_slow_loop_finds(mode):
    model, x, method = network(), images(), METHODS["gradient x input"]
    table = randomise(model, x, method, target=2, mode=mode, draws=2, seed=5, names=["late", "early"])
    assert table["layer"].unique().tolist() == ["late", "early"] and set(table["mode"]) == {mode}
    original, rows = method(model, x, 2), []
    for draw in (0, 1):
        for name, net in degrade(model, x, mode, seed=[5, draw], names=["late", "early"]):
            if name:
                rows.append(pd.DataFrame(similarity(original, method(net, x, 2))))
    slow = pd.concat(rows, ignore_index=True)
    pd.testing.assert_frame_equal(table[list(slow)], slow)
    steps = (step for draw in (0, 1) for step in degrade(model, x, mode, seed=[5, draw], names=["late", "early"]))
    alike = torch.cat([metrics.cosine(original, method(net, x, 2)) for name, net in steps if name])
    assert np.allclose(slow.cosine, alike)
    assert slow.to_numpy().max() < 0.999 and not np.allclose(slow[: 2 * N], slow[2 * N :])  # draws differ
    pd.testing.assert_frame_equal(table, randomise(model, x, method, 2, mode, draws=2, seed=5, names=["early", "late"]))


def test_lrp_is_captured_once_and_sees_every_change(monkeypatch):
    import lrp.evaluate.baselines

    made, model, x = [], network(), images()
    keep = lrp.evaluate.baselines.LRP
    monkeypatch.setattr(lrp.evaluate.baselines, "LRP", lambda *a: made.append(a) or keep(*a))
    table = randomise(model, x, lrp_method(composites.EpsilonPlus()), target=1)
    assert len(made) == 1
    fresh = randomise(model, x, lambda net, x, t: keep(net, composites.EpsilonPlus()).attribute(x, t), target=1)
    pd.testing.assert_frame_equal(table, fresh)
    assert table.groupby("depth").cosine.mean().iloc[-1] < 0.9


def test_the_model_is_only_read():
    model, x = network(), images()
    model.late.weight.requires_grad_(False)
    model.norm.register_forward_hook(lambda *a: None)
    before = state(model)
    randomise(model, x, METHODS["gradient"], mode="independent")
    assert state(model) == before


def test_spearman_against_ranks_counted_one_by_one():
    rng = np.random.default_rng(0)
    R, S = (torch.from_numpy(rng.integers(-3, 4, (2, 4, 5))).double() for _ in "RS")

    def ranks(values):
        return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]

    for i in range(2):
        slow = np.corrcoef(ranks(R[i].flatten().tolist()), ranks(S[i].flatten().tolist()))[0, 1]
        assert float(spearman(R, S)[i]) == pytest.approx(slow)
    assert spearman(R, R**3 + R).tolist() == pytest.approx([1, 1]) and spearman(R, -R).tolist() == pytest.approx(
        [-1, -1]
    )
    assert spearman(R, torch.ones_like(R)).isnan().all()
    rows = similarity(R, R.abs())
    assert rows["spearman_abs"].tolist() == pytest.approx([1, 1]) and rows["spearman"].abs().max() < 0.9
    assert similarity(R, -R)["cosine"].tolist() == pytest.approx([-1, -1])


@pytest.mark.filterwarnings("ignore")
def test_spearman_agrees_with_quantus():
    theirs = pytest.importorskip("quantus.functions.similarity_func").correlation_spearman
    R, S = images().sum(1), images(8)[N:].sum(1) + images().sum(1)
    flat = [M.flatten(1).numpy() for M in (R, S)]
    assert spearman(R, S).tolist() == pytest.approx([theirs(*pair) for pair in zip(*flat, strict=True)])
    assert 0.3 < spearman(R, S).mean() < 0.9


def test_a_curve_averages_draws_before_samples():
    rows = [(1, "a", d, s, v) for d, s, v in [(0, 0, 1.0), (1, 0, 0.0), (0, 1, 0.5), (1, 1, 0.1)]]
    rows += [(2, "b", 0, 0, np.nan), (2, "b", 1, 0, 0.4), (2, "b", 0, 1, np.nan), (2, "b", 1, 1, np.nan)]
    rows += [(3, "c", 0, 0, np.nan)]
    table = pd.DataFrame(rows, columns=["depth", "layer", "draw", "sample", "ssim"])
    c = curve(table, "ssim")
    assert c.layer.tolist() == ["a", "b", "c"] and c.n.tolist() == [2, 1, 0] and c.left_out.tolist() == [0, 1, 1]
    assert c["mean"][1] == pytest.approx(0.4) and c["mean"][2] == 0.4 and np.isnan(c["mean"][3])
    assert (c.low[1], c.high[1]) == pytest.approx((0.3, 0.5))


def test_what_is_wrong_is_named():
    model, x, method = network(), images(), METHODS["gradient"]
    for error, message, arguments in (
        (LRPError, "no mode is called 'upwards': there are cascading, independent", {"mode": "upwards"}),
        (LRPError, "no layer with parameters is called unused; there are head, norm", {"names": ["head", "unused"]}),
        (TargetError, "one target per call", {"target": [0, 1]}),
        (TargetError, "target 5 is none", {"target": 5}),
        (InputError, "training mode", {"model": network().train()}),
        (InputError, "NaN", {"x": x / 0}),
        (LRPError, "a map is not finite with `head` randomised",
         {"method": lambda net, x, t: x * (1 if torch.equal(net.head.weight, model.head.weight) else torch.nan)}),
        (LRPError, "a map is not finite as it is", {"method": lambda net, x, t: x * torch.nan}),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            randomise(**{"model": model, "x": x, "method": method} | arguments)
