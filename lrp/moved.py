"""Old names of modules: each answers for one release, with a DeprecationWarning that names the new one.

`from lrp.skips import explain` and `from lrp import skips` still work; the module they give is `lrp.studies.skips`.
"""

import difflib
import importlib.abc
import importlib.util
import sys
import types
import warnings
from importlib import import_module
from pathlib import Path

_ROOMS = {
    "data": "datasets scenes models training downloads netcdf geospatial fields",
    "evaluate": "metrics perturbation insertion localisation contribution randomisation baselines",
    "studies": "lrn trials contrastive skips masked dmbp dmbp_result echo_state artifacts comparison",
    "teach": "figures records drawings scorecard course explorer",
    "build": "environment gallery scorecard_page contents book book_pages book_api book_links editions slides "
    "slides_page slides_story",
    "app": "answers command_line from_files",
}
MOVED = {name: f"lrp.{room}.{name}" for room, names in _ROOMS.items() for name in names.split()} | {
    "vocabulary": "lrp.kinds",
    "capture": "lrp.tracing",
    "sharing": "lrp.propagate",
    "interop": "lrp.engine",
    **dict.fromkeys(("googlenet", "caffe_cifar", "cifar_resnet"), "lrp.data.networks"),
    "climate_nets": "lrp.data.field_networks",
    "notebook_keys": "lrp.build.keys",
    "notebooks": "lrp.build.runs",
    "notebook_lint": "lrp.build.lint",
}
MEASURED = ("coverage", "benchmark", "benchmark_report", "benchmark_metrics")  # they left the package
_FOLDERS = ("app", "build", "data", "evaluate", "studies", "teach")


class _Forwarder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `lrp.OLD`, and loads the module that stands there now in its place."""

    def find_spec(self, name, path=None, target=None):
        package, _, old = name.rpartition(".")
        if package != "lrp":
            return None
        if old in MEASURED:
            raise ModuleNotFoundError(
                f"lrp.{old} is no part of the package any more: it stands in tests/bench/{old}.py of the repository, "
                "and runs by `make coverage` and `make bench`",
                name=name,
            )
        return importlib.util.spec_from_loader(name, self) if old in MOVED else None

    def exec_module(self, module):
        new = MOVED[module.__name__.rpartition(".")[2]]
        warnings.warn(f"{module.__name__} is now {new}; the old name goes with the next release",
                      DeprecationWarning, stacklevel=_caller())  # fmt: skip
        sys.modules[module.__name__] = import_module(new)


def _caller() -> int:
    """The stacklevel of the code that imports: the nearest frame outside this package and Python's import machinery.

    (`warnings` does not count the frozen part of that machinery.)
    """
    frame, level = sys._getframe(1), 1
    inside = (str(Path(__file__).parent), str(Path(importlib.__file__).parent))
    while frame.f_back and frame.f_code.co_filename.startswith(("<frozen importlib", *inside)):
        frame = frame.f_back
        level += not frame.f_code.co_filename.startswith("<frozen importlib")
    return level


class _Package(types.ModuleType):
    """The package; an import of the old module `lrp.capture` does not hide the function of that name."""

    def __setattr__(self, name, value):
        if not (name == "capture" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


def answer(package: str) -> None:
    """Let the old names be found, after all that exists."""
    sys.modules[package].__class__ = _Package
    if not any(isinstance(finder, _Forwarder) for finder in sys.meta_path):
        sys.meta_path.append(_Forwarder())


def module(name: str):
    """The module `lrp.NAME` for an attribute that nobody has imported; raises AttributeError with what comes near."""
    here = Path(__file__).parent
    if name in MOVED or name in _FOLDERS or (here / f"{name}.py").is_file():
        return import_module(f"lrp.{name}")
    known = [*MOVED, *_FOLDERS, *(path.stem for path in here.glob("[a-z]*.py")), *sys.modules["lrp"].__all__]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ": see lrp.__all__ and the folders of lrp/"
    raise AttributeError(f"module 'lrp' has no attribute {name!r}{hint}")
