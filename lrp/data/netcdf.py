"""From any monthly NetCDF file to a field of one form (`lrp.data.geospatial`), or an error that says what is wrong."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import xarray as xr

from ..errors import DataError

NAMES = {"time": ("time", "t", "month"), "lat": ("lat", "latitude"), "lon": ("lon", "longitude")}
UNITS = {"lat": ("degrees_north", "degree_north", "degrees_n"), "lon": ("degrees_east", "degree_east", "degrees_e")}
KNOWN = ("sst", "ssta", "anom", "sst_anomaly", "tos", "analysed_sst", "sea_surface_temperature")  # first come first
CELSIUS = {"degc", "degreec", "degreesc", "c", "celsius", "degreecelsius", "degreescelsius", "°c"}
KELVIN = {"k", "kelvin", "degk", "degreek", "degreesk", "degreekelvin", "degreeskelvin"}
Flicker = Literal["raise", "land"]  # what to do with cells that are NaN only now and then
ZERO, LIMIT = 273.15, 100.0  # 0 degC in kelvin; no temperature of the sea, and no difference, is further from zero


def some(things, most: int = 6) -> str:
    """A list in words, cut short: "a, b and 3 more"."""
    words = [str(thing) for thing in things]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def load(
    path: Path | str, variable: str | None = None, *, units: str | None = None, flicker: Flicker = "raise"
) -> xr.DataArray:
    """A monthly field (time, lat, lon) in degC from a CF NetCDF file, in the one form that `lrp.data.geospatial` names.

    Names and units are found: sst, ssta or any other single variable on time, lat and lon; K or degC (kelvin below
    100 are differences and stay as they are); longitudes -180..180 or 0..360; latitudes in either order. `variable`
    chooses among several, `units` is for a file that does not say its own. Land is what is NaN in all months. A cell
    that is NaN only now and then is an error, or with `flicker="land"` becomes land. A region across Greenwich is
    cut there.

    Raises DataError, naming the file and the way out, for a file that is missing, not whole or NetCDF-4 without a
    reader; for variables, units, calendars and grids that are not understood; and for months that are missing or
    occur twice, infinite values, or no value at all.
    """
    path = Path(path)
    if flicker not in get_args(Flicker):
        raise DataError(f"flicker is 'raise' or 'land', not {flicker!r}")
    data = read(path)
    axes = {axis: _axis(data, axis, path) for axis in NAMES}
    raw = _variable(data, variable, axes, path)
    months = _months(data[axes["time"]].values, path)
    lat, lon = _degrees(data[axes["lat"]].values, data[axes["lon"]].values, path)
    x = _celsius(raw.transpose(*(data[name].dims[0] for name in axes.values())).values, raw, units, path)
    degrees = {axis: (axis, values, {"units": UNITS[axis][0]}) for axis, values in (("lat", lat), ("lon", lon))}
    attrs = {"units": "degC", "long_name": str(raw.attrs.get("long_name", raw.name))}
    field = xr.DataArray(x, {"time": months} | degrees, list(NAMES), raw.name, attrs)
    field = _once(field.sortby("time").sortby("lat", ascending=False).sortby("lon"), path)
    _every_month(field.time.values.astype("datetime64[M]"), path)
    return _masked(field, flicker, path)


def read(path: Path) -> xr.Dataset:
    """The whole file in memory, times decoded; NetCDF-3 through SciPy, NetCDF-4 where h5netcdf or netCDF4 is."""
    if not path.is_file():
        raise DataError(f"{path} is not there: give the path of a NetCDF file")
    with open(path, "rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        engine = next((name for name in ("h5netcdf", "netcdf4") if name in xr.backends.list_engines()), None)
        if engine is None:
            raise DataError(
                f"{path} is NetCDF-4, and nothing here reads that: `pip install h5netcdf`, or convert it to NetCDF-3 "
                "with `nccopy -k classic`"
            )
    elif start[:4] in (b"CDF\x01", b"CDF\x02"):
        engine = "scipy"
    else:
        raise DataError(f"{path} is not a NetCDF file, it starts with {start!r}: is it a page with an error?")
    try:
        with xr.open_dataset(path, engine=engine, decode_times=False) as file:
            data = file.load()
    except Exception as error:  # the readers raise many things for a broken file
        raise DataError(
            f"{path} cannot be read, perhaps only half of it came ({path.stat().st_size} bytes; {error}): fetch it "
            "again"
        ) from error
    try:
        return xr.decode_cf(data)
    except Exception as error:
        raise DataError(f"the times of {path} cannot be decoded: {error}") from error


def _listing(data: xr.Dataset) -> str:
    return some([f"{name} {data[name].dims}" for name in data.variables], 12)


def _axis(data: xr.Dataset, axis: str, path: Path) -> str:
    """The variable that holds time, lat or lon: by its name, else by its units."""
    named = [name for name in data.variables if str(name).lower() in NAMES[axis]]
    by_units = [
        name for name in data.variables if str(data[name].attrs.get("units", "")).lower() in UNITS.get(axis, ())
    ]
    for name in named + by_units:
        if data[name].ndim == 1:
            return name
    if named:
        raise DataError(
            f"{name} of {path} has dims {data[name].dims}: bring the data to a grid of rows and columns first"
        )
    raise DataError(f"{path} has no variable for {axis} ({', '.join(NAMES[axis])}); it has {_listing(data)}")


def _variable(data: xr.Dataset, variable: str | None, axes: dict, path: Path) -> xr.DataArray:
    """The variable asked for, or the one that is on time, lat and lon; without further axes of length 1."""
    if variable is not None and variable not in data.variables:
        raise DataError(f"{path} has no variable {variable!r}; it has {_listing(data)}")
    dims = {data[name].dims[0] for name in axes.values()}
    fitting = [name for name in data.data_vars if dims <= set(data[name].dims)]
    if variable is None:
        known = [name for word in KNOWN for name in fitting if str(name).lower() == word]
        if not fitting or (len(fitting) > 1 and not known):
            what = "several variables" if fitting else "no variable"
            raise DataError(f"{path} has {what} on time, lat and lon: choose with `variable`; it has {_listing(data)}")
        variable = known[0] if known else fitting[0]
    raw = data[variable]
    deep = {dim: size for dim, size in raw.sizes.items() if dim not in dims and size > 1}
    if deep or not dims <= set(raw.dims):
        raise DataError(f"{variable} of {path} must be on time, lat and lon alone; its axes are {dict(raw.sizes)}")
    return raw.squeeze([dim for dim in raw.dims if dim not in dims], drop=True)


def _months(times: np.ndarray, path: Path) -> np.ndarray:
    """Times as the first days of their months."""
    if not np.issubdtype(times.dtype, np.datetime64) or np.isnat(times).any():
        raise DataError(
            f"the times of {path} are no dates of the usual calendar (dtype {times.dtype}): the variable needs units "
            "such as 'days since 1970-01-01' and a standard calendar"
        )
    return times.astype("datetime64[M]").astype("datetime64[ns]")


def _degrees(lat: np.ndarray, lon: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes as they are, longitudes in [0, 360)."""
    lat, lon = lat.astype(np.float64), lon.astype(np.float64)
    if not (np.abs(lat) <= 90).all() or not (np.abs(lon) <= 540).all():
        raise DataError(
            f"{path}: latitudes from {lat.min():g} to {lat.max():g} and longitudes from {lon.min():g} to "
            f"{lon.max():g} are no degrees north and east"
        )
    return lat, lon % 360


def _celsius(x: np.ndarray, raw: xr.DataArray, units: str | None, path: Path) -> np.ndarray:
    """Values in degC, float32; kelvin that are differences already stay as they are."""
    said = units if units is not None else raw.attrs.get("units")
    if said is None:
        raise DataError(f"{raw.name} of {path} does not say its units: pass units='degC' or units='K'")
    word = str(said).strip().lower().replace(" ", "").replace("_", "").replace(".", "")
    if word not in CELSIUS | KELVIN:
        raise DataError(f"{raw.name} of {path} is in {said!r}, not in K or degC: is it a temperature? Else pass units=")
    if np.isinf(x).any():
        raise DataError(f"{raw.name} of {path} holds infinite values: mask them as _FillValue")
    # an empty field has no range: `_masked` refuses it later
    low, high = (float(f(x)) for f in (np.nanmin, np.nanmax)) if (~np.isnan(x)).any() else (0.0, 0.0)
    if word in KELVIN and low > LIMIT:
        x, low, high = x.astype(np.float64) - ZERO, low - ZERO, high - ZERO
    if max(-low, high) > LIMIT:
        raise DataError(
            f"{raw.name} of {path} runs from {low:.4g} to {high:.4g} degC, taken as {said!r}, which no sea has: are "
            "the units right, and are missing values declared as _FillValue?"
        )
    return x.astype(np.float32)


def _once(field: xr.DataArray, path: Path) -> xr.DataArray:
    """No cell twice, but for a column that comes again after 360 degrees with the same values: it is left out."""
    x, again = field.values, np.flatnonzero(np.diff(field.lon) == 0) + 1
    if not np.array_equal(x[:, :, again], x[:, :, again - 1], equal_nan=True) or (np.diff(field.lat) == 0).any():
        raise DataError(f"{path} has a latitude or longitude twice, with different values")
    return field.drop_duplicates("lon")


def _every_month(months: np.ndarray, path: Path) -> None:
    """Raise DataError for months that occur twice or are left out."""
    if not len(months):
        raise DataError(f"{path} has no month")
    found, times = np.unique(months, return_counts=True)
    if (times > 1).any():
        raise DataError(
            f"{path} has more than one field for {some(found[times > 1])}: take monthly means first, as in "
            "data.resample(time='MS').mean()"
        )
    if len(missing := np.setdiff1d(np.arange(found[0], found[-1] + 1), found)):
        raise DataError(f"{path} lacks {some(missing)} between {found[0]} and {found[-1]}: load a file without gaps")


def _masked(field: xr.DataArray, flicker: str, path: Path) -> xr.DataArray:
    """NaN on land and nowhere else."""
    gone = field.isnull()
    now_and_then = gone.any("time") & ~gone.all("time")
    if gone.all():
        raise DataError(f"{path} holds no value: every cell is NaN in every month")
    if not now_and_then.any():
        return field
    if flicker == "land":
        field = field.where(~now_and_then)
        if field.isnull().all():
            raise DataError(f"{path}: no cell has a value in every month, so none would be left of the sea")
        return field
    row, column = np.argwhere(now_and_then.values)[0]
    months = field.time.values[gone.values[:, now_and_then.values].any(1)].astype("datetime64[M]")
    raise DataError(
        f"{path}: {int(now_and_then.sum())} cells are NaN only now and then, the first at {float(field.lat[row]):g} N, "
        f"{float(field.lon[column]):g} E, in {some(months)}: leave those months out, fill them, or pass flicker='land'"
    )
