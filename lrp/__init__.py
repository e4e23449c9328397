"""Layer-wise relevance propagation for PyTorch: a network is a graph, LRP is one walk back over it.

>>> from lrp import LRP, composites
>>> explainer = LRP(model, composites.EpsilonPlus())  # doctest: +SKIP
>>> relevance = explainer.attribute(x, target=3)  # doctest: +SKIP
"""

from . import composites, rules, seeds
from .capture import capture
from .engine import LRP
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
from .interop import quantus_explain
from .vocabulary import register

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
