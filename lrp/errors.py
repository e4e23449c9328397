"""What can go wrong, by name: every message says which thing it is about and how to go on."""

import sys
import warnings
from pathlib import Path

HOME = Path(__file__).parent


class LRPError(Exception):
    """Base of all errors raised by this package."""


class CaptureError(LRPError):
    """The model could not be turned into a graph that reproduces its output."""


class UnsupportedOperation(LRPError):
    """Relevance reached an operation for which no rule is known."""


class InputError(LRPError):
    """The input, or the model's weights or mode, cannot be explained as they are."""


class TargetError(LRPError):
    """The target does not name classes of the model's output."""


class DataError(LRPError):
    """A data file or checkpoint is missing, incomplete or not what it should be."""


class LRPWarning(UserWarning):
    """The explanation was computed, but its books do not balance as they should."""


def warn(message: str) -> None:
    """Give an LRPWarning that points at the caller's line: the nearest frame outside the package and torch."""
    torch = sys.modules.get("torch")
    inside = tuple(f"{home}/" for home in (HOME, *([Path(torch.__file__).parent] if torch else [])))
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, LRPWarning, stacklevel=level)
