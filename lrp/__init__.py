"""Layer-wise relevance propagation for PyTorch: a network is a graph, LRP is one walk back over it.

>>> from lrp import LRP, composites
>>> explainer = LRP(model, composites.EpsilonPlus())  # doctest: +SKIP
>>> relevance = explainer.attribute(x, target=3)  # doctest: +SKIP

The core stands in this folder, with the two rooms `network` (a model becomes a graph) and `nodes` (what happens at one
node); all else in other folders of it: `data`, `evaluate`, `studies`, `teach`, `build`, `app`.
Names are imported when they are first used, so `import lrp` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import moved

if TYPE_CHECKING:  # for editors, and for the build, which follows imports without running them
    from . import composites, rules, seeds
    from .engine import LRP, quantus_explain
    from .errors import (
        CaptureError,
        DataError,
        InputError,
        LRPError,
        LRPWarning,
        TargetError,
        UnsupportedOperation,
    )
    from .explanation import Explanation
    from .network.kinds import register
    from .network.tracing import capture

__version__ = "0.1.0"

__all__ = [
    "LRP",
    "CaptureError",
    "DataError",
    "Explanation",
    "InputError",
    "LRPError",
    "LRPWarning",
    "TargetError",
    "UnsupportedOperation",
    "capture",
    "composites",
    "quantus_explain",
    "register",
    "rules",
    "seeds",
]

_HOMES = {"LRP": "engine", "quantus_explain": "engine", "Explanation": "explanation", "register": "network.kinds"}
_HOMES |= {"capture": "network.tracing"} | {
    name: "errors" for name in __all__ if name.endswith(("Error", "Warning", "Operation"))
}


def __getattr__(name: str):
    if name not in __all__ or name in ("composites", "rules", "seeds"):
        return moved.module(name)
    globals()[name] = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})
