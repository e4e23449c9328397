"""The table of coverage, as CSV for other programs and as Markdown for readers: `figures/coverage.csv` and `.md`."""

import csv
import io
import math
from collections import Counter
from importlib import metadata
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[2] / "figures"
BALANCED, CONSERVED, SAME = 1e-4, 1e-3, 1e-5
COLUMNS = (
    *("library", "network", "shape", "outcome", "reason", "imbalance", "biases keep", "sum / seed", "conserved"),
    *("difference", "same map", "seconds", "zennit", "captum"),
)
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "zennit": "zennit", "captum": "captum", "torch": "torch"}


def versions() -> dict[str, str]:
    """The libraries' releases, without the builds they came from; "" for one that is not here."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package).split("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def version(package) -> str:
    """The release of an imported package."""
    return package.__version__.split("+")[0]


def verdicts(found: dict) -> dict[str, str]:
    """Of a row: is relevance conserved without biases, is the map the second derivation's? "" where not asked."""
    if found["outcome"] != "explained":
        return {"conserved": "", "same map": ""}
    difference = found.get("difference")
    same = (
        f"not compared: {found.get('derivation', '')}" if difference is None else "yes" if difference <= SAME else "no"
    )
    return {"conserved": "yes" if found.get("conservation", math.inf) <= CONSERVED else "no", "same map": same}


def wrong(found: dict) -> str:
    """What is wrong about a row; "" for nothing. A refusal is none."""
    if found["outcome"] == "not balanced":
        return f"{found['imbalance']:.2g} of the seed is unaccounted for"
    if found["outcome"] not in ("explained", "refused"):
        return f"{found['outcome']}: {found.get('message') or found.get('reason', '')}"
    if verdicts(found)["same map"] == "no":
        return f"LRP-0 is {found['difference']:.2g} from the second derivation"
    return ""


def write(rows: list[dict], folder: Path = FIGURES) -> None:
    """Both files."""
    (folder / "coverage.csv").write_text(as_csv(rows), encoding="utf-8")
    (folder / "coverage.md").write_text(as_markdown(rows), encoding="utf-8")
    print(f"wrote {folder.name}/coverage.csv and {folder.name}/coverage.md")


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for found in rows:
        writer.writerow({k: _cell(v) for k, v in (found | verdicts(found)).items()})
    return text.getvalue()


def _cell(value) -> object:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else value


def as_markdown(rows: list[dict]) -> str:
    """The table with what it means, ready to be read."""
    by = versions()
    here = ", ".join(f"{name} {by[name]}" for name in ("torchvision", "timm", "torch") if by[name])
    lines = [
        "# Coverage",
        "",
        f"{len(rows)} networks of {here}: random weights, biases and gains, BatchNorm's statistics from a batch, two "
        "random inputs, float32; EpsilonPlus explains the predicted class. Written by `make coverage`.",
        "",
        _counts(rows),
        "",
        f"* **explained**: a map whose ledger balances, seed = input + biases + stabilisers to {BALANCED:g} of the "
        'seed for each input (`bias="absorb"`).',
        f'* **conserved**: without biases (`bias="exclude"`) the input\'s sum equals the seed to {CONSERVED:g}, the '
        "stabilisers' part included in what may be missing. `sum / seed` is that sum's mean.",
        '* **same map**: LRP-0 (epsilon 1e-16, signed sums, `bias="absorb"`, one input, float64) against a derivation '
        "that shares nothing with the package: x times the gradient of the model's own forward in which activations, "
        f"norms and gates are held fixed (`tests/derivation.py`). Same: the largest difference is below {SAME:g} of "
        "the largest relevance.",
        "* **refused**: an error of the package that says why. **failed**: any other error, a ledger that does not "
        "balance, no finite map, no end.",
        "",
        *_reasons(rows),
        *_exceptions(rows),
        *_peers(rows),
    ]
    for library in dict.fromkeys(found["library"] for found in rows):
        lines += ["", f"## {library}", "", *_table([found for found in rows if found["library"] == library])]
    return "\n".join(lines) + "\n"


def count(rows: list[dict]) -> dict[str, int]:
    """How many networks, and of these how many of each verdict."""
    checked = [found | verdicts(found) for found in rows]
    explained = [found for found in checked if found["outcome"] == "explained"]
    return {
        "networks": len(rows),
        "explained": len(explained),
        "conserved": sum(found["conserved"] == "yes" for found in explained),
        "same map": sum(found["same map"] == "yes" for found in explained),
        "other map": sum(found["same map"] == "no" for found in explained),
        "not compared": sum(found["same map"].startswith("not") for found in explained),
        "refused": sum(found["outcome"] == "refused" for found in rows),
        "failed": sum(found["outcome"] not in ("explained", "refused") for found in rows),
    }


def _counts(rows: list[dict]) -> str:
    libraries = list(dict.fromkeys(found["library"] for found in rows))
    counted = {name: count([found for found in rows if found["library"] == name]) for name in libraries}
    head = ["of", *next(iter(counted.values()))]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, (name, *c.values()))) + " |" for name, c in counted.items()])


def _reasons(rows: list[dict]) -> list[str]:
    counts = Counter(found["reason"] for found in rows if found["outcome"] == "refused")
    return (
        ["Refused: " + "; ".join(f"{reason} ({n})" for reason, n in counts.most_common()) + ".", ""] if counts else []
    )


def _exceptions(rows: list[dict]) -> list[str]:
    lines = []
    for found in rows:
        name = f"{found['library']} {found['network']}"
        if problem := wrong(found):
            lines += [f"Exception: {name}: {_one_line(problem)}.", ""]
        elif verdicts(found)["conserved"] == "no":
            end = found.get("sum / seed")
            said = f"ends at {_share(end)} of the seed" if end is not None else f"raises {found.get('excluded')}"
            lines += [f'Exception: {name} {said} with `bias="exclude"`; its books balance.', ""]
    return lines


def _share(value: float) -> str:
    return f"{value:.5f}" if abs(value) < 1000 else f"{value:.1e}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:240].rstrip(".")


def _peers(rows: list[dict]) -> list[str]:
    """How many of those that the peers were asked about they conserve."""
    by, lines = versions(), []
    for library in dict.fromkeys(found["library"] for found in rows if "zennit" in found):
        asked = [found for found in rows if found["library"] == library and "zennit" in found]
        right = {peer: sum(_is_one(found[peer]) for found in asked) for peer in ("zennit", "captum")}
        lines += [
            f"On {len(asked)} networks of {library}, zennit {by['zennit']} (EpsilonPlus without biases, its canonizers,"
            f" one-hot seed) is right on {right['zennit']}, captum {by['captum']} (its default rules, biases absorb) "
            f"on {right['captum']}: their column should read 1; an error's name means that it raised.",
            "",
        ]
    return lines


def _is_one(text: str) -> bool:
    try:
        return abs(float(text) - 1) <= CONSERVED
    except ValueError:
        return False


def _table(rows: list[dict]) -> list[str]:
    columns = ["network", "outcome", "imbalance", "biases keep", "sum / seed", "same map", "difference", "seconds"]
    columns += [peer for peer in ("zennit", "captum") if any(peer in found for found in rows)]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    forms = {"imbalance": "{:.1e}", "biases keep": "{:.3f}", "difference": "{:.1e}", "seconds": "{:.1f}"}
    for found in rows:
        found = found | verdicts(found)
        if found["outcome"] != "explained":
            found["outcome"] += f": {found.get('reason', '')}"
        if isinstance(found.get("sum / seed"), float):
            found["sum / seed"] = _share(found["sum / seed"])
        cells = [forms.get(c, "{}").format(found[c]) if found.get(c) not in (None, "") else "" for c in columns]
        lines.append("| " + " | ".join(_one_line(str(c)) for c in cells) + " |")
    return lines
