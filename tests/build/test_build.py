"""The build on a toy of two tiny notebooks: what is run again, and what a failure leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("__init__.py", "moved.py", "teach/__init__.py", "teach/figures.py", "teach/lrp.mplstyle", "teach/records.py"),
    *("teach/scorecard.py", "build/__init__.py", "build/runs.py", "build/keys.py", "build/gallery.py"),
    "build/pages.py",
)
PARAMETERS = "SEED: int = 0  # seed\nDEVICE: str = 'cpu'  # device\nPROFILE: str = 'quick'  # profile"
PLOT = """import matplotlib.pyplot as plt
from lrp.{module} import value
from lrp.teach.figures import save
fig, ax = plt.subplots(figsize=(1, 1))
ax.plot([0, value()])
save(fig, "{number}_line", caption="A line.", numbers={{"end": value(), "n": 2}})
from lrp.teach.scorecard import claim
claim("{number}_low", "It stays low.", value() < 3, shown={{"end": value()}}, source="binder2016layer")"""


def notebook(*cells: tuple[str, str]) -> str:
    """Return a notebook: one parameters cell, then (kind, source) cells."""
    made = [{"cell_type": "code", "id": "p", "metadata": {"tags": ["parameters"]}, "source": PARAMETERS}]
    made += [{"cell_type": kind, "id": f"c{i}", "metadata": {}, "source": s} for i, (kind, s) in enumerate(cells)]
    for cell in made:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    return json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


class Toy:
    """A small repository with the real build code."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("lrp/teach", "lrp/build", "notebooks"):
            (root / folder).mkdir(parents=True)
        for name in COPIED:
            shutil.copy(ROOT / "lrp" / name, root / "lrp" / name)
        shutil.copy(ROOT / "Makefile", root)
        self.write("lrp/build/environment.py", "")  # the environment of the tests is ready
        self.write("lrp/deep.py", "def number():\n    return 1.5\n")
        self.write("lrp/first.py", "from .deep import number\n\n\ndef value():\n    return number()\n")
        self.write("lrp/second.py", "def value():\n    return 2.5\n")
        self.write("environment.lock", "torch==2\n")
        self.write_notebooks()

    def write_notebooks(self, prose: str = "Words.", last: str = "") -> None:
        first = [("code", PLOT.format(module="first", number="01")), ("markdown", prose)]
        second = [("code", PLOT.format(module="second", number="02"))] + ([("code", last)] if last else [])
        self.write("notebooks/01_first.ipynb", notebook(*first))
        self.write("notebooks/02_second.ipynb", notebook(*second))

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def environment(self) -> dict:
        gone = ("MAKEFLAGS", "MAKELEVEL", "LRP_RUN", "LRP_FIGURES", "PROFILE", "SEED", "DEVICE", "BUILD")
        kept = {name: value for name, value in os.environ.items() if name not in gone}
        return kept | {"VIRTUAL_ENV": sys.prefix}

    def run(self, module: str, *arguments: str) -> subprocess.CompletedProcess:
        """Run a module of the build."""
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=self.root, env=self.environment(), capture_output=True, text=True)

    def make(self, *targets: str) -> tuple[int, set[str], str]:
        """Run make; return its status, the notebooks it ran, and all it printed."""
        result = subprocess.run(
            ["make", *targets], cwd=self.root, env=self.environment(), capture_output=True, text=True
        )
        output = result.stdout + result.stderr
        ran = set(re.findall(r"(\d\d)_\w+: running", output))
        return result.returncode, ran, output


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    return Toy(tmp_path_factory.mktemp("toy"))


def test_content_decides_what_runs(toy):
    """One story, in order: each step costs as few kernel starts as it can."""
    code, ran, output = toy.make("-j2", "figures")
    assert (code, ran) == (0, {"01", "02"}), output
    numbers = (toy.root / "figures/numbers.json").read_text()
    assert json.loads(numbers)["01_line"] == {
        "end": {"value": 1.5, "rtol": 1e-3, "atol": 1e-6},
        "n": {"value": 2},
    }
    gallery = (toy.root / "figures/README.md").read_text()
    assert "![A line.](01_line.png)" in gallery and "../notebooks/02_second.ipynb" in gallery

    claims = json.loads((toy.root / "figures/claims.json").read_text())
    assert {name: record["verdict"] for name, record in claims.items()} == {
        "01_low": "reproduced",
        "02_low": "reproduced",
    }
    assert "Quick profile: 2 reproduced, 0 not" in (toy.root / "figures/scorecard.md").read_text()

    code, ran, output = toy.make("figures")
    assert (code, ran) == (0, set()), output

    for path in toy.root.rglob("*"):
        os.utime(path)
    toy.write_notebooks(prose="Other words.")
    assert toy.make("figures")[:2] == (0, set()), "touched files and edited prose cost nothing"

    assert toy.make("check")[0] == 0
    toy.write("lrp/deep.py", "def number():\n    return 1.6\n")
    code, ran, output = toy.make("figures")
    assert (code, ran) == (0, {"01"}) and "changed: lrp/deep.py" in output, "a module's importers, also indirect"

    picture = toy.root / "figures/02_line.png"
    picture.write_bytes(picture.read_bytes()[:-20])
    code, ran, output = toy.make("figures")
    assert (code, ran) == (0, {"02"}) and "02_line.png is missing or cut short" in output
    assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("text", ["", "{", "[1]", "<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n"])
def test_numbers_that_cannot_be_read_stop_the_build_before_a_notebook_runs(toy, text):
    """Runs after the story above, so the notebooks are fresh and are forced."""
    numbers = toy.root / "figures/numbers.json"
    now = numbers.read_text()
    numbers.write_text(text)
    code, ran, output = toy.make("01", "FORCE=1")
    merged = toy.run("lrp.build.gallery", "merge")
    assert numbers.read_text() == text, "what a merge of git left is not overwritten"
    numbers.write_text(now)
    assert code != 0 and ran == set() and "Traceback" not in output
    for said in (output, merged.stderr):
        assert "figures/numbers.json is no sound JSON" in said and "git checkout HEAD -- figures/numbers.json" in said
    assert merged.returncode == 2
    assert toy.make("01")[:2] == (0, set()), "what was fresh still is"


def test_check_names_what_is_not_reproduced(toy):
    """Runs after the story above: the last commit says 1.5, the code now says 1.6."""
    numbers = toy.root / "figures/numbers.json"
    now = numbers.read_text()
    numbers.write_text(now.replace("1.6", "1.5"))
    code, _, output = toy.make("check")
    numbers.write_text(now)
    assert code != 0 and "01_line end" in output and "1.5" in output and "1.6" in output

    claims = toy.root / "figures/claims.json"
    now = claims.read_text()
    claims.write_text(now.replace('"verdict": "reproduced"', '"verdict": "not reproduced"', 1))
    code, _, output = toy.make("check")
    claims.write_text(now)
    assert code != 0 and re.search(r"claim 01_low verdict +not reproduced +reproduced", output), output
    assert "02_low" not in output


def test_a_failure_never_looks_done(toy):
    toy.write_notebooks(last="before = 1\nraise ValueError('the cell is broken')")
    toy.write("lrp/deep.py", "def number():\n    return 3.5\n")
    toy.write("lrp/second.py", "def value():\n    return 4.5\n")
    code, ran, output = toy.make("figures")
    assert code != 0 and ran == {"01", "02"}, "the other notebook runs all the same"
    assert "the cell is broken" in output and "raise ValueError" in output
    assert "build/quick/02_second.failed.ipynb" in output
    assert (toy.root / "build/quick/02_second.failed.ipynb").exists()
    assert not (toy.root / "build/quick/02_second.key").exists()
    assert toy.make("check")[0] != 0
    states = toy.make("status")[2].splitlines()
    assert [line.split(maxsplit=1) for line in states] == [["01_first", "fresh"], ["02_second", "failed last time"]]

    assert "02_low" in (toy.root / "build/quick/02_second.json").read_text(), "it failed after its claim"
    assert toy.make("01")[:2] == (0, set())
    claims = json.loads((toy.root / "figures/claims.json").read_text())
    assert claims["01_low"]["verdict"] == "not reproduced"
    assert claims["02_low"]["verdict"] == "reproduced", "a failed run changes no claim"
    assert claims["02_low"]["numbers"]["shown/end"]["value"] == 2.5


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_is_not_fresh(toy, number):
    toy.write_notebooks(
        last="import os, pathlib, time\npathlib.Path('../pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    )
    pid = toy.root / "pid"
    pid.unlink(missing_ok=True)
    command = [sys.executable, "-m", "lrp.build.runs", "run", "02", "-p", "PROFILE=quick"]
    # A background job of a shell without job control ignores SIGINT, and so does all that it starts: listen again.
    listening = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, cwd=toy.root, env=toy.environment(), stderr=subprocess.PIPE, text=True, preexec_fn=listening
    ) as process:
        while not (pid.exists() and pid.read_text()) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode != 0, errors
    assert not (toy.root / "build/quick/02_second.key").exists()
    state = toy.run("lrp.build.runs", "status").stdout.splitlines()[1]
    assert re.search(r"02_second +stopped before its end$", state), state
    if number != signal.SIGKILL:
        assert "interrupted" in errors and "FAILED" not in errors
    kernel, patience = int(pid.read_text()), time.monotonic() + 300  # the kernel goes too, instead of sleeping on
    while alive(kernel):
        if time.monotonic() > patience:
            os.kill(kernel, signal.SIGKILL)
            pytest.fail("the kernel outlived its run")
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_parameters_must_be_known(toy):
    result = toy.run("lrp.build.runs", "run", "01", "-p", "SEEDD=3")
    assert result.returncode == 2 and "no parameter SEEDD" in result.stderr
    bare = json.loads((toy.root / "notebooks/01_first.ipynb").read_text())
    bare["cells"][0]["metadata"] = {}
    toy.write("notebooks/03_bare.ipynb", json.dumps(bare))
    result = toy.run("lrp.build.runs", "run", "03")
    (toy.root / "notebooks/03_bare.ipynb").unlink()
    assert result.returncode == 2 and "needs one" in result.stderr


def test_keys_follow_every_kind_of_import(toy):
    toy.write("lrp/a.py", "import lrp.b\nfrom . import c\n")
    toy.write("lrp/b.py", "from lrp import d\n")
    toy.write("lrp/c.py", "from .e import x\n")
    toy.write("lrp/d.py", "def late():\n    from lrp.f import y\n")
    toy.write("lrp/e.py", "import torch\n")
    toy.write("lrp/f.py", "from .inner import g\n")
    (toy.root / "lrp/inner").mkdir()
    toy.write("lrp/inner/__init__.py", "")
    toy.write("lrp/inner/g.py", "from ..a import thing\n")
    toy.write("notebooks/04_imports.ipynb", notebook(("code", "%matplotlib inline\nfrom lrp.a import thing")))
    result = toy.run("lrp.build.runs", "why", "04")
    (toy.root / "notebooks/04_imports.ipynb").unlink()
    named = {word for word in result.stdout.split() if word.startswith("lrp/")}
    assert named == {f"lrp/{name}.py" for name in ("__init__", "moved", *"abcdef", "inner/__init__", "inner/g")}
