"""The scorecard: what a paper claims, beside what we find, with a verdict that is computed and never typed.

A notebook states each claim once, with the interval that decides it; `make` gathers the claims of all notebooks in
`figures/scorecard.md`. Standard library only: the page is written without waiting for torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from . import records
from .records import Number

if TYPE_CHECKING:
    from ..evaluate.metrics import Interval

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
NOT_DECIDED, NOT_TESTABLE = "not decided", "not testable here"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOT_DECIDED, NOT_TESTABLE)
RTOL, ATOL = 0.02, 0.005  # tolerance of reproduction, as in records.intervals
ENDS = ("mean", "low", "high")
Side = Literal["below", "above"]


class Paper(NamedTuple):
    """A paper whose claims are tested; `notebook` is where its claims are made unless they name another source."""

    notebook: str
    title: str
    place: str
    note: str = ""


PAPERS = {  # by BibTeX key, in the order of the page
    "binder2016layer": Paper(
        "02",
        "Layer-wise Relevance Propagation for Neural Networks with Local Renormalization Layers",
        "Binder, Montavon, Lapuschkin, Müller, Samek, ICANN 2016, arXiv:1604.00825",
    ),
    "gu2018understanding": Paper(
        "03",
        "Understanding Individual Decisions of CNNs via Contrastive Backpropagation",
        "Gu, Yang, Tresp, ACCV 2018, arXiv:1812.02100",
        "No number of the paper's tables is known to us.",
    ),
    "otsuki2024layer": Paper(
        "04",
        "Layer-Wise Relevance Propagation with Conservation Property for ResNet",
        "Otsuki, Iida, Doublet, Hirakawa, Yamashita, Fujiyoshi, Sugiura, ECCV 2024, arXiv:2407.09115",
    ),
    "ruiz2021generating": Paper(
        "05",
        "Generating Attribution Maps with Disentangled Masked Backpropagation",
        "Ruiz, Agudo, Moreno-Noguer, ICCV 2021, arXiv:2101.06773",
        "Ours has a reconstructed objective: the original code and text were not available, nor any number.",
    ),
    "landthayen2023fact": Paper(
        "06",
        "Fact or Artifact? Revise Layer-wise Relevance Propagation on various ANN Architectures",
        "Landt-Hayen, Rath, Claus, Kröger, CS & IT 13(23), 2023, arXiv:2302.12317",
        "Only the abstract and the opening were available, and no number of the paper is known to us.",
    ),
    "landthayen2022layer": Paper(
        "06",
        "Layer-wise Relevance Propagation for Echo State Networks applied to Earth System Variability",
        "Landt-Hayen, Kröger, Claus, Rath, MLTEC 2022, CS & IT 12(20), arXiv:2210.09958",
    ),
    "ali2022xai": Paper(
        "08",
        "XAI for Transformers: Better Explanations through Conservative Propagation",
        "Ali, Schnake, Eberle, Montavon, Müller, Wolf, ICML 2022, arXiv:2202.07304",
        "An addition, beyond the five papers. No number of the paper is compared: its networks are others.",
    ),
    "achtibat2024attnlrp": Paper(
        "08",
        "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers",
        "Achtibat, Hatefi, Dreyer, Jain, Wiegand, Lapuschkin, Samek, ICML 2024, arXiv:2402.05602",
        "An addition, beyond the five papers. No number of the paper is compared: its networks are others.",
    ),
}


# --- what a notebook calls ----------------------------------------------------------------------------------


def claim(
    name: str,
    statement: str,
    ours: "Interval | bool",
    *,
    expected: Side | None = None,
    zero: float = 0.0,
    paper: str | None = None,
    shown: "Mapping[str, Interval | Number | float] | None" = None,
    figure: str | None = None,
    reason: str | None = None,
    source: str | None = None,
    atol: float = ATOL,
) -> "Claim":
    """Record one claim of a paper and its verdict; returns it for the notebook to show.

    `name` is `NN_slug`, and NN the notebook's number; `statement` is the claim in one sentence. `ours` decides: an
    interval (mean, low, high, n), mostly of a paired difference, which the paper `expected` "below" or "above"
    `zero`. Wholly on that side: reproduced; wholly on the other: not reproduced; else, or of a single sample: not
    decided. An exact claim has no `expected`, and `ours` is True or False.

    `paper` is what the paper reports (None: no number is known), `shown` are quantities for context, `figure` shows
    the claim, `reason` is a remark on the verdict, `source` the paper's key in PAPERS (default: the paper of this
    notebook), `atol` the absolute tolerance of reproduction. Raises ValueError for what cannot be kept, and for a name
    that was already given to another claim.
    """
    ours = ours.item() if hasattr(ours, "item") else ours  # a bool of numpy or torch
    context = {key: _parts(value, atol) for key, value in (shown or {}).items()}
    numbers = records.flat({"ours": _parts(ours, atol), "shown": context})  # from here on every number is finite
    verdict = judge(ours, expected, zero, name)
    if figure is not None and figure[:3] != name[:3]:
        raise ValueError(f"claim {name} names figure {figure!r}, which is of another notebook")
    side = expected, float(zero) if expected else None
    return _keep(name, statement, verdict, paper, reason, source, side, figure, numbers)


def untestable(
    name: str, statement: str, reason: str, *, paper: str | None = None, source: str | None = None
) -> "Claim":
    """Record a claim that cannot be tested here, and why not; arguments and errors as in `claim`."""
    if not reason.strip():
        raise ValueError(f"claim {name} needs a reason: why can it not be tested here?")
    return _keep(name, statement, NOT_TESTABLE, paper, reason, source)


def judge(ours: "Interval | bool", expected: Side | None, zero: float = 0.0, name: str = "") -> str:
    """Return the verdict on what we found; an end of the interval that touches `zero` decides nothing."""
    if expected is None and isinstance(ours, bool):
        return REPRODUCED if ours else NOT_REPRODUCED
    if expected not in get_args(Side) or not _is_interval(ours):
        raise ValueError(
            f"claim {name} needs expected='below' or 'above' with an interval (mean, low, high, n), or a bool alone; "
            f"got {expected!r} with a {type(ours).__name__}"
        )
    if not math.isfinite(zero) or ours.low > ours.high:
        raise ValueError(f"claim {name}: cannot compare [{ours.low}, {ours.high}] with {zero}")
    if ours.n < 2 or ours.low <= zero <= ours.high:
        return NOT_DECIDED
    return REPRODUCED if (ours.high < zero) == (expected == "below") else NOT_REPRODUCED


class Sheet:
    """The claims of one notebook: `sheet(name, ...)` is `claim`, with the notebook's number put before the name."""

    def __init__(self, number: str):
        self.number, self.claims = number, []

    def __call__(self, name: str, *args, state=claim, **options) -> "Claim":
        self.claims.append(state(f"{self.number}_{name}", *args, **options))
        return self.claims[-1]

    def untestable(self, name: str, *args, **options) -> "Claim":
        return self(name, *args, state=untestable, **options)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.claims))

    def _repr_markdown_(self) -> str:
        return "\n".join(f"* {c._repr_markdown_()}" for c in self.claims)


@dataclass(frozen=True, repr=False)
class Claim:
    """A row of the scorecard, in words."""

    name: str
    record: dict

    @property
    def verdict(self) -> str:
        return self.record["verdict"]

    def _repr_markdown_(self) -> str:
        return f"**{self.verdict}**{repr(self).removeprefix(self.verdict)}"

    def __repr__(self) -> str:
        parts = [f"{self.verdict}: {self.record['statement'].rstrip('.')}"]
        if ours := found(self.record):
            parts.append(f"Ours: {ours}" + (f" ({context})" if (context := beside(self.record)) else ""))
        parts.append(f"Paper: {self.record['paper'] or NO_NUMBER}")
        parts += [f"Reason: {self.record['reason'].rstrip('.')}"] if self.record["reason"] else []
        parts += [f"Shown in {self.record['figure']}"] if self.record["figure"] else []
        return ". ".join(parts) + "."


# --- keeping ------------------------------------------------------------------------------------------------


def _keep(name, statement, verdict, paper, reason, source, side=(None, None), figure=None, numbers=None) -> Claim:
    records.RUN.check_name("claim", name)
    if not statement.strip():
        raise ValueError(f"claim {name} needs a statement")
    source = source or next((key for key, known in PAPERS.items() if known.notebook == name[:2]), None)
    if source not in PAPERS:
        raise ValueError(f"claim {name} is of the unknown source {source!r}: choose one of {', '.join(PAPERS)}")
    words = {"statement": statement, "paper": paper, "reason": reason}
    words = {key: " ".join(text.split()) if text else None for key, text in words.items()}
    record = {"source": source, **words, "verdict": verdict, "expected": side[0], "zero": side[1]}
    record |= {"figure": figure, "numbers": numbers or {}}
    records.RUN.keep("claims", name, record)
    return Claim(name, record)


def _is_interval(value) -> bool:
    return all(hasattr(value, end) for end in (*ENDS, "n"))


def _parts(value, atol: float):
    """Return an interval as a mapping of its parts, anything else as it is."""
    if not _is_interval(value):
        return value
    parts = {end: Number(getattr(value, end), RTOL, atol) for end in ENDS} | {"n": int(value.n)}
    return parts | ({"left_out": int(value.left_out)} if getattr(value, "left_out", 0) else {})


# --- in words -----------------------------------------------------------------------------------------------

NO_NUMBER = "no number known"


def found(record: dict) -> str:
    """Return what we found: `−1.2 [−1.9, −0.5], n = 200, claimed below 0`, `holds`, or nothing."""
    text = _quantities(record).get("ours", "")
    return f"{text}, claimed {record['expected']} {_digits(record['zero'])}" if record["expected"] else text


def beside(record: dict) -> str:
    """Return the quantities that are shown for context."""
    shown = {name.removeprefix("shown/"): text for name, text in _quantities(record).items() if name != "ours"}
    return "; ".join(f"{name} {text}" for name, text in shown.items())


def _quantities(record: dict) -> dict[str, str]:
    """Return {name: text}, where the parts of an interval make one quantity."""
    values = {name: number["value"] for name, number in record["numbers"].items()}
    texts = {}
    for name, value in values.items():
        head, _, part = name.rpartition("/")
        whole = head != "shown" and all(f"{head}/{end}" in values for end in (*ENDS, "n"))
        if not whole or part not in (*ENDS, "n", "left_out"):
            texts[name] = _digits(value)
        elif part == "mean":
            mean, low, high = (_digits(values[f"{head}/{end}"]) for end in ENDS)
            left_out = f" ({values[f'{head}/left_out']} left out)" if f"{head}/left_out" in values else ""
            texts[head] = f"{mean} [{low}, {high}], n = {values[f'{head}/n']}{left_out}"
    return texts


def _digits(value: float) -> str:
    if isinstance(value, bool):
        return "holds" if value else "does not hold"
    text = str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")
