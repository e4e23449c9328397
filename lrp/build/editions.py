"""The student edition of the notebooks, in `build/student/`: everything but the solutions.

* A solution's code becomes a stub, which binds the names that the check after it reads to `...`, or an empty cell where
  nothing is checked; a solution in words becomes a place for the reader's own. Checks stay and answer *not yet*. They
  lose `.required()`, by which the reference solution must pass (`lrp/teach/course.py`).
* No outputs. A picture stays only if it gives nothing away: it must be a figure before which its notebook asks for no
  prediction. Others go with their descriptions, which say what is seen.
* Links lead inside the folder: to the notebooks, or to copies under `linked/`. Pages that show results or solutions
  (galleries, scorecard, notes for teachers) become plain text.

Standard library only; run it by `python -m lrp.build.editions`. With `--times` it prints the table of
`notebooks/TEACHING.md`: the minutes that each notebook takes.
"""

import argparse
import ast
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

from .keys import ROOT, BuildError, notebooks, parse, write

REQUIRED = re.compile(r"\.required\(\)(?=(\s*#.*)?$)")  # the end of a check
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
RESULTS = ("figures/", "notebooks/TEACHING.md")  # pages that show what the reader is to find out
WORDS_A_MINUTE = 200  # of prose
LINES_A_MINUTE = 15  # of code: read for what it does, not line by line
LOOK = 0.5  # minutes for a reader's look at a figure
FIGURE, QUESTION = 4, 3  # minutes of a lecture
STARS = (10, 20, 45)  # minutes for an exercise of one, two, three stars


class EditionError(BuildError):
    """The student edition cannot be made; the message names the cell and the fix."""


# --- cells --------------------------------------------------------------------------------------------------


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tagged(cell: dict, tag: str) -> bool:
    return tag in cell["metadata"].get("tags", [])


def bound(code: str) -> set[str]:
    """Return the names that code binds at its top level."""
    names = set()
    for node in parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def read(code: str) -> set[str]:
    """Return the names that code reads and does not bind itself."""
    names = {n.id for n in ast.walk(parse(code)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return names - bound(code)


def answers(cells: list[dict]) -> dict[int, list[str]]:
    """Return, for each solution cell with code, the names that it owes to checks, in order of appearance.

    Raises EditionError where a check reads a name that its exercise does not mention.
    """
    owed = {i: [] for i, cell in enumerate(cells) if tagged(cell, "solution") and cell["cell_type"] == "code"}
    for i, cell in enumerate(cells):
        if not tagged(cell, "check"):
            continue
        for name in sorted(read(source(cell)), key=source(cell).index):
            home = max((k for k in owed if k < i and name in bound(source(cells[k]))), default=None)
            if home is None or name in owed[home]:
                continue
            if f"`{name}" not in exercise(cells, home):
                raise EditionError(f"cell {cell['id']!r} reads {name!r}, which the exercise does not ask for: name it")
            owed[home].append(name)
    return owed


def exercise(cells: list[dict], index: int) -> str:
    """Return the text of the exercise that a cell belongs to: the last Markdown before it that is no solution."""
    texts = (source(c) for c in reversed(cells[:index]) if c["cell_type"] == "markdown" and not tagged(c, "solution"))
    return next(texts, "")


def stub(names: list[str]) -> str:
    return "\n".join(f"{name} = ...  # your answer" for name in names) or "# your code"


def student_cell(cell: dict, names: list[str], relink) -> dict:
    """Return one cell of the student edition; `names` are what a solution owes, `relink` rewrites Markdown."""
    text, metadata = source(cell), {k: v for k, v in cell["metadata"].items() if k != "papermill"}
    if tagged(cell, "solution"):
        metadata = {"tags": ["answer"]}
        text = stub(names) if cell["cell_type"] == "code" else "*Your words:*"
    elif tagged(cell, "check"):
        if not REQUIRED.search(text):
            raise EditionError(f"cell {cell['id']!r} is a check and must end in .required()")
        text = REQUIRED.sub("", text)
    elif cell["cell_type"] == "markdown":
        text = relink(text)
    made = {"cell_type": cell["cell_type"], "id": cell["id"], "metadata": metadata}
    made |= {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
    return made | {"source": text.splitlines(keepends=True)}


# --- pictures and links -------------------------------------------------------------------------------------


def predicted(cells: list[dict]) -> set[str]:
    """Return the figures before which a notebook asks for a prediction, since the figure before them."""
    found, asked = set(), False
    for cell in cells:
        if cell["cell_type"] == "markdown":
            asked = asked or "**Predict" in source(cell)
            continue
        if names := re.findall(r"\bsave\(\s*\w+,\s*[\"'](\w+)[\"']", source(cell)):
            found |= set(names) if asked else set()
            asked = False
    return found


class Links:
    """Rewrites the links of one notebook and collects what must be copied: {place in the edition: file}."""

    def __init__(self, folder: Path, hidden: set[str], known: set[str]):
        self.folder, self.hidden, self.known = folder, hidden, known
        self.copies: dict[str, Path] = {}

    def __call__(self, text: str) -> str:
        if html := re.search(r"<(?:img|a)\s[^>]*(?:src|href)=[\"'](?!https?:)[^>]*>", text):
            raise EditionError(f"write {html[0][:60]} as a Markdown link, so that it can be rewritten")
        return LINK.sub(self.rewritten, text)

    def rewritten(self, match: re.Match) -> str:
        mark, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        file = (self.folder / path).resolve()
        place = Path(os.path.relpath(file, ROOT)).as_posix()
        if mark:
            if file.stem in self.hidden:
                return "*(The picture that stands here comes later in this notebook: predict it first.)*"
        elif file.name in self.known:
            return match[0]
        elif place == "README.md" or (place.startswith(RESULTS) and file.suffix == ".md"):
            return words
        if not file.exists():
            raise EditionError(f"the link to {target} leads nowhere; a figure is made by `make figures`")
        self.copies[f"linked/{place}"] = file
        return f"{mark}[{words}](../linked/{place}{'#' + anchor if anchor else ''})"


def flat(text: str) -> str:
    """Return Markdown without links to other files: for copies of pages that stand alone."""
    return LINK.sub(lambda m: m[0] if re.match(r"[a-z]+:|#", m[3]) else m[2], text)


# --- times --------------------------------------------------------------------------------------------------


def minutes(cells: list[dict]) -> dict[str, int]:
    """Return the minutes that text and figures, the code, a lecture and the exercises take, each rounded up to five."""
    rest = [c for c in cells if not tagged(c, "solution") and not tagged(c, "check")]
    prose = "\n".join(source(c) for c in rest if c["cell_type"] == "markdown")
    code = "\n".join(source(c) for c in rest if c["cell_type"] == "code")
    figures, questions = len(re.findall(r"(?m)^save\(", code)), prose.count("**Predict:**")
    stars = [len(found) for found in re.findall(r"(?m)^\*\*Exercise [\d.]+\*\* (★+)", prose)]
    exact = {
        "reading": len(prose.split()) / WORDS_A_MINUTE + figures * LOOK,
        "code": len(re.findall(r"(?m)^.*\S", code)) / LINES_A_MINUTE,
        "lecture": figures * FIGURE + questions * QUESTION,
        "exercises": sum(STARS[number - 1] for number in stars),
    }
    return {kind: 5 * math.ceil(spent / 5) for kind, spent in exact.items()}


def times(paths: list[Path]) -> str:
    """Return a Markdown table of the minutes that each notebook takes."""
    rows = ["| notebook | reading | code | lecture | exercises |", "|---|---|---|---|---|"]
    for path in paths:
        spent = minutes(json.loads(path.read_text(encoding="utf-8"))["cells"])
        rows.append(f"| [{path.stem}]({path.name}) | {' | '.join(map(str, spent.values()))} |")
    return "\n".join(rows)


# --- the edition --------------------------------------------------------------------------------------------

README = """# The student edition

{count} notebooks on Layer-wise Relevance Propagation, with exercises and without their solutions.

1. The notebooks import the package `lrp`. In a clone of its repository, `make env` sets up everything once; with an
   environment of your own, `python -m pip install -e .` there is enough.
2. Open the notebooks from that environment: `python -m jupyterlab notebooks`, in this folder, which may lie anywhere.
3. Run a notebook from the top. Where it says **Predict**, stop and commit to an answer before you run the next cell.
4. An exercise says which name to give your answer. Replace the `...` of `name = ...  # your answer`, run the cell and
   the one below it: it says *right*, *not yet* or *wrong*. A missing answer stops nothing; open questions are open.

| notebook | exercises | of these checked |
|---|---|---|
{rows}
"""


def row(path: Path, cells: list[dict]) -> str:
    heading = source(cells[0]).splitlines()[0].lstrip("# ")
    asked = sum(bool(re.match(r"\*\*Exercise \d", source(c))) for c in cells if c["cell_type"] == "markdown")
    return f"| [{heading}](notebooks/{path.name}) | {asked} | {sum(tagged(c, 'check') for c in cells)} |"


def made_here(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.exists() and readme.read_text(encoding="utf-8").startswith(README.splitlines()[0])


def work_in(folder: Path) -> list[str]:
    """Return the notebooks of an edition that somebody has worked in."""
    found = []
    for path in sorted(folder.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if any(cell.get("outputs") or cell.get("execution_count") for cell in cells):
            found.append(path.name)
    return found


def make(paths: list[Path], folder: Path) -> str:
    """Write the student edition of these notebooks into a folder; return one line on what is there.

    Raises EditionError where a notebook cannot be stripped, and where the folder holds work or other files.
    """
    if folder.exists() and any(folder.iterdir()) and not made_here(folder):
        raise EditionError(f"{folder} holds other files than a student edition: choose an empty folder")
    if worked := work_in(folder):
        raise EditionError(f"{folder} holds outputs in {', '.join(worked)}: move it away first, to keep that work")
    books = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    hidden = set().union(*(predicted(book["cells"]) for book in books.values()))
    files, rows = {}, []
    for path, book in books.items():
        links = Links(path.parent, hidden, {p.name for p in paths})
        try:
            owed = answers(book["cells"])
            cells = [student_cell(cell, owed.get(i, []), links) for i, cell in enumerate(book["cells"])]
        except EditionError as error:
            raise EditionError(f"{path.name}: {error}") from error
        files[f"notebooks/{path.name}"] = json.dumps(book | {"cells": cells}, indent=1, ensure_ascii=False) + "\n"
        files |= links.copies
        rows.append(row(path, book["cells"]))
    files["README.md"] = README.format(count=len(paths), rows="\n".join(rows))
    shutil.rmtree(folder, ignore_errors=True)
    for place, content in files.items():
        if isinstance(content, Path) and content.suffix != ".md":
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(content, folder / place)
        else:
            write(folder / place, flat(content.read_text(encoding="utf-8")) if isinstance(content, Path) else content)
    exercises, checks = (sum(int(r.split("|")[k]) for r in rows) for k in (2, 3))
    return (
        f"student edition: {len(paths)} notebooks, {exercises} exercises, {checks} checks in {os.path.relpath(folder)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the student edition of the notebooks.")
    parser.add_argument("--times", action="store_true", help="print how many minutes each notebook takes instead")
    options = parser.parse_args(arguments)
    try:
        print(times(notebooks()) if options.times else make(notebooks(), ROOT / "build" / "student"))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
