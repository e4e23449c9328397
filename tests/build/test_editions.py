"""The student edition: no solution, no result that is to be predicted, no dead link, and it runs."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from lrp.build import editions
from lrp.build.editions import cells_of
from lrp.build.lint import dead_links
from lrp.teach import course

ROOT = Path(__file__).resolve().parents[2]
REAL = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHECK = f"""from lrp.teach import course

course.check("9.1", total, "{course.digest("9.1", 6, 2)}", digits=2, hint="Add them up.").required()  # fmt: skip"""
PICTURES = "![What is seen](../figures/09_bars.png) ![Harmless](../figures/09_line.png)"
LINKS = "[ten](10_next.ipynb#top), [code](../lrp/rules.py), [all](../figures/README.md), [x](https://x.org)"
CELLS = [
    ("markdown", f"# 9 · A small one\n\n{PICTURES}", None),
    ("markdown", f"See {LINKS}", None),
    ("code", "values = [1, 2, 3]\nsave(fig, '09_line', caption='A line.')", None),
    ("markdown", "**Predict:** which is the largest?", None),
    ("code", "save(fig, '09_bars', caption='Bars.')", None),
    ("markdown", "**Exercise 9.1** ★ Sum the values. Call the sum `total`.", None),
    ("code", "secret = [value for value in values]\ntotal = sum(secret)", "solution"),
    ("code", CHECK, "check"),
    ("markdown", "**Solution 9.1.** It is a sum of secrets.", "solution"),
    ("markdown", "**Exercise 9.2** ★★★ Open: why?", None),
    ("code", "because = 'of a reason'", "solution"),
]  # fmt: skip


def notebook(cells) -> dict:
    made = []
    for k, (kind, text, tag) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"c{k}", "metadata": {"tags": [tag]} if tag else {}, "source": text}
        made.append(cell | ({"outputs": [], "execution_count": None} if kind == "code" else {}))
    return {"cells": made, "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A repository with two notebooks; returns their paths and the folder of the edition."""
    for place in ("figures/09_bars.png", "figures/09_line.png", "figures/README.md", "lrp/rules.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(place)
    (tmp_path / "notebooks").mkdir()
    paths = [tmp_path / "notebooks" / name for name in ("09_small.ipynb", "10_next.ipynb")]
    paths[0].write_text(json.dumps(notebook(CELLS)))
    paths[1].write_text(json.dumps(notebook([("markdown", "# 10 · Next", None)])))
    monkeypatch.setattr(editions, "ROOT", tmp_path)
    return paths, tmp_path / "build" / "student"


def test_a_small_edition(small):
    paths, folder = small
    assert "2 notebooks in" in editions.make(paths, folder)
    made = nbformat.read(folder / "notebooks" / "09_small.ipynb", as_version=4)
    texts = [cell.source for cell in made.cells]
    assert made["metadata"] == {"kernelspec": {"name": "python3"}}
    assert [cell["id"] for cell in made["cells"]] == [f"c{k}" for k in range(len(CELLS))]
    assert "What is seen" not in texts[0], "a description of what is to be predicted"
    assert texts[0].endswith("![Harmless](../linked/figures/09_line.png)")
    assert texts[1] == "See [ten](10_next.ipynb#top), [code](../linked/lrp/rules.py), all, [x](https://x.org)"
    assert texts[6:] == [
        "total = ...  # your answer",
        CHECK.replace(".required()", ""),
        "*Your words:*",
        "**Exercise 9.2** ★★★ Open: why?",
        "# your code",
    ]
    copied = {path.relative_to(folder).as_posix() for path in (folder / "linked").rglob("*") if path.is_file()}
    assert copied == {"linked/figures/09_line.png", "linked/lrp/rules.py"}
    assert "[9 · A small one](notebooks/09_small.ipynb) | 2 | 1 |" in (folder / "README.md").read_text()


def test_an_edition_with_work_in_it_is_kept(small):
    paths, folder = small
    editions.make(paths, folder)
    editions.make(paths, folder)
    path = folder / "notebooks" / "09_small.ipynb"
    book = json.loads(path.read_text())
    book["cells"][2]["execution_count"] = 1
    path.write_text(json.dumps(book))
    with pytest.raises(editions.EditionError, match=r"09_small\.ipynb: move it away"):
        editions.make(paths, folder)


def test_a_folder_of_others_is_kept(small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(editions.EditionError, match="holds other files"):
        editions.make(small[0], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("cell", "text", "fault"),
    [
        (5, "**Exercise 9.1** Sum them.", "does not ask for: name it"),
        (7, "course.check('9.1', total, '0', digits=2)", "must end in .required()"),
        (0, "# 9 · A\n\n![](../figures/09_none.png)", "09_none.png leads nowhere"),
        (0, '# 9 · A\n\n<img src="../figures/09_bars.png">', "as a Markdown link"),
    ],
)
def test_a_fault_is_named(small, cell, text, fault):
    changed = [*CELLS[:cell], (CELLS[cell][0], text, CELLS[cell][2]), *CELLS[cell + 1 :]]
    small[0][0].write_text(json.dumps(notebook(changed)))
    with pytest.raises(editions.EditionError, match=re.escape(fault)):
        editions.make(*small)


def test_a_student_notebook_runs_unsolved_and_solved(small, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "test", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    quiet = [(k, re.sub(r"^save.*$", "", t, flags=re.M) if k == "code" else t, tag) for k, t, tag in CELLS]
    small[0][0].write_text(json.dumps(notebook(quiet)))
    editions.make(*small)
    book = nbformat.read(small[1] / "notebooks" / "09_small.ipynb", as_version=4)
    judge = book.cells[7].source
    for answer in ("total = 6", "total = 'six'"):
        book.cells += [nbformat.v4.new_code_cell(answer), nbformat.v4.new_code_cell(judge)]
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    said = [book.cells[k].outputs[0]["data"]["text/plain"] for k in (7, -3, -1)]
    assert said[0] == "Exercise 9.1: not yet. Add them up."
    assert said[1] == "Exercise 9.1: right."
    assert said[2].startswith("Exercise 9.1: wrong. The answer is a number, and a str is none")


# --- the real edition ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    editions.make(REAL, folder)
    return folder


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_no_word_of_a_solution_is_left(real, path):
    source, made = cells_of(path), (real / "notebooks" / path.name)
    elsewhere = "\n".join(c.source for c in source if not editions.tagged(c, "solution"))
    student = "\n".join(c.source for c in cells_of(made))
    told = [
        line.strip()
        for cell in source
        if editions.tagged(cell, "solution")
        for line in re.split(r"\n|(?<=\.) ", cell.source)
    ]
    own = [line for line in told if len(line) > 12 and line not in elsewhere]
    assert own or not told
    assert not [line for line in own if line in student]
    assert ".required()" not in student
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells_of(made))


def test_the_real_edition_has_no_dead_link(real):
    for path in real.rglob("*"):
        if path.suffix == ".ipynb":
            text = "\n".join(c.source for c in cells_of(path) if c["cell_type"] == "markdown")
            assert dead_links(text, path.parent) == [], path.name
        elif path.suffix == ".md":
            assert dead_links(path.read_text(encoding="utf-8"), path.parent) == [], path.name


def test_pictures_that_are_to_be_predicted_are_not_there(real):
    hidden = set().union(*(editions.predicted(cells_of(path)) for path in REAL))
    assert hidden
    assert not hidden & {path.stem for path in real.rglob("*.png")}


def test_every_stub_is_read_by_a_check(real):
    for path in REAL:
        for cell in cells_of(real / "notebooks" / path.name):
            if cell["cell_type"] == "code" and editions.tagged(cell, "answer"):
                assert re.fullmatch(r"(\w+ = \.\.\.  # your answer\n?)+|# your code", cell.source)


def test_teaching_notes_have_the_times_of_today():
    """Times are rounded to five minutes; one step more or less does not matter."""
    notes = (ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"\| \[(\w+)\]\(\w+\.ipynb\) \| (\d+(?: \| \d+){3}) \|", notes))
    assert {path.stem for path in REAL if "01" <= path.stem[:2] <= "06"} <= set(written)
    for name, row in written.items():
        now = editions.minutes(cells_of(ROOT / "notebooks" / f"{name}.ipynb")).values()
        near = all(abs(int(then) - spent) <= 5 for then, spent in zip(row.split("|"), now, strict=True))
        assert near, f"{name} has changed: python -m lrp.build.editions --times"


def test_minutes():
    cells = [("markdown", "word " * 1000, None), ("code", "x = 1\n\n" * 75, None)]
    now = editions.minutes(nbformat.from_dict(notebook(cells)).cells)
    assert now == {"reading": 5, "code": 5, "lecture": 0, "exercises": 0}
    assert editions.minutes(nbformat.from_dict(notebook(CELLS)).cells)["exercises"] == 55


def test_the_course_is_read_within_three_hours():
    assert sum(editions.minutes(cells_of(path))["reading"] for path in REAL) <= 180


def test_times_are_printed(capsys):
    assert editions.main(["--times"]) == 0
    table = capsys.readouterr().out
    assert all(f"[{path.stem}]({path.name})" in table for path in REAL)
