"""Drawings that more than one notebook uses: a small network with its numbers, the ledger, curves, dots, matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from ..evaluate.metrics import Interval

if TYPE_CHECKING:
    from ..explanation import Explanation

FOR, AGAINST = "#b2182b", "#2166ac"
PARTS = {  # where the relevance of a seed goes, in the ledger
    "input": ("still on its way", "#d9d9d9"),
    "bias": ("kept by biases", "#e08214"),
    "stabiliser": ("kept by stabilisers", "#8073ac"),
    "lost": ("lost", "#1a1a1a"),
}


def network(
    ax: Axes,
    values: Sequence[Sequence[float]],
    weights: Sequence[np.ndarray],
    messages: Sequence[np.ndarray] | None = None,
    *,
    labels: Sequence[str],
) -> None:
    """Draw a dense network: one column of units per layer with their values, one line per weight.

    `values` are numbers per layer, from input to output; `weights` matrices (out, in) between the layers, written
    on the lines. With `messages` (out, in) the lines show those instead: red for, blue against, wide where much
    flows, none where nothing does.
    """
    shown = [np.asarray(w) for w in (weights if messages is None else messages)]
    tallest, largest = max(map(len, values)), max(np.abs(w).max() for w in shown)
    places = [[(2.2 * k, (tallest + len(v)) / 2 - 1 - i) for i in range(len(v))] for k, v in enumerate(values)]
    for k, flow in enumerate(shown):
        for j, i in np.argwhere(flow):
            (x0, y0), (x1, y1), amount = places[k][i], places[k + 1][j], flow[j, i]
            width = 0.8 if messages is None else 0.6 + 4 * abs(amount) / largest
            ax.plot([x0, x1], [y0, y1], color=FOR if amount > 0 else AGAINST, lw=width, alpha=0.55, zorder=1)
            at = {0: 0.5, 1: 0.36, -1: 0.64, 2: 0.24, -2: 0.76}.get(j - i, 0.4)  # labels of crossing lines stay apart
            ax.text(x0 + at * (x1 - x0), y0 + at * (y1 - y0), f"{amount:g}", fontsize=7, ha="center",
                    va="center", zorder=2, bbox={"fc": "white", "ec": "none", "pad": 0.6})  # fmt: skip
    for k, column in enumerate(values):
        for (x, y), value in zip(places[k], column, strict=True):
            edge = "0.3" if messages is None else FOR if value > 0 else AGAINST if value < 0 else "0.6"
            ax.scatter(x, y, s=620, fc="white", ec=edge, lw=1.4, zorder=3)
            ax.text(x, y, f"{value:g}", ha="center", va="center", fontsize=9, zorder=4)
        ax.text(2.2 * k, -0.6, labels[k], ha="center", va="top", fontsize=8)
    ax.set(xlim=(-0.5, 2.2 * (len(values) - 1) + 0.5), ylim=(-1.0, tallest - 0.5))
    ax.axis("off")


def ledger(ax: Axes, e: Explanation, title: str | None = None) -> None:
    """Draw where relevance has gone after each layer with weights, as fractions of the seed.

    From the output (left) to the input (right): grey is still on its way, orange went to biases, purple to
    stabilisers, black is lost; `ledger_key` draws the key. The bars of a column sum to 1, and a negative fraction
    hangs below zero. Of many layers only the first of each stage is named.
    """
    table = e.ledger
    gone = table[["bias", "stabiliser", "lost"]].cumsum() / e.totals["seed"]
    rows = gone[table["kind"].isin(["convolution", "dense", "batchnorm"])]
    x = np.arange(len(rows))
    up, down = np.zeros(len(rows)), np.zeros(len(rows))
    for part, (_, colour) in PARTS.items():
        height = (1 - rows.sum(axis=1) if part == "input" else rows[part]).to_numpy()
        ax.bar(x, height, 0.86, np.where(height >= 0, up, down), color=colour)
        up, down = up + height.clip(min=0), down + height.clip(max=0)
    ax.axhline(0, color="0.3", lw=0.6)
    names = list(rows.index)
    if len(names) > 10:
        stages = [name.split(".")[0] for name in names]
        names = [s if k == 0 or s != stages[k - 1] else "" for k, s in enumerate(stages)]
    ax.set_xticks(x, names, rotation=90, fontsize=7)
    ax.set(ylabel="share of the seed", title=title)


def ledger_key(fig: Figure) -> None:
    """The key to the colours of `ledger`, below the figure."""
    patches = [Patch(color=colour, label=label) for label, colour in PARTS.values()]
    fig.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)


def curves(
    axes: Sequence[Axes],
    x: Sequence[float],
    table: Mapping[str, Sequence[Interval]],
    xlabel: str,
    linear_below: float | None = None,
) -> None:
    """One panel per quantity, {quantity: intervals over x}; the axis of x is logarithmic above `linear_below`."""
    for ax, (quantity, line) in zip(axes, table.items(), strict=True):
        _band(ax, x, line, 0.18, marker="o", ms=3, lw=1.2, color="0.2")
        ax.set(xlabel=xlabel)
        ax.set_title(quantity, fontsize=8)
        if linear_below is not None:
            ax.set_xscale("symlog", linthresh=linear_below)
            ax.minorticks_off()
            ticks = [x[0], x[len(x) // 2], x[-1]]
            ax.set_xticks(ticks, ["0" if t < linear_below / 100 else f"{t:g}" for t in ticks])


def dots(
    ax: Axes,
    rows: Mapping[str, Interval],
    title: str | None = None,
    controls: Mapping[str, Interval] | None = None,
    colour: str = "0.2",
    label: str | None = None,
    shift: float = 0.0,
) -> None:
    """One row per method: its mean as a dot with its 95 % interval, the first row on top.

    `controls` are dotted vertical lines with their names: the value of a map that ignores the network. A second call
    with another colour, label and `shift` (in rows, upwards) adds a second series to the same rows.
    """
    y = np.arange(len(rows))[::-1]
    mean, low, high = np.array([(i.mean, i.low, i.high) for i in rows.values()]).T
    ax.errorbar(mean, y + shift, xerr=[mean - low, high - mean], fmt="o", ms=4, color=colour, capsize=2, lw=1.2,
                label=label)  # fmt: skip
    for name, control in (controls or {}).items():
        ax.axvline(control.mean, color="0.5", ls=":", lw=1)
        ax.text(control.mean, len(rows) - 0.5, f" {name}", rotation=90, fontsize=7, color="0.4", ha="right", va="top")
    ax.set_yticks(y, rows)
    ax.set(title=title, ylim=(-0.6, len(rows) - 0.4))
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)


def bands(
    ax: Axes, x: Sequence[float], lines: Mapping[str, Sequence[Interval]], styles: Mapping[str, tuple[str, str]]
) -> None:
    """Several methods in one panel, {method: intervals over x}; `styles` gives each a colour and a line style."""
    for name, (colour, dashes) in styles.items():
        if line := lines.get(name):
            _band(ax, x, line, 0.13, ls=dashes, lw=1.3, color=colour, label=name)


def _band(ax: Axes, x: Sequence[float], intervals: Sequence[Interval], alpha: float, **line) -> None:
    """Means as a line, with the band of their 95 % intervals."""
    ax.plot(x, [i.mean for i in intervals], **line)
    low, high = ([getattr(i, end) for i in intervals] for end in ("low", "high"))
    ax.fill_between(x, low, high, color=line["color"], alpha=alpha, lw=0)


def matrix(ax: Axes, values: np.ndarray, labels: Sequence | None = None, title: str | None = None) -> AxesImage:
    """A matrix of cosines, white at 0, red at 1, blue at -1, with a mark per row and column. Returns the image."""
    drawn, places = ax.imshow(np.asarray(values), cmap="RdBu_r", vmin=-1, vmax=1), range(len(values))
    for set_ticks in (ax.set_xticks, ax.set_yticks):
        set_ticks(places, places if labels is None else labels, fontsize=6.5)
    ax.tick_params(length=0, pad=1)
    ax.set_title(title)
    return drawn


def cells(ax: Axes, values: np.ndarray, rows: Sequence, columns: Sequence, title: str | None = None) -> None:
    """A table as a picture: grey by value, dark is more, each cell with its number; the scale is this table's own."""
    values = np.asarray(values)
    ax.imshow(values, cmap="Greys", vmin=values.min() - 0.02, vmax=values.max() + 0.7 * np.ptp(values), aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        best = value == values.max()
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, weight="bold" if best else "normal")
    ax.set_xticks(range(len(columns)), columns, fontsize=7)
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=8)


def shares(ax: Axes, rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> None:
    """One bar per row, of signed shares: positive ones to the right of zero, negative ones to its left."""
    for y, parts in enumerate(rows.values()):
        right = left = 0.0
        for name, share in parts.items():
            start = right if share >= 0 else left
            ax.barh(y, share, 0.7, start, color=colours[name], label=name if y == 0 else None)
            right, left = right + max(share, 0), left + min(share, 0)
    ax.axvline(0, color="0.3", lw=0.6)
    ax.axvline(1, color="0.3", lw=0.8, ls=":")
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()


def station(ax: Axes, place: float, name: str, below: str, last: bool = False) -> None:
    """A stop on the walk back: a box with a name at `place` on the axis of x, a text below it, an arrow to the next."""
    box = {"boxstyle": "round", "fc": "0.95", "ec": "0.4"}
    ax.text(place, 0.4, name, ha="center", va="center", fontsize=8, bbox=box)
    ax.text(place, -0.05, below, ha="center", va="top", fontsize=8, color="C0")
    if not last:
        ax.annotate("", (place + 0.62, 0.4), (place + 0.42, 0.4), arrowprops={"arrowstyle": "->", "color": "0.4"})
