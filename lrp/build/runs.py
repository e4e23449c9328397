"""Run the notebooks, each only when its content changed.

A run stores the notebook's key (`lrp/build/keys.py`) last. A notebook is *fresh* when the stored key equals the
present one and its figures exist, so a failed or interrupted run never looks done.

Standard library only (papermill is imported when something runs): `python -m lrp.build.runs {run,status,why,fresh}`.
"""

import argparse
import ast
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from ..teach.records import is_picture, write
from .keys import ROOT, BuildError, alone, figures_folder, find, key, notebooks, parameters, read

CELL_SECONDS = 600  # a cell of the quick profile that takes longer is stuck


class Build:
    """Where the runs of one profile keep their results: keys, executed copies, records of figures."""

    def __init__(self, name: str, overrides: dict):
        self.folder = ROOT / "build" / name
        self.overrides = overrides
        self.figures = figures_folder(str(overrides.get("PROFILE", "quick")), name)

    def file(self, notebook: Path, suffix: str) -> Path:
        return self.folder / f"{notebook.stem}{suffix}"

    def figures_of(self, notebook: Path) -> dict:
        """Return the figures that the last run recorded."""
        return read(self.file(notebook, ".json")).get("figures", {})

    def stale(self, notebook: Path) -> str | None:
        """Return why the notebook must run, or None when it is fresh."""
        stored = self.file(notebook, ".key")
        if not stored.exists():
            left = [self.file(notebook, suffix).exists() for suffix in (".failed.ipynb", ".part.ipynb", ".ipynb")]
            return "failed last time" if left[0] else "stopped before its end" if any(left) else "not run yet"
        old, new = stored.read_text(encoding="utf-8"), key(notebook, self.overrides)
        if old != new:
            lines = set(old.splitlines()) ^ set(new.splitlines())
            changed = sorted({line.split("  ", 1)[-1] for line in lines})
            return "changed: " + ", ".join(changed[:4]) + (", ..." if len(changed) > 4 else "")
        for name in self.figures_of(notebook):
            if not is_picture(self.figures / f"{name}.png"):
                return f"figure {name}.png is missing or cut short"
        return None if self.file(notebook, ".ipynb").exists() else "the executed copy is missing"


def say(text: str, stream=None) -> None:
    """Print in one piece, so that the lines of parallel jobs do not mix."""
    print(f"{text}\n", end="", file=stream, flush=True)


def threads() -> int:
    """Return the cores that each of make's parallel jobs may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = os.environ.get("MAKEFLAGS", "")
    jobs = re.search(r"(?:^|\s)-j\s*(\d+)", flags)
    unknown = cores if "--jobserver" in flags else 1  # GNU make 3.81 hides the number: assume one per core
    return max(1, cores // (int(jobs[1]) if jobs else unknown))


def environment(build: Build, notebook: Path) -> None:
    """Set what the kernel inherits: this interpreter, no file of the user's, where to save."""
    jupyter = ROOT / "build" / "jupyter"
    start = [sys.executable, *"-m ipykernel_launcher --log-level=CRITICAL -f {connection_file}".split()]
    spec = {"argv": start, "display_name": "Python 3", "language": "python"}
    write(jupyter / "kernels" / "python3" / "kernel.json", json.dumps(spec))
    os.environ.update(
        JUPYTER_PATH=str(jupyter),  # searched first: no python3 kernel of the user's can be picked
        IPYTHONDIR=str(ROOT / "build" / "ipython"),  # no start-up scripts of the user's
        PYTHONPATH=str(ROOT),
        PYTHONHASHSEED="0",
        PYDEVD_DISABLE_FILE_VALIDATION="1",
        LRP_RUN=str(build.file(notebook, ".json")),
        LRP_FIGURES=str(build.figures),
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(threads()))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def run(build: Build, notebook: Path, force: bool = False) -> bool:
    """Run a notebook if it is stale; return whether it is fresh now. Raises BuildError for bad parameters."""
    everything = notebooks()
    label = f"[{everything.index(notebook) + 1}/{len(everything)}] {notebook.stem}"
    if unknown := set(build.overrides) - parameters(notebook):
        known = ", ".join(sorted(parameters(notebook)))
        raise BuildError(f"{notebook.name} has no parameter {', '.join(sorted(unknown))}; it has: {known}")
    reason = "asked for" if force else build.stale(notebook)
    if reason is None:
        say(f"{label}: up to date")
        return True
    for name in ("numbers.json", "claims.json"):  # what the merge will read: better refused before hours of work
        read(build.figures / name)
    say(f"{label}: running ({reason})")
    for suffix in (".key", ".json", ".failed.ipynb"):  # from here on, only success looks like success
        build.file(notebook, suffix).unlink(missing_ok=True)
    before = key(notebook, build.overrides)
    build.folder.mkdir(parents=True, exist_ok=True)
    environment(build, notebook)
    part, failed = build.file(notebook, ".part.ipynb"), build.file(notebook, ".failed.ipynb")
    try:
        accelerated = str(build.overrides.get("DEVICE", "")).startswith(("cuda", "mps"))
        turn = alone("device") if accelerated else contextlib.nullcontext()  # parallel jobs take turns on it
        with turn:
            seconds = execute(build, notebook, part, label)
    except Exception as error:  # whatever stops a run is reported the same way
        report(label, error)
        if part.exists():
            part.replace(failed)
        say(f"{label}: FAILED" + (f", see {failed.relative_to(ROOT)}" if failed.exists() else ""), sys.stderr)
        return False
    part.replace(build.file(notebook, ".ipynb"))
    write(build.file(notebook, ".key"), before)
    say(f"{label}: {seconds:.0f} s, {len(build.figures_of(notebook))} figures")
    return True


def execute(build: Build, notebook: Path, part: Path, label: str) -> float:
    """Execute a notebook into the file `part`; return the seconds it took. Raises whatever papermill raises.

    A line on stderr tells every 20 s which cell is running.
    """
    import papermill

    begun, done, now = time.monotonic(), threading.Event(), ["starting the kernel"]

    def note(cell, cell_index):
        first = next((line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")), "")
        now[0] = f"cell {cell_index + 1}: {first.strip()[:50]}"

    def tell():
        while not done.wait(20):
            say(f"{label}: {time.monotonic() - begun:.0f} s, {now[0]}", sys.stderr)

    threading.Thread(target=tell, daemon=True).start()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(part),
            parameters=build.overrides,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=False,
            execution_timeout=None if build.overrides.get("PROFILE") == "full" else CELL_SECONDS,
            on_cell_execute=note,
        )
    finally:
        done.set()
    return time.monotonic() - begun


def report(label: str, error: Exception) -> None:
    """Print what a reader needs to find a failure: the error, the cell, the end of the traceback."""
    what = type(error).__name__
    if hasattr(error, "cell_index"):  # papermill's: the cell raised
        what = f"{error.ename} in cell {error.cell_index + 1}"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[-12:]
    say("\n    ".join([f"{label}: {what}", *lines]), sys.stderr)


def literal(text: str):
    """Return a parameter's value: a Python literal where it is one, otherwise the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def status(build: Build, chosen: list[Path]) -> int:
    """Print one line per notebook: fresh, or why it must run."""
    for notebook in chosen:
        print(f"{notebook.stem:32} {build.stale(notebook) or 'fresh'}")
    return 0


def why(build: Build, chosen: list[Path]) -> int:
    """Print the difference between the key of the last run (-) and the present one (+)."""
    for notebook in chosen:
        stored = build.file(notebook, ".key")
        old = stored.read_text(encoding="utf-8").splitlines() if stored.exists() else []
        new = key(notebook, build.overrides).splitlines()
        print(f"{notebook.stem}: {build.stale(notebook) or 'fresh'}")
        print(*(f"-{line}\n" for line in old if line not in new), sep="", end="")
        print(*(f"+{line}\n" for line in new if line not in old), sep="", end="")
    return 0


def fresh(build: Build, chosen: list[Path]) -> int:
    """Name what is not fresh; return 1 if there is any."""
    stale = {notebook.stem: reason for notebook in chosen if (reason := build.stale(notebook))}
    for name, reason in stale.items():
        print(f"{name}: {reason}; run `make figures` first", file=sys.stderr)
    return int(bool(stale))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the notebooks whose content changed.")
    parser.add_argument("command", choices=["run", "status", "why", "fresh"])
    parser.add_argument("notebook", nargs="*", help="number or name; default: all")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--build", help="folder under build/ (default: the profile)")
    parser.add_argument("--force", action="store_true", help="run also what is fresh")
    options = parser.parse_args(arguments)
    overrides = {name: literal(value) for name, _, value in (item.partition("=") for item in options.parameter)}
    build = Build(options.build or str(overrides.get("PROFILE", "quick")), overrides)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # make passes it on: stop as for Ctrl-C
    try:
        chosen = [find(name) for name in options.notebook] or notebooks()
        if options.command == "run":
            return int(not all([run(build, notebook, options.force) for notebook in chosen]))
        return {"status": status, "why": why, "fresh": fresh}[options.command](build, chosen)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was running is not done, and runs again next time", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
