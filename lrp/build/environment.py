"""Make the Python environment ready, once: `make` calls this first, and it returns at once when nothing
changed.

Where packages go: an active virtual environment or conda environment (not conda's `base`), otherwise `.venv`
in the repository. `.venv` gets exactly `environment.lock`; an active environment that already satisfies the
bounds of `pyproject.toml` is used as it is, and brought to the lock otherwise.

Ready means that a stamp file, named by a hash of everything the set-up depends on, lies in the environment.
It is written last, so an interrupted set-up is never taken for a finished one.

Standard library only; run so any Python can run it: `python -m lrp.build.environment PREFIX`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAMP = ".lrp-ready-"
UNFINISHED = ".lrp-unfinished"  # lies in .venv while packages are being installed


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def stamp(prefix: Path) -> Path:
    """Return the stamp that says: this lock, these bounds, this Python, this checkout."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    for name in ("environment.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return prefix / (STAMP + digest.hexdigest()[:16])


def unsatisfied(requirements: list[str]) -> list[str]:
    """Return those of the requirements (`name>=1.2`, `name==1.2`) that this environment does not satisfy."""

    def release(version: str) -> list[int]:
        return [int(part) for part in re.match(r"[\d.]*", version)[0].strip(".").split(".") if part]

    missing = []
    for requirement in requirements:
        name, relation, bound = re.fullmatch(r"([\w.-]+)(>=|==)([\d.]+)", requirement).groups()
        try:
            have = release(metadata.version(name))
        except metadata.PackageNotFoundError:
            missing.append(requirement)
            continue
        if have < release(bound) or (relation == "==" and have != release(bound)):
            missing.append(requirement)
    return missing


def run(*command: str | Path) -> None:
    """Run a command with its output shown. Raises SetupError when it fails."""
    code = subprocess.call([str(part) for part in command], cwd=ROOT)
    if code:
        raise SetupError(f"failed ({code}): {' '.join(str(part) for part in command)}")


def create(prefix: Path) -> None:
    """Make an empty virtual environment; what an unfinished or broken one left is removed first."""
    print(
        f"[env] new virtual environment {prefix.name} with Python {sys.version.split()[0]} (a few seconds)",
        flush=True,
    )
    python = sys._base_executable  # this may run inside the environment that is about to go
    shutil.rmtree(prefix, ignore_errors=True)
    try:
        run(python, "-m", "venv", prefix)
    except SetupError as error:
        shutil.rmtree(prefix, ignore_errors=True)
        raise SetupError(
            f"{python} cannot make a virtual environment: its venv module is missing or incomplete.\n"
            "Install it (Debian, Ubuntu: apt install python3-venv), name another Python\n"
            "(make env PYTHON=python3.12), or use conda:\n"
            "conda env create -f environment.yml && conda activate lrp"
        ) from error


def install(prefix: Path, own: bool) -> None:
    """Install what is missing into the running environment, then this package, then write the stamp."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    missing = unsatisfied(requirements)
    if own or missing:
        if own:
            (prefix / UNFINISHED).touch()
        else:
            print(f"[env] {prefix} lacks: {', '.join(missing)}", flush=True)
        print(
            "[env] 1/2 packages of environment.lock: on Linux (PyTorch with CUDA) a download of 2.7 GB that "
            "takes 6 GB of disk, on macOS much less; about 3 to 10 minutes, once",
            flush=True,
        )
        run(*pip, "-r", "environment.lock")
    else:
        print(f"[env] 1/2 {prefix} satisfies pyproject.toml and is used as it is", flush=True)
    print("[env] 2/2 this package, linked into the environment (a few seconds)", flush=True)
    isolation = ["--no-build-isolation"] if not unsatisfied(["setuptools>=77"]) else []
    run(*pip, "--quiet", "--no-deps", *isolation, "-e", ".")
    for old in prefix.glob(STAMP + "*"):
        old.unlink()
    (prefix / UNFINISHED).unlink(missing_ok=True)
    stamp(prefix).touch()
    print("[env] ready", flush=True)


def ready(prefix: Path) -> None:
    """Make the environment at `prefix` ready. Raises SetupError when that is impossible."""
    own = prefix == ROOT / ".venv"
    inside = Path(sys.prefix).resolve() == prefix.resolve()
    if inside and stamp(prefix).exists():
        return
    if not own and not inside:
        raise SetupError(
            f"the active environment {prefix} has no Python 3.11 or newer: activate another\n"
            "one, or deactivate it and make will use a .venv of its own"
        )
    if own and (not inside or (prefix / UNFINISHED).exists() or not shutil.which("pip", path=prefix / "bin")):
        create(prefix)
        sys.stdout.flush()
        new_python = str(prefix / "bin" / "python")
        os.execv(new_python, [new_python, "-m", "lrp.build.environment", str(prefix), "--install"])
    install(prefix, own)


def main() -> int:
    """Command line: PREFIX, and --install when called again from inside a new environment."""
    prefix = Path(os.path.abspath(sys.argv[1]))
    try:
        if "--install" in sys.argv[2:]:
            install(prefix, own=True)
        else:
            ready(prefix)
    except SetupError as error:
        print(f"[env] error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n[env] interrupted: the next make starts the set-up again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
