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
OUTSIDE = re.compile(r"[a-z]+:|#")  # how a link begins that leads to no file
RESULTS = ("figures/", "notebooks/TEACHING.md")  # pages that show what the reader is to find out
WORDS_A_MINUTE = 200  # of prose
LINES_A_MINUTE = 15  # of code: read for what it does, not line by line
LOOK = 0.5  # minutes for a reader's look at a figure
FIGURE, QUESTION = 4, 3  # minutes of a lecture
STARS = (10, 20, 45)  # minutes for an exercise of one, two, three stars
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


class EditionError(BuildError):
    """The student edition cannot be made; the message names the cell and the fix."""


# --- cells --------------------------------------------------------------------------------------------------


def read_book(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tagged(cell: dict, tag: str) -> bool:
    return tag in cell["metadata"].get("tags", [])


def texts(cells: list[dict], kind: str) -> list[str]:
    """Return the texts of all cells of a kind, "code" or "markdown"."""
    return [source(cell) for cell in cells if cell["cell_type"] == kind]


def figures_of(code: str) -> list[str]:
    """Return the names of the figures that a cell saves."""
    return re.findall(r"\bsave\(\s*\w+,\s*[\"'](\w+)[\"']", code)


def names(tree: ast.AST, context: type) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def bound(code: str) -> set[str]:
    """Return the names that code binds at its top level."""
    defined = (ast.FunctionDef, ast.ClassDef)
    return set().union(*({n.name} if isinstance(n, defined) else names(n, ast.Store) for n in parse(code).body))


def read(code: str) -> set[str]:
    """Return the names that code reads and does not bind itself."""
    return names(parse(code), ast.Load) - bound(code)


def answers(cells: list[dict]) -> dict[int, list[str]]:
    """Return, for each solution cell with code, the names that it owes to checks, in order of appearance.

    Raises EditionError where a check reads a name that its exercise does not mention. The exercise of a solution is the
    last text before it.
    """
    owed, home, exercise = {}, {}, ""
    for i, cell in enumerate(cells):
        text, code, at = source(cell), cell["cell_type"] == "code", f"cell {cell['id']!r}"
        if tagged(cell, "solution") and code:
            owed[i] = []
            home |= dict.fromkeys(bound(text), (i, exercise))
        elif tagged(cell, "check"):
            for name in sorted(read(text) & home.keys(), key=text.index):
                place, asked = home[name]
                if f"`{name}" not in asked:
                    raise EditionError(f"{at} reads {name!r}, which the exercise does not ask for: name it")
                owed[place] += [] if name in owed[place] else [name]
        elif not code and not tagged(cell, "solution"):
            exercise = text
    return owed


def student_cell(cell: dict, owed: list[str], relink) -> dict:
    """Return one cell of the student edition; `owed` are the names of a solution's stub, `relink` rewrites Markdown."""
    text, metadata, code = source(cell), cell["metadata"], cell["cell_type"] == "code"
    if tagged(cell, "solution"):
        stub = "\n".join(f"{name} = ...  # your answer" for name in owed) or "# your code"
        text, metadata = stub if code else "*Your words:*", {"tags": ["answer"]}
    elif tagged(cell, "check"):
        if not REQUIRED.search(text):
            raise EditionError(f"cell {cell['id']!r} is a check and must end in .required()")
        text = REQUIRED.sub("", text)
    elif not code:
        text = relink(text)
    made = {"cell_type": cell["cell_type"], "id": cell["id"], "metadata": metadata}
    made |= {"execution_count": None, "outputs": []} if code else {}
    return made | {"source": text.splitlines(keepends=True)}


# --- pictures and links -------------------------------------------------------------------------------------


def predicted(cells: list[dict]) -> set[str]:
    """Return the figures before which a notebook asks for a prediction, since the figure before them."""
    found, asked = set(), False
    for cell in cells:
        if cell["cell_type"] == "markdown":
            asked = asked or "**Predict" in source(cell)
        elif names := figures_of(source(cell)):
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
        path, _, anchor = target.partition("#")
        file = (self.folder / path).resolve()
        place = Path(os.path.relpath(file, ROOT)).as_posix()
        if OUTSIDE.match(target) or (not mark and file.name in self.known):
            return match[0]
        if mark and file.stem in self.hidden:
            return "*(The picture that stands here comes later in this notebook: predict it first.)*"
        if not mark and (place == "README.md" or (place.startswith(RESULTS) and file.suffix == ".md")):
            return words
        if not file.exists():
            raise EditionError(f"the link to {target} leads nowhere; a figure is made by `make figures`")
        self.copies[f"linked/{place}"] = file
        return f"{mark}[{words}](../linked/{place}{'#' + anchor if anchor else ''})"


def copy(file: Path, place: Path) -> None:
    """Copy a file that is linked to; a page of Markdown loses its own links to files, which are not there."""
    if file.suffix == ".md":
        text = file.read_text(encoding="utf-8")
        write(place, LINK.sub(lambda match: match[0] if OUTSIDE.match(match[3]) else match[2], text))
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


# --- times --------------------------------------------------------------------------------------------------


def minutes(cells: list[dict]) -> dict[str, int]:
    """Return the minutes that text and figures, the code, a lecture and the exercises take, each rounded up to five."""
    rest = [c for c in cells if not tagged(c, "solution") and not tagged(c, "check")]
    prose, code = ("\n".join(texts(rest, kind)) for kind in ("markdown", "code"))
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
        spent = minutes(read_book(path)["cells"])
        rows.append(f"| [{path.stem}]({path.name}) | {' | '.join(map(str, spent.values()))} |")
    return "\n".join(rows)


# --- the edition --------------------------------------------------------------------------------------------


def refuse(folder: Path) -> None:
    """Raise EditionError where a folder holds other files, or an edition that somebody has worked in."""
    readme, worked = folder / "README.md", []
    ours = readme.exists() and readme.read_text(encoding="utf-8").startswith(README.splitlines()[0])
    if folder.exists() and any(folder.iterdir()) and not ours:
        raise EditionError(f"{folder} holds other files than a student edition: choose an empty folder")
    for path in sorted(folder.glob("notebooks/*.ipynb")):
        cells = read_book(path)["cells"]
        worked += [path.name] if any(c.get("outputs") or c.get("execution_count") for c in cells) else []
    if worked:
        raise EditionError(f"{folder} holds outputs in {', '.join(worked)}: move it away first, to keep that work")


def make(paths: list[Path], folder: Path) -> str:
    """Write the student edition of these notebooks into a folder; return one line on what is there.

    Raises EditionError where a notebook cannot be stripped, and where the folder holds work or other files.
    """
    refuse(folder)
    books = {path: read_book(path) for path in paths}
    hidden = set().union(*(predicted(book["cells"]) for book in books.values()))
    files, copies, rows, counts = {}, {}, [], []
    for path, book in books.items():
        links, cells = Links(path.parent, hidden, {p.name for p in paths}), book["cells"]
        try:
            owed = answers(cells)
            made = [student_cell(cell, owed.get(i, []), links) for i, cell in enumerate(cells)]
        except EditionError as error:
            raise EditionError(f"{path.name}: {error}") from error
        files[f"notebooks/{path.name}"] = json.dumps(book | {"cells": made}, indent=1, ensure_ascii=False) + "\n"
        copies |= links.copies
        heading = source(cells[0]).splitlines()[0].lstrip("# ")
        asked = sum(bool(re.match(r"\*\*Exercise \d", text)) for text in texts(cells, "markdown"))
        counts.append((asked, sum(tagged(cell, "check") for cell in cells)))
        rows.append(f"| [{heading}](notebooks/{path.name}) | {counts[-1][0]} | {counts[-1][1]} |")
    files["README.md"] = README.format(count=len(paths), rows="\n".join(rows))
    shutil.rmtree(folder, ignore_errors=True)
    for place, text in files.items():
        write(folder / place, text)
    for place, file in copies.items():
        copy(file, folder / place)
    asked, checked = map(sum, zip(*counts, strict=True))
    return f"student edition: {len(paths)} notebooks, {asked} exercises, {checked} checks in {os.path.relpath(folder)}"


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
