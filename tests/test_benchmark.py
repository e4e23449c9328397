"""The benchmark compares like with like, and its table says what was measured."""

import torch

from lrp import benchmark, benchmark_report


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


def test_memory_is_the_most_a_call_holds():
    block = 4 * 1000**2
    assert benchmark.peak(lambda: [torch.empty(1000**2) for _ in range(3)]) == 3 * block
    assert benchmark.peak(lambda: [torch.empty(1000**2).sum() for _ in range(3)]) < 1.1 * block
    held = benchmark.memory("mobilenet_v2", batch=2, size=64)
    assert held["EpsilonPlus"] < 1.2  # no more than what a gradient takes: nothing is kept that no rule asks for


def test_exponents_of_growth():
    rows = [
        {"quantity": "targets", "at": n, "method": m, "cost": 3.0 * n**p}
        for m, p in (("gradient", 1.0), ("EpsilonPlus", 0.5))
        for n in (1, 10, 100)
    ]
    fitted = benchmark_report.slopes(rows)
    assert abs(fitted["targets, gradient"] - 1) < 1e-9 and abs(fitted["targets, EpsilonPlus"] - 0.5) < 1e-9


def test_the_tables_give_medians_with_their_range_and_leave_gaps_open():
    results = {"a": {"Epsilon": [1.0, 3.0, 2.0], "captum": [4.0, 4.0, 4.0]}, "b": {"Epsilon": [1.5, 1.5, 1.5]}}
    held = {"a": {"Epsilon": 1.25}, "b": {"Epsilon": 0.75}}
    text = benchmark_report.as_markdown(results, held, {"targets, gradient": 1.01}, 0.25, "3 rounds")
    assert "| Epsilon | 2.00 (1.00 to 3.00) | 1.50 (1.50 to 1.50) |" in text
    assert "| captum | 4.00 (4.00 to 4.00) |  |" in text and "takes 0.25 s" in text
    assert "| Epsilon | 1.25 | 0.75 |" in text and "targets, gradient 1.01" in text
    benchmark_report.plt.close(benchmark_report.picture(results))
