"""Networks are explained, conserved and get the derivation's map, and the table says what was found."""

import csv
import io
import math
import time

import pytest
import torch

from bench import coverage, coverage_networks, coverage_report
from lrp import LRP, CaptureError, InputError, UnsupportedOperation, composites

SAMPLE = [  # one of each kind of wiring
    *("squeezenet1_1", "resnet18", "densenet121", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5"),
    *("efficientnet_b0", "regnet_y_400mf", "convnext_tiny"),
]
TIMM = ["mobilenetv3_small_050", "lcnet_035", "ghostnet_050", "eca_nfnet_l0"]


def holds(library, name):
    found = coverage.examine(*coverage_networks.network(library, name))
    assert found["outcome"] == "explained" and not coverage_report.wrong(found), found
    assert found["conservation"] <= coverage_report.CONSERVED, found


@pytest.mark.parametrize("name", SAMPLE)
def test_torchvision_is_explained_conserved_and_right(name):
    holds("torchvision", name)


@pytest.mark.parametrize("name", TIMM)
def test_timm_is_explained_conserved_and_right(name):
    pytest.importorskip("timm", reason="needs timm")
    holds("timm", name)


@pytest.mark.slow
@pytest.mark.parametrize("library", coverage_networks.SIZES)
def test_every_network_is_explained_right_or_refused(library, tmp_path):
    wrong = {}
    for name in coverage_networks.libraries().get(library, []):
        found = coverage.answer(library, name, tmp_path, 300, peers=False)
        wrong |= {name: problem} if (problem := coverage_report.wrong(found)) else {}
    assert not wrong


def test_every_library_and_family_is_asked():
    libraries = coverage_networks.libraries()
    assert [len(libraries[name]) for name in list(coverage_networks.SIZES)[:3]] == [80, 6, 9]
    families = coverage_networks.members()
    assert len(families) == 98 and sum(map(len, families.values())) == 169 and all(families.values())


def test_members_of_timm_exist():
    timm = pytest.importorskip("timm", reason="needs timm")
    assert [name for names in coverage_networks.members().values() for name in names if not timm.is_model(name)] == []


def test_gains_that_start_at_zero_count():
    """A layer scale of 1e-6, and a BatchNorm that starts at 0, would hide the block that they end."""
    model, x = coverage_networks.network("torchvision", "convnext_tiny")
    scales = [p for name, p in model.named_parameters() if "layer_scale" in name]
    assert len(scales) == 18 and all(0.3 <= float(p.min()) and float(p.max()) <= 0.7 for p in scales)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert all(float(p.abs().mean()) > 0.01 for p in biases)
    again, y = coverage_networks.network("torchvision", "convnext_tiny")
    assert torch.equal(x, y) and all(map(torch.equal, model.parameters(), again.parameters()))


def test_batchnorm_is_calibrated_and_nothing_is_left_in_training_mode():
    model, x = coverage_networks.network("torchvision", "resnet18")
    stem = torch.nn.Sequential(*list(model.children())[:8])
    with torch.no_grad():
        assert 0.1 < float(stem(x).std()) < 10
    assert not any(m.training for m in model.modules()) and model.bn1.momentum == 0.1


def test_a_wrong_map_and_a_raw_error_are_told_from_a_refusal(monkeypatch):
    model, x = coverage_networks.network("torchvision", "squeezenet1_1")
    right = coverage.derived

    def off(net, x):
        found = right(net, x)
        found.relevance *= 1.001
        return found

    monkeypatch.setattr(coverage, "derived", off)
    found = coverage.examine(model, x)
    assert found["outcome"] == "explained" and found["difference"] == pytest.approx(1e-3, rel=0.01)
    assert "from the second derivation" in coverage_report.wrong(found)

    class Broken(LRP):
        def explain(self, *arguments, **options):
            raise RuntimeError("sizes must match")

    monkeypatch.setattr(coverage, "LRP", Broken)
    found = coverage.examine(model.float(), x)
    assert found["outcome"] == "raised" and "RuntimeError at test_coverage.py" in found["message"]


def test_reasons_of_refusal_are_short():
    two = UnsupportedOperation("node `a` calls fold, node `b` calls sort, which")
    assert coverage.reason(two) == "no rule for fold, sort"
    assert coverage.reason(UnsupportedOperation("* `a`: lstm (lstm) gives several tensors")) == "no rule for lstm"
    assert coverage.reason(CaptureError("Net could not be traced in module `a`: b")) == "cannot be traced"
    assert coverage.reason(CaptureError("the captured graph does not")) == "the graph does not reproduce it"
    assert coverage.reason(InputError("the input must")) == "InputError"


def test_answers_are_kept_and_a_network_that_takes_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "row", lambda library, name, peers: {"outcome": "refused", "reason": name})
    first = coverage.answer("timm", "a", tmp_path, 60)
    monkeypatch.setattr(coverage, "row", lambda library, name, peers: time.sleep(60))
    assert coverage.answer("timm", "a", tmp_path, 0.2) == first == {
        "library": "timm", "network": "a", "outcome": "refused", "reason": "a"}  # fmt: skip
    assert coverage.answer("timm", "b", tmp_path, 0.2)["outcome"] == "took too long"
    assert not list(tmp_path.glob("*.part"))


GOOD = {"outcome": "explained", "imbalance": 1e-7, "biases keep": 0.1, "sum / seed": 1.0, "conservation": 1e-6}
GOOD |= {"difference": 1e-9, "seconds": 0.5}
CONV, OFF = {"library": "torchvision"}, {"conservation": 0.5, "sum / seed": 1.5}
NO_END = {"conservation": math.inf, "derivation": "no rule for softmax"}
ROWS = [
    CONV | {"network": "a", **GOOD, "zennit": "1", "captum": "TypeError"},
    CONV | {"network": "b", **GOOD, **OFF, "zennit": "65536", "captum": "0.9999"},
    CONV | {"network": "c", "outcome": "refused", "reason": "no rule for fold", "zennit": "nan", "captum": "1e31"},
    {"library": "timm", "network": "d", **GOOD, "difference": 0.01},
    {
        "library": "timm",
        "network": "e",
        "outcome": "raised",
        "reason": "KeyError",
        "message": "KeyError at x.py:1: a|b",
    },
    {"library": "timm", "network": "f", **GOOD, "outcome": "not balanced", "imbalance": 0.2},
    {"library": "timm", "network": "g", **GOOD, **NO_END},
]
del ROWS[6]["difference"]


def test_the_table_counts_what_is_right_and_names_the_rest():
    text = coverage_report.as_markdown(ROWS)
    assert "| torchvision | 3 | 2 | 1 | 2 | 0 | 0 | 1 | 0 |" in text
    assert "| timm | 4 | 2 | 1 | 0 | 1 | 1 | 0 | 2 |" in text
    assert "Refused: no rule for fold (1)." in text
    assert 'torchvision b ends at 1.50000 of the seed with `bias="exclude"`; its books balance.' in text
    assert "timm d: LRP-0 is 0.01 from the second derivation." in text
    assert "timm e: raised: KeyError at x.py:1: a/b." in text and "timm f: 0.2 of the seed is unaccounted for." in text
    assert "is right on 1, captum" in text and "on 1: their column should read 1" in text
    assert "| a | explained | 1.0e-07 | 0.100 | 1.00000 | yes | 1.0e-09 | 0.5 | 1 | TypeError |" in text


def test_the_csv_has_a_line_per_network(tmp_path):
    coverage_report.write(ROWS, tmp_path)
    read = list(csv.DictReader(io.StringIO((tmp_path / "coverage.csv").read_text())))
    assert [r["network"] for r in read] == list("abcdefg") and list(read[0]) == list(coverage_report.COLUMNS)
    assert (read[0]["conserved"], read[0]["same map"], read[1]["conserved"]) == ("yes", "yes", "no")
    assert read[6]["same map"] == "not compared: no rule for softmax" and read[2]["same map"] == ""
    assert (tmp_path / "coverage.md").read_text() == coverage_report.as_markdown(ROWS)


def test_the_composite_of_the_comparison_is_lrp_0():
    """Gradient times input on a network of layers and ReLUs, whatever the derivation says."""
    model, x = coverage_networks.network("torchvision", "squeezenet1_1")
    leaf = x[:1].double().requires_grad_()
    logits = model.double()(leaf)
    logits.max().backward()
    R = LRP(model, composites.Epsilon(1e-12)).attribute(leaf.detach())
    assert float((R - leaf.detach() * leaf.grad).abs().max() / R.abs().max()) < 1e-6


def test_unknown_names_are_refused(capsys):
    assert coverage.main(["resnet19"]) == 2
    assert "no library here has resnet19" in capsys.readouterr().err
