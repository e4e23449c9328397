"""Make the Python environment ready, once: `make` calls this first, and it returns at once when nothing changed.

Packages go into an active virtual or conda environment (not conda's `base`), which is brought to `environment.lock`
only if it does not satisfy the bounds of `pyproject.toml`; otherwise into `.venv`, which gets exactly the lock.
Ready means that a stamp lies in the environment, named by a hash of what the set-up depends on and written last.
Standard library only, so that any Python can run it: `python -m lrp.build.environment PREFIX`.
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

    def satisfied(requirement: str) -> bool:
        name, relation, bound = re.fullmatch(r"([\w.-]+)(>=|==)([\d.]+)", requirement).groups()
        try:
            have = release(metadata.version(name))
        except metadata.PackageNotFoundError:
            return False
        return have == release(bound) or (relation == ">=" and have > release(bound))

    return [requirement for requirement in requirements if not satisfied(requirement)]


def say(text: str) -> None:
    print(f"[env] {text}", flush=True)  # before the output of the command that follows


def run(*command: str | Path) -> None:
    """Run a command with its output shown. Raises SetupError when it fails."""
    code = subprocess.call([str(part) for part in command], cwd=ROOT)
    if code:
        raise SetupError(f"failed ({code}): {' '.join(str(part) for part in command)}")


def create(prefix: Path) -> None:
    """Make an empty virtual environment; what an unfinished or broken one left is removed first."""
    say(f"new virtual environment {prefix.name} with Python {sys.version.split()[0]}")
    python = sys._base_executable  # this may run inside the environment that is about to go
    shutil.rmtree(prefix, ignore_errors=True)
    try:
        run(python, "-m", "venv", prefix)
    except SetupError as error:
        shutil.rmtree(prefix, ignore_errors=True)
        raise SetupError(
            f"{python} has no complete venv module. Install it (Debian, Ubuntu: apt install python3-venv), name\n"
            "another Python (make env PYTHON=python3.12), or use conda:\n"
            "conda env create -f environment.yml && conda activate lrp"
        ) from error


def install(prefix: Path, own: bool) -> None:
    """Install what is missing into the running environment, then this package, then write the stamp."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    missing = unsatisfied(requirements)
    if own:
        (prefix / UNFINISHED).touch()
    if own or missing:
        say(f"{prefix} lacks: {', '.join(missing)}")
        say("packages of environment.lock, once: on Linux a download of 2.7 GB (6 GB of disk), about 3 to 10 minutes")
        run(*pip, "-r", "environment.lock")
    else:
        say(f"{prefix} satisfies pyproject.toml and is used as it is")
    isolation = ["--no-build-isolation"] if not unsatisfied(["setuptools>=77"]) else []
    run(*pip, "--quiet", "--no-deps", *isolation, "-e", ".")
    for old in prefix.glob(STAMP + "*"):
        old.unlink()
    (prefix / UNFINISHED).unlink(missing_ok=True)
    stamp(prefix).touch()
    say("ready")


def ready(prefix: Path) -> None:
    """Make the environment at `prefix` ready. Raises SetupError when that is impossible."""
    own = prefix == ROOT / ".venv"
    inside = Path(sys.prefix).resolve() == prefix.resolve()
    if inside and stamp(prefix).exists():
        return
    if not own and not inside:
        raise SetupError(
            f"the active environment {prefix} has no Python 3.11 or newer: activate another one, or\n"
            "deactivate it and make will use a .venv of its own"
        )
    if own and (not inside or (prefix / UNFINISHED).exists() or not shutil.which("pip", path=prefix / "bin")):
        create(prefix)
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
