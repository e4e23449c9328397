"""What the run of a notebook records, its figures and its claims, in one file of JSON.

`make` names that file in LRP_RUN, and the folder of the pictures in LRP_FIGURES; without them both go to
`build/interactive`, so that trying things out in Jupyter leaves the committed results alone. `lrp/build/gallery.py`
brings the files of all runs together.

Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluate.metrics import Interval

INTERACTIVE = Path(__file__).resolve().parents[2] / "build" / "interactive"

# What this run recorded, in order: kind -> name -> (what is written, what counts beside it as content)
_kept: dict[str, dict[str, tuple[dict, bytes]]] = {"figures": {}, "claims": {}}


@dataclass(frozen=True)
class Number:
    """A value with the tolerance of its reproduction: `|new - old|` <= atol + rtol * `|old|`."""

    value: float
    rtol: float = 1e-3
    atol: float = 1e-6


def folder() -> Path:
    """Return where pictures go."""
    return Path(os.environ.get("LRP_FIGURES") or INTERACTIVE)


def check_name(kind: str, name: str) -> None:
    """Raise ValueError unless the name is `NN_slug` and, in a run of make, NN is the notebook's number."""
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise ValueError(f"{kind} name {name!r} must look like 01_slug: two digits, then lower case, no suffix")
    run = os.environ.get("LRP_RUN")
    if run and not Path(run).name.startswith(name[:3]):
        raise ValueError(f"{kind} {name} must start with the number of its notebook, {Path(run).stem}")


def remember(kind: str, name: str, record: dict, beside: bytes = b"") -> None:
    """Keep a record ("figures" or "claims") for `write_out`; `beside` belongs to its content and is not written.

    Raises ValueError where a run of make gives one name to two contents; in interactive use the later one stays.
    """
    before = _kept[kind].get(name)
    if os.environ.get("LRP_RUN") and before not in (None, (record, beside)):
        raise ValueError(
            f"{kind[:-1]} {name} was already saved by this notebook, with other content: give it another name"
        )
    _kept[kind][name] = record, beside


def write_out(number: str) -> None:
    """Write all that was kept for the notebook with this number."""
    kept = {kind: {n: r for n, (r, _) in named.items() if n[:2] == number} for kind, named in _kept.items()}
    run = os.environ.get("LRP_RUN")
    write(Path(run) if run else folder() / f"{number}.json", json.dumps(kept, indent=1).encode())


def flat(numbers: Mapping[str, object], prefix: str = "") -> dict[str, dict]:
    """Return nested numbers as one level, names joined by a slash. Raises ValueError for any not finite."""
    found: dict[str, dict] = {}
    for key, value in numbers.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
            continue
        if type(value).__name__ in ("bool", "bool_"):  # Python's or numpy's
            found[name] = {"value": bool(value)}  # compared exactly
            continue
        if isinstance(value, Integral):
            found[name] = {"value": int(value)}
            continue
        number = value if isinstance(value, Number) else Number(value)
        try:
            number = Number(float(number.value), float(number.rtol), float(number.atol))
        except (TypeError, ValueError) as error:
            raise ValueError(f"number {name!r} is a {type(value).__name__}, not one number") from error
        if not math.isfinite(number.value):
            raise ValueError(f"number {name!r} is {number.value}")
        found[name] = asdict(number)
    return found


def intervals(rows: Mapping[str, Interval], rtol: float = 0.02, atol: float = 0.005) -> dict[str, dict]:
    """Intervals as numbers for `figures.save`: mean, low and high, with the tolerance of their reproduction."""
    return {
        name: {end: Number(getattr(i, end), rtol=rtol, atol=atol) for end in ("mean", "low", "high")}
        for name, i in rows.items()
    }


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # there only if something failed


def is_picture(path: Path) -> bool:
    """Whether a PNG is there as a whole: from its signature to its closing chunk."""
    content = path.read_bytes() if path.is_file() else b""
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
