"""The notebook lint: on the real notebooks, and on small ones with one fault each."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lrp.build import lint as notebook_lint
from lrp.build import runs as notebooks
from lrp.build.keys import BuildError
from lrp.teach.records import is_picture

REAL = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
PARAMETERS = "SEED: int = 0  # seed\nDEVICE: str = 'cpu'  # device\nPROFILE: str = 'quick'  # quick or full"


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_notebook(path):
    assert notebook_lint.faults([path]) == []


def test_no_function_stands_in_two_notebooks():
    assert list(notebook_lint.repeated([notebook_lint.Notebook(path) for path in REAL])) == []


def cells() -> list[dict]:
    """Return the cells of a small notebook without faults."""
    sources = [
        ("markdown", "# 3 · A title\n\nSee [itself](03_good.ipynb) and [elsewhere](https://example.org)."),
        ("code", PARAMETERS),
        ("code", "from lrp.teach.figures import save, setup\n\nsetup(SEED, DEVICE, PROFILE)"),
        ("code", "def area(r):\n    return 3 * r**2\n\n\nsave(fig, '03_area', caption='An area.', alt='A disc.')"),
        ("markdown", "The figure says so."),
        ("markdown", "## Solutions"),
        ("code", "area(2)"),
    ]
    made = [{"cell_type": kind, "id": f"c{i}", "metadata": {}, "source": s} for i, (kind, s) in enumerate(sources)]
    for cell in made:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    made[1]["metadata"]["tags"] = ["parameters"]
    made[6]["metadata"]["tags"] = ["solution"]
    return made


def lint(folder: Path, made: list[dict], kernel: str = "python3", name: str = "03_good") -> list[str]:
    path = folder / f"{name}.ipynb"
    metadata = {"kernelspec": {"name": kernel}}
    path.write_text(json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return notebook_lint.faults([path])


def test_a_good_notebook_has_no_fault(tmp_path):
    assert lint(tmp_path, cells()) == []


@pytest.mark.parametrize(
    ("cell", "source", "fault"),
    [
        (0, "A text without a title", "starts with the title"),
        (0, "# 4 · The number of another", "starts with the title"),
        (0, "# 3 · Title\n\n[gone](nowhere.md)", "dead link nowhere.md"),
        (4, "# Second title", "has 2 titles"),
        (1, PARAMETERS.replace("  # seed", ""), "say in a comment"),
        (1, PARAMETERS.replace("0", "1 + len('a')"), "parameters are literals"),
        (1, "SEED: int = 0  # seed", "lack DEVICE, PROFILE"),
        (2, "x = 1", "calls lrp.teach.figures.setup 0 times"),
        (2, "setup(SEED)\ntorch.manual_seed(0)", "seeds are set by setup"),
        (2, "setup(SEED)\nnp.random.seed(0)", "seeds are set by setup"),
        (2, "setup(SEED)\n!ls", "no shell commands"),
        (2, "setup(SEED)\n%pip install x", "no such magic"),
        (2, "setup(SEED)\ndata = get(download=True)", "no downloads"),
        (2, "setup(SEED)\nmodel = vgg11(weights=None)", "untrained"),
        (2, "setup(SEED)\nimport_module('lrp.x')", "dynamic imports"),
        (2, "setup(SEED)\nopen('/" + "home/me/x')", "no path of one machine"),
        (2, "setup(SEED)\nopen('~/x')", "no path of one machine"),
        (3, "save(fig, '04_area', caption='An area.')", "must start with 03_"),
        (3, "save(fig, name, caption='An area.')", "is a literal"),
        (3, "save(fig, '03_area', caption='An area.')", "figure '03_area' has no alt text"),
        (3, "def f():\n    pass\n\n\nf = 3\n", "another meaning"),
    ],
)
def test_a_fault_is_named(tmp_path, cell, source, fault):
    made = cells()
    made[cell]["source"] = source
    found = lint(tmp_path, made)
    assert any(fault in line for line in found), found


def test_faults_of_form_are_named(tmp_path):
    made = cells()
    made[2] |= {"execution_count": 3}
    del made[3]["id"]
    del made[6]["metadata"]["tags"]
    del made[4]
    found = " ".join(lint(tmp_path, made, kernel="conda-base-py"))
    for fault in ("outputs", "has no id", "python3", "without the tag 'solution'"):
        assert fault in found
    made = cells()
    made[4]["cell_type"] = "raw"
    assert "no Markdown after it" in " ".join(lint(tmp_path, made))
    made = cells()
    made[1]["metadata"] = {}
    assert "exactly one cell tagged" in " ".join(lint(tmp_path, made))


def test_a_repeated_function_is_named(tmp_path):
    lint(tmp_path, cells())
    other = json.loads(json.dumps(cells()).replace("03_area", "04_area").replace("# 3", "# 4"))
    lint(tmp_path, other, name="04_other")
    found = notebook_lint.faults(sorted(tmp_path.glob("*.ipynb")))
    assert found == ["04_other: 'area' is also defined in 03_good; move it into lrp/"]


def test_threads_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    for flags, expected in (
        ("", 8),
        (" -j2 --jobserver-auth=3,4", 4),
        ("k -j16", 1),
        ("--jobserver-fds=3,4 -j", 1),
    ):
        monkeypatch.setenv("MAKEFLAGS", flags)
        assert notebooks.threads() == expected, flags


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        ((), "not run yet"),
        ((".ipynb",), "stopped before its end"),  # a later run was killed
        ((".part.ipynb",), "stopped before its end"),  # the first one was
        ((".ipynb", ".failed.ipynb"), "failed last time"),
    ],
)
def test_what_a_run_left_says_how_it_ended(tmp_path, monkeypatch, left, reason):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    build = notebooks.Build("quick", {})
    build.folder.mkdir(parents=True)
    for suffix in left:
        (build.folder / f"01_first{suffix}").touch()
    assert build.stale(tmp_path / "notebooks/01_first.ipynb") == reason


def test_a_picture_is_whole_or_missing(tmp_path):
    path = tmp_path / "a.png"
    assert not is_picture(path)
    Image.new("RGB", (3, 2)).save(path)
    whole = path.read_bytes()
    assert is_picture(path)
    for cut in (whole[:-1], whole[1:], whole[: len(whole) // 2], b""):
        path.write_bytes(cut)
        assert not is_picture(path)


def test_an_unknown_notebook_is_named():
    with pytest.raises(BuildError, match="no notebook 99"):
        notebooks.find("99")
