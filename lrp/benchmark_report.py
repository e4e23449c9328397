"""What the benchmark found, as tables and pictures."""

import statistics

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd


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


def as_markdown(results: dict, held: dict[str, dict], exponents: dict, capture: float, conditions: str) -> str:
    """The tables with their conditions, ready to be read."""
    head = ["| method | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
    lines = [
        "# Benchmark",
        "",
        "Cost of one explanation in units of one forward pass and input gradient of the same network; median over "
        f"paired rounds (least to largest). {conditions}; written by `make bench`.",
        "",
        "![Costs of this package and of its peers, per network](benchmark.png)",
        "",
        *head,
    ]
    for method in dict.fromkeys(m for costs in results.values() for m in costs):
        cells = []
        for costs in results.values():
            c = costs.get(method)
            cells.append(f"{statistics.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" if c else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "The floor is set by passes through the convolutions, of which the gradient makes two: EpsilonPlus makes three "
        "(1.5), EpsilonAlpha2Beta1 four (2.0), as its two denominators add up to the output.",
        "",
        "Peak memory of a call in units of the gradient's; modified weights, kept between calls, are not counted.",
        "",
        *head,
    ]
    for method in next(iter(held.values())):
        lines.append(f"| {method} | " + " | ".join(f"{held[name][method]:.2f}" for name in results) + " |")
    if exponents:
        fitted = "; ".join(f"{key} {value:.2f}" for key, value in exponents.items())
        lines += [
            "",
            "![Cost against batch size, image size and number of targets](benchmark_growth.png)",
            "",
            f"Growth on ResNet-50, exponents fitted in the log-log plane: {fitted}.",
        ]
    lines += ["", f"Capturing ResNet-50 takes {capture:.2f} s, once per explainer."]
    return "\n".join(lines) + "\n"


def rounded(value, digits: int = 4):
    """Every float in nested lists and dictionaries with so many digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(v, digits) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value
