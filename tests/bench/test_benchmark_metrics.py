"""The benchmark of the metrics compares as many evaluations of the same model, and its table says what was measured."""

import json

import pytest
import torch
from torch import nn

from bench import benchmark_metrics as bench
from lrp.evaluate import insertion


def tiny(channels=3, side=8):
    """A model, images whose least value is black, and maps without ties."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, 3)).eval()
        x = torch.rand(2, channels, side, side)
        x.flatten(1)[:, 0] = 0
        maps = torch.randperm(2 * side**2).view(2, side, side).float()
    return model, x, maps


def made(overhead=(4.0, 2.0, 3.0), quantus=(20.0, 12.0, 14.0)):
    numbers = {"images": 4, "side": 8, "step": 2, "points": 32, "features": 6, "evaluations": 256}
    return {**numbers, "overhead": [*overhead], "sharing": [8.0, 9.0, 10.0], "quantus": [*quantus]}


def test_bare_forward_passes_see_the_same_samples():
    model, x, maps = tiny()
    kept = []
    call = lambda: kept.append(insertion.measure(model, x, maps, step=5, black=0, batch=7))  # noqa: E731
    batches = bench.recorded(model, call)
    assert sum(map(len, batches)) == kept[0].evaluations and not model._forward_pre_hooks
    assert torch.equal(batches[0], x)  # the first look
    again = bench.recorded(model, lambda: bench.forward(model, batches))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    with pytest.raises(ZeroDivisionError):
        bench.recorded(model, lambda: 1 / 0)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("name", bench.PLACES)
def test_steps_give_as_many_evaluations(name):
    _, side, features = bench.PLACES[name]
    step, points = bench.pace(features, side**2)
    assert side**2 % features == 0 and len(range(0, 3 * side**2, features)) == points >= 96
    assert insertion._counts(torch.zeros(1, side, side), insertion.AUTHORS, step).shape == (1, points)


def test_steps_that_cannot_be_matched_are_refused():
    with pytest.raises(ValueError, match="5 features per step"):
        bench.pace(5, 64)
    with pytest.raises(ValueError, match="192 points of 64"):
        bench.pace(1, 64)


def test_settings_are_what_they_say():
    model, x, maps, black = bench.setting("scene_resnet")
    assert x.shape == (16, 3, 64, 64) and maps.shape == (16, 64, 64) and len(maps.unique()) == maps.numel()
    assert black.shape == (1, 3, 1, 1) and (x >= black).all() and not model.training


def test_quantus_takes_as_many_evaluations():
    pytest.importorskip("quantus")
    model, x, maps = tiny()
    step, points = bench.pace(32, 64)
    theirs = bench.recorded(model, bench.quantus(model, x, maps, 32))
    ours = bench.recorded(model, lambda: insertion.measure(model, x, maps, step=step, black=0))
    assert sum(map(len, theirs)) == 2 * 2 * points  # images, curves
    assert sum(map(len, ours)) == 2 * 2 * points  # the whole images count once, as the first look and the last point


def test_quantus_agrees_where_a_feature_is_a_pixel():
    """One channel, black the least value, no ties: its curves are ours without the untouched start."""
    pytest.importorskip("quantus")
    model, x, maps = tiny(channels=1)
    both = insertion.Protocol("both ends", ties="strict", ends=True, insertion="black", deletion="black")
    ours = insertion.measure(model, x, maps, protocol=both, step=4, black=0)
    top, bottom = (torch.tensor(curves, dtype=torch.float64) for curves in bench.quantus(model, x, maps, 4)())
    torch.testing.assert_close(ours.deletion[:, 1:], top, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.insertion[:, :-1].flip(1), bottom, rtol=1e-5, atol=1e-6)


def test_the_table_gives_medians_with_their_range():
    text = bench.as_markdown({"a": made(), "b": made((-1.0, 0.0, 0.5))}, "3 rounds, torch 9")
    assert "| a | 4 | 8 x 8 | 32 | 256 | 3.0 [2.0, 4.0] | 9.0 [8.0, 10.0] | 14.0 [12.0, 20.0] |" in text
    assert "| b | 4 | 8 x 8 | 32 | 256 | 0.0 [-1.0, 0.5] | 9.0 [8.0, 10.0] |" in text
    assert "3 rounds, torch 9; written by `make bench`" in text and "not installed" not in text


def test_without_quantus_its_column_is_empty_and_says_why():
    text = bench.as_markdown({"a": made(quantus=())}, "3 rounds")
    assert "| 9.0 [8.0, 10.0] |  |" in text and "Quantus is not installed here" in text


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The benchmark on a tiny network, and a folder to write to."""
    model, x, maps = tiny()
    monkeypatch.setattr(bench, "PLACES", {"tiny": (2, 8, 32)})
    monkeypatch.setattr(bench, "setting", lambda name: (model, x, maps, torch.zeros(1, 3, 1, 1)))
    monkeypatch.setattr(bench, "FIGURES", tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return tmp_path


@pytest.mark.parametrize("installed", [False, True])
def test_the_command_writes_or_prints(small, monkeypatch, capsys, installed):
    if installed:
        pytest.importorskip("quantus")
    else:
        monkeypatch.setitem(__import__("sys").modules, "quantus", None)
    assert bench.main(["--rounds", "2", "--no-write"]) == 0
    printed = capsys.readouterr()
    assert "| tiny | 2 | 8 x 8 | 6 | 24 |" in printed.out and not list(small.iterdir())
    assert ("Quantus is left out" in printed.err) is not installed and printed.err.count("left out") <= 1
    assert bench.main(["--rounds", "2"]) == 0
    numbers = json.loads((small / "benchmark_metrics.json").read_text())
    tiny_ = numbers["results"]["tiny"]
    assert tiny_["evaluations"] == 24 and tiny_["evaluations of eight levels"] <= 24
    assert len(tiny_["overhead"]) == len(tiny_["sharing"]) == 2 and len(tiny_["quantus"]) == 2 * installed
    assert ("Quantus " in numbers["conditions"]) is installed
    assert numbers["conditions"] in (small / "benchmark_metrics.md").read_text()
