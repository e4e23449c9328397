"""Sea-surface temperature on a map: load any monthly file, make anomalies, an index, labels, inputs of a network.

A field is an `xarray.DataArray` of one form, the same for every file: dims (time, lat, lon), float32, degC; months
by their first day; lat descending, so that row 0 is the north as in a picture; lon ascending from 0 to 360; NaN on
land and nowhere else. Sources: landthayen2023fact, landthayen2022layer; what they leave open is said where it matters.
"""

from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..errors import DataError
from .datasets import find
from .netcdf import load, some

# what the book's page of this module shows: `load` too, which comes from `netcdf`
__all__ = ["Inputs", "anomalies", "area_weights", "as_field", "box_weights", "ersst", "inputs", "labels", "land"]
__all__ += ["load", "nino34", "noaa_index", "pacific", "split"]

BOX = {"lat": (-5.0, 5.0), "lon": (190.0, 240.0)}  # Nino 3.4
PACIFIC, NOAA = "climate/pacific_sst_anom_1970_2003.nc", "climate/nino34.long.anom.data.txt"
ERSST = "climate/sst.mnmean.nc"
FIX = "set LRP_DATA to a folder that has it"

# ---------------------------------------------------------------- fields


def pacific() -> xr.DataArray:
    """Anomalies of the tropical Pacific, 399 months x 30 x 84 cells, where LRP_DATA has them; DataError if not."""
    return load(find(PACIFIC, FIX))


def ersst() -> xr.DataArray:
    """NOAA's ERSST v5, global, monthly since 1854, 89 x 180 cells, where LRP_DATA or `make data` has put it.

    These are temperatures, not anomalies (see `anomalies`). Raises DataError where it is missing.
    """
    return load(find(ERSST))


def land(field: xr.DataArray) -> xr.DataArray:
    """Which cells are land, bool (lat, lon): NaN in every month."""
    return field.isnull().all("time").rename("land")


def area_weights(field: xr.DataArray) -> xr.DataArray:
    """Area of a cell by its row, cos(lat) over its mean: float64 (lat,), 1 on average over rows."""
    w = np.cos(np.deg2rad(field.lat.astype("float64")))
    return (w / w.mean()).rename("area weight")


def anomalies(
    field: xr.DataArray, base: tuple[str, str], by: Literal["month", "mean"] = "month", detrend: bool = False
) -> xr.DataArray:
    r"""Departures from the mean of the base period, in degC: a_t = x_t - mean of x over base months like t.

    `base` = (first, last) month, both included, such as ("1970", "1994-12"): take the training years only, or the test
    years leak into the inputs. `by="month"` compares with the same calendar month; "mean" with one mean of all
    months, as landthayen2022layer does, which leaves the season in (up to -15 and +16 degC). `detrend` takes away
    each cell's straight line too, fitted by least squares to the anomalies of the base period and continued.

    Raises DataError where the base has no month of the field, or lacks a calendar month.
    """
    months, train = field.time.dt.month.values, _base(field, base)
    x = field.values.astype(np.float64)
    if by == "month":
        if absent := sorted(set(months.tolist()) - set(months[train].tolist())):
            raise DataError(
                f"the base {base[0]} to {base[1]} has no month {some(absent)} (1 is January): take whole years"
            )
        for month in range(1, 13):
            here = months == month
            if here.any():
                x[here] -= x[here & train].mean(0)
    elif by == "mean":
        x -= x[train].mean(0)
    else:
        raise DataError(f"anomalies are by 'month' or 'mean', not {by!r}")
    if detrend:
        if train.sum() < 2:
            raise DataError(f"the base {base[0]} to {base[1]} has one month: a trend needs more")
        t = np.arange(len(x), dtype=np.float64)
        t -= t[train].mean()
        slope = np.tensordot(t[train], x[train], 1) / (t[train] ** 2).sum()
        x -= x[train].mean(0) + t[:, None, None] * slope
    long_name = "sea surface temperature anomaly"
    return field.copy(data=x.astype(np.float32)).rename("ssta").assign_attrs(units="degC", long_name=long_name)


def _base(field: xr.DataArray, base: tuple[str, str]) -> np.ndarray:
    """Which months lie in the base period; DataError if none does."""
    months = field.time.values.astype("datetime64[M]")
    first, last = np.datetime64(base[0], "M"), np.datetime64(base[1], "M")
    if len(str(base[1])) == 4:
        last += 11  # a year is meant as a whole
    inside = (months >= first) & (months <= last)
    if not inside.any():
        raise DataError(f"no month of the field lies in the base {first} to {last}: it has {months[0]} to {months[-1]}")
    return inside


# ---------------------------------------------------------------- index and labels


def nino34(field: xr.DataArray, weighted: bool = False, base: tuple[str, str] | None = None) -> xr.DataArray:
    r"""The Nino 3.4 index: mean over 5S-5N, 190-240E, float64 (time,), in degC or, with a base, standardised.

    .. math:: m_t = \frac{\sum_{p \in B} w_p x_{tp}}{\sum_{p \in B} w_p}, \qquad y_t = (m_t - \mu) / \sigma

    B are the cells of the sea whose centres lie in the box, edges included; w = 1, or cos(lat) if `weighted`; mu and
    sigma are mean and standard deviation (ddof 0) of m over the months of `base`. No smoothing over five months.
    Raises DataError for a field that does not cover the box.

    Source: landthayen2022layer, with base ("1980", "2009"), unweighted.
    """
    mean = box_weights(field, weighted).dot(field.fillna(0).astype("float64")).rename("nino34")
    if base is None:
        return mean.assign_attrs(units="degC", long_name="mean over 5S-5N, 190-240E")
    train = mean.values[_base(field, base)]
    if not train.std() > 0:
        raise DataError(f"the index does not vary over the base {base[0]} to {base[1]}: take a longer one")
    return ((mean - train.mean()) / train.std()).assign_attrs(units="1", long_name="standardised Nino 3.4 index")


def box_weights(field: xr.DataArray, weighted: bool = False) -> xr.DataArray:
    """What each cell counts in the index, float64 (lat, lon): 0 outside the box and on land, 1 in all."""
    inside = ~land(field)
    for axis, (low, high) in BOX.items():
        cells = field[axis]
        step = float(np.abs(np.diff(cells.values)).max()) if cells.size > 1 else 0.0
        if cells.min() > low + step or cells.max() < high - step:
            raise DataError(
                f"the field's {axis} runs from {float(cells.min()):g} to {float(cells.max()):g} and does not cover the "
                f"box of the index, {low:g} to {high:g}: load a larger region"
            )
        inside = inside & (cells >= low) & (cells <= high)
    w = inside * (area_weights(field) if weighted else xr.ones_like(field.lat, dtype="float64"))
    if not w.sum() > 0:
        raise DataError("the box of the index, 5S-5N, 190-240E, holds no cell of the sea: is this field masked?")
    return (w / w.sum()).transpose("lat", "lon").rename("weight")


def noaa_index(path: str | Path | None = None) -> xr.DataArray:
    """NOAA's Nino 3.4 anomaly from its text file, float64 (time,), in degC; by default the one under LRP_DATA.

    A row is a year and twelve months; -99.99 is missing, which only the ends may be. Other lines (the span of years,
    notes) are skipped. Raises DataError for a missing file, a row that is cut short, and years or months left out.
    """
    path = Path(path) if path else find(NOAA, FIX)
    if not path.is_file():
        raise DataError(f"{path} is not there: NOAA's Physical Sciences Laboratory offers it as text")
    years, rows = [], []  # a row is the twelve months of a year
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        words = line.split()
        called = [len(word) == 4 and word.isdecimal() for word in words[:2]]
        if not words or not called[0] or called == [True, True]:  # notes, or the span of years
            continue
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) != 12:
            raise DataError(f"{path}, line {number}: a row is a year and twelve numbers, not {line.strip()!r}")
        years.append(int(words[0]))
        rows.append(values)
    if not rows:
        raise DataError(f"{path} has no row of a year and twelve months: is it NOAA's nino34.long.anom.data?")
    if years != [*range(years[0], years[0] + len(years))]:
        raise DataError(f"{path}: the years from {years[0]} to {years[-1]} are not all there, once and in order")
    values = np.array(rows).ravel()
    known = np.flatnonzero(values > -99)
    time = np.arange(f"{years[0]}-01", f"{years[-1] + 1}-01", dtype="datetime64[M]")
    if not len(known) or len(known) != known[-1] - known[0] + 1:
        gaps = time[values <= -99] if len(known) == 0 else np.setdiff1d(time[known[0] : known[-1]], time[known])
        raise DataError(f"{path} lacks {some(gaps)}: it may be missing at the ends only")
    attrs = {"units": "degC", "long_name": "Nino 3.4 anomaly, NOAA"}
    return xr.DataArray(values[known], {"time": time[known].astype("datetime64[ns]")}, ["time"], "nino34", attrs)


def labels(index: xr.DataArray, threshold: float = 0.5) -> xr.DataArray:
    """+1 (El Nino) where index >= threshold, -1 (La Nina) where index <= -threshold, else 0: int64 (time,).

    The threshold is in the units of the index. landthayen2022layer has > and <, which differs where an index, rounded
    to two digits, meets the threshold. Raises DataError for an index with NaN or a threshold below 0.
    """
    if not threshold >= 0 or bool(index.isnull().any()):
        raise DataError(f"labels need an index without NaN and a threshold of 0 or more, not {threshold}")
    found = (index >= threshold).astype("int64") - (index <= -threshold).astype("int64")
    return found.rename("label").assign_attrs(units="1", long_name="+1 El Nino, -1 La Nina, 0 neither")


def split(*series, fraction: float = 0.8):
    """The first floor(fraction n) entries for training, the rest for testing: (train, test), or such a pair per series.

    Series are tensors, arrays or DataArrays of one length, in order of time: neighbouring months are alike, and a
    random split would put them on both sides. Raises DataError for other lengths or a part that is empty, and where
    a DataArray's times do not ascend.
    """
    lengths = {len(one) for one in series}
    if len(lengths) != 1:
        raise DataError(f"series to split must have one length, not {sorted(lengths)}")
    for one in series:
        if isinstance(one, xr.DataArray) and "time" in one.dims and (np.diff(one.time.values.astype("i8")) <= 0).any():
            raise DataError("the months are not in order: a split by time needs field.sortby('time')")
    n = lengths.pop()
    cut = int(fraction * n + 1e-9)
    if not 0 < cut < n:
        raise DataError(f"{fraction} of {n} months leaves one side of the split empty")
    pairs = tuple((one[:cut], one[cut:]) for one in series)
    return pairs[0] if len(pairs) == 1 else pairs


# ---------------------------------------------------------------- to the network and back


@dataclass(frozen=True)
class Inputs:
    """N months as a network takes them, in [-1, 1]: images (N, 1, lat, lon) with land 0, vectors (N, cells of the sea).

    `sea` (lat, lon) says which cells are in the vectors, row by row.
    """

    images: Tensor = attribute(repr=False)
    vectors: Tensor = attribute(repr=False)
    sea: Tensor = attribute(repr=False)

    def __len__(self) -> int:
        return len(self.images)


def inputs(field: xr.DataArray, cap: float | None = 5.0) -> Inputs:
    """Fields as float32 inputs: x = clip(field, -cap, cap) / cap, then land 0.

    Without a cap (None) the scale is the field's largest magnitude: outliers then set it (landthayen2022layer finds
    maps that no longer show the Nino region). Raises DataError for cells that are NaN only now and then.
    """
    x, ground = field.values.astype(np.float32), land(field).values
    if np.isnan(x[:, ~ground]).any() or ground.all():
        raise DataError("the field holds NaN outside of land, or nothing but land: geospatial.load says where")
    if cap is not None and not cap > 0:
        raise DataError(f"cap must be above 0 degC, not {cap}")
    scale = np.nanmax(np.abs(x)) if cap is None else cap
    x = np.nan_to_num(np.clip(x, -scale, scale) / np.float32(scale or 1.0))
    images, sea = torch.from_numpy(x)[:, None], torch.from_numpy(~ground)
    return Inputs(images, images[:, 0, sea], sea)


def as_field(
    R, like: xr.DataArray, name: str = "relevance", units: str = "1", long_name: str = "relevance"
) -> xr.DataArray:
    """Relevance of inputs as a field with the coordinates of `like`, NaN on land; save it with `.to_netcdf`.

    R is (N, C, lat, lon), summed over channels, (N, lat, lon) or (N, cells of the sea), for the N months of `like`; or
    one map (lat, lon) or (cells of the sea,), which then has no time. `units` are those of the network's output.
    The attribute `land_share` is the part of `|R|` that lay on land and is not drawn: 0 under z-type rules, but for z+
    with `bias="exclude"`, where a unit that sees only land divides its relevance by `|w|`. Raises DataError for shapes
    that do not fit.
    """
    R = R.detach().cpu() if isinstance(R, Tensor) else torch.as_tensor(np.asarray(R))
    R = R.float() if R.element_size() < 4 else R
    ground = (land(like) if "time" in like.dims else like.isnull()).values
    shape, cells = ground.shape, int((~ground).sum())
    R = R.sum(1) if R.dim() == 4 else R
    if R.shape[-1:] == (cells,) and R.shape[-2:] != shape and R.dim() < 3:
        whole = R.new_zeros(*R.shape[:-1], *shape)
        whole[..., torch.from_numpy(~ground)] = R
        R = whole
    months = () if R.dim() == 2 else (like.sizes.get("time", 0),)
    if R.shape != (*months, *shape):
        raise DataError(
            f"relevance of shape {tuple(R.shape)} does not fit the field {dict(like.sizes)} with {cells} cells of "
            "the sea: give `like` the same months, as in field.isel(time=chosen)"
        )
    values = R.numpy().copy()
    total = np.abs(values).sum(dtype=np.float64)
    hidden = float(np.abs(values[..., ground]).sum(dtype=np.float64) / total) if total else 0.0
    values[..., ground] = np.nan
    dims = ("time", "lat", "lon")[-values.ndim :]
    attrs = {"units": units, "long_name": long_name, "land_share": hidden}
    return xr.DataArray(values, {dim: like[dim] for dim in dims}, dims, name, attrs)
