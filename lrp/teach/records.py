"""What the run of a notebook records, its figures and its claims, in one file of JSON. Standard library only.

`make` names that file in LRP_RUN, and the folder of the pictures in LRP_FIGURES; without them both go to
`build/interactive`, so that trying things out in Jupyter leaves the committed results alone.
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


@dataclass(frozen=True)
class Number:
    """A value with the tolerance of its reproduction: `|new - old|` <= atol + rtol * `|old|`."""

    value: float
    rtol: float = 1e-3
    atol: float = 1e-6


class Run:
    """What this process has recorded, in order, and where it goes."""

    def __init__(self):
        # kind -> name -> (what is written, what counts beside it as content)
        self.kept: dict[str, dict[str, tuple[dict, bytes]]] = {"figures": {}, "claims": {}}

    @property
    def place(self) -> tuple[Path | None, Path]:
        """The file that `make` names, None in interactive use, and the folder of the pictures."""
        file, folder = (os.environ.get(name) for name in ("LRP_RUN", "LRP_FIGURES"))
        return Path(file) if file else None, Path(folder or INTERACTIVE)

    def check_name(self, kind: str, name: str) -> None:
        """Raise ValueError unless the name is `NN_slug` and, in a run of make, NN is the notebook's number."""
        if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
            raise ValueError(f"{kind} name {name!r} must look like 01_slug: two digits, then lower case, no suffix")
        file, _ = self.place
        if file and not file.name.startswith(name[:3]):
            raise ValueError(f"{kind} {name} must start with the number of its notebook, {file.stem}")

    def keep(self, kind: str, name: str, record: dict, beside: bytes = b"") -> None:
        """Keep a record ("figures" or "claims") and write all of its notebook; `beside` counts as content, unwritten.

        Raises ValueError where a run of make gives one name to two contents; in interactive use the later one stays.
        """
        (file, folder), number = self.place, name[:2]
        if file and self.kept[kind].get(name) not in (None, (record, beside)):
            raise ValueError(f"{kind[:-1]} {name} was already saved with other content: give it another name")
        self.kept[kind][name] = record, beside
        kept = {kind: {n: r for n, (r, _) in named.items() if n[:2] == number} for kind, named in self.kept.items()}
        write(file or folder / f"{number}.json", json.dumps(kept, indent=1).encode())


RUN = Run()


def flat(numbers: Mapping[str, object], prefix: str = "") -> dict[str, dict]:
    """Return nested numbers as one level, names joined by a slash. Raises ValueError for any not finite."""
    found: dict[str, dict] = {}
    for key, value in numbers.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
        elif type(value).__name__ in ("bool", "bool_"):  # Python's or numpy's; compared exactly
            found[name] = {"value": bool(value)}
        elif isinstance(value, Integral):
            found[name] = {"value": int(value)}
        else:
            found[name] = asdict(_finite(name, value if isinstance(value, Number) else Number(value)))
    return found


def _finite(name: str, number: Number) -> Number:
    try:
        number = Number(float(number.value), float(number.rtol), float(number.atol))
    except (TypeError, ValueError) as error:
        raise ValueError(f"number {name!r} is a {type(number.value).__name__}, not one number") from error
    if not math.isfinite(number.value):
        raise ValueError(f"number {name!r} is {number.value}")
    return number


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
