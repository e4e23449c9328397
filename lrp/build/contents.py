"""What is generated from the notebooks into texts: the table of contents, the links between notebooks, README's table.

Each lies between two comments, `<!-- NAME -->` and `<!-- /NAME -->`, and is written anew by `make contents`:

* `contents` in `notebooks/00_start_here.ipynb`: title, minutes and sections of each notebook;
* `navigation` at the end of each notebook: the one before, the contents, the next;
* `notebooks`, `scorecard`, `coverage` and `benchmark` in `README.md`: a row per notebook, how many claims got which
  verdict, on how many networks the books balance, and what an explanation costs.

Standard library only; run it by `python -m lrp.build.contents [--check]`.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..teach.scorecard import PAPERS, VERDICTS
from .keys import ROOT, BuildError, notebooks, write

COMMON = ("Summary", "What to take home", "Exercises", "Solutions", "References")  # sections that say nothing by name


@dataclass(frozen=True)
class Entry:
    """What a notebook says of itself: its title, how long it runs, its papers and its sections."""

    path: Path
    title: str
    runs: str
    sections: tuple[str, ...]

    @property
    def number(self) -> str:
        return self.path.stem[:2]


def entry(path: Path) -> Entry:
    """Read a notebook's entry. Raises BuildError where its first cell does not say what is needed."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    title = re.match(r"# \d+ · (.*)", texts[0] if texts else "")
    runs = re.search(r"\*\*Runs in\*\* (.*?) on two CPU cores", texts[0] if texts else "")
    if not (title and runs):
        raise BuildError(
            f"{path.name}: its first cell needs a title '# N · ...' and '**Runs in** ... on two CPU cores', "
            "from which tables of contents are made"
        )
    headings = re.findall(r"^## (.*)$", "\n".join(re.sub(r"```.*?```", "", t, flags=re.DOTALL) for t in texts), re.M)
    sections = tuple(h for h in headings if not h.startswith(COMMON))
    return Entry(path, title[1].strip(), runs[1].strip(), sections)


# ---------------------------------------------------------------- texts


def contents(entries: list[Entry]) -> str:
    lines = []
    for e in entries:
        name = f"[{int(e.number)} · {e.title}]({e.path.name})"
        lines.append(f"* **{name}** Runs in {e.runs}." + (f"<br>{' · '.join(e.sections)}" if e.sections else ""))
    return "\n".join(lines)


def navigation(entries: list[Entry], i: int) -> str:
    parts = [f"← [{entries[i - 1].title}]({entries[i - 1].path.name})"] if i else []
    parts += [f"[contents]({entries[0].path.name})"] if i else []
    parts += [f"[{entries[i + 1].title}]({entries[i + 1].path.name}) →"] if i + 1 < len(entries) else []
    return " · ".join(parts)


def table(entries: list[Entry]) -> str:
    numbers = read(ROOT / "figures" / "numbers.json")
    lines = ["| notebook | question | paper | figures | quick profile, two cores |", "|---|---|---|---|---|"]
    for e in entries:
        papers = [f"{p.place.split(',')[0]} {re.search('20[0-9]{2}', p.place)[0]}" for p in PAPERS.values()]
        named = [name for name, p in zip(papers, PAPERS.values(), strict=True) if p.notebook == e.number]
        count = sum(name.startswith(e.number) for name in numbers)
        cells = [f"[{e.path.stem}](notebooks/{e.path.name})", e.title, ", ".join(named) or "–"]
        lines.append("| " + " | ".join([*cells, f"[{count}](figures/README.md)", e.runs]) + " |")
    return "\n".join(lines)


def verdicts() -> str:
    parts = []
    for profile, folder in (("quick", "figures"), ("full", "figures/full")):
        if claims := read(ROOT / folder / "claims.json"):
            count = Counter(claim["verdict"] for claim in claims.values())
            told = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS)
            parts.append(f"{len(claims)} claims in the {profile} profile: {told}")
    return "; ".join(parts) + "." if parts else ""


def coverage() -> str:
    """Return on how many networks relevance is conserved, here and by peers, from `make coverage`."""
    path = ROOT / "figures" / "coverage.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    ours = re.search(r"\*\*Conserved without biases: (\d+) of (\d+)\*\*", text)
    peers = re.search(r"is right on (\d+), captum .*? on (\d+):", text)
    balanced = re.search(r"\*\*Balanced: (\d+) of", text)
    if not (ours and peers and balanced):
        return ""
    return "\n".join(
        [
            f"| of {ours[2]} convolutional classifiers of torchvision | lrp | zennit | captum |",
            "|---|---|---|---|",
            f"| relevance conserved | {ours[1]} | {peers[1]} | {peers[2]} |",
            f"| books balance, biases and all | {balanced[1]} | – | – |",
        ]
    )


def benchmark() -> str:
    """Return the cost of one explanation in gradients, from `make bench`."""
    costs = read(ROOT / "figures" / "benchmark.json").get("cost", {})
    methods = [m for m in next(iter(costs.values()), {}) if not m.startswith("ten")]
    lines = ["| cost in gradients | " + " | ".join(costs) + " |", "|---" * (1 + len(costs)) + "|"] if costs else []
    for method in methods:
        cells = [f"{median(by[method]):.2f}" if method in by else "–" for by in costs.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# ---------------------------------------------------------------- into files


def put(text: str, name: str, new: str, where: str) -> str:
    """Return a text with what lies between the comments of this name replaced. Raises BuildError without them."""
    pattern = rf"(<!-- {name} -->\n).*?(\n?<!-- /{name} -->)"
    if not re.search(pattern, text, flags=re.DOTALL):
        raise BuildError(f"{where} lacks the comments <!-- {name} --> and <!-- /{name} -->, each on its own line")
    return re.sub(
        pattern, lambda m: f"{m[1]}{new}{m[2] if m[2][0] == chr(10) else chr(10) + m[2]}", text, flags=re.DOTALL
    )


def rendered() -> dict[Path, str]:
    """Return {file: its text as it ought to be}."""
    entries = [entry(path) for path in notebooks()]
    found = {}
    for i, e in enumerate(entries):
        book = json.loads(e.path.read_text(encoding="utf-8"))
        wanted = {"navigation": navigation(entries, i)} | ({} if i else {"contents": contents(entries)})
        for name, new in wanted.items():
            cell = next((c for c in book["cells"] if f"<!-- {name} -->" in "".join(c["source"])), book["cells"][-1])
            cell["source"] = put("".join(cell["source"]), name, new, e.path.name).splitlines(keepends=True)
        found[e.path] = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = {"notebooks": table(entries), "scorecard": verdicts(), "coverage": coverage(), "benchmark": benchmark()}
    for name, new in tables.items():
        readme = put(readme, name, new, "README.md")
    return found | {ROOT / "README.md": readme}


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write tables of contents and links between notebooks anew.")
    parser.add_argument("--check", action="store_true", help="only say which files are out of date")
    options = parser.parse_args()
    try:
        stale = {path: text for path, text in rendered().items() if path.read_text(encoding="utf-8") != text}
    except BuildError as error:
        print(f"contents: {error}", file=sys.stderr)
        return 2
    for path, text in stale.items():
        if options.check:
            print(f"{path.relative_to(ROOT)}: out of date, run `make contents`", file=sys.stderr)
        else:
            write(path, text)
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
