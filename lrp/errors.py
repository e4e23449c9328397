"""What can go wrong, by name: every message says which thing it is about and how to go on."""


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
