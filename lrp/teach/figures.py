"""Figures: one set-up call, one way to draw relevance, one way to save.

A notebook calls `setup` once, draws with `show_image`, `show_relevance` and `grid`, and gives every figure to
`save`, which writes the picture and records its caption and its numbers for `figures/README.md` and
`figures/numbers.json`.

Colours of signed relevance, everywhere: white is zero, red is evidence for the class, blue is evidence against
it.
"""

import io
import platform
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from . import records
from .records import Number as Number  # notebooks take both from here, beside `save`
from .records import intervals as intervals

STYLE = Path(__file__).with_name("lrp.mplstyle")
PROFILES = ("quick", "full")
WIDTH = 6.3  # inches, the text width that every figure fills
DIVERGING = "RdBu_r"

# Two pictures differ by rounding only (another processor, another thread count) when both hold:
PIXEL_MEAN = 0.5  # mean absolute difference, in steps of 255
PIXEL_SHARE = 0.002  # share of pixels that differ visibly,
PIXEL_STEP = 8  # that is by more than this many steps


def setup(seed: int = 0, device: str = "auto", profile: str = "quick"):
    """Prepare a notebook: style, random seeds, deterministic kernels; print versions and device in one line.

    `device="auto"` takes CUDA, then Apple's MPS, then the CPU. Returns the `torch.device`. Raises ValueError
    for an unknown profile, and for a device that torch does not know or this machine does not have.
    """
    import torch  # here, so that the package's other users of this module do not wait for it

    if profile not in PROFILES:
        raise ValueError(f"PROFILE {profile!r} is unknown: choose one of {', '.join(PROFILES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(kind for kind, there in available.items() if there)
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"DEVICE {device!r} is unknown: choose auto, cpu, cuda, cuda:1 or mps") from error
    if not available.get(chosen.type, False):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"DEVICE {device!r} is not available on this machine, which has: {here}")

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- libraries without a generator argument draw from the global state
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False

    mpl.rcdefaults()  # a reader's own matplotlibrc must not change a figure
    plt.style.use(STYLE)
    _show_whole_figures()
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"matplotlib {mpl.__version__}; "
        f"{profile} profile on {chosen}, {torch.get_num_threads()} threads, seed {seed}"
    )
    return chosen


def _show_whole_figures() -> None:
    """In a notebook, show figures as they are saved: not cropped to their content."""
    try:
        from IPython import get_ipython
        from matplotlib_inline.config import InlineBackend
    except ImportError:
        return
    if (shell := get_ipython()) is not None:
        InlineBackend.instance(parent=shell).print_figure_kwargs = {"bbox_inches": None}


def save(
    fig: Figure,
    name: str,
    caption: str,
    alt: str | None = None,
    numbers: Mapping[str, object] | None = None,
) -> None:
    """Write a figure and record what belongs to it.

    `name` is `NN_slug`, without suffix, and starts with the number of its notebook. `caption` says what is
    shown: where relevance starts, how channels are summed, sign and scale. `alt` describes the picture in
    words for those who do not see it (default: the caption). `numbers` are the values that the figure shows:
    floats, integers, booleans, a `Number` with a tolerance of its own, or mappings of these.

    The picture goes to the folder that `make` names in LRP_FIGURES, otherwise to `build/interactive`, so that
    trying things out in Jupyter leaves the committed figures alone. The figure stays open: the notebook shows
    it once, at the end of its cell. Raises ValueError for a bad name, caption or number and for a name that
    was already saved with other content, and OSError if it cannot write.
    """
    records.RUN.check_name("figure", name)
    if not caption.strip():
        raise ValueError(f"figure {name} needs a caption")
    picture = _png(fig)
    words = {"caption": caption, "alt": alt or caption}
    record = {key: " ".join(text.split()) for key, text in words.items()} | {"numbers": records.flat(numbers or {})}
    records.RUN.keep("figures", name, record, picture)
    target = records.RUN.place[1] / f"{name}.png"
    if not records.is_picture(target) or not same_picture(target.read_bytes(), picture):
        records.write(target, picture)


def _png(fig: Figure) -> bytes:
    """Return the figure as PNG: fixed size, and no date, version or program inside."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=mpl.rcParams["savefig.dpi"], metadata={"Software": None})
    return buffer.getvalue()


def same_picture(old: bytes, new: bytes) -> bool:
    """Whether two PNGs are equal up to rounding (see PIXEL_MEAN, PIXEL_SHARE, PIXEL_STEP)."""
    if old == new:
        return True
    try:
        a, b = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16) for png in (old, new))
    except OSError:  # the old file is damaged
        return False
    if a.shape != b.shape:
        return False
    difference = np.abs(a - b)
    return bool(difference.mean() <= PIXEL_MEAN and (difference.max(axis=-1) > PIXEL_STEP).mean() <= PIXEL_SHARE)


def _array(x) -> np.ndarray:
    """Return a tensor of any device, or anything array-like, as a float array."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().float().numpy()
    x = np.asarray(x, dtype=float)
    if x.ndim not in (2, 3):
        raise ValueError(f"expected one map (H, W) or (C, H, W), got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("the map holds NaN or infinite values")
    return x


def _channel_sum(R) -> np.ndarray:
    R = _array(R)
    return R.sum(axis=0) if R.ndim == 3 else R


def _bare(ax: Axes, title: str | None) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set(color="0.75", linewidth=0.5)
    if title is not None:
        ax.set_title(title)


def show_image(ax: Axes, x, title: str | None = None) -> AxesImage:
    """Draw an image in [0, 1]: (H, W), or (C, H, W) with 1 or 3 channels. Returns matplotlib's image."""
    x = _array(x)
    if x.ndim == 3 and x.shape[0] not in (1, 3):
        raise ValueError(f"an image has one or three channels in front, got shape {x.shape}")
    gray = x.ndim == 2 or x.shape[0] == 1
    _bare(ax, title)
    x = np.clip(x, 0, 1)
    return ax.imshow(x.squeeze() if gray else x.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)


def show_relevance(ax: Axes, R, vmax: float | None = None, title: str | None = None) -> AxesImage:
    """Draw relevance (H, W), or (C, H, W) summed over channels, on a scale symmetric about zero.

    White is zero, red evidence for, blue evidence against. Full colour stands at `vmax`, by default `max|R|`.
    Returns matplotlib's image, for `colorbar`.
    """
    R = _channel_sum(R)
    limit = vmax if vmax is not None else float(np.abs(R).max())
    _bare(ax, title)
    limit = limit or 1.0  # a map of zeros is white
    return ax.imshow(R, cmap=DIVERGING, vmin=-limit, vmax=limit)


def colorbar(image: AxesImage, ax: Axes | Sequence[Axes], label: str = "relevance") -> Colorbar:
    """Add a slim colour bar for a drawn map beside one or several axes. Returns matplotlib's colour bar."""
    bar = image.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02, aspect=25)
    bar.outline.set_linewidth(0.5)
    bar.set_label(label)
    return bar


def grid(
    images: Sequence,
    maps: Mapping[str, Sequence],
    rows: Sequence[str] | None = None,
    scale: Literal["row", "panel"] | float = "row",
    *,
    quantile: float = 1.0,
    width: float = WIDTH,
    input_title: str = "input",
    title_size: float | None = None,
) -> tuple[Figure, np.ndarray]:
    """Lay out images (one per row) beside their relevance maps (one method per column).

    `maps` goes from a column's title to its maps, one per image; `rows` are titles at the left. `scale` says
    where full colour stands: `"row"`, at the row's `max|R|` (methods compare in size; printed under the input),
    `"panel"`, at each map's own (printed under it), or a number for all. A `quantile` below 1 takes that quantile
    of `|R|` in place of the maximum: say so in the caption. `title_size` is for many columns. Returns the figure and
    its axes (rows, 1 + methods).
    """
    for title, column in maps.items():
        if len(column) != len(images):
            raise ValueError(f"column {title!r} has {len(column)} maps for {len(images)} images")
    n, m = len(images), 1 + len(maps)
    ratio = _array(images[0]).shape[-2] / _array(images[0]).shape[-1]
    key = 0.09 * m  # the colour key takes this many panels of width
    panel = width / (m + key + (0.25 if rows else 0))
    height = n * (panel * ratio + 0.2) + 0.25
    fig, axes = plt.subplots(n, m, figsize=(width, height), squeeze=False)
    for i, (image, (left, *others)) in enumerate(zip(images, axes, strict=True)):
        show_image(left, image, input_title if i == 0 else None)
        if rows:
            left.set_ylabel(rows[i])
        drawn = _row(left, others, [_channel_sum(column[i]) for column in maps.values()], scale, quantile)
    for ax, title in zip(axes[0, 1:], maps, strict=True):
        ax.set_title(title)
    for ax in axes[0] if title_size else ():
        ax.title.set_fontsize(title_size)
    bar = colorbar(drawn, axes[:, 1:].ravel().tolist(), label="")
    bar.set_ticks([-drawn.norm.vmax, 0, drawn.norm.vmax], labels=["against", "0", "for"])
    bar.ax.tick_params(length=0)
    return fig, axes


def _row(left: Axes, axes: Sequence[Axes], maps: list[np.ndarray], scale: str | float, quantile: float) -> AxesImage:
    """Draw the maps of one image, and print where full colour stands; returns matplotlib's image of the last map."""
    # a quantile of |R|, or the maximum where that is zero
    tops = [float(np.quantile(np.abs(R), quantile)) or float(np.abs(R).max()) for R in maps]
    limits = {"panel": tops, "row": [max(tops)] * len(tops)}[scale] if isinstance(scale, str) else [scale] * len(tops)
    for ax, R, limit in zip(axes, maps, limits, strict=True):
        drawn = show_relevance(ax, R, vmax=limit)
        if scale == "panel":
            ax.set_xlabel(f"±{limit:.2g}", fontsize=8, color="0.35")
    if scale != "panel":
        left.set_xlabel(f"scale ±{limits[0]:.2g}", fontsize=8, color="0.35")
    return drawn
