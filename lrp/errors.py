"""What can go wrong, by name: every message says which thing it is about and how to go on."""

import importlib
import sys
import warnings
from pathlib import Path


class LRPError(Exception):
    """Base of all errors raised by this package."""


class CaptureError(LRPError):
    """The model could not be turned into a graph that reproduces its output."""


class NeedsExample(CaptureError):
    """The model could not be traced without an input at hand."""


class UnsupportedOperation(LRPError):
    """Relevance reached an operation for which no rule is known."""


class InputError(LRPError):
    """The input, or the model's weights or mode, cannot be explained as they are."""


class TargetError(LRPError):
    """The target does not name classes of the model's output."""


class DataError(LRPError):
    """A data file or checkpoint is missing, incomplete or not what it should be."""


class LRPWarning(UserWarning):
    """The explanation was computed, but its ledger does not balance as it should."""


def warn(message: str, category: type[Warning] = LRPWarning) -> None:
    """Give a warning at the caller's line: the nearest frame outside the package, torch and importlib."""
    homes = [Path(__file__).parent, Path(importlib.__file__).parent]
    homes += [Path(sys.modules["torch"].__file__).parent] if "torch" in sys.modules else []
    inside, frame = ("<frozen importlib", *(f"{home}/" for home in homes)), sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    seen = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, registry=seen)
