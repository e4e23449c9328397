"""Synthetic fields with a known answer: squares on noise, and months of an ocean that looks like El Nino.

`squares` is the data of landthayen2023fact as its author's public code draws it; `enso_like` is ours. In both it is
known which cells the target depends on, so a map can be scored and not only looked at.
"""

from dataclasses import dataclass
from dataclasses import field as attribute

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..errors import DataError
from . import geospatial

# ---------------------------------------------------------------- squares

SIDE, VALUE = 100, 0.5
CLASS = (slice(45, 55), slice(20, 30))  # rows and columns of the square that is +0.5 or -0.5
DECOYS = ((slice(20, 30), slice(70, 80)), (slice(70, 80), slice(70, 80)))  # always +0.5, always -0.5


@dataclass(frozen=True)
class Squares:
    """N images (N, 100, 100) float32, targets (N,) float32 of +1 and -1 in turn, and where the squares are.

    `mask` (100, 100) bool is the square whose sign is the class, `decoys` (2, 100, 100) bool those that are in
    every image: the bright one, then the dark one.
    """

    images: Tensor = attribute(repr=False)
    targets: Tensor = attribute(repr=False)
    mask: Tensor = attribute(repr=False)
    decoys: Tensor = attribute(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def inputs(self) -> Tensor:
        """Images with a channel, (N, 1, 100, 100): what a network takes."""
        return self.images[:, None]


def squares(n: int = 500, seed: int = 0, noise: float = 0.1) -> Squares:
    """Images of 100 x 100: two decoys and the square of the class on noise U(-0.1, 0.1); all within +-0.6.

    Decoys: +0.5 at rows 20-29, -0.5 at rows 70-79, both at columns 70-79. Class +1 or -1: +0.5 or -0.5 at rows 45-54,
    columns 20-29. Image i depends on seed and i alone. The truth is the mask: of all pixels only these know the class.
    Raises DataError for n < 1 or noise < 0.

    Source: landthayen2023fact (the author's public code), with n = 500. Deviation: classes in turn, not one after the
    other, so that every split by order is fair.
    """
    if n < 1 or not noise >= 0:
        raise DataError(f"squares need n >= 1 and noise >= 0, not {n} and {noise}")
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    for mask, place in zip(masks, (CLASS, *DECOYS), strict=True):
        mask[place] = True
    targets = torch.ones(n)
    targets[1::2] = -1
    images = np.stack([np.random.default_rng([seed, i]).uniform(-noise, noise, (SIDE, SIDE)) for i in range(n)])
    images = torch.from_numpy(images.astype(np.float32))
    images += VALUE * (targets[:, None, None] * masks[0] + masks[1].float() - masks[2].float())
    return Squares(images, targets, masks[0], masks[1:])


# ---------------------------------------------------------------- months like those of El Nino

GRIDS = {
    "pacific": (np.arange(29.0, -30, -2), np.arange(124.0, 291, 2)),
    "global": (np.arange(88.0, -89, -2), np.arange(0.0, 360, 2)),
}
LAND = (  # boxes, not coastlines: south, north, west, east
    *((-39, -13, 113, 149), (-9, -1, 131, 147), (-4, 4, 109, 118), (24, 70, 247, 300), (16, 24, 257, 272)),
    *((8, 16, 269, 277), (-40, 8, 281, 318), (-34, 34, 13, 40), (4, 34, 0, 13), (4, 34, 344, 360)),
    *((36, 75, 0, 140), (8, 36, 72, 86), (10, 36, 97, 120), (60, 84, 305, 335), (-90, -72, 0, 360)),
)
REGIONS = {  # distractors: south, north, west, east; outside the box of the index, where the tongue is weak
    "independent": (17, 29, 166, 190),
    "noise": (-29, -17, 166, 190),
    "constant": (-29, -17, 230, 254),
}


def tongue(lat, lon) -> np.ndarray:
    r"""The pattern (lat, lon) of a warm month: :math:`e^{-(lat/7)^2/2} \sin^2(\pi (lon - 160) / 130)` on 160-290E."""
    lat, lon = np.asarray(lat, float)[:, None], np.asarray(lon, float)
    inside = (lon >= 160) & (lon <= 290)
    return np.exp(-0.5 * (lat / 7) ** 2) * np.where(inside, np.sin(np.pi * (lon - 160) / 130) ** 2, 0.0)


def autoregressive(n: int, rng: np.random.Generator, memory: float = 0.9) -> np.ndarray:
    """A stationary series (n,) of mean 0, variance 1 and correlation `memory` from one month to the next."""
    shocks = rng.standard_normal(n)
    for t in range(1, n):
        shocks[t] = memory * shocks[t - 1] + np.sqrt(1 - memory**2) * shocks[t]
    return shocks


def smooth_noise(n: int, shape: tuple[int, int], rng: np.random.Generator, width: float = 3.0) -> np.ndarray:
    """White noise under a Gaussian filter of `width` cells, then of variance 1 in every cell: `(n, *shape)`."""
    from scipy.ndimage import gaussian_filter, gaussian_filter1d

    margin = int(4 * width + 0.5)  # as far as the filter reaches, so that edges are like the middle
    impulse = np.zeros(2 * margin + 1)
    impulse[margin] = 1
    kernel = gaussian_filter1d(impulse, width, mode="constant")
    white = rng.standard_normal((n, *(side + 2 * margin for side in shape)))
    smooth = gaussian_filter(white, (0, width, width), mode="constant") / (kernel**2).sum()
    return smooth[:, margin:-margin, margin:-margin]


def enso_like(
    n: int = 399,
    seed: int = 0,
    grid: str | xr.DataArray | xr.Dataset = "pacific",
    *,
    smooth: float = 0.5,
    white: float = 0.1,
    land: bool = True,
    distractors: tuple[str, ...] = (),
    strength: float = 1.0,
) -> xr.Dataset:
    r"""n months of anomalies driven by one hidden index, with the true contribution of every cell to the target.

    .. math:: x_t = i_t \, g + 0.5 \, s_t + 0.1 \, e_t

    i is `autoregressive` with memory 0.9, g the `tongue`, s `smooth_noise` of 3 cells, e white noise. The Dataset has

    * `field` (time, lat, lon) float32, degC, NaN on `land` (some boxes); the grid is "pacific" (30 x 84 cells of 2
      degrees), "global" (89 x 180) or a field whose lat and lon to take;
    * `hidden` (time,), the index i, `tongue` (lat, lon), the pattern g;
    * `box`, `index`, `label`, `truth` and `offset`: the target and its parts, see `answer`;
    * `regions` (region, lat, lon) bool: where the distractors are, see `distract`; each has `strength` degC.

    Deviation: landthayen2023fact describes no such data; ours. Raises DataError for unknown grids and distractors,
    n < 2, and grids that miss the box or a distractor's region.
    """
    if unknown := [name for name in distractors if name not in REGIONS]:
        raise DataError(f"no distractor is called {', '.join(unknown)}: there are {', '.join(REGIONS)}")
    if n < 2:
        raise DataError(f"an index needs two months or more, not {n}")
    lat, lon = _grid(grid)
    g = tongue(lat, lon)
    rngs = [np.random.default_rng([seed, part]) for part in range(4)]  # a change of one part leaves the others alone
    hidden = autoregressive(n, rngs[0])
    noise = smooth * smooth_noise(n, g.shape, rngs[1])
    x = hidden[:, None, None] * g + noise
    x += white * rngs[2].standard_normal(x.shape)
    field = _on_a_map(x, lat, lon, land)
    beyond = np.tensordot(x - hidden[:, None, None] * g, geospatial.box_weights(field).values, 2)
    swing = _unlike(autoregressive(n, rngs[3]), hidden, beyond)
    regions = distract(field, distractors, {"independent": swing, "noise": beyond / (beyond.std() or 1)}, strength)
    parts = {"field": field, "hidden": ("time", hidden), "tongue": (("lat", "lon"), g)}
    options = {"seed": seed, "smooth": smooth, "white": white, "strength": strength}
    return xr.Dataset(parts | answer(field) | {"regions": regions}, attrs=options)


def _on_a_map(x: np.ndarray, lat: np.ndarray, lon: np.ndarray, land: bool) -> xr.DataArray:
    """Values (time, lat, lon) as a field of months from 1970 on, NaN on land."""
    ground = _boxes(LAND, lat, lon) & land
    months = np.datetime64("1970-01") + np.arange(len(x))
    coords = {"time": months.astype("datetime64[ns]"), "lat": lat, "lon": lon}
    attrs = {"units": "degC", "long_name": "synthetic sea surface temperature anomaly"}
    return xr.DataArray(np.where(ground, np.nan, x).astype(np.float32), coords, list(coords), "field", attrs)


def distract(field: xr.DataArray, names: tuple[str, ...], series: dict, strength: float) -> xr.DataArray:
    """Add distractors to the field, in place, each in a box of 12 x 24 degrees; returns the boxes (region, lat, lon).

    Each has `strength` degC (standard deviation, or value). "independent" swings on its own with memory 0.9 and says
    nothing: its correlation with i and with the mean over the index' box is 0, exactly. "noise" follows what this
    mean has beyond i, so it helps to predict the target without being part of it. "constant" is a bright square, the
    same in all months. `series` has the first two, (time,) and standardised. Raises DataError for a grid that misses
    a box.
    """
    lat, lon = field.lat.values, field.lon.values
    regions = np.array([_region(name, lat, lon) for name in names], bool).reshape(-1, len(lat), len(lon))
    for name, region in zip(names, regions, strict=True):
        field.values[:, region] += (strength * series.get(name, np.ones(len(field))))[:, None].astype(np.float32)
    return xr.DataArray(regions, {"region": np.array(names, dtype="U12")}, ("region", "lat", "lon"))


def answer(field: xr.DataArray) -> dict[str, object]:
    r"""The target of a field, the standardised Nino 3.4 index, and what each cell contributes to it, exactly.

    * `box` (lat, lon): the weights c of the index, 1 / K in the K cells of the Nino 3.4 box, else 0;
    * `index` (time,), the target: :math:`y_t = (m_t - \mu) / \sigma, m_t = \sum_p c_p x_{tp}`, with mu and sigma those
      of m over all months; `label` is +1, -1 or 0 as it lies beyond +-0.5;
    * `truth` (time, lat, lon): :math:`c_p x_{tp} / \sigma`, 0 on land; `offset` = -mu / sigma, so that
      :math:`y_t = \sum_p truth_{tp} + offset` exactly.

    Why this is the truth: the target is computed from the field by this sum and from nothing else, a change d of cell
    p changes it by c_p d / sigma for any values of the other cells, and no cell outside the box changes it. So each
    cell's contribution is its own term, and nothing has to be divided among cells. It is not the only way to predict
    the target: cells of the tongue outside the box depend on i, too, and a network may use them; a map that shows them
    is right about that network, and `tongue` says where they are.
    """
    c, mean = geospatial.box_weights(field), geospatial.nino34(field)
    mu, sigma = float(mean.mean()), float(mean.std())
    index = ((mean - mu) / sigma).assign_attrs(units="1", long_name="standardised box mean")
    return {
        "box": (("lat", "lon"), c.values),
        "index": index,
        "label": geospatial.labels(index),
        "truth": (field.dims, (c * field.fillna(0).astype("float64") / sigma).transpose(*field.dims).values),
        "offset": -mu / sigma,
    }


def _unlike(series, *others) -> np.ndarray:
    """What of a series (n,) has no correlation with the others, standardised."""
    known = np.stack([np.ones_like(series), *others], 1)
    left = series - known @ np.linalg.lstsq(known, series, rcond=None)[0]
    return left / (left.std() or 1)


def _grid(grid) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes, north first, and longitudes of a grid by name or of a field."""
    if isinstance(grid, (xr.DataArray, xr.Dataset)):
        return grid.lat.values.astype(float), grid.lon.values.astype(float)
    if not isinstance(grid, str) or grid not in GRIDS:
        raise DataError(f"grid {grid!r} is none of {', '.join(GRIDS)}, and no field with lat and lon")
    return GRIDS[grid]


def _boxes(boxes, lat, lon) -> np.ndarray:
    """Cells whose centres lie in any of the boxes, bool (lat, lon)."""
    inside = np.zeros((len(lat), len(lon)), bool)
    for south, north, west, east in boxes:
        inside |= ((lat >= south) & (lat <= north))[:, None] & ((lon >= west) & (lon <= east))
    return inside


def _region(name: str, lat, lon) -> np.ndarray:
    """Where a distractor is; DataError where the grid does not reach it."""
    region = _boxes([REGIONS[name]], lat, lon)
    if not region.any():
        south, north, west, east = REGIONS[name]
        raise DataError(f"the grid has no cell in {south}-{north} N, {west}-{east} E, where {name!r} belongs")
    return region
