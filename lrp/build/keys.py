"""What a notebook's results depend on, as a short text: its key.

Hashes of its code cells, of the `lrp` modules they import (followed recursively), of `environment.lock` and of the
data files in the repository, plus parameters and versions. Prose, outputs and times of files play no part.
Standard library only, so `make` reads keys in milliseconds.
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ..teach.records import write as write  # for all that build

ROOT = Path(os.environ.get("LRP_ROOT") or Path(__file__).resolve().parents[2])
# Modules whose importers read the data files of the repository
DATA_MODULES = {f"lrp/data/{name}.py" for name in ("datasets", "models", "training", "downloads")}
VERSIONS = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "matplotlib")


class BuildError(Exception):
    """A notebook cannot be run as asked; the message says why."""


def short_hash(content: bytes | str) -> str:
    """Return twelve hex digits of the SHA-256."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:12]


def read(path: Path) -> dict:
    """Return the JSON object in a file, or an empty one without the file. Raises BuildError if it holds no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} instead of an object")
    except ValueError as error:
        name = os.path.relpath(path, ROOT)
        fix = f"take the committed one, `git checkout HEAD -- {name}`, or delete what git does not hold"
        raise BuildError(f"{name} is no sound JSON ({error}), cut short or left by a merge: {fix}") from error
    return found


def figures_folder(profile: str, build: str) -> Path:
    """Return where the figures of a profile go; those of smoke runs stay in `build`."""
    if build == "smoke":
        return ROOT / "build" / build / "figures"
    return ROOT / "figures" / ("full" if profile == "full" else "")


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold a lock in `build`: what needs it in parallel jobs runs one after the other."""
    import fcntl

    path = ROOT / "build" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def notebooks() -> list[Path]:
    """Return the numbered notebooks in order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def find(name: str) -> Path:
    """Return the notebook with this number or stem. Raises BuildError if there is none."""
    for path in notebooks():
        if name in (path.stem, path.stem[:2]):
            return path
    raise BuildError(f"no notebook {name}; there are: {', '.join(p.stem for p in notebooks()) or 'none'}")


def code_cells(notebook: Path) -> list[dict]:
    """Return code cells as {id, source, tags}."""
    return [
        {"id": cell.get("id", ""), "source": "".join(cell["source"]), "tags": cell["metadata"].get("tags", [])}
        for cell in read(notebook)["cells"]
        if cell["cell_type"] == "code"
    ]


def parse(source: str) -> ast.Module:
    """Parse the Python of a cell without its magics. Code with an error counts as empty: the run shows the error."""
    lines = ["pass" if re.match(r"\s*[%!]", line) else line for line in source.splitlines()]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.parse("")


def parameters(notebook: Path) -> set[str]:
    """Return the names in the cell tagged `parameters`. Raises BuildError if there is no such cell."""
    cells = [cell for cell in code_cells(notebook) if "parameters" in cell["tags"]]
    if len(cells) != 1:
        raise BuildError(f"{notebook.name} has {len(cells)} cells tagged 'parameters', and needs one")
    return set().union(*map(assigned, parse(cells[0]["source"]).body))


def assigned(statement: ast.stmt) -> set[str]:
    """Return the names that an assignment gives; none for another statement."""
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
    return {target.id for target in targets if isinstance(target, ast.Name)}


def imported(tree: ast.Module, home: str = "") -> set[Path]:
    """Return the files of `lrp` that this code imports, absolutely or relatively to `home` ("lrp.data")."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = home.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    paths = (name.split(".") for name in names if name.split(".")[0] == "lrp")
    places = {ROOT.joinpath(*path[:i]) for path in paths for i in range(1, len(path) + 1)}  # the packages above run too
    return {file for place in places for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()}


def modules(notebook: Path) -> list[Path]:
    """Return every `lrp` file that running the notebook can import, directly or through others."""
    todo = set().union(*(imported(parse(cell["source"])) for cell in code_cells(notebook)))
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        seen.add(file)
        home = ".".join(file.parent.relative_to(ROOT).parts)
        todo |= imported(parse(file.read_text(encoding="utf-8")), home) - seen
    if ROOT / "lrp/teach/figures.py" in seen:
        seen |= set((ROOT / "lrp/teach").glob("*.mplstyle"))
    return sorted(seen)


def data_files() -> list[Path]:
    """Return the data files that come with the repository (not downloads, caches or prose)."""
    files = (path for path in sorted((ROOT / "data").rglob("*")) if path.is_file())
    files = (path for path in files if not path.name.endswith((".md", ".part", ".tmp")))
    return [path for path in files if not {"raw", "cache", "__pycache__"} & set(path.relative_to(ROOT / "data").parts)]


def downloads() -> str:
    """Return a listing (names and sizes) of the data that the full profile may find outside git."""
    folders = filter(None, [str(ROOT / "data" / "raw"), os.environ.get("LRP_DATA", "")])
    files = (path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return "\n".join(f"{path} {path.stat().st_size}" for path in files)


def version(distribution: str) -> str:
    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return f"{distribution} none"


def key(notebook: Path, overrides: dict) -> str:
    """Return the text that names everything the notebook's results depend on, one line each."""
    cells = json.dumps([[cell["source"].strip(), cell["tags"]] for cell in code_cells(notebook)])
    lines = [f"{short_hash(cells)}  code cells"]
    lines += [f"{name}={value!r}  parameter" for name, value in sorted(overrides.items())]
    files = modules(notebook) + [path for path in [ROOT / "environment.lock"] if path.exists()]
    if DATA_MODULES & {path.relative_to(ROOT).as_posix() for path in files}:
        files += data_files()
        if overrides.get("PROFILE") == "full":
            lines.append(f"{short_hash(downloads())}  downloaded data")
    lines += [f"{short_hash(path.read_bytes())}  {path.relative_to(ROOT).as_posix()}" for path in files]
    lines.append(", ".join(["Python " + sys.version.split()[0], *map(version, VERSIONS)]))
    return "\n".join(lines) + "\n"
