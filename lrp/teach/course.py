"""Self-checks of the exercises: right, not yet, or wrong, without a word of the answer.

`holds` tests properties of the answer, `check` compares a number or a choice with a salted digest, which does not show
the answer. Both return a `Verdict`, and raise no error for any answer of a reader. Check cells end in `.required()`,
which `lrp/build/editions.py` removes for students.
"""

import hashlib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import LRPError

SALT = "lrp course"


class NotRight(LRPError):
    """A reference solution does not pass the check of its exercise."""


@dataclass(frozen=True)
class Verdict:
    """What a check says: `state` is right, not yet or wrong, and `text` says why."""

    name: str
    state: str
    text: str = ""

    def __str__(self) -> str:
        return f"Exercise {self.name}: {self.state}" + (f". {self.text}" if self.text else ".")

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        sign = {"right": "✓", "not yet": "…", "wrong": "✗"}[self.state]
        return f"{sign} **Exercise {self.name}: {self.state}.** {self.text}"

    def required(self) -> "Verdict":
        """Return the verdict if it is right. Raises NotRight otherwise: the solution of the repository must pass."""
        if self.state != "right":
            raise NotRight(f"{self}\nThe solution before this cell or the check has changed: mend one of them.")
        return self


def missing(answer: object) -> bool:
    """Whether an answer, or a part of it, is still the `...` of the stub."""
    if isinstance(answer, Mapping):
        return any(map(missing, answer.values()))
    if isinstance(answer, (list, tuple, set)):
        return any(map(missing, answer))
    return answer is ... or answer is None


def holds(name: str, answer: object, properties: Mapping[str, Callable], hint: str = "") -> Verdict:
    """Judge an answer by its properties: {sentence: function of the answer that must be true}.

    Properties are tested in order, and the first that fails is named. Where a function raises an error, the answer
    fails, and the error is the reason.
    """
    if missing(answer):
        return Verdict(name, "not yet", hint)
    for sentence, true_of in properties.items():
        try:
            if bool(true_of(answer)):
                continue
            why = ""
        except Exception as error:  # any error that an unforeseen answer causes is shown to the reader
            why = f" ({kind(answer)} cannot be judged: {str(error).splitlines()[0] if str(error) else repr(error)})"
        return Verdict(name, "wrong", f"Fails: {sentence}{why}. {hint}".strip())
    return Verdict(name, "right", f"Holds: {'; '.join(properties)}.")


def check(
    name: str,
    answer: object,
    expected: str,
    digits: int | None = None,
    options: Sequence[str] | None = None,
    hint: str = "",
) -> Verdict:
    """Compare an answer with a digest: a number to `digits` significant digits, or one or several of the `options`.

    A number passes if it lies within one unit of the last digit. Several options are a set. Raises ValueError unless
    exactly one of `digits` and `options` is given.
    """
    if (digits is None) == (options is None):
        raise ValueError(f"exercise {name}: say how to compare, by digits= for a number or options= for a choice")
    if missing(answer):
        return Verdict(name, "not yet", hint)
    if digits is not None:
        try:
            value = float(answer)
        except (TypeError, ValueError, RuntimeError):
            return Verdict(name, "wrong", f"The answer is a number, and {kind(answer)} is none. {hint}".strip())
        if not math.isfinite(value):
            return Verdict(name, "wrong", f"The answer is a finite number, not {value}. {hint}".strip())
        found = {digest(name, near, digits) for near in neighbours(value, digits)}
    else:
        chosen = list(answer) if isinstance(answer, (set, list, tuple)) else [answer]
        if not all(isinstance(one, str) and one in options for one in chosen):
            these = ", ".join(map(repr, options))
            return Verdict(name, "wrong", f"Choose among {these}; {answer!r} is not there. {hint}".strip())
        found = {digest(name, set(chosen))}
    return Verdict(name, "right") if expected in found else Verdict(name, "wrong", hint)


def neighbours(value: float, digits: int) -> tuple[float, float, float]:
    """Return the value, and half a unit of its last significant digit below and above it."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1) if value else 0.0
    return value - unit / 2, value, value + unit / 2


def digest(name: str, answer: object, digits: int | None = None) -> str:
    """Return the digest of the right answer: a number with its `digits`, or one or several options."""
    if isinstance(answer, numbers.Real) and digits is not None:
        written = f"{float(answer) + 0.0:.{digits - 1}e}"
    else:
        written = "|".join(sorted({answer} if isinstance(answer, str) else answer))
    return hashlib.sha256(f"{SALT} {name} {written}".encode()).hexdigest()[:16]


def kind(answer: object) -> str:
    """Name the type of an answer, with its shape where it has one."""
    shape = getattr(answer, "shape", None)
    return f"a {type(answer).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
