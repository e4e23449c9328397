"""The benchmark compares like with like, and its table says what was measured."""

import json

import torch

from bench import benchmark, benchmark_report


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


def numbers():
    costs = {"EpsilonAlpha2Beta1": [2.4] * 3, "EpsilonGammaBox": [2.0] * 3, "zennit EpsilonPlus": [4.0] * 3}
    times = {"gradient": {"convolutions": 0.9, "rest": 0.1}, "EpsilonPlus": {"convolutions": 1.3, "rest": 0.4}}
    return {
        "conditions": "3 rounds",
        "cost": {"vgg16": {"EpsilonPlus": [1.0, 3.0, 2.0]} | costs, "b": {"EpsilonPlus": [1.5, 1.5, 1.5]}},
        "memory": {"vgg16": {"EpsilonPlus": 1.25}, "b": {"EpsilonPlus": 0.75}},
        "growth": [{"quantity": "targets", "at": n, "method": "gradient", "cost": float(n)} for n in (1, 10)],
        "profile": {"b": times},
        "capture": 0.25,
    }


def test_the_tables_give_medians_with_their_range_and_leave_gaps_open():
    text = benchmark_report.as_markdown(numbers())
    assert "| EpsilonPlus | 2.00 (1.00 to 3.00) | 1.50 (1.50 to 1.50) |" in text
    assert "| zennit EpsilonPlus | 4.00 (4.00 to 4.00) |  |" in text and "takes 0.25 s" in text
    assert "| EpsilonPlus than zennit EpsilonPlus | 2.00 |  |" in text  # medians of ratios: 4, 4/3, 2
    assert "| EpsilonPlus | 1.25 | 0.75 |" in text and "targets, gradient 1.00" in text
    assert "| b | EpsilonPlus | 1.30 | 0.40 | 1.70 |" in text
    benchmark_report.plt.close(benchmark_report.picture(numbers()["cost"]))


def test_goals_that_are_missed_are_named():
    text = benchmark_report.as_markdown(numbers())
    missed = next(line for line in text.splitlines() if line.startswith("Goals missed"))
    assert (
        "EpsilonPlus on vgg16 costs 2.00 (1.6)" in missed and "EpsilonAlpha2Beta1 on vgg16 costs 2.40 (2.3)" in missed
    )
    assert "holds 1.25 (1.2)" in missed and "GammaBox" not in missed and "zennit" not in missed
    good = numbers()
    good["cost"]["vgg16"] |= {"EpsilonPlus": [1.5], "EpsilonAlpha2Beta1": [2.2], "zennit EpsilonPlus": [4.0]}
    good["memory"]["vgg16"]["EpsilonPlus"] = 1.1
    assert "Goals missed" not in benchmark_report.as_markdown(good)


def test_the_profile_tells_kinds_of_operations():
    found = benchmark.profile("mobilenet_v2", batch=1, size=64, calls=1)
    assert abs(sum(found["gradient"].values()) - 1) < 1e-9
    assert found["gradient"]["convolutions"] > 0.2 and found["EpsilonPlus"]["elementwise and the rest"] > 0


def test_only_a_part_is_measured_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "FIGURES", tmp_path)
    assert benchmark.main(["--only", "profile"]) == 2 and "run without --only" in capsys.readouterr().err
    kept = numbers()
    kept["conditions"] = (
        f"5 rounds, batch 4, 224 pixels, float32, {torch.get_num_threads()} threads, cpu, memory "
        f"{benchmark.memory_policy()}, random weights with calibrated BatchNorm, torch {benchmark.version(torch)}"
    )
    (tmp_path / "benchmark.json").write_text(json.dumps(kept))
    monkeypatch.setattr(benchmark, "NETWORKS", ("b",))
    monkeypatch.setattr(benchmark, "profile", lambda *a: {"gradient": {"rest": 1.0}, "EpsilonPlus": {"rest": 2.0}})
    monkeypatch.setattr(benchmark, "growth_picture", lambda rows: benchmark_report.plt.figure())
    assert benchmark.main(["--only", "profile", "--threads", str(torch.get_num_threads())]) == 0
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["cost"] == kept["cost"] and found["profile"] == {
        "b": {"gradient": {"rest": 1.0}, "EpsilonPlus": {"rest": 2.0}}
    }
    assert "| b | EpsilonPlus | 2.00 | 2.00 |" in (tmp_path / "benchmark.md").read_text()
