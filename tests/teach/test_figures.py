"""Set-up, saving and drawing of figures, and what is kept of their numbers."""

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lrp.build import gallery
from lrp.teach import figures, records
from lrp.teach.figures import Number


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """A run of notebook 01 that saves into an empty folder; no figure stays open."""
    monkeypatch.setenv("LRP_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("LRP_RUN", str(tmp_path / "01_toy.json"))
    forget(monkeypatch)
    with matplotlib.rc_context():
        yield tmp_path
    plt.close("all")


def forget(monkeypatch):
    """Start a new run."""
    monkeypatch.setattr(records, "RUN", records.Run())


def line(top: float = 1.0):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, top])
    return fig


def test_setup_seeds_everything_and_reports(capsys):
    draws = []
    for _ in range(2):
        assert figures.setup(7, "cpu", "quick") == torch.device("cpu")
        draws.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert draws[0] == draws[1]
    assert "torch" in capsys.readouterr().out
    assert figures.setup(device="auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "fast"}, "quick, full"),
        ({"device": "gpu"}, "unknown"),
        ({"device": "xla"}, "not available"),
    ],
)
def test_setup_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.setup(**arguments)


def test_save_records_and_is_byte_stable(run):
    figures.save(line(), "01_line", caption="A line.  It rises.", numbers={"a": {"b": 1.5}, "n": 3, "ok": True})
    record = json.loads((run / "01_toy.json").read_text())["figures"]["01_line"]
    assert record["caption"] == "A line. It rises." and record["alt"] == "A line. It rises."
    assert record["numbers"]["a/b"] == {"value": 1.5, "rtol": 1e-3, "atol": 1e-6}
    assert record["numbers"]["n"] == {"value": 3} and record["numbers"]["ok"] == {"value": True}
    png = (run / "figures/01_line.png").read_bytes()
    assert b"Software" not in png and b"Creation" not in png
    figures.save(line(), "01_line", "A line. It rises.", numbers={"a": {"b": 1.5}, "n": 3, "ok": True})
    assert (run / "figures/01_line.png").read_bytes() == png


def test_an_alt_text_is_recorded_beside_the_caption(run):
    figures.save(line(), "01_line", caption="A line.", alt="It rises\nto the right.")
    record = json.loads((run / "01_toy.json").read_text())["figures"]["01_line"]
    assert record["caption"] == "A line." and record["alt"] == "It rises to the right."


def test_a_picture_is_replaced_only_if_it_changed(run, monkeypatch):
    figures.save(line(), "01_line", caption="A line.")
    path = run / "figures/01_line.png"
    first = path.read_bytes()
    forget(monkeypatch)
    figures.save(line(1.0 + 1e-9), "01_line", caption="A line.")
    assert path.read_bytes() == first
    forget(monkeypatch)
    figures.save(line(2.0), "01_line", caption="A line.")
    assert path.read_bytes() != first, "another axis label is a visible change"


@pytest.mark.parametrize(
    ("name", "caption", "numbers", "message"),
    [
        ("line", "A line.", {}, "01_slug"),
        ("01_line.png", "A line.", {}, "no suffix"),
        ("02_line", "A line.", {}, "number of its notebook"),
        ("01_line", "  ", {}, "caption"),
        ("01_line", "A line.", {"x": float("nan")}, "'x' is nan"),
        ("01_line", "A line.", {"x": np.zeros(3)}, "not one number"),
        ("01_line", "A line.", {"x": "much"}, "not one number"),
    ],
)
def test_save_refuses_what_cannot_be_kept(run, name, caption, numbers, message):
    with pytest.raises(ValueError, match=message):
        figures.save(line(), name, caption=caption, numbers=numbers)
    assert not list(run.rglob("*.png"))


def test_one_name_is_one_figure():
    figures.save(line(), "01_line", caption="A line.")
    with pytest.raises(ValueError, match="other content"):
        figures.save(line(), "01_line", caption="Another line.")


def test_save_fails_loudly_where_it_cannot_write(run):
    (run / "figures").write_text("a file in the way")
    with pytest.raises(OSError):
        figures.save(line(), "01_line", caption="A line.")


def test_interactive_use_leaves_committed_figures_alone(run, monkeypatch):
    monkeypatch.delenv("LRP_RUN")
    monkeypatch.delenv("LRP_FIGURES")
    monkeypatch.setattr(records, "INTERACTIVE", run / "interactive")
    for caption in ("A line.", "A cell runs again, changed."):
        figures.save(line(), "01_line", caption=caption)
    assert (run / "interactive/01_line.png").exists() and not (run / "figures").exists()


def test_the_environment_names_the_places(run, monkeypatch):
    """Read at each use: a change between two cells counts, and an empty name is no name."""
    assert records.RUN.place == (run / "01_toy.json", run / "figures")
    monkeypatch.setenv("LRP_RUN", "")
    monkeypatch.delenv("LRP_FIGURES")
    assert records.RUN.place == (None, records.INTERACTIVE)
    records.RUN.check_name("figure", "07_any")  # no notebook runs, so each number is good
    monkeypatch.setenv("LRP_FIGURES", str(run / "elsewhere"))
    figures.save(line(), "01_line", caption="A line.")
    assert (run / "elsewhere/01.json").exists() and (run / "elsewhere/01_line.png").exists()


def test_a_number_of_another_type_is_named():
    with pytest.raises(ValueError, match=r"number 'a/x' is a ndarray, not one number"):
        records.flat({"a": {"x": Number(np.zeros(2))}})


def test_numbers_of_every_kind():
    values = {
        "t": torch.tensor(2.0),
        "i": np.int64(3),
        "f": np.float32(0.5),
        "own": Number(1.0, rtol=0, atol=0.1),
        "b": np.bool_(True),
    }
    flat = records.flat(values)
    assert flat["t"]["value"] == 2.0 and flat["i"] == {"value": 3} and flat["f"]["value"] == 0.5
    assert flat["own"] == {"value": 1.0, "rtol": 0, "atol": 0.1}
    assert flat["b"]["value"] is True and flat["i"]["value"] is not True


def test_reproduced_numbers_keep_their_text():
    def number(value):
        return {"value": value, "rtol": 1e-3, "atol": 0.0}

    old = {"01_a": {"x": number(1.0), "y": number(1.0)}}
    merged = gallery.keep_reproduced(old, {"01_a": {"x": number(1.0004), "y": number(1.2345678), "n": {"value": 2}}})
    assert merged == {"01_a": {"x": number(1.0), "y": number(1.23457), "n": {"value": 2}}}
    assert json.loads(gallery.as_text(merged)) == merged
    assert ' "01_a": {\n  "n": {"value": 2},\n' in gallery.as_text(merged), "one number per line"
    assert not gallery.within({"value": True}, {"value": False}) and not gallery.within({"value": 2}, {"value": 3})


def test_an_interval_is_of_one_run():
    def spread(*values):
        return {
            f"a/{end}": {"value": v, "rtol": 0, "atol": 0.1}
            for end, v in zip(("mean", "low", "high"), values, strict=True)
        }

    old = {"01_a": spread(1.0, 0.5, 1.5) | {"b": {"value": 2.0, "rtol": 0, "atol": 0.1}}}
    near = {"01_a": spread(1.05, 0.55, 1.45) | {"b": {"value": 2.05, "rtol": 0, "atol": 0.1}}}
    assert gallery.keep_reproduced(old, near) == old
    far = {"01_a": spread(1.05, 0.55, 1.75) | {"b": {"value": 2.05, "rtol": 0, "atol": 0.1}}}
    kept = {name: number["value"] for name, number in gallery.keep_reproduced(old, far)["01_a"].items()}
    assert kept == {"a/mean": 1.05, "a/low": 0.55, "a/high": 1.75, "b": 2.0}


def test_relevance_is_symmetric_about_white():
    _, ax = plt.subplots()
    drawn = figures.show_relevance(ax, torch.tensor([[[1.0, -3.0]], [[1.0, 1.0]]]), title="R")
    assert drawn.get_array().tolist() == [[2.0, -2.0]] and drawn.get_clim() == (-2.0, 2.0)
    assert np.allclose(drawn.cmap(0.5)[:3], 1, atol=0.04), "zero is white"
    assert drawn.cmap(1.0)[0] > drawn.cmap(1.0)[2], "evidence for is red"
    assert figures.show_relevance(ax, np.zeros((2, 2))).get_clim() == (-1.0, 1.0)
    for wrong in (np.zeros(3), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError):
            figures.show_relevance(ax, wrong)
    with pytest.raises(ValueError, match="channels"):
        figures.show_image(ax, np.zeros((5, 2, 2)))


@pytest.mark.parametrize("scale", ["row", "panel", 2.0])
def test_grid_states_its_scale(scale):
    images = torch.rand(2, 3, 4, 4)
    maps = {"a": torch.full((2, 3, 4, 4), 0.1), "b": -torch.ones(2, 4, 4)}
    fig, axes = figures.grid(images, maps, rows=["cat", "dog"], scale=scale)
    assert axes.shape == (2, 3) and axes[0, 1].get_title() == "a" and axes[1, 0].get_ylabel() == "dog"
    limits = [ax.images[0].get_clim()[1] for ax in axes[0, 1:]]
    assert np.allclose(limits, {"row": [1, 1], "panel": [0.3, 1], 2.0: [2, 2]}[scale])
    assert "±" in axes[0, 1 if scale == "panel" else 0].get_xlabel()
    assert fig.get_size_inches()[0] == figures.WIDTH
    with pytest.raises(ValueError, match="1 maps for 2 images"):
        figures.grid(images, {"a": maps["a"][:1]})
