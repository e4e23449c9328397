"""JupyterLab as a reader has it: the page that `make lab` opens, a whole notebook, and the explorer by keyboard."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    *("--no-browser", "--ip=127.0.0.1", "--ServerApp.port_retries=0", "--ServerApp.allow_root=True"),
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.expose_app_in_browser=True",  # the tests wait for the notebook's model, whatever is drawn of it
)
FAILURES = """() => [...jupyterapp.shell.currentWidget.content.model.cells].flatMap(cell =>
    (cell.toJSON().outputs ?? []).filter(o => o.output_type === "error" || String(o.text).includes("Traceback")))"""
FINISHED = """() => [...jupyterapp.shell.currentWidget.content.model.cells]
    .filter(cell => cell.type === "code").every(cell => cell.executionCount !== null)"""
SHOW = """id => { const notebook = jupyterapp.shell.currentWidget.content;
    const ids = [...notebook.model.cells].map(cell => cell.id);
    return notebook.scrollToItem(ids.indexOf(id), "start"); }"""


class Lab:
    """A JupyterLab of its own over a copy of the notebooks: `root` is the copy, `state` what Jupyter writes."""

    def __init__(self, folder: Path):
        self.root, self.state = folder / "copy", folder / "jupyter"
        for name in ("notebooks", "figures"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "full"))
        kernel = self.state / "data" / "kernels" / "python3" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        command = [sys.executable, *"-m ipykernel_launcher --log-level=CRITICAL -f {connection_file}".split()]
        kernel.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))

    @property
    def environment(self) -> dict[str, str]:
        """No file of the user's is read or written."""
        own = {f"JUPYTER_{kind.upper()}_DIR": str(self.state / kind) for kind in ("config", "data", "runtime")}
        return os.environ | own | {
            "JUPYTER_PATH": str(self.state / "data"),
            "JUPYTER_TOKEN": "token-of-the-tests",
            "IPYTHONDIR": str(self.state / "ipython"),
            "PYTHONPATH": str(ROOT),
            "LRP_FIGURES": str(self.state / "figures"),
        }  # fmt: skip

    @contextlib.contextmanager
    def running(self) -> Iterator["Lab"]:
        """Run what `make lab` runs, in the copy, on a free port; stop it at the end, and its kernels with it."""
        log, port = self.state / "log", free_port()
        with open(log, "w") as output:
            command = [*make_lab(), *OPTIONS, f"--ServerApp.port={port}"]
            server = subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        try:
            deadline = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/api"):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            runtime = self.state / "runtime"
            self.info = json.loads((runtime / f"jpserver-{server.pid}.json").read_text())
            one_file = runtime / f"jpserver-file-to-run-{server.pid}-open.html"
            self.opened = one_file if one_file.exists() else runtime / f"jpserver-{server.pid}-open.html"
            yield self
        finally:
            server.terminate()
            server.wait(timeout=60)

    def address(self, notebook: str) -> str:
        """Where this server shows a notebook, in a workspace without other tabs."""
        path = (self.root / "notebooks" / notebook).relative_to(self.info["root_dir"])
        return f"{self.info['url']}lab/workspaces/{path.stem}/tree/{path}?token={self.info['token']}"


def make_lab() -> list[str]:
    """The command of `make lab`."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    gone = ("MAKEFLAGS", "MAKELEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in gone} | {"VIRTUAL_ENV": sys.prefix}
    told = subprocess.run(["make", "-n", "lab"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return shlex.split(next(line for line in told.stdout.splitlines() if "jupyterlab" in line))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    pytest.importorskip("playwright.sync_api")
    with chromium() as browser, Lab(tmp_path_factory.mktemp("lab")).running() as running:
        running.browser = browser
        yield running


@pytest.fixture
def page(lab):
    page = lab.browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def test_make_lab_opens_the_first_notebook(lab, page):
    """The file that Jupyter hands to a browser leads to the start page, and its pictures are there."""
    if not (lab.root / "notebooks" / "00_start_here.ipynb").exists():
        pytest.skip("there is no notebooks/00_start_here.ipynb")
    page.goto(lab.opened.as_uri())
    page.locator(".jp-NotebookPanel .jp-RenderedMarkdown h1").first.wait_for()
    assert page.locator(".lm-TabBar-tab.lm-mod-current", has_text="00_start_here.ipynb").count() >= 1
    pictures = page.locator(".jp-NotebookPanel .jp-RenderedMarkdown img")
    page.wait_for_load_state("networkidle")
    broken = [picture for picture in pictures.all() if not picture.evaluate("img => img.naturalWidth")]
    assert not [picture.get_attribute("alt") for picture in broken]


def test_a_whole_notebook_runs_and_its_explorer_obeys_the_keyboard(lab, page):
    page.goto(lab.address("01_rules.ipynb"))
    page.locator(".jp-NotebookPanel h1", has_text="How does a prediction flow back").wait_for()
    page.wait_for_function("() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    page.wait_for_function(f"() => ({FINISHED})() || ({FAILURES})().length", timeout=400_000, polling=1000)
    assert page.evaluate(FAILURES) == []

    page.evaluate(SHOW, "explore")
    panel = page.locator(".jp-Cell", has_text="explorer.explore(networks").locator(".jp-OutputArea-output")
    picture = panel.locator("img").first
    picture.wait_for()
    assert "EpsilonGammaBox" in picture.get_attribute("alt")
    knob = panel.locator(".widget-hslider", has_text="γ").locator("[role=slider]")
    shown = picture.get_attribute("src")
    knob.focus()
    start = time.monotonic()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("([img, before]) => img.isConnected ? img.src !== before : true",
                           arg=[picture.element_handle(), shown], polling=20)  # fmt: skip
    changed = panel.locator("img").first
    assert changed.get_attribute("src") != shown and "gamma 0.32" in changed.get_attribute("alt")
    assert time.monotonic() - start < 5, "the map followed too slowly"
