"""Fields from files of every kind in one form, an index that is NOAA's, no leak from test to training, maps back."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from lrp import DataError, LRPError
from lrp.data import geospatial
from lrp.data.geospatial import anomalies, as_field, inputs, labels, load, nino34, noaa_index, split

LAT, LON = np.arange(-8.0, 9, 4), np.arange(180.0, 251, 5)


def made(n=36, start="1970-01", lat=LAT, lon=LON, seed=0, name="sst", units="degC", land=True):
    """Months of water at 20 to 30 degC with a season, and land in the first column and one corner."""
    rng = np.random.default_rng(seed)
    time = (np.datetime64(start, "M") + np.arange(n)).astype("datetime64[ns]")
    x = 25 + 2 * np.sin(np.arange(n) * np.pi / 6)[:, None, None] + rng.normal(0, 1, (n, len(lat), len(lon)))
    if land:
        x[:, :, 0] = x[:, 0, 1] = np.nan
    return xr.DataArray(
        x, {"time": time, "lat": lat, "lon": lon}, ("time", "lat", "lon"), name, {"units": units} if units else {}
    )


def saved(field, tmp_path, file="field.nc"):
    field.to_netcdf(tmp_path / file, engine="scipy")
    return tmp_path / file


@pytest.fixture
def pacific(lrp_data):
    if not (lrp_data / geospatial.PACIFIC).exists():
        pytest.skip(f"no {geospatial.PACIFIC} under LRP_DATA")
    return geospatial.pacific()


# ---------------------------------------------------------------- one form


def test_the_form(tmp_path):
    field = load(saved(made(), tmp_path))
    assert field.dims == ("time", "lat", "lon") and field.dtype == np.float32 and field.name == "sst"
    assert (np.diff(field.lat) < 0).all() and (np.diff(field.lon) > 0).all() and field.units == "degC"
    np.testing.assert_allclose(field.values, made().values[:, ::-1], rtol=1e-6)
    assert geospatial.land(field).values.sum() == 6
    assert field.time.values[0] == np.datetime64("1970-01-01")


def variants():
    field = made()
    west = field.assign_coords(lon=(field.lon + 180) % 360 - 180).sortby("lon")
    kelvin = field.copy(data=field + 273.15).assign_attrs(units="K")
    return {
        "latitudes in the other order": field.isel(lat=slice(None, None, -1)),
        "longitudes from -180 to 180": west,
        "longitudes out of order": field.isel(lon=[3, 1, 2, 0, *range(4, len(LON))]),
        "kelvin": kelvin,
        "kelvin in words": kelvin.assign_attrs(units="degrees K"),
        "degree_C": field.assign_attrs(units="degree_C"),
        "celsius": field.assign_attrs(units="Celsius"),
        "other names": field.rename(lat="latitude", lon="Longitude").rename("tos"),
        "names that say nothing": field.rename(lat="y", lon="x").pipe(_with_units),
        "axes in another order": field.transpose("lon", "lat", "time"),
        "a level of one": field.expand_dims(lev=[0.0], axis=1),
        "days in the middle of the month": field.assign_coords(time=field.time + np.timedelta64(14, "D")),
        "months out of order": field.isel(time=[2, 0, 1, *range(3, 36)]),
        "double": field.astype("float64"),
        "a column twice": xr.concat([field, field.isel(lon=[0]).assign_coords(lon=[540.0])], "lon"),
    }


def _with_units(field):
    field.y.attrs["units"], field.x.attrs["units"] = "degrees_north", "degrees_east"
    return field


@pytest.mark.parametrize("case", variants())
def test_any_file_gives_the_same_field(case, tmp_path):
    expected = load(saved(made(), tmp_path, "plain.nc"))
    found = load(saved(variants()[case], tmp_path))
    np.testing.assert_allclose(found.values, expected.values, atol=3e-5)
    for axis in ("time", "lat", "lon"):
        assert np.array_equal(found[axis], expected[axis]), axis


def test_packed_values_and_filled_land(tmp_path):
    field = made().fillna(-999.0).assign_attrs(missing_value=-999.0)
    packed = {"sst": {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -32000}}
    made().to_netcdf(tmp_path / "packed.nc", engine="scipy", encoding=packed)
    expected = load(saved(made(), tmp_path))
    for path, atol in ((saved(field, tmp_path, "filled.nc"), 1e-5), (tmp_path / "packed.nc", 0.0051)):
        np.testing.assert_allclose(load(path).values, expected.values, atol=atol)


@pytest.mark.parametrize("engine", ["scipy", "h5netcdf"])  # NetCDF-3 and NetCDF-4
def test_a_file_like_ersst(tmp_path, monkeypatch, engine):
    """Global, 2 degrees, since 1854: bounds of months, a level, a fill value; five rows and 26 columns in the box."""
    field = made(14, "1854-01", np.arange(88.0, -89, -2), np.arange(0.0, 359, 2)).expand_dims(lev=[0.0], axis=1)
    data = field.to_dataset()
    data["time_bnds"] = (("time", "nbnds"), np.zeros((14, 2)))
    days = {"units": "days since 1800-1-1 00:00:00", "dtype": "float64"}
    (tmp_path / "climate").mkdir()
    path = tmp_path / "climate" / "sst.mnmean.nc"
    data.to_netcdf(path, engine=engine, encoding={"time": days, "sst": {"_FillValue": -9.96921e36}})
    monkeypatch.setenv("LRP_DATA", str(tmp_path))
    found = geospatial.ersst()
    assert found.identical(load(path))
    assert found.shape == (14, 89, 180) and found.time.values[0] == np.datetime64("1854-01-01")
    w = geospatial.box_weights(found)
    assert int((w > 0).sum()) == 5 * 26 and float(w.max()) == pytest.approx(1 / 130)


def test_differences_in_kelvin_are_not_shifted(tmp_path):
    change = (made() - 25).rename("ssta").assign_attrs(units="K")
    np.testing.assert_allclose(load(saved(change, tmp_path)).values, change.values[:, ::-1], rtol=1e-6, atol=1e-6)


def test_the_known_name_is_taken_among_several(tmp_path):
    other = made(seed=3, name="ice", units="1")
    path = saved(xr.Dataset({"ice": other, "sst": made()}), tmp_path)
    assert load(path).name == "sst"
    with pytest.raises(DataError, match=r"ice of .* is in '1', not in K or degC"):
        load(path, "ice")
    path = saved(xr.Dataset({"one": made(name="one"), "two": made(name="two")}), tmp_path, "two.nc")
    with pytest.raises(DataError, match=r"several variables.*choose with `variable`; it has .*one .*two"):
        load(path)
    assert load(path, "two").name == "two"


# ---------------------------------------------------------------- what is wrong with a file


def bad():
    field = made()
    values = field.values.copy()
    values[4, 2, 5] = np.nan
    holed = field.copy(data=values)
    return {
        "no such variable": (field, {"variable": "ssh"}, r"no variable 'ssh'; it has .*sst \('time', 'lat', 'lon'\)"),
        "no latitude": (field.rename(lat="row").drop_vars("row"), {}, r"no variable for lat \(lat, latitude\); it has"),
        "no map": (xr.Dataset({"nino34": field[:, 0, 3], "lat": LAT, "lon": LON}), {}, "no variable on time, lat and"),
        "precipitation": (field.assign_attrs(units="mm/day"), {}, "is in 'mm/day', not in K or degC"),
        "no units": (made(units=None), {}, "does not say its units: pass units='degC'"),
        "kelvin called degC": (field.copy(data=field + 273.15), {}, "to 30.* degC, taken as 'degC', which no sea has"),
        "undeclared fill": (field.fillna(-999.0), {}, r"from -999 to .* declared as _FillValue"),
        "fahrenheit": (field.assign_attrs(units="F"), {}, "is in 'F'"),
        "infinite": (field.where(field.lon < 245, np.inf), {}, "infinite values"),
        "a gap": (field.isel(time=[0, 1, 2, 5, *range(6, 36)]), {}, "lacks 1970-04, 1970-05 between 1970-01 and 1972"),
        "a month twice": (xr.concat([field, field[3:4]], "time"), {}, "more than one field for 1970-04"),
        "now and then": (holed, {}, r"1 cells are NaN only now and then, the first at 0 N, 205 E, in 1970-05"),
        "an empty month": (field.where(field.time != field.time[7]), {}, r"69 cells are NaN only .* in 1970-08"),
        "nothing": (field.where(field > 99), {}, "holds no value"),
        "two levels": (xr.concat([field, field], "lev"), {}, "must be on time, lat and lon alone.*'lev': 2"),
        "no degrees": (field.assign_coords(lat=LAT * 100), {}, "no degrees north and east"),
        "a row twice": (xr.concat([field, field[:, :1] + 1], "lat"), {}, "latitude or longitude twice"),
        "another column": (
            xr.concat([field, field.isel(lon=[4]).assign_coords(lon=[-165.0])], "lon"),
            {},
            "longitude twice, with different",
        ),
        "years as numbers": (field.assign_coords(time=np.arange(36.0)), {}, r"no dates .*days since"),
        "an unknown way": (field, {"flicker": "drop"}, "flicker is 'raise' or 'land'"),
    }


@pytest.mark.parametrize("case", bad())
def test_bad_files_say_what_is_wrong(case, tmp_path):
    field, options, message = bad()[case]
    with pytest.raises(DataError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(saved(field, tmp_path), **options)


def test_ways_out(tmp_path):
    values = made().values.copy()
    values[4, 2, 5] = np.nan
    field = load(saved(made().copy(data=values), tmp_path), flicker="land")
    assert geospatial.land(field).sum() == 7 and geospatial.land(field)[2, 5]
    assert load(saved(made(units=None), tmp_path), units="degC").units == "degC"
    values[np.arange(36), :, np.arange(36) % len(LON)] = np.nan
    with pytest.raises(DataError, match="no cell has a value in every month"):
        load(saved(made().copy(data=values), tmp_path), flicker="land")


def test_calendars_and_grids_that_are_not_understood(tmp_path):
    field = made()
    months = field.assign_coords(time=("time", np.arange(36.0), {"units": "months since 1970-01-01"}))
    with pytest.raises(DataError, match=r"the times of .* cannot be decoded"):
        load(saved(months, tmp_path))
    curved = xr.DataArray(
        field.values, dims=("time", "y", "x"), name="sst", attrs=field.attrs,
        coords={"time": field.time, "lat": (("y", "x"), np.tile(LAT[:, None], len(LON)))},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"lat of .* has dims \('y', 'x'\): bring the data to a grid"):
        load(saved(curved, tmp_path))


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(["scipy", "h5netcdf"]))
def test_half_a_file_is_never_taken_for_a_whole_one(tmp_path_factory, part, engine):
    folder = tmp_path_factory.mktemp("half")
    made().to_netcdf(folder / "whole.nc", engine=engine)
    whole = (folder / "whole.nc").read_bytes()
    (folder / "half.nc").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=r"half\.nc (cannot be read, perhaps only half|is not a NetCDF file)"):
        load(folder / "half.nc")


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nothing\.nc is not there"):
        load(tmp_path / "nothing.nc")
    (tmp_path / "page.nc").write_text("<!DOCTYPE html><h1>404</h1>")
    with pytest.raises(DataError, match=r"not a NetCDF file, it starts with b'<!DOCTYP'"):
        load(tmp_path / "page.nc")
    (tmp_path / "four.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setattr(xr.backends, "list_engines", lambda: {"scipy": None})
    with pytest.raises(DataError, match="NetCDF-4, and nothing here reads that: `pip install h5netcdf`"):
        load(tmp_path / "four.nc")
    assert issubclass(DataError, LRPError)


# ---------------------------------------------------------------- anomalies


def test_anomalies_by_month_against_a_slow_loop(tmp_path):
    field = load(saved(made(40), tmp_path))
    found = anomalies(field, ("1970-01", "1971-12"))
    for t in range(40):
        same = [s for s in range(24) if s % 12 == t % 12]
        expected = field.values[t] - np.mean([field.values[s] for s in same], 0)
        np.testing.assert_allclose(found.values[t], expected, atol=1e-5)
    assert found.dtype == np.float32 and found.units == "degC" and geospatial.land(found).sum() == 6
    one = anomalies(field, ("1970", "1971"), by="mean")
    np.testing.assert_allclose(one.values, field.values - field.values[:24].mean(0), atol=1e-5)
    assert np.nanstd(found[:24]) < 0.8 * np.nanstd(one[:24])  # one mean leaves the season in


@pytest.mark.parametrize("by", ["month", "mean"])
@pytest.mark.parametrize("detrend", [False, True])
def test_months_after_the_base_do_not_leak_into_it(tmp_path, by, detrend):
    field = load(saved(made(48), tmp_path))
    later = field.copy(data=np.where(np.arange(48)[:, None, None] >= 36, 5 * field.values, field.values))
    base = ("1970", "1972")
    before, after = (anomalies(f, base, by, detrend).values[:36] for f in (field, later))
    assert np.array_equal(before, after, equal_nan=True)


def test_a_straight_line_is_taken_away_and_continued(tmp_path):
    t = np.arange(48)[:, None, None]
    field = load(saved(made(48).copy(data=np.nan_to_num(made(48).values) * 0 + 20 + 0.1 * t), tmp_path))
    flat = anomalies(field, ("1970", "1972"), by="mean", detrend=True)
    assert np.abs(flat).max() < 1e-5
    assert np.abs(anomalies(field, ("1970", "1972"), by="mean")).max() > 1
    values = anomalies(load(saved(made(48), tmp_path)), ("1970", "1972"), "mean", True).values[:36, 1, 4]
    assert abs(np.polyfit(np.arange(36), values, 1)).max() < 1e-6


def test_bad_bases(tmp_path):
    field = load(saved(made(), tmp_path))
    with pytest.raises(DataError, match="no month of the field lies in the base 1990-01 to 1999-12: it has 1970-01 to"):
        anomalies(field, ("1990", "1999"))
    with pytest.raises(DataError, match="has no month 4, 5, 6"):
        anomalies(field, ("1970-01", "1970-03"))
    with pytest.raises(DataError, match="by 'month' or 'mean', not 'year'"):
        anomalies(field, ("1970", "1971"), by="year")
    with pytest.raises(DataError, match="a trend needs more"):
        anomalies(field, ("1970-01", "1970-01"), by="mean", detrend=True)


# ---------------------------------------------------------------- index, labels, split


def test_the_index_against_a_slow_loop(tmp_path):
    field = load(saved(made(), tmp_path))
    for weighted in (False, True):
        found, standard = nino34(field, weighted), nino34(field, weighted, ("1970", "1971"))
        means = []
        for month in field.values.astype(float):
            total = area = 0.0
            for i, lat in enumerate(field.lat.values):
                for j, lon in enumerate(field.lon.values):
                    if -5 <= lat <= 5 and 190 <= lon <= 240:
                        w = np.cos(lat * np.pi / 180) if weighted else 1.0
                        total, area = total + w * month[i, j], area + w
            means.append(total / area)
        np.testing.assert_allclose(found, means, rtol=1e-12)
        z = (np.array(means) - np.mean(means[:24])) / np.std(means[:24])
        np.testing.assert_allclose(standard, z, rtol=1e-9, atol=1e-12)
    assert not np.allclose(nino34(field), nino34(field, True), rtol=1e-12)


def test_land_in_the_box_is_left_out(tmp_path):
    field = load(saved(made(), tmp_path))
    dry = field.where(field.lon != 200)
    kept = field.sel(lat=[4, 0, -4], lon=[195, *range(205, 241, 5), 190])
    np.testing.assert_allclose(nino34(dry), kept.mean(("lat", "lon")), rtol=1e-5)
    assert geospatial.box_weights(dry).sum() == pytest.approx(1)
    with pytest.raises(DataError, match="no cell of the sea"):
        nino34(field.where(np.abs(field.lat) > 5))


def test_a_field_that_misses_the_box_is_refused(tmp_path):
    with pytest.raises(DataError, match="lon runs from 180 to 220 and does not cover the box of the index, 190 to 240"):
        nino34(load(saved(made(lon=np.arange(180.0, 221, 5)), tmp_path)))
    flat = made().copy(data=np.ones((36, 5, 15)))
    with pytest.raises(DataError, match="does not vary"):
        nino34(flat, base=("1970", "1972"))


def test_area_weights():
    w = geospatial.area_weights(made())
    np.testing.assert_allclose(w / w.max(), np.cos(LAT * np.pi / 180))
    assert float(w.mean()) == pytest.approx(1) and w.dims == ("lat",)


INDEX = """ 1870 1872
 1870 -99.99 -99.99   0.10   0.50  -0.50   0.49  -0.49   1.00   1.10   1.20   1.30   1.40
 1871   0.00   0.10   0.10   0.50  -0.50   0.49  -0.49   1.00   1.10   1.20   1.30   1.40
 1872   0.00   0.10   0.10 -99.99 -99.99 -99.99 -99.99 -99.99 -99.99 -99.99 -99.99 -99.99
  -99.99
 Nino 3.4 of 1981 to 2010
"""


def test_noaas_text(tmp_path):
    (tmp_path / "index.txt").write_text(INDEX)
    index = noaa_index(tmp_path / "index.txt")
    assert index.time.values[[0, -1]].astype("datetime64[M]").astype(str).tolist() == ["1870-03", "1872-03"]
    assert len(index) == 25 and index.values[:4].tolist() == [0.1, 0.5, -0.5, 0.49]
    assert labels(index).values[:5].tolist() == [0, 1, -1, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:185], "line 3: a row is a year and twelve numbers, not '1871 "),
        (lambda text: text[:200], "line 4: a row is a year and twelve numbers, not '1872   0'"),
        (lambda text: text.replace(" 1871 ", " 1873 "), "the years from 1870 to 1872 are not all there"),
        (lambda text: text.replace("   1.20", " -99.99", 1), "lacks 1870-10: it may be missing at the ends only"),
        (lambda text: "<html>", "has no row of a year and twelve months"),
        (lambda text: text.replace("0.50", "0,50"), "line 2: a row is a year"),
        (lambda text: " 1870" + " -99.99" * 12, "lacks 1870-01.* and 6 more"),
    ],
)
def test_bad_index_files(tmp_path, change, message):
    (tmp_path / "index.txt").write_text(change(INDEX))
    with pytest.raises(DataError, match=message):
        noaa_index(tmp_path / "index.txt")


def test_missing_data_name_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr("lrp.data.datasets.DATA", tmp_path)
    monkeypatch.delenv("LRP_DATA", raising=False)
    for get in (geospatial.pacific, noaa_index):
        with pytest.raises(DataError, match=r"climate/.* is neither under LRP_DATA .*set LRP_DATA to a folder"):
            get()
    with pytest.raises(DataError, match=r"x\.txt is not there"):
        noaa_index(tmp_path / "x.txt")


def test_labels_refuse_what_has_no_order():
    index = xr.DataArray([0.4, np.nan], dims="time")
    for one, threshold in ((index, 0.5), (index[:1], -1.0)):
        with pytest.raises(DataError, match="labels need an index without NaN"):
            labels(one, threshold)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 2000), fraction=st.floats(0.05, 0.95))
def test_splits_are_in_order_and_whole(n, fraction):
    a, b = torch.arange(n), np.arange(n)
    if not 0 < int(fraction * n + 1e-9) < n:
        with pytest.raises(DataError, match="leaves one side of the split empty"):
            split(a, fraction=fraction)
        return
    (train, test), (train_b, test_b) = split(a, b, fraction=fraction)
    assert torch.cat([train, test]).equal(a) and train.max() < test.min()
    assert train.tolist() == train_b.tolist() and test.tolist() == test_b.tolist()
    assert abs(len(train) - fraction * n) < 1


def test_the_authors_split():
    train, test = split(torch.arange(1083))
    assert (len(train), len(test)) == (866, 217)
    with pytest.raises(DataError, match="one length, not"):
        split(torch.arange(3), torch.arange(4))
    with pytest.raises(DataError, match="not in order"):
        split(made()[::-1])


# ---------------------------------------------------------------- inputs and maps


def test_inputs(tmp_path):
    field = anomalies(load(saved(made(), tmp_path)), ("1970", "1971")) * 4
    x = inputs(field)
    ground = geospatial.land(field).values
    assert x.images.shape == (36, 1, 5, 15) and x.vectors.shape == (36, 69) and len(x) == 36
    assert x.images.dtype == torch.float32 and x.images.abs().max() == 1
    assert (x.images[:, 0, ground] == 0).all()
    inside = np.abs(field.values) <= 5
    assert (~inside & ~np.isnan(field.values)).any()
    np.testing.assert_allclose(x.images[:, 0].numpy()[inside], field.values[inside] / 5, rtol=1e-6)  # the cap is idle
    np.testing.assert_array_equal(x.vectors.numpy(), x.images[:, 0].numpy()[:, ~ground])
    free = inputs(field, cap=None)
    assert free.images.abs().max() == 1
    np.testing.assert_allclose(free.vectors * np.nanmax(np.abs(field)), field.values[:, ~ground], rtol=1e-5, atol=1e-6)


def test_bad_inputs(tmp_path):
    field = load(saved(made(), tmp_path))
    with pytest.raises(DataError, match="NaN outside of land"):
        inputs(field.where(field.time != field.time[3]))
    with pytest.raises(DataError, match="cap must be above 0"):
        inputs(field, cap=0)
    assert (inputs(field * 0, cap=None).images == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_is_saved_and_read_back_bit_by_bit(tmp_path, dtype):
    field = load(saved(made(), tmp_path))
    R = torch.randn(36, 1, 5, 15, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = as_field(R, field, name="lrp", units="degC", long_name="relevance under z+")
    found.to_netcdf(tmp_path / "map.nc")
    with xr.open_dataarray(tmp_path / "map.nc") as again:
        xr.testing.assert_identical(again.load(), found)
        assert again.values.dtype == R.numpy().dtype and again.units == "degC"
        assert again.long_name == "relevance under z+" and again.name == "lrp"
    sea = ~geospatial.land(field).values
    np.testing.assert_array_equal(found.values[:, sea], R[:, 0].numpy()[:, sea])
    assert np.isnan(found.values[:, ~sea]).all()
    share = R[:, 0][:, torch.tensor(~sea)].abs().sum() / R.abs().sum()
    assert found.land_share == pytest.approx(float(share), rel=1e-5)


def test_vectors_find_their_places(tmp_path):
    field = load(saved(made(), tmp_path))
    x = inputs(field, cap=50.0)
    np.testing.assert_allclose(as_field(x.vectors, field) * 50, field.values, rtol=1e-5)
    np.testing.assert_allclose(as_field(x.vectors, field), as_field(x.images, field))
    one = as_field(x.vectors.mean(0), field)
    assert one.dims == ("lat", "lon") and one.land_share == 0
    np.testing.assert_allclose(one, as_field(x.images.mean((0, 1)), field[0]), rtol=1e-6)
    assert as_field(x.images.bfloat16(), field).dtype == np.float32
    assert as_field(x.images.numpy(), field).sizes == field.sizes


@pytest.mark.parametrize("shape", [(35, 5, 15), (36, 15, 5), (36, 70), (70,), (1, 5, 15)])
def test_maps_that_do_not_fit(tmp_path, shape):
    with pytest.raises(DataError, match=r"does not fit the field .* 69 cells of the sea: give `like` the same months"):
        as_field(torch.zeros(shape), load(saved(made(), tmp_path)))


# ---------------------------------------------------------------- real data (acceptance test 9)


def test_the_pacific(pacific):
    assert pacific.shape == (399, 30, 84) and not geospatial.land(pacific).all()
    assert float(pacific.lat[0]) == 29 and float(pacific.lon[0]) == 124 and inputs(pacific).vectors.shape == (399, 2261)
    index = nino34(pacific)
    assert [int((labels(index) == label).sum()) for label in (1, -1, 0)] == [125, 97, 177]


def test_the_index_is_noaas(pacific, lrp_data):
    if not (lrp_data / geospatial.NOAA).exists():
        pytest.skip(f"no {geospatial.NOAA} under LRP_DATA")
    noaa = noaa_index()
    assert len(noaa) == 1789
    index = nino34(pacific)
    assert np.corrcoef(index, noaa.sel(time=index.time))[0, 1] > 0.95
    by_month = nino34(anomalies(pacific, ("1970", "1996")))
    assert np.corrcoef(by_month, noaa.sel(time=index.time))[0, 1] > 0.95


def test_capping_the_pacific_changes_nothing_inside(pacific):
    """Acceptance test 10."""
    x, values = inputs(pacific).images[:, 0].numpy(), pacific.values
    inside = np.abs(values) <= 5
    assert 0 < (np.abs(values) > 5).sum() < 100
    np.testing.assert_array_equal(x[inside], values[inside] / np.float32(5))
