"""Generated tables of contents, links between notebooks, README's tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrp.build import pages
from lrp.build.keys import BuildError

ROOT = Path(__file__).resolve().parents[2]
FIRST = "# 0 · Start\n\n**Runs in** a second on two CPU cores.\n\n<!-- contents -->\nold\n<!-- /contents -->"
END = "<!-- navigation -->\n<!-- /navigation -->"


def notebook(*cells):
    made = [{"cell_type": "markdown", "id": str(i), "metadata": {}, "source": text} for i, text in enumerate(cells)]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def repository(tmp_path):
    """A repository of three notebooks with claims, as `run(*arguments)`, which gives the finished process."""
    books = {
        "00_start": (FIRST, END),
        "02_lrn": ("# 2 · What?\n\n**Runs in** about a minute on two CPU cores.", "## The layer\n\n## Summary", END),
        "03_clrp": ("# 3 · Which?\n\n**Runs in** two minutes on two CPU cores.", "## References\n\n" + END),
    }
    (tmp_path / "notebooks").mkdir()
    for stem, cells in books.items():
        (tmp_path / f"notebooks/{stem}.ipynb").write_text(notebook(*cells))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/numbers.json").write_text(json.dumps({"02_a": {}, "02_b": {}, "03_a": {}}))
    claims = {"02_x": {"verdict": "reproduced"}, "03_x": {"verdict": "not decided"}}
    (tmp_path / "figures/claims.json").write_text(json.dumps(claims))
    (tmp_path / "figures/coverage.csv").write_text(
        "library,network,outcome,conserved,same map,zennit,captum\n"
        "torchvision,a,explained,yes,yes,0.9999,TypeError\n"
        "torchvision,b,explained,no,no,nan,1.0\n"
        "torchvision,c,refused,,,1,2.0\n"
        "timm,d,explained,yes,not compared: softmax,,\n"
        "timm,e,raised,,,,\n"
    )
    costs = {"vgg16": {"Epsilon": [1, 3, 2], "ten targets": [9]}, "resnet50": {}}
    (tmp_path / "figures/benchmark.json").write_text(json.dumps({"cost": costs}))
    names = ("notebooks", "scorecard", "coverage", "benchmark")
    tables = "\n\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in names)
    (tmp_path / "README.md").write_text(f"# Name\n\n{tables}\n\nkept\n")

    def run(*arguments):
        command = [sys.executable, "-m", "lrp.build.pages", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | {"LRP_ROOT": str(tmp_path)}, capture_output=True, text=True, timeout=60
        )

    run.root = tmp_path
    return run


def source(repository, stem, cell):
    book = json.loads((repository.root / f"notebooks/{stem}.ipynb").read_text())
    return "".join(book["cells"][cell]["source"])


def test_tables_and_links_are_written_and_written_once(repository):
    assert repository("--check").returncode == 1
    assert repository().returncode == 0
    table = source(repository, "00_start", 0)
    assert "[2 · What?](02_lrn.ipynb)** Runs in about a minute.<br>The layer\n" in table
    assert "old" not in table and "Summary" not in table and "References" not in table
    links = source(repository, "02_lrn", 2)
    assert "← [Start](00_start.ipynb) · [contents](00_start.ipynb) · [Which?](03_clrp.ipynb) →" in links
    assert "→" not in source(repository, "03_clrp", 1) and "←" not in source(repository, "00_start", 1)
    readme = (repository.root / "README.md").read_text()
    assert (
        "| [02_lrn](notebooks/02_lrn.ipynb) | What? | Binder 2016 | [2](figures/README.md) | about a minute |" in readme
    )
    assert "2 claims in the quick profile: 1 reproduced, 0 not reproduced, 1 not decided" in readme
    assert (
        "| torchvision | 3 | 2 | 1 | 1 of 2 compared | 1 | 0 | 2 of 3 asked | 1 of 3 asked |" in readme
        and "| timm | 2 | 1 | 1 | 0 of 0 compared | 0 | 1 | – | – |" in readme
    )
    assert "| cost in gradients | vgg16 | resnet50 |" in readme and "| Epsilon | 2.00 | – |" in readme
    assert "ten targets" not in readme and readme.endswith("kept\n")
    before = {path: path.read_bytes() for path in repository.root.rglob("*.*")}
    assert repository("--check").returncode == 0 and repository().returncode == 0
    assert {path: path.read_bytes() for path in repository.root.rglob("*.*")} == before


def test_what_is_out_of_date_is_named(repository):
    repository()
    (repository.root / "figures/numbers.json").write_text("{}")
    result = repository("--check")
    assert result.returncode == 1 and result.stderr == "README.md: out of date, run `make contents`\n"


def test_a_notebook_that_does_not_say_how_long_it_runs_is_an_error(repository):
    (repository.root / "notebooks/04_new.ipynb").write_text(notebook("# 4 · New", END))
    result = repository()
    assert result.returncode == 2 and "04_new.ipynb" in result.stderr and "**Runs in**" in result.stderr


def test_a_text_without_its_comments_is_an_error():
    with pytest.raises(BuildError, match=r"README\.md lacks the comments <!-- x -->"):
        pages.put("nothing here", "x", "new", "README.md")
