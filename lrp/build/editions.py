"""The student edition of the notebooks, in `build/student/`: everything but solutions, outputs and results.

* A solution's code becomes a stub, which binds the names that the check after it reads to `...`. Checks stay, without
  `.required()`, by which the reference solution must pass (`lrp/teach/course.py`).
* A picture stays only if its notebook asks for no prediction before it. Links to pages of Markdown become plain text.
* Other links lead inside the folder: to the notebooks, or to copies under `linked/`.

Run it by `python -m lrp.build.editions`; `--times` prints the table of minutes for `notebooks/TEACHING.md`.
"""

import argparse
import ast
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .keys import ROOT, BuildError, notebooks, parse, write

REQUIRED = re.compile(r"\.required\(\)(?=(\s*#.*)?$)")  # the end of a check
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
OUTSIDE = re.compile(r"[a-z]+:|#")  # how a link begins that leads to no file
WORDS_A_MINUTE = 200  # of prose
LINES_A_MINUTE = 15  # of code: read for what it does, not line by line
LOOK = 0.5  # minutes for a reader's look at a figure
FIGURE, QUESTION = 4, 3  # minutes of a lecture
STARS = (10, 20, 45)  # minutes for an exercise of one, two, three stars
README = """# The student edition

{count} notebooks on Layer-wise Relevance Propagation, with exercises and without their solutions.

1. The notebooks import the package `lrp`. In a clone of its repository, `make env` sets up everything once; in an
   environment of your own, `python -m pip install -e .` does. From there: `python -m jupyterlab notebooks`, here.
2. Run a notebook from the top. Where it says **Predict**, stop and commit to an answer before you run the next cell.
3. An exercise says which name to give your answer. Replace the `...` of `name = ...  # your answer`, run the cell and
   the one below it: it says *right*, *not yet* or *wrong*. A missing answer stops nothing; open questions are open.

| notebook | exercises | of these checked |
|---|---|---|
{rows}
"""


class EditionError(BuildError):
    """The student edition cannot be made; the message names the cell and the fix."""


def cells_of(path: Path) -> list[NotebookNode]:
    return nbformat.read(path, as_version=4).cells


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def figures_of(code: str) -> list[str]:
    """Return the names of the figures that a cell saves."""
    return re.findall(r"\bsave\(\s*\w+,\s*[\"'](\w+)[\"']", code)


def names(tree: ast.AST, context: type) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def bound(code: str) -> set[str]:
    """Return the names that code binds at its top level."""
    defined = (ast.FunctionDef, ast.ClassDef)
    return set().union(*({n.name} if isinstance(n, defined) else names(n, ast.Store) for n in parse(code).body))


def answers(cells: list[NotebookNode]) -> dict[int, list[str]]:
    """Return, for each solution cell with code, the names that it owes to checks, in order of appearance.

    Raises EditionError where a check reads a name that its exercise does not mention. The exercise of a solution is the
    last text before it.
    """
    owed, home, exercise = {}, {}, ""
    for i, cell in enumerate(cells):
        text, code = cell.source, cell.cell_type == "code"
        if tagged(cell, "solution") and code:
            owed[i] = []
            home |= dict.fromkeys(bound(text), (i, exercise))
        elif tagged(cell, "check"):
            read = names(parse(text), ast.Load) - bound(text)
            for name in sorted(read & home.keys(), key=text.index):
                place, asked = home[name]
                if f"`{name}" not in asked:
                    raise EditionError(f"cell {cell.id!r} reads {name!r}, which the exercise does not ask for: name it")
                owed[place] += [] if name in owed[place] else [name]
        elif not code and not tagged(cell, "solution"):
            exercise = text
    return owed


def strip(cells: list[NotebookNode], relinked: Callable[[str], str]) -> None:
    """Turn cells into those of the student edition; `relinked` rewrites Markdown. Raises EditionError."""
    owed = answers(cells)
    for i, cell in enumerate(cells):
        code = cell.cell_type == "code"
        if code:
            cell.outputs, cell.execution_count = [], None
        if tagged(cell, "solution"):
            stub = "\n".join(f"{name} = ...  # your answer" for name in owed.get(i, [])) or "# your code"
            cell.source, cell.metadata = stub if code else "*Your words:*", NotebookNode(tags=["answer"])
        elif tagged(cell, "check"):
            cell.source, ends = REQUIRED.subn("", cell.source)
            if not ends:
                raise EditionError(f"cell {cell.id!r} is a check and must end in .required()")
        elif not code:
            cell.source = relinked(cell.source)


def predicted(cells: list[NotebookNode]) -> set[str]:
    """Return the figures before which a notebook asks for a prediction, since the figure before them."""
    found, asked = set(), False
    for cell in cells:
        if cell.cell_type == "markdown":
            asked = asked or "**Predict" in cell.source
        elif names := figures_of(cell.source):
            found |= set(names) if asked else set()
            asked = False
    return found


def links(folder: Path, hidden: set[str], known: set[str], copies: dict[str, Path]) -> Callable[[str], str]:
    """Return what rewrites the links of a notebook in `folder`; it adds to `copies`, {place in the edition: file}.

    `hidden` are figures that are to be predicted, `known` the names of the notebooks.
    """

    def rewritten(match: re.Match) -> str:
        mark, words, target = match.groups()
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve()
        if OUTSIDE.match(target) or (not mark and file.name in known):
            return match[0]
        if mark and file.stem in hidden:
            return "*(The picture that stands here comes later in this notebook: predict it first.)*"
        if not mark and file.suffix == ".md":  # galleries and notes for teachers show what the reader is to find out
            return words
        if not file.exists():
            raise EditionError(f"the link to {target} leads nowhere; a figure is made by `make figures`")
        place = Path(os.path.relpath(file, ROOT)).as_posix()
        copies[f"linked/{place}"] = file
        return f"{mark}[{words}](../linked/{place}{'#' + anchor if anchor else ''})"

    def relinked(text: str) -> str:
        if html := re.search(r"<(?:img|a)\s[^>]*(?:src|href)=[\"'](?!https?:)[^>]*>", text):
            raise EditionError(f"write {html[0][:60]} as a Markdown link, so that it can be rewritten")
        return LINK.sub(rewritten, text)

    return relinked


def minutes(cells: list[NotebookNode]) -> dict[str, int]:
    """Return the minutes that text and figures, the code, a lecture and the exercises take, each rounded up to five."""
    rest = [cell for cell in cells if not tagged(cell, "solution") and not tagged(cell, "check")]
    prose, code = ("\n".join(c.source for c in rest if c.cell_type == kind) for kind in ("markdown", "code"))
    figures, questions = len(re.findall(r"(?m)^save\(", code)), prose.count("**Predict:**")
    exact = {
        "reading": len(prose.split()) / WORDS_A_MINUTE + figures * LOOK,
        "code": len(re.findall(r"(?m)^.*\S", code)) / LINES_A_MINUTE,
        "lecture": figures * FIGURE + questions * QUESTION,
        "exercises": sum(STARS[len(found) - 1] for found in re.findall(r"(?m)^\*\*Exercise [\d.]+\*\* (★+)", prose)),
    }
    return {kind: 5 * math.ceil(spent / 5) for kind, spent in exact.items()}


def times(paths: list[Path]) -> str:
    """Return a Markdown table of the minutes that each notebook takes."""
    rows = ["| notebook | reading | code | lecture | exercises |", "|---|---|---|---|---|"]
    for path in paths:
        rows.append(f"| [{path.stem}]({path.name}) | {' | '.join(map(str, minutes(cells_of(path)).values()))} |")
    return "\n".join(rows)


def refuse(folder: Path) -> None:
    """Raise EditionError where a folder holds other files, or an edition that somebody has worked in."""
    readme = folder / "README.md"
    ours = readme.exists() and readme.read_text(encoding="utf-8").startswith(README.splitlines()[0])
    if folder.exists() and any(folder.iterdir()) and not ours:
        raise EditionError(f"{folder} holds other files than a student edition: choose an empty folder")
    for path in sorted(folder.glob("notebooks/*.ipynb")):
        if any(cell.get("outputs") or cell.get("execution_count") for cell in cells_of(path)):
            raise EditionError(f"{folder} holds outputs in {path.name}: move it away first, to keep that work")


def make(paths: list[Path], folder: Path) -> str:
    """Write the student edition of these notebooks into a folder; return one line on what is there.

    Raises EditionError where a notebook cannot be stripped, and where the folder holds work or other files.
    """
    refuse(folder)
    books = {path: nbformat.read(path, as_version=4) for path in paths}
    hidden = set().union(*(predicted(book.cells) for book in books.values()))
    copies, rows = {}, []
    for path, book in books.items():
        try:
            strip(book.cells, links(path.parent, hidden, {p.name for p in paths}, copies))
        except EditionError as error:
            raise EditionError(f"{path.name}: {error}") from error
        heading = book.cells[0].source.splitlines()[0].lstrip("# ")
        asked = sum(cell.source.startswith("**Exercise ") for cell in book.cells)
        checked = sum(tagged(cell, "check") for cell in book.cells)
        rows.append(f"| [{heading}](notebooks/{path.name}) | {asked} | {checked} |")
    shutil.rmtree(folder, ignore_errors=True)
    for path, book in books.items():
        write(folder / "notebooks" / path.name, nbformat.writes(book) + "\n")
    for place, file in copies.items():
        write(folder / place, file.read_bytes())
    write(folder / "README.md", README.format(count=len(paths), rows="\n".join(rows)))
    return f"student edition: {len(paths)} notebooks in {os.path.relpath(folder)}"


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
