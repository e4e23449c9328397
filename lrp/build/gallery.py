"""Bring together what the notebook runs recorded.

That is `figures/numbers.json` and the gallery `figures/README.md`, and for the claims of papers
`figures/claims.json` and the page `figures/scorecard.md`, which shows both profiles. `merge` rewrites them only
where something changed: a number that is reproduced within its tolerance keeps its committed text, so git shows
a change only when a result changed. `check` compares the regenerated numbers and verdicts with the committed ones.

Standard library only; run it by `python -m lrp.build.gallery {merge,check} ...`.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .keys import ROOT, figures_folder, notebooks, write
from .scorecard_page import page

PROFILES = ("quick", "full")
DIGITS = 6  # significant digits kept in numbers.json and claims.json


def within(old: dict, new: dict) -> bool:
    """Whether a new number reproduces an old one, by the old one's tolerance (exactly without one)."""
    exact = (bool, str)
    if isinstance(old["value"], exact) or isinstance(new["value"], exact):
        return type(old["value"]) is type(new["value"]) and old["value"] == new["value"]
    tolerance = old.get("atol", 0) + old.get("rtol", 0) * abs(old["value"])
    return abs(new["value"] - old["value"]) <= tolerance


def rounded(number: dict) -> dict:
    """Return the number with its value at the digits that are kept."""
    value = number["value"]
    return {**number, "value": float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value}


def keep_reproduced(old: dict, new: dict) -> dict:
    """Return the new numbers {figure: {name: number}}, where reproduced ones keep their old value.

    An interval (`name/mean`, `name/low`, ...) keeps all of its numbers or none: its ends belong to one run.
    """
    merged = {}
    for figure, numbers in new.items():
        before = old.get(figure, {})
        numbers = {name: rounded(number) for name, number in numbers.items()}
        whole = {name: head if f"{(head := name.rpartition('/')[0])}/mean" in numbers else name for name in numbers}
        lost = {
            whole[name]
            for name, number in numbers.items()
            if name not in before or not within({**number, "value": before[name]["value"]}, number)
        }
        merged[figure] = {
            name: number if whole[name] in lost else {**number, "value": before[name]["value"]}
            for name, number in numbers.items()
        }
    return merged


def keep_claims(old: dict, new: dict) -> dict:
    """Return the new claims {name: record}; one whose verdict and numbers are all reproduced keeps its old numbers."""
    merged = {}
    for name, record in new.items():
        before, numbers = old.get(name), record["numbers"]
        keeps = before is not None and all(before[key] == record[key] for key in ("verdict", "expected", "zero"))
        kept = keep_reproduced({name: before["numbers"]} if keeps else {}, {name: numbers})[name]
        if keeps and kept != before["numbers"]:  # one interval is of one run
            kept = {key: rounded(number) for key, number in numbers.items()}
        merged[name] = {**record, "numbers": kept}
    return merged


def differences(old: dict, new: dict) -> list[tuple[str, str, str, str]]:
    """Return what is not reproduced of {figure: {name: number}} as rows (number, committed, regenerated, tolerance)."""
    rows = []
    for figure in sorted(old | new):
        before, after = old.get(figure, {}), new.get(figure, {})
        if figure not in old or figure not in new:
            rows.append((figure, *(("new", "regenerated") if figure in new else ("committed", "missing")), ""))
            continue
        for name in sorted(before | after):
            a, b = before.get(name), after.get(name)
            if a is None or b is None or not within(a, b):
                tolerance = f"{a.get('atol', 0):g} + {a.get('rtol', 0):g}*|old|" if a else ""
                rows.append((f"{figure} {name}", brief(a), brief(b), tolerance))
    return rows


def brief(number: dict | None) -> str:
    """Return a number's value as the table of `check` shows it."""
    value = number["value"] if number else "missing"
    return value if isinstance(value, str) else f"{value:.{DIGITS}g}"


def as_text(tree: object, depth: int = 0) -> str:
    """Return JSON, sorted, with one number per line: what holds no other mapping stands on one line."""
    if not (isinstance(tree, dict) and any(isinstance(value, dict) for value in tree.values())):
        return json.dumps(tree)
    pad = " " * depth
    lines = [f"{pad} {json.dumps(key)}: {as_text(value, depth + 1)}" for key, value in sorted(tree.items())]
    return "{\n" + ",\n".join(lines) + f"\n{pad}}}"


def gallery(records: dict, profile: str) -> str:
    """Return the page that shows every figure with its caption; `records` is {notebook: {figure: record}}."""
    up = "../.." if profile == "full" else ".."
    lines = [
        "# Figures",
        "",
        f"Generated by `make figures` in the {profile} profile; do not edit. The numbers behind the figures "
        "are in [numbers.json](numbers.json). In maps of relevance, red is evidence for the class and blue "
        "is evidence against it.",
    ]
    for notebook, figures in records.items():
        if not figures:
            continue
        lines += ["", f"## [{notebook}]({up}/notebooks/{notebook}.ipynb)"]
        for name, record in figures.items():
            alt = record["alt"].replace("[", "(").replace("]", ")")
            lines += ["", f"![{alt}]({name}.png)", "", f"**{name}.** {record['caption']}"]
    return "\n".join(lines) + "\n"


def read(path: Path) -> dict:
    """Return the JSON object in a file, or an empty one without the file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def committed(path: Path) -> dict:
    """Return numbers.json as git's last commit has it; outside git, as it lies there."""
    with contextlib.suppress(OSError, ValueError):  # no git, or a folder outside the repository
        command = ["git", "-C", str(ROOT), "show", f"HEAD:./{path.relative_to(ROOT).as_posix()}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            return json.loads(result.stdout)
    return read(path)


@contextlib.contextmanager
def one_at_a_time(folder: Path):
    """Let parallel merges follow each other."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "merge.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Gallery:
    """The figures folder of one profile and the records of its runs."""

    def __init__(self, profile: str, build: str):
        self.profile, self.runs = profile, ROOT / "build" / build
        self.figures = figures_folder(profile, build)
        self.numbers, self.claims = self.figures / "numbers.json", self.figures / "claims.json"
        self.folders = {name: figures_folder(name, build) for name in PROFILES}
        if len(set(self.folders.values())) == 1:  # a folder of this run alone
            self.folders = {profile: self.figures}

    def records(self, kind: str = "figures") -> dict:
        """Return {notebook: {name: record}} of the runs that finished; `kind` is figures or claims."""
        return {
            path.stem: read(self.runs / f"{path.stem}.json").get(kind, {})
            for path in notebooks()
            if (self.runs / f"{path.stem}.key").exists()
        }

    def merge(self) -> list[str]:
        """Write what changed; return complaints: figures missing or orphaned."""
        records = self.records()
        new = {figure: record["numbers"] for figures in records.values() for figure, record in figures.items()}
        old = read(self.numbers)
        kept = {figure: numbers for figure, numbers in old.items() if self.belongs_elsewhere(figure, records)}
        merged = kept | keep_reproduced(old, new)
        self.figures.mkdir(parents=True, exist_ok=True)
        rewrite(self.numbers, as_text(merged) + "\n")
        if not kept:  # a gallery is written when every notebook has run
            rewrite(self.figures / "README.md", gallery(records, self.profile))
        missing = [f"{name}.png was recorded and is missing" for name in new if not self.picture(name).exists()]
        orphans = [
            f"{path.name} is saved by no notebook: remove it"
            for path in sorted(self.figures.glob("[0-9][0-9]_*.png"))
            if path.stem not in merged and not self.belongs_elsewhere(path.stem, records)
        ]
        return missing + orphans + self.merge_claims(records, merged)

    def merge_claims(self, records: dict, figures: dict) -> list[str]:
        """Write claims.json and the scorecard, or remove them without a claim; return complaints."""
        new = {name: record for claims in self.records("claims").values() for name, record in claims.items()}
        old = read(self.claims)
        kept = {name: record for name, record in old.items() if self.belongs_elsewhere(name, records)}
        merged = kept | keep_claims(old, new)
        rewrite(self.claims, as_text(merged) + "\n" if merged else None)
        claims = {profile: read(folder / "claims.json") for profile, folder in self.folders.items()}
        home = next(iter(self.folders.values()))
        rewrite(home / "scorecard.md", page(claims, self.folders, notebooks(), home))
        return [
            f"claim {name} names the figure {record['figure']}, which no notebook saved"
            for name, record in new.items()
            if record["figure"] and record["figure"] not in figures
        ]

    def belongs_elsewhere(self, name: str, records: dict) -> bool:
        """Whether a figure or a claim comes from a notebook that exists and has not run here."""
        numbers = {path.stem[:2] for path in notebooks()} - {stem[:2] for stem in records}
        return name[:2] in numbers

    def picture(self, name: str) -> Path:
        return self.figures / f"{name}.png"

    def check(self) -> list[tuple[str, str, str, str]]:
        """Return what is not reproduced as rows (number, committed, regenerated, tolerance)."""
        new = {figure: r["numbers"] for figures in self.records().values() for figure, r in figures.items()}
        missing = [(f"{name}.png", "", "missing", "") for name in sorted(new) if not self.picture(name).exists()]
        claims = {name: record for claims in self.records("claims").values() for name, record in claims.items()}
        return (
            missing
            + differences(committed(self.numbers), new)
            + differences(with_verdicts(committed(self.claims)), with_verdicts(claims))
        )


def with_verdicts(claims: dict) -> dict:
    """Return {claim: {name: number}}, the verdict among the numbers."""
    return {f"claim {n}": r["numbers"] | {"verdict": {"value": r["verdict"]}} for n, r in claims.items()}


def rewrite(path: Path, text: str | None) -> None:
    """Write a text file unless it already holds this text; None removes it."""
    if text is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        write(path, text)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Merge or check what the notebook runs recorded.")
    parser.add_argument("command", choices=["merge", "check"])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--build", help="folder under build/ (default: the profile)")
    parser.add_argument("--since", type=float, help="time at which make started, for the closing line")
    options = parser.parse_args(arguments)
    here = Gallery(options.profile, options.build or options.profile)
    folder = os.path.relpath(here.figures, ROOT)
    if options.command == "merge":
        with one_at_a_time(ROOT / "build"):  # the profiles share the scorecard
            complaints = here.merge()
        for line in complaints:
            print(f"{folder}: {line}", file=sys.stderr)
        count, claims = (sum(map(len, here.records(kind).values())) for kind in ("figures", "claims"))
        took = f" in {time.time() - options.since:.0f} s" if options.since else ""
        stated = f", {claims} claims" if claims else ""
        print(f"{count} figures of {len(here.records())} notebooks in {folder}/{stated}{took}")
        return int(bool(complaints))
    rows = here.check()
    if rows:
        print("Not reproduced (regenerated numbers and verdicts against the committed ones):")
        table = [("number", "committed", "regenerated", "tolerance"), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        for row in table:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return 1
    total = sum(len(r["numbers"]) for figures in here.records().values() for r in figures.values())
    claims = sum(map(len, here.records("claims").values()))
    stated = f"; {claims} claims with their committed verdicts" if claims else ""
    print(f"{total} numbers reproduced, each within its tolerance{stated}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
