"""The scorecard: verdicts are computed, records survive, and the page shows what both profiles found."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lrp.build import gallery
from lrp.build.lint import dead_links
from lrp.build.pages import row
from lrp.build.pages import scorecard as page
from lrp.evaluate.metrics import Interval, interval
from lrp.teach import figures, records, scorecard
from lrp.teach.scorecard import NOT_DECIDED, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, claim, untestable

ROOT = Path(__file__).resolve().parents[2]
BELOW = Interval(-1.2, -1.9, -0.5, 200)


JUDGING = """{"cells": [
  {"cell_type": "code", "id": "other", "metadata": {}, "source": "1 + 1"},
  {"cell_type": "code", "id": "judged", "metadata": {}, "source": "holds = scorecard.Sheet('02')"}
]}"""


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch) -> Path:
    """The record of a run of notebook 02."""
    monkeypatch.setenv("LRP_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("LRP_RUN", str(tmp_path / "02_toy.json"))
    forget(monkeypatch)
    yield tmp_path / "02_toy.json"
    plt.close("all")


def forget(monkeypatch):
    """Start a new run."""
    monkeypatch.setattr(records, "RUN", records.Run())


def recorded(path: Path) -> dict:
    return json.loads(path.read_text())["claims"]


# --- the sheet of a notebook --------------------------------------------------------------------------------


def test_a_sheet_collects_the_claims_of_its_notebook(run):
    sheet = scorecard.Sheet("02")
    first = sheet("a", "A holds", BELOW, expected="below")
    second = sheet.untestable("b", "B holds", "no data")
    assert [c.name for c in sheet.claims] == ["02_a", "02_b"] == list(recorded(run)) and sheet.claims == [first, second]
    assert [line[:2] for line in sheet._repr_markdown_().splitlines()] == ["* ", "* "]
    assert "reproduced" in repr(sheet).lower() and "B holds" in repr(sheet)
    with pytest.raises(ValueError, match="02_a"):
        sheet("a", "Another", BELOW, expected="above")


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "zero", "below"),
    [
        (-2.0, -1.0, 0.0, REPRODUCED),
        (-2.0, -1e-12, 0.0, REPRODUCED),
        (-2.0, 0.0, 0.0, NOT_DECIDED),  # an end that touches zero does not separate
        (-2.0, 1.0, 0.0, NOT_DECIDED),
        (0.0, 0.0, 0.0, NOT_DECIDED),
        (0.0, 2.0, 0.0, NOT_DECIDED),
        (1e-12, 2.0, 0.0, NOT_REPRODUCED),
        (0.4, 0.6, 0.5, NOT_DECIDED),
        (0.4, 0.6, 0.7, REPRODUCED),
        (0.4, 0.6, 0.3, NOT_REPRODUCED),
    ],
)
def test_the_interval_gives_the_verdict(low, high, zero, below):
    ours = Interval((low + high) / 2, low, high, 50)
    assert claim("02_a", "A is less.", ours, expected="below", zero=zero).verdict == below
    mirrored = {REPRODUCED: NOT_REPRODUCED, NOT_REPRODUCED: REPRODUCED, NOT_DECIDED: NOT_DECIDED}[below]
    assert claim("02_b", "A is more.", ours, expected="above", zero=zero).verdict == mirrored


def test_one_sample_decides_nothing():
    assert claim("02_a", "A is less.", interval(torch.tensor([-1.0])), expected="below").verdict == NOT_DECIDED
    assert claim("02_b", "A is less.", interval(torch.tensor([-1.0, -2.0])), expected="below").verdict == REPRODUCED


@pytest.mark.parametrize("true", [True, np.bool_(True), torch.tensor(True)])
def test_an_exact_claim_holds_or_does_not(true):
    made = claim("02_a", "The sum is kept.", true)
    assert made.verdict == REPRODUCED and made.record["numbers"]["ours"] == {"value": True}
    assert claim("02_b", "The sum is kept.", not true).verdict == NOT_REPRODUCED


def test_what_cannot_be_tested_says_why(run):
    assert untestable("02_a", "It holds on ImageNet.", "The table is\n not known.").verdict == NOT_TESTABLE
    assert recorded(run)["02_a"]["reason"] == "The table is not known."
    with pytest.raises(ValueError, match="needs a reason"):
        untestable("02_b", "It holds on ImageNet.", "  ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "taylor"}, "claim name 'taylor' must look like 01_slug"),
        ({"name": "03_a"}, "number of its notebook"),
        ({"statement": " "}, "needs a statement"),
        ({"expected": None}, "got None with a Interval"),
        ({"expected": "lower"}, "expected='below' or 'above'"),
        ({"ours": -1.2}, "with a float"),
        ({"ours": True}, "with a bool"),
        ({"ours": -1.2, "expected": None}, "or a bool alone; got None with a float"),
        ({"ours": Interval(0, float("nan"), 1, 9)}, "'ours/low' is nan"),
        ({"ours": Interval(0, 1, -1, 9)}, "cannot compare"),
        ({"zero": float("nan")}, "cannot compare"),
        ({"shown": {"x": float("inf")}}, "'shown/x' is inf"),
        ({"figure": "01_line"}, "another notebook"),
        ({"source": "nobody2020"}, "nobody2020.*binder2016layer"),
    ],
)
def test_what_cannot_be_kept_is_refused(run, change, message):
    good = {"name": "02_a", "statement": "A is less.", "ours": BELOW, "expected": "below"}
    with pytest.raises(ValueError, match=message):
        claim(**good | change)
    assert not run.exists()


def test_a_notebook_has_its_paper(monkeypatch):
    assert claim("02_a", "A.", True).record["source"] == "binder2016layer"
    assert claim("02_b", "A.", True, source="otsuki2024layer").record["source"] == "otsuki2024layer"
    monkeypatch.delenv("LRP_RUN")
    assert claim("06_a", "A.", True).record["source"] == "landthayen2023fact"
    with pytest.raises(ValueError, match="unknown source None"):
        claim("01_a", "A.", True)


# --- records ------------------------------------------------------------------------------------------------


def save(name: str = "02_line"):
    figures.save(plt.figure(figsize=(1, 1)), name, caption="Nothing.")


@pytest.mark.parametrize("order", ["fcfc", "ffcc", "ccff", "cffc"])
def test_claims_and_figures_do_not_lose_each_other(run, order):
    for i, kind in enumerate(order):
        save(f"02_{i}") if kind == "f" else claim(f"02_{i}", "A is less.", BELOW, expected="below")
    kept = json.loads(run.read_text())
    for kind, letter in (("figures", "f"), ("claims", "c")):
        assert set(kept[kind]) == {f"02_{i}" for i in range(4) if order[i] == letter}


def test_a_record_is_complete(run):
    shown = {"identity": Interval(37.0, 36.0, 38.0, 190, left_out=10), "ε": 0.01, "images": 200}
    made = claim("02_a", "A is  less.", BELOW, expected="below", shown=shown, paper="35 against 37", figure="02_line")
    assert json.loads(run.read_text()) == {"figures": {}, "claims": {"02_a": made.record}}
    assert made.record["statement"] == "A is less." and made.record["zero"] == 0.0
    numbers = made.record["numbers"]
    assert numbers["ours/low"] == {"value": -1.9, "rtol": 0.02, "atol": 0.005} and numbers["ours/n"] == {"value": 200}
    assert numbers["shown/identity/left_out"] == {"value": 10} and "ours/left_out" not in numbers
    made = claim("02_b", "A is less.", BELOW, expected="below", atol=1e-6)
    assert made.record["numbers"]["ours/mean"]["atol"] == 1e-6


def test_one_name_is_one_claim(run):
    for _ in range(2):
        claim("02_a", "A is less.", BELOW, expected="below")
    with pytest.raises(ValueError, match=r"claim 02_a was already saved.*other content"):
        claim("02_a", "A is less.", BELOW, expected="above")
    assert recorded(run)["02_a"]["verdict"] == REPRODUCED
    save("02_a")  # a figure may share the name


def test_interactive_use_leaves_committed_claims_alone(run, monkeypatch):
    monkeypatch.delenv("LRP_RUN")
    monkeypatch.delenv("LRP_FIGURES")
    monkeypatch.setattr(records, "INTERACTIVE", run.parent / "interactive")
    for expected in ("below", "above"):  # a cell runs again, changed
        claim("02_a", "A is less.", BELOW, expected=expected)
    claim("03_a", "B is less.", BELOW, expected="below")
    assert recorded(run.parent / "interactive/02.json")["02_a"]["verdict"] == NOT_REPRODUCED
    assert set(recorded(run.parent / "interactive/03.json")) == {"03_a"}
    assert not run.exists() and not (run.parent / "figures").exists()


def test_a_write_that_fails_leaves_the_record_whole(run, monkeypatch):
    claim("02_a", "A is less.", BELOW, expected="below")
    before = run.read_text()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        claim("02_b", "B is less.", BELOW, expected="below")
    assert run.read_text() == before
    assert [path.name for path in run.parent.glob("*.part")] == []


def test_a_claim_in_words():
    shown = {"identity": Interval(37.0, 36.0, 38.0, 190, left_out=10), "images": 1200, "low": 0.5, "kept": True}
    made = claim("02_a", "A is less.", BELOW, expected="below", shown=shown, paper="35 against 37", figure="02_line")
    assert repr(made) == (
        "reproduced: A is less. Ours: −1.2 [−1.9, −0.5], n = 200, claimed below 0 (identity 37 [36, 38], n = 190 "
        "(10 left out); images 1200; low 0.5; kept holds). Paper: 35 against 37. Shown in 02_line."
    )
    assert made._repr_markdown_().startswith("**reproduced**: A is less.")
    made = untestable("02_b", "It holds.", "No table.")
    assert repr(made) == "not testable here: It holds. Paper: no number known. Reason: No table."
    assert "Ours: does not hold." in repr(claim("02_c", "It holds.", False))


# --- the page and what is committed -------------------------------------------------------------------------


class Repository:
    """Notebooks and their finished runs, and the real gallery, run without third-party packages."""

    def __init__(self, root: Path, monkeypatch):
        self.root, self.monkeypatch = root, monkeypatch
        (root / "notebooks").mkdir(parents=True)
        for stem in ("02_lrn", "03_clrp"):
            (root / f"notebooks/{stem}.ipynb").write_text(JUDGING)

    def run(self, stem: str, claims: dict, profile: str = "quick", finished: bool = True) -> None:
        """Write what a run leaves behind; claims are {name: arguments of `claim`}."""
        path = self.root / f"build/{profile}/{stem}.json"
        path.with_suffix(".key").unlink(missing_ok=True)
        self.monkeypatch.setenv("LRP_RUN", str(path))
        self.monkeypatch.setenv("LRP_FIGURES", str(self.folder(profile)))
        forget(self.monkeypatch)
        save(f"{stem[:2]}_line")
        for name, arguments in claims.items():
            claim(name, **{"statement": "A is less.", "figure": f"{stem[:2]}_line", **arguments})
        if finished:
            path.with_suffix(".key").write_text("key")

    def gallery(self, command: str, profile: str = "quick", *more: str) -> tuple[int, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LRP_")}
        result = subprocess.run(
            [sys.executable, "-S", "-m", "lrp.build.gallery", command, "--profile", profile, *more],
            cwd=ROOT,
            env=environment | {"LRP_ROOT": str(self.root)},
            capture_output=True,
            text=True,
        )
        return result.returncode, result.stdout + result.stderr

    def merge(self, profile: str = "quick", *more: str) -> str:
        code, output = self.gallery("merge", profile, *more)
        assert code == 0, output
        return output

    def folder(self, profile: str = "quick") -> Path:
        return self.root / {"full": "figures/full", "smoke": "build/smoke/figures"}.get(profile, "figures")

    def claims(self, profile: str = "quick") -> dict:
        return json.loads((self.folder(profile) / "claims.json").read_text())

    @property
    def page(self) -> Path:
        return self.root / "figures/scorecard.md"


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Repository:
    return Repository(tmp_path / "repository", monkeypatch)


def less(low: float, high: float, n: int = 200, **more) -> dict:
    return {"ours": Interval((low + high) / 2, low, high, n), "expected": "below", **more}


def test_a_reproduced_claim_keeps_its_text_and_a_changed_one_does_not(repository):
    repository.run("02_lrn", {"02_a": less(-2, -1), "02_b": less(-2, -1), "02_c": less(-2, -1)})
    assert "3 claims" in repository.merge()
    before, page = (repository.folder() / "claims.json").read_text(), repository.page.read_text()
    assert '   "ours/low": {"value": -2.0, "rtol": 0.02, "atol": 0.005}' in before

    repository.run("02_lrn", {"02_a": less(-2.01, -0.99), "02_b": less(-2.01, -0.99), "02_c": less(-1.99, -1)})
    repository.merge()
    assert ((repository.folder() / "claims.json").read_text(), repository.page.read_text()) == (before, page)
    assert repository.gallery("check")[0] == 0

    repository.run("02_lrn", {"02_a": less(-2.01, -1), "02_b": less(-2.01, -0.5), "02_c": less(-2, -1, n=100)})
    code, output = repository.gallery("check")
    assert code == 1 and "claim 02_b ours/high" in output and "claim 02_c ours/n" in output and "02_a" not in output
    repository.merge()
    kept = {
        name: [record["numbers"][f"ours/{part}"]["value"] for part in ("low", "high", "n")]
        for name, record in repository.claims().items()
    }
    assert kept == {"02_a": [-2, -1, 200], "02_b": [-2.01, -0.5, 200], "02_c": [-2, -1, 100]}, "one interval, one run"


def test_a_changed_verdict_is_found_even_within_the_tolerance(repository):
    repository.run("02_lrn", {"02_a": less(-0.009, -0.001)})
    repository.merge()
    repository.run("02_lrn", {"02_a": less(-0.009, 0.001)})
    code, output = repository.gallery("check")
    assert code == 1 and re.search(r"claim 02_a verdict +reproduced +not decided", output)
    assert "ours" not in output, "the interval itself is within its tolerance"
    repository.merge()
    assert repository.claims()["02_a"]["verdict"] == NOT_DECIDED
    assert repository.claims()["02_a"]["numbers"]["ours/high"]["value"] == 0.001, "the interval that gave the verdict"
    assert repository.gallery("check")[0] == 0
    repository.run("02_lrn", {"02_b": less(-2, -1)})
    output = repository.gallery("check")[1]
    assert re.search(r"claim 02_a +committed +missing", output) and re.search(r"claim 02_b +new +regen", output)


def test_an_unfinished_run_changes_no_claim(repository):
    repository.run("02_lrn", {"02_a": less(-2, -1)})
    repository.run("03_clrp", {"03_a": less(-2, -1)})
    repository.merge()
    before = repository.page.read_text()
    repository.run("02_lrn", {"02_a": less(1, 2), "02_b": less(1, 2)}, finished=False)
    repository.merge()
    assert repository.page.read_text() == before and set(repository.claims()) == {"02_a", "03_a"}


def test_claims_go_with_their_notebook(repository):
    for profile in ("quick", "full"):
        repository.run("02_lrn", {"02_a": less(-2, -1)}, profile)
        repository.run("03_clrp", {"03_a": less(-2, -1)}, profile)
        repository.merge(profile)
    (repository.root / "notebooks/03_clrp.ipynb").unlink()
    for picture in repository.root.glob("figures/**/03_line.png"):
        picture.unlink()
    repository.merge()
    assert set(repository.claims()) == {"02_a"} and "03" not in repository.page.read_text()
    repository.merge("full")
    assert set(repository.claims("full")) == {"02_a"}
    repository.run("02_lrn", {}, "full")
    repository.merge("full")
    assert "| quick |" in repository.page.read_text() and not (repository.folder("full") / "claims.json").exists()
    repository.run("02_lrn", {})
    repository.merge()
    assert not repository.page.exists() and not (repository.folder() / "claims.json").exists()


def test_without_a_claim_there_is_no_page(repository):
    repository.run("02_lrn", {})
    assert "1 figures and 0 claims" in repository.merge()
    assert {path.name for path in repository.folder().iterdir()} == {"02_line.png", "README.md", "numbers.json"}


def test_both_profiles_share_one_page(repository):
    bars = "It holds for $|x|$, `a|b` and a\\|b"
    repository.run("02_lrn", {"02_a": less(-2, -1, paper="35 | 37"), "02_b": less(-1, 1, statement=bars)}, "full")
    repository.merge("full")
    alone = repository.page.read_text()
    assert "Full profile: 1 reproduced, 0 not reproduced, 1 not decided, 0 not testable here." in alone
    assert "Quick" not in alone and dead_links(alone, repository.folder()) == []

    repository.run("02_lrn", {"02_a": less(1, 2), "02_c": {"ours": True, "reason": "no | number"}})
    repository.run("03_clrp", {"03_a": less(-2, -1)})
    repository.merge()
    text = repository.page.read_text()
    assert "Quick profile: 2 reproduced, 1 not reproduced, 0 not decided, 0 not testable here. Full" in text
    assert dead_links(text, repository.folder()) == []
    assert "[02_line](02_line.png), [02_lrn](../notebooks/02_lrn.ipynb#cell-id=judged)" in text
    assert "[02_line](full/02_line.png), [02_lrn](../notebooks/02_lrn.ipynb#cell-id=judged)" in text
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == [scorecard.PAPERS[key].title for key in ("binder2016layer", "gu2018understanding")]

    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]
    assert {len(line) for line in cells} == {6}, "bars in the text do not split a cell"
    assert [(line[3], line[4]) for line in cells if line[3] in ("quick", "full")] == [
        ("quick", "**not reproduced**"),
        ("full", "**reproduced**"),
        ("full", "**not decided**"),
        ("quick", "**reproduced**: no \\| number"),
        ("quick", "**reproduced**"),
    ]
    assert cells[2][1:3] == ["no number known", "1.5 [1, 2], n = 200, claimed below 0"]
    assert cells[3][1] == "35 \\| 37" and cells[4][0] == "It holds for $\\|x\\|$, `a\\|b` and a\\|b"


def test_bars_are_escaped_once():
    assert row(["|", "\\|", "\\\\|", "a"]) == "| \\| | \\| | \\\\\\| | a |"


def test_a_figure_that_no_one_saved_is_a_complaint(repository):
    repository.run("02_lrn", {"02_a": less(-2, -1, figure="02_typo")})
    code, output = repository.gallery("merge")
    assert code == 1 and "claim 02_a names the figure 02_typo, which no notebook saved" in output


def test_a_smoke_run_leaves_the_page_alone(repository):
    repository.run("02_lrn", {"02_a": less(-2, -1)}, "smoke")
    repository.merge("quick", "--build", "smoke")
    assert not repository.folder().exists()
    text = (repository.folder("smoke") / "scorecard.md").read_text()
    assert text.count("| quick |") == 1 and "full" not in text
    assert dead_links(text, repository.folder("smoke")) == []


def test_a_paper_that_left_the_table_is_still_shown(tmp_path):
    made = claim("02_a", "A is less.", BELOW, expected="below").record | {"source": "old1999"}
    (tmp_path / "02_lrn.ipynb").write_text(JUDGING)
    text = page({"quick": {"02_a": made}}, {"quick": tmp_path}, [tmp_path / "02_lrn.ipynb"], tmp_path)
    assert "## old1999" in text and "| **reproduced** |" in text


def test_the_committed_page_is_the_generated_one():
    folders = {"quick": ROOT / "figures", "full": ROOT / "figures/full"}
    claims = {profile: gallery.read(folder / "claims.json") for profile, folder in folders.items()}
    path = ROOT / "figures/scorecard.md"
    text = path.read_text(encoding="utf-8") if path.exists() else None
    assert text == page(claims, folders, gallery.notebooks(), ROOT / "figures"), "make figures writes it"


def test_anything_with_the_parts_of_an_interval_decides():
    ours = SimpleNamespace(mean=np.float32(-1), low=np.float32(-2), high=np.float32(-0.5), n=np.int64(9))
    assert claim("02_a", "A is less.", ours, expected="below").verdict == REPRODUCED
