"""What the benchmark found, as tables and pictures."""

import statistics
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

GOALS = {  # what a preset may cost, in gradients, and how many times faster than its peer it should be
    "EpsilonPlus": {"vgg16": 1.6, "resnet50": 1.8, "mobilenet_v2": 1.8},
    "EpsilonAlpha2Beta1": {"vgg16": 2.3, "resnet50": 2.3, "mobilenet_v2": 2.3},
    "EpsilonGammaBox": {"vgg16": 3.0, "resnet50": 3.0, "mobilenet_v2": 3.0},
}
FASTER = {
    ("zennit EpsilonPlus", "EpsilonPlus"): {"vgg16": 1.8, "resnet50": 2.7, "mobilenet_v2": 2.7},
    ("captum EpsilonPlus", "EpsilonPlus"): {"vgg16": 2.5},
    ("captum Epsilon", "Epsilon"): {"vgg16": 2.5},
    ("ten targets, ten calls", "ten targets, one call"): {
        "vgg16": 1 / 0.6,
        "resnet50": 1 / 0.6,
        "mobilenet_v2": 1 / 0.6,
    },
}
MEMORY = 1.2  # what a call may hold, in gradients


def picture(results: dict[str, dict[str, list[float]]]) -> plt.Figure:
    """Costs as dots with their range, one panel per network."""
    fig, axes = plt.subplots(1, len(results), figsize=(6.3, 2.6), sharey=True)
    methods = [m for m in next(iter(results.values())) if not m.startswith("ten")]
    for ax, (name, costs) in zip(np.atleast_1d(axes), results.items(), strict=True):
        y = np.arange(len(methods))[::-1]
        for at, method in zip(y, methods, strict=True):
            if method in costs:
                low, middle, high = min(costs[method]), statistics.median(costs[method]), max(costs[method])
                colour = "0.55" if method.startswith(("zennit", "captum")) else "#0072B2"
                ax.plot([low, high], [at, at], color=colour, lw=1)
                ax.plot(middle, at, "o", color=colour, ms=4)
        ax.axvline(1, color="0.7", ls=":", lw=1)
        ax.set(title=name, xlabel="gradients", xscale="log", yticks=y, yticklabels=methods)
        ax.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        ax.minorticks_off()
    return fig


def growth_picture(rows: list[dict]) -> plt.Figure:
    """Cost against batch size, image size and number of targets, log-log; dots are medians, bars the range."""
    table = pd.DataFrame(rows)
    fig, axes = plt.subplots(1, 3, figsize=(6.3, 2.4), sharey=True)
    for ax, (quantity, part) in zip(axes, table.groupby("quantity", sort=False), strict=True):
        for (method, costs), colour in zip(part.groupby("method", sort=False), ("0.55", "#0072B2"), strict=True):
            cost = costs.groupby("at").cost.agg(["median", "min", "max"])
            ax.plot(cost.index, cost["median"], "o-", color=colour, ms=3, lw=1, label=method)
            ax.vlines(cost.index, cost["min"], cost["max"], color=colour, lw=1)
        ax.set(xscale="log", yscale="log", xlabel=quantity + (" (px)" if quantity == "image size" else ""))
        ax.set_xticks(cost.index, [str(n) for n in cost.index])
        ax.minorticks_off()
    axes[0].set_ylabel("gradients of one image")
    axes[0].legend(frameon=False)
    return fig


def slopes(rows: list[dict]) -> dict[str, float]:
    """Exponent of the growth per quantity and method, fitted to the medians in the log-log plane."""
    medians = pd.DataFrame(rows).groupby(["quantity", "method", "at"], sort=False).cost.median()
    return {
        f"{quantity}, {method}": float(np.polyfit(np.log(m.index.get_level_values("at")), np.log(m), 1)[0])
        for (quantity, method), m in medians.groupby(level=["quantity", "method"], sort=False)
    }


def as_markdown(numbers: dict) -> str:
    """The tables with their conditions, ready to be read: `numbers` as in benchmark.json."""
    results, held = numbers["cost"], numbers["memory"]
    head = ["| method | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]

    def row(label: str, cell: Callable[[str], str]) -> str:
        return f"| {label} | " + " | ".join(cell(name) for name in results) + " |"

    def median(name: str, method: str) -> float:
        return statistics.median(results[name][method])

    def cost(name: str, method: str) -> str:
        c = results[name].get(method)
        return f"{median(name, method):.2f} ({min(c):.2f} to {max(c):.2f})" if c else ""

    def faster(name: str, theirs: str, ours: str) -> str:
        both = [results[name].get(m) for m in (theirs, ours)]
        return "" if None in both else f"{statistics.median(a / b for a, b in zip(*both, strict=True)):.2f}"

    methods = list(dict.fromkeys(m for costs in results.values() for m in costs))
    lines = [
        "# Benchmark",
        "",
        "Cost of one explanation in units of one forward pass and input gradient of the same network; median over "
        f"paired rounds (least to largest). {numbers['conditions']}; written by `make bench`.",
        "",
        "![Costs of this package and of its peers, per network](benchmark.png)",
        "",
        *head,
        *(row(method, lambda name, m=method: cost(name, m)) for method in methods),
        "",
        "Times faster, median over rounds:",
        "",
        *head,
        *(row(f"{b} than {a}", lambda name, a=a, b=b: faster(name, a, b)) for a, b in FASTER if a in methods),
        "",
        "The floor is set by passes through the convolutions, of which the gradient makes two: EpsilonPlus makes three "
        "(1.5), EpsilonAlpha2Beta1 four (2.0), as its two denominators add up to the output. A walk makes them in "
        "channels-last, whatever the layout of the input; the gradient is that of the network as it is.",
        "",
        "Peak memory of a call in units of the gradient's; modified weights, kept between calls, are not counted.",
        "",
        *head,
        *(row(method, lambda name, m=method: f"{held[name][m]:.2f}") for method in next(iter(held.values()))),
    ]
    if profile := numbers.get("profile"):
        kinds = list(next(iter(profile.values()))["gradient"])
        lines += [
            "",
            "Where the time goes: time by kind of operation, in units of all the gradient's, from torch's profiler. A "
            "gradient makes two passes through the convolutions and little else. What a rule adds beyond its further "
            "passes are divisions and products of whole activations, bound by memory, not by arithmetic.",
            "",
            "| network | method | " + " | ".join(kinds) + " | all |",
            "|---|---" + "|---" * (1 + len(kinds)) + "|",
        ]
        for name, by in profile.items():
            for method, part in by.items():
                cells = [f"{part[kind]:.2f}" for kind in kinds] + [f"{sum(part.values()):.2f}"]
                lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    if missed := list(_missed(results, held, faster)):
        lines += ["", "Goals missed: " + "; ".join(missed) + "."]
    if rows := numbers.get("growth"):
        fitted = "; ".join(f"{key} {value:.2f}" for key, value in slopes(rows).items())
        lines += [
            "",
            "![Cost against batch size, image size and number of targets](benchmark_growth.png)",
            "",
            f"Growth on ResNet-50, exponents fitted in the log-log plane: {fitted}.",
        ]
    lines += ["", f"Capturing ResNet-50 takes {numbers['capture']:.2f} s, once per explainer."]
    return "\n".join(lines) + "\n"


def _missed(results: dict, held: dict, faster: Callable):
    """The goals that the medians do not reach, in words."""
    for method, limits in GOALS.items():
        for name, limit in limits.items():
            if name in results and (found := statistics.median(results[name][method])) > limit:
                yield f"{method} on {name} costs {found:.2f} ({limit:g})"
    for (theirs, ours), limits in FASTER.items():
        for name, limit in limits.items():
            if name in results and (found := faster(name, theirs, ours)) and float(found) < limit:
                yield f"{ours} on {name} is {found} times faster than {theirs} ({limit:.2g})"
    for name, by in held.items():
        for method, found in by.items():
            if found > MEMORY:
                yield f"{method} on {name} holds {found:.2f} ({MEMORY:g})"


def rounded(value, digits: int = 4):
    """Every float in nested lists and dictionaries with so many digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(v, digits) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value
