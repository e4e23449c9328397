"""Old names of modules: each answers for one release, with a DeprecationWarning that names the new one.

`from lrp.skips import explain` and `from lrp import skips` still work; the module they give is `lrp.studies.skips`.
"""

import difflib
import importlib.abc
import importlib.util
import sys
from importlib import import_module
from pathlib import Path

from .errors import warn

ROOMS = {  # new folder: old names; with a new file name where there is one
    "": "interop:engine",
    "network": "kinds vocabulary:kinds graph gates relating constants opening opened recurrent translation recording "
    "tracing capture:tracing padding affine folding heads ends samples operators",
    "nodes": "steps products norms propagate sharing:propagate amounts refusals averages",
    "data": "datasets scenes models training downloads netcdf geospatial fields googlenet:networks "
    "caffe_cifar:networks cifar_resnet:networks climate_nets:field_networks",
    "evaluate": "metrics perturbation insertion localisation contribution:localisation randomisation baselines",
    "studies": "lrn trials:lrn contrastive skips masked dmbp dmbp_result echo_state artifacts comparison",
    "teach": "figures records drawings scorecard course explorer",
    "build": "environment gallery scorecard_page:pages contents:pages book book_pages book_api:book book_links:book "
    "editions slides slides_page:slides slides_story:slides notebook_keys:keys notebooks:runs notebook_lint:lint",
    "app": "answers command_line from_files",
}
MOVED = {
    entry.split(":")[0]: ".".join(filter(None, ["lrp", room, entry.split(":")[-1]]))
    for room, entries in ROOMS.items()
    for entry in entries.split()
}
MEASURED = ("coverage", "benchmark", "benchmark_report", "benchmark_metrics")  # they left the package


class _Forwarder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `lrp.OLD`, and loads the module that stands there now in its place."""

    def find_spec(self, name, path=None, target=None):
        package, _, old = name.rpartition(".")
        if package == "lrp" and old in MEASURED:
            raise ModuleNotFoundError(
                f"{name} is no part of the package any more: it stands in tests/bench/{old}.py of the repository, and "
                "runs by `make coverage` and `make bench`"
            )
        return importlib.util.spec_from_loader(name, self) if package == "lrp" and old in MOVED else None

    def exec_module(self, module):
        new = MOVED[module.__name__.removeprefix("lrp.")]
        warn(f"{module.__name__} is now {new}; the old name goes with the next release", DeprecationWarning)
        sys.modules[module.__name__] = import_module(new)


class Package(type(sys)):
    """The class of the package, so that an import of the old module `lrp.capture` does not hide the function."""

    def __setattr__(self, name, value):
        if not (name == "capture" and isinstance(value, type(sys))):
            super().__setattr__(name, value)


def module(name: str):
    """The module or folder `lrp.NAME`, for an attribute; raises AttributeError with what comes near."""
    here = Path(__file__).parent
    known = {*MOVED, *ROOMS, *(path.stem for path in here.glob("[a-z]*.py"))} - {""}
    if name in known:
        return import_module(f"lrp.{name}")
    near = difflib.get_close_matches(name, [*known, *sys.modules["lrp"].__all__], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ": see lrp.__all__ and the folders of lrp/"
    raise AttributeError(f"module 'lrp' has no attribute {name!r}{hint}")


sys.modules["lrp"].__class__ = Package
sys.meta_path.append(_Forwarder())  # asked last, after all that exists
