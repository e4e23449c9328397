"""The house: which folder may import which, held against every import, and what the old names of modules still do."""

import ast
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import lrp
from lrp.moved import MOVED

PACKAGE = Path(lrp.__file__).parent
CORE = {"", "network", "nodes"}  # "" is the package's root
MAY_IMPORT = {  # folders, or files of the root by name
    "": CORE,
    "network": {"errors", "checks"},
    "nodes": {"network", "errors", "checks", "parts", "rules"},
    "data": CORE,
    "evaluate": CORE,
    "studies": CORE | {"data", "evaluate"},
    "teach": CORE | {"data", "evaluate"},
    "build": {"teach"},
    "app": CORE | {"data", "evaluate", "teach"},
}
THE_DOOR = {"__main__.py": {"app"}}  # python -m lrp


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def folder(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(source: str, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """What this code imports of `lrp`, in functions and under TYPE_CHECKING too, as ("data", "models")."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            found |= {tuple(name.split(".")) for name in names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            found |= {(*base, name) for name in names}
    return {path[1:] for path in found if path[0] == "lrp"}


def complaints(source: str, room: str, name: str = "x.py") -> list[str]:
    """What of these imports the table does not allow, and how to mend it."""
    allowed = MAY_IMPORT[room] | {room} | THE_DOOR.get(name, set())
    wrong = []
    for path in sorted(imports(source, ("lrp", *filter(None, [room])))):
        target = path[0] if path and path[0] in MAY_IMPORT else ""
        if target == "" and path in (("moved",), ("__version__",)):
            continue
        if not allowed & {target, *path[:1]}:
            wrong.append(
                f"lrp/{room and room + '/'}{name} imports lrp.{'.'.join(path)}: {room or 'the root'} may import "
                f"{', '.join(sorted(filter(None, allowed)))}: move what it needs down, or it up"
            )
    return wrong


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    assert not complaints(path.read_text(encoding="utf-8"), folder(path), path.name)


def test_no_file_imports_an_old_name():
    old = MOVED.keys() - {"capture"}  # the function has this name too
    for path in files():
        package = ("lrp", *path.relative_to(PACKAGE).parts[:-1])
        assert not {p[0] for p in imports(path.read_text(encoding="utf-8"), package) if p} & old, path


def test_an_import_against_the_table_is_named():
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .teach import figures\n"
    late = "def f():\n    from ..studies.skips import explain\n"
    assert complaints(hidden, "") == [
        "lrp/x.py imports lrp.teach.figures: the root may import network, nodes: move what it needs down, or it up"
    ]
    assert complaints("from ..rules import Rule", "network") == [
        "lrp/network/x.py imports lrp.rules.Rule: network may import checks, errors, network: move what it needs down, "
        "or it up"
    ]
    assert complaints("from .. import walk", "nodes") and complaints("from ..nodes import steps", "network")
    assert not complaints("from ..rules import Rule\nfrom ..network import kinds\nfrom . import norms", "nodes")
    assert "lrp/data/x.py imports lrp.studies.skips.explain: data may import data" in complaints(late, "data")[0]
    assert not complaints("import lrp.rules\nfrom ..engine import LRP\nfrom . import models", "data")


def test_there_is_no_circle():
    """Importing a file never leads back to it (the package's own lazy names aside)."""
    reads = {}
    for path in files():
        if path.name == "__init__.py":
            continue
        own = path.relative_to(PACKAGE).with_suffix("").parts
        found = imports(path.read_text(encoding="utf-8"), ("lrp", *own[:-1]))
        reads[own] = {p[:n] for p in found for n in (1, 2) if PACKAGE.joinpath(*p[:n]).with_suffix(".py").is_file()}
    left = {name: {r for r in found if r in reads and r != name} for name, found in reads.items()}
    while leaves := {name for name, found in left.items() if not found & left.keys()}:
        left = {name: found for name, found in left.items() if name not in leaves}
    assert not left, f"these import each other: {', '.join('.'.join(name) for name in left)}"


def test_every_room_is_of_its_size():
    """The root is what one reads first. The core stays small enough to be read in an afternoon."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files()}
    assert not {path.name: n for path, n in lines.items() if n > 320}
    rooms = {room: [n for path, n in lines.items() if folder(path) == room] for room in MAY_IMPORT}
    assert not {room: len(found) for room, found in rooms.items() if len(found) > 20}
    assert sum(rooms[""]) <= 2700 and sum(sum(rooms[room]) for room in CORE) <= 6950 and sum(lines.values()) <= 17700


def test_no_function_is_longer_than_a_page():
    long = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 45:
                long.append(f"{path.relative_to(PACKAGE)}:{node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_nothing_forges_a_package():
    assert not [
        path for path in files() if "ModuleType(" in path.read_text() or 'sys.modules["lrp"] =' in path.read_text()
    ]


def python(code: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)


def test_import_waits_for_nothing():
    """`import lrp` and the command line's help load no torch; a bare Python can import the package."""
    heavy = "{'torch', 'numpy', 'matplotlib', 'sklearn', 'skimage', 'captum'} & {m.split('.')[0] for m in sys.modules}"
    ran = python(f"import lrp, sys; print({heavy})")
    assert ran.stdout.strip() == "set()", ran
    helped = f"import lrp.app.command_line as c, sys\ntry: c.main(['--help'])\nexcept SystemExit: print({heavy})"
    assert python(helped).stdout.strip().endswith("set()"), python(helped)
    assert python("import lrp; print(lrp.__version__)", "-S", "-E").stdout.strip() == lrp.__version__


def test_the_core_loads_nothing_else():
    code = (
        "import lrp, sys; [getattr(lrp, n) for n in lrp.__all__]; print(*(m for m in sys.modules if m[:4] == 'lrp.'))"
    )
    ran = python(code)
    assert not {name.split(".")[1] for name in ran.stdout.split()} & (MAY_IMPORT.keys() - CORE), ran


# ---------------------------------------------------------------- names


def test_every_old_name_answers_and_names_the_new_one():
    ran = python(
        "import warnings, lrp\nfrom lrp.moved import MOVED\n"
        "for old, new in MOVED.items():\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        exec(f'from lrp.{old} import __name__ as found')\n"
        "    assert found == new, (old, found)\n"
        "    said = [w for w in caught if str(w.message).startswith(f'lrp.{old} is now {new}')]\n"
        "    assert len(said) == 1 and said[0].category is DeprecationWarning, (old, said)\n"
        "    assert said[0].filename == '<string>', (old, said[0].filename)\n"
    )
    assert ran.returncode == 0, ran.stderr


def test_old_names_work_as_attributes_and_beside_functions():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import lrp\nfrom lrp import skips\nfrom lrp.studies import skips as new\nassert skips is new is lrp.skips\n"
        "from lrp.capture import capture\nassert lrp.capture is capture\n"
        "from lrp import capture as again\nassert again is capture\n"
        "from lrp import rules\nassert lrp.rules.ZPlus is rules.ZPlus\n"
        "assert lrp.composites.EpsilonPlus and lrp.studies\n"
        "assert lrp.kinds is lrp.network.kinds and lrp.steps is lrp.nodes.steps and lrp.vocabulary is lrp.kinds\n"
    )
    ran = python(code)
    assert ran.returncode == 0, ran.stderr


def test_an_unknown_name_says_what_comes_near():
    with pytest.raises(AttributeError, match=r"no attribute 'composits'; did you mean composites"):
        _ = lrp.composits
    with pytest.raises(AttributeError, match=r"no attribute 'qqq': see lrp.__all__ and the folders"):
        _ = lrp.qqq
    with pytest.raises(ModuleNotFoundError, match=r"tests/bench/benchmark.py.*make bench"):
        import_module("lrp.benchmark")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'lrp.nothing'"):
        import_module("lrp.nothing")


def test_the_new_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from lrp import LRP, Explanation, composites, quantus_explain, register, rules, seeds

        assert all((LRP, Explanation, composites, quantus_explain, register, rules, seeds))
