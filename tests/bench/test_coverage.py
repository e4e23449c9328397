"""The books balance on torchvision's classifiers, and the table says what was found."""

import math

import pandas as pd
import pytest
import torchvision

from bench import coverage
from lrp import LRP, UnsupportedOperation

SAMPLE = [  # one of each kind of wiring
    *("squeezenet1_1", "resnet18", "resnext50_32x4d", "densenet121", "googlenet", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "mnasnet0_5"),
]


def test_all_convolutional_classifiers_are_named():
    assert len(coverage.names()) == 68 and not [name for name in coverage.names() if "vit" in name or "swin" in name]


@pytest.mark.parametrize("name", SAMPLE)
def test_books_balance(name):
    found = coverage.examine(coverage.network(name), coverage.images(size=64))
    assert found["imbalance"] <= coverage.BALANCED
    assert found["conserved"] and found["sum / seed"] == pytest.approx(1, abs=coverage.CONSERVED)


@pytest.mark.slow
@pytest.mark.parametrize("name", coverage.names())
def test_books_balance_on_every_network(name):
    assert coverage.row(name, peers=False)["imbalance"] <= coverage.BALANCED


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("vit_b_32", "encoder.layers.encoder_layer_0.self_attention"),
        ("swin_t", "features.1.0.attn.shifted_window_attention"),
        ("maxvit_t", "blocks.0.layers.0.layers.window_attention.attn_layer.1"),
    ],
)
def test_transformers_are_refused_by_the_name_of_their_first_unknown_node(name, first):
    with pytest.raises(UnsupportedOperation, match=first.replace(".", r"\.")):
        LRP(torchvision.models.get_model(name, weights=None).eval())


def test_the_table_counts_what_is_right_and_names_errors():
    good = {"imbalance": 1e-7, "biases keep": 0.1, "sum / seed": 1.0, "conserved": True, "seconds": 0.5}
    good |= {"stabiliser keeps": 0.002, "lost": 0.001}
    rows = [
        {"architecture": "a", **good, "zennit": "1", "captum": "TypeError"},
        {"architecture": "b", **good | {"imbalance": 0.2, "conserved": False}, "zennit": "65536", "captum": "0.9999"},
        {"architecture": "c", "imbalance": math.nan, "zennit": "nan", "captum": "1e31", "error": "no rule"},
    ]
    text = coverage.as_markdown(pd.DataFrame(rows), 96)
    assert "**Balanced: 1 of 3**" in text and "biases: 1 of 3**" in text
    assert "Exception: b ends at 1.00000 of the seed." in text and "keep 0.00200 and rounding takes 0.00100" in text
    assert "is right on 1, captum (its default rules, biases absorb) on 1" in text
    assert "| a | yes | 1.0e-07 | 0.100 | 1.00000 | 0.5 | 1 | TypeError |" in text


def test_unknown_names_are_refused(capsys):
    assert coverage.main(["resnet19"]) == 2
    assert "torchvision has no resnet19" in capsys.readouterr().err
