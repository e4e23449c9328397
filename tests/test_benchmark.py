"""The benchmark compares like with like, and its table says what was measured."""

import torch

from lrp import benchmark


def test_networks_are_calibrated_and_leave_the_random_state_alone():
    state, x = torch.get_rng_state(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = benchmark.network("mobilenet_v2", x)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    features = model.features(x)
    assert 1e-2 < float(features.detach().abs().mean()) < 1e2


def test_every_method_is_measured_in_every_round():
    costs = benchmark.measure("mobilenet_v2", rounds=1, batch=4, size=64)
    assert set(benchmark.OURS) | {"ten targets, one call", "ten targets, ten calls"} <= set(costs)
    assert all(len(rounds) == 1 and min(rounds) > 0 for rounds in costs.values())


def test_the_table_gives_medians_with_their_range_and_leaves_gaps_open():
    results = {"a": {"Epsilon": [1.0, 3.0, 2.0], "captum LRP": [4.0, 4.0, 4.0]}, "b": {"Epsilon": [1.5, 1.5, 1.5]}}
    text = benchmark.as_markdown(results, 0.25, "3 rounds")
    assert "| Epsilon | 2.00 (1.00 to 3.00) | 1.50 (1.50 to 1.50) |" in text
    assert "| captum LRP | 4.00 (4.00 to 4.00) |  |" in text and "takes 0.25 s" in text
    benchmark.plt.close(benchmark.picture(results))
