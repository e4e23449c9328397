"""One function, one map: networks that compute the same, written otherwise, get the same relevance."""

import pytest
import torch
from networks import PRESETS
from pairs import collected

from lrp import LRP, composites

PAIRS = collected()
EVERY = PRESETS | {"splitting": lambda **o: composites.RelevanceSplitting(False, low=-5.0, high=5.0, **o)}


def far(a, b):
    """The largest difference, as a share of the largest value."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-300))


@pytest.mark.parametrize("name", PAIRS)
def test_one_function_has_one_map(name):
    pair = PAIRS[name]
    one, other = pair.networks()
    x = torch.randn(2, *pair.shape, dtype=torch.float64).clamp(-5, 5)
    with torch.no_grad():
        assert far(one(x.clone()), other(x.clone())) < 1e-10, "these are two functions"
    wrong = {}
    for preset, make in EVERY.items():
        for bias in ("absorb", "exclude"):
            R, S = (LRP(model, make(bias=bias)).attribute(x, [0, 1]) for model in (one, other))
            assert R.any()
            if preset not in pair.apart and not far(R, S) < pair.within:
                wrong[preset, bias] = far(R, S)
    assert not wrong
