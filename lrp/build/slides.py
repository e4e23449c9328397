"""Slides of a notebook, `build/slides/NN.html`: its question, formulas, predictions, figures and summary.

`story` says what stands on which slide; nbconvert's SlidesExporter makes the page from the template `slides.html.j2`.
Prose comes from the notebook, tables from its executed copy, figures and captions from what the run recorded. Shown are
a sentence, a formula, a list or one figure, as large as it goes. Paragraphs stand in the speaker's notes (key `s`).
reveal.js and MathJax lie beside the decks, so that they open without a network.

Run it by `python -m lrp.build.slides 01 04` (default: every notebook whose run saved figures).
"""

import html
import importlib.util
import json
import math
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbconvert import SlidesExporter
from tqdm import tqdm

from .editions import figures_of
from .keys import ROOT, BuildError, figures_folder, find, notebooks, write

LIBRARIES = {  # what a deck loads: an installed package, a folder in it, and files in that
    "reveal": ("sphinx_revealjs", "_static/revealjs/dist", ("reveal.css", "reveal.js")),
    "notes": ("sphinx_revealjs", "_static/revealjs/plugin/notes", ("notes.js",)),
    "mathjax": ("sphinx-mathjax-offline", "static/mathjax", ("tex-svg.js",)),
}
PAGE = Path(__file__).with_suffix(".html.j2")
MARKDOWN = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)
LINES = 12  # lines of text that fit on a slide, under its title
WIDTH, ROW = 68, 88  # characters of a line of text, and of a row of a table
CAPTION = 150  # characters of a figure's short line
ENDINGS = ("exercises", "references")  # cells at which the story ends


class SlidesError(BuildError):
    """Slides cannot be made; the message says what to run first."""


# --- Markdown -----------------------------------------------------------------------------------------------


def unlinked(text: str) -> str:
    """Return Markdown without pictures, and with the words of its links only: a deck stands alone."""
    return re.sub(r"(!?)\[([^\[\]]*)\]\([^)]*\)", lambda match: "" if match[1] else match[2], text)


def blocks(text: str) -> list[tuple[str, str]]:
    """Split Markdown into its top-level blocks: (type, source)."""
    lines = text.splitlines()
    tops = [t for t in MARKDOWN.parse(text) if t.level == 0 and t.map and t.nesting >= 0]
    return [(t.type.removesuffix("_open"), "\n".join(lines[slice(*t.map)])) for t in tops]


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+(?=[A-ZÀ-Þ`*\"“$])", " ".join(text.split()))


def opening(text: str, least: int = 60) -> str:
    """Return the first sentence, and as many more as it takes to say something."""
    return next((said for said in accumulate(sentences(text), "{} {}".format) if len(said) >= least), text)


def short_line(caption: str) -> str:
    """Return what a figure shows, in a line or two: the first sentence of its caption, or of that the first clause."""
    sentence = sentences(caption)[0]
    clauses = (sentence[: m.start()] for m in re.finditer(r"(?<=.{40})[:;](?=\s)", sentence))
    whole = next((clause for clause in clauses if clause.count("(") == clause.count(")")), None)
    return f"{whole}." if whole and len(sentence) > CAPTION else sentence


def height(text: str) -> float:
    """Estimate how many lines an item, a sentence or a row of a table takes; formulas are shorter than their source."""
    plain = re.sub(r"\\[A-Za-z]+|[{}$*`\\|]", "", text)
    width, gap = (ROW, 0.05) if text.startswith("|") else (WIDTH, 0.25)
    return max(1, -(-len(plain) // width)) + gap


def portions(parts: list[str], room: float) -> list[list[str]]:
    """Split items or rows into as few groups as fit a slide of `room` lines each, about evenly."""
    ends = list(accumulate(map(height, parts)))
    count = math.ceil(ends[-1] / room)
    placed = [(int(count * (end - height(part) / 2) / ends[-1]), part) for part, end in zip(parts, ends, strict=True)]
    return [[part for _, part in group] for _, group in groupby(placed, key=lambda pair: pair[0])]


# --- the story ----------------------------------------------------------------------------------------------


@dataclass
class Slide:
    """One slide: `kind` is title, text, statement, predict or figure; `body` and `notes` are blocks of Markdown.

    `section` is the heading under which the slide stands, `lines` an estimate of its height. A statement is a section's
    first sentence alone.
    """

    kind: str
    section: str
    body: list[str]
    notes: list[str]
    lines: float = 0

    def cells(self) -> list[nbformat.NotebookNode]:
        """Return the slide as nbconvert wants it: a cell that starts a slide, and a cell of notes."""
        heading = f"{'#' if self.kind == 'title' else '##'} {self.section}"
        made = []
        for kind, texts in (("slide", [heading, *self.body]), ("notes", self.notes)):
            metadata = {"slideshow": {"slide_type": kind, "data": {"kind": self.kind}}}
            made += [nbformat.v4.new_markdown_cell("\n\n".join(texts), metadata=metadata)] if texts else []
        return made


class Story:
    """Turns the cells of a notebook into slides, one after the other."""

    def __init__(self, record: dict):
        self.record, self.slides, self.section = record, [], ""

    @property
    def last(self) -> Slide:
        return self.slides[-1]

    def add(self, kind: str, *body: str) -> None:
        """Add a slide. A statement gives way to the slide that follows in its section, which takes over its notes."""
        replaced = self.slides and self.last.kind == "statement" and self.last.section == self.section
        self.slides.append(Slide(kind, self.section, list(body), self.slides.pop().notes if replaced else []))

    def put(self, text: str, lines: float) -> None:
        """Add Markdown to the text slide at hand, or to a new one where it does not fit."""
        full = self.last.lines and self.last.lines + lines > LINES
        if full or self.last.kind not in ("text", "statement"):
            self.add("text")
        self.last.kind = "text"  # a statement that gets company is one no longer
        self.last.body.append(text)
        self.last.lines += lines

    def open(self, text: str) -> None:
        """The first cell: the question is the title, and the first paragraph."""
        (_, heading), (_, question), *rest = blocks(text)
        self.section = heading.lstrip("# ")
        self.add("title", question)
        self.last.notes += [block for _, block in rest]

    def markdown(self, text: str) -> None:
        """Prose: headings open a slide, formulas, lists and tables are shown, paragraphs are told."""
        fresh = False  # whether a heading waits for its first sentence
        for kind, block in blocks(text):
            if kind == "heading":
                self.section = block.lstrip("# ")
                self.add("statement")
                if self.section == "Scorecard":
                    self.verdicts()
            elif kind == "math_block":
                self.put(block, 3)
            elif kind in ("bullet_list", "ordered_list", "table"):
                self.parts(kind, block)
            elif "**Predict:**" in block:
                self.predict(*(part.strip() for part in block.split("**Predict:**", maxsplit=1)), fresh)
            else:
                self.tell(block, fresh)
            fresh = kind == "heading"

    def tell(self, paragraph: str, fresh: bool) -> None:
        """A paragraph is told; the first one of a section lends its first sentence to the slide."""
        if fresh:
            self.last.body.append(opening(paragraph))
            self.last.lines += height(self.last.body[-1])
        for shown in re.findall(r"\$\$.+?\$\$", paragraph, flags=re.DOTALL):
            self.put(shown, 3)
        self.last.notes.append(paragraph)

    def predict(self, told: str, question: str, fresh: bool) -> None:
        """A question, below the sentence before it."""
        if told:
            self.tell(told, fresh)
        led = sentences(told)[-1] or "".join(self.last.body if self.last.kind == "statement" else [])
        before = [f'<div class="led">\n\n{led}\n\n</div>'] if led else []
        self.add("predict", *before, '<p class="word">Predict</p>', question[0].upper() + question[1:])

    def parts(self, kind: str, block: str) -> None:
        """A list or a table, on as many slides as it needs; long items are cut to their opening, and told."""
        head, whole = [], re.split(r"\n(?=[*-]\s|\d+\.\s)", block.strip())
        if kind == "table":
            head, whole = block.splitlines()[:2], block.splitlines()[2:]
        shown = [part if height(part) < 4 else opening(part) for part in whole]
        taken = sum(map(height, head[:1]))
        groups = portions(shown, LINES - taken)
        for group in groups:
            if len(groups) > 1:
                self.add("text")
            self.put("\n".join(head + group), taken + sum(map(height, group)))
        self.last.notes += [block] if shown != whole else []

    def verdicts(self) -> None:
        """How many claims of the papers were reproduced."""
        counts = Counter(claim["verdict"] for claim in self.record.get("claims", {}).values())
        if counts:
            self.put("\n".join(f"* **{count}** {verdict}" for verdict, count in counts.most_common()), len(counts))

    def figure(self, name: str) -> None:
        """A figure, as large as it goes, with a short line."""
        entry = self.record["figures"][name]
        caption = unlinked(entry["caption"])
        self.add("figure", f'<img src="figures/{name}.png" alt="{html.escape(entry["alt"])}">', short_line(caption))
        self.last.notes.append(caption)

    def answer(self, outputs: list[dict]) -> None:
        """A small table that comes right after a question is its answer."""
        tables = ["".join(o["data"]["text/html"]) for o in outputs if "text/html" in o.get("data", {})]
        if self.last.kind == "predict" and tables and tables[0].count("<tr") <= LINES:
            plain = re.sub(r"<style.*?</style>| border=\"1\"", "", tables[0], flags=re.DOTALL)
            self.add("text", re.sub(r"\s*\n\s*", "\n", plain.strip()))  # an empty line would end the HTML


def story(cells: list[dict], record: dict) -> list[Slide]:
    """Return the slides of a notebook's cells with their outputs; `record` is what the same run recorded."""
    told = Story(record)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if cell["id"] in ENDINGS:
            break
        if cell["cell_type"] == "markdown":
            text = unlinked(cell["source"])
            told.markdown(text) if told.slides else told.open(text)
            continue
        shown = [name for name in figures_of(cell["source"]) if name in record["figures"]]
        for name in shown:
            told.figure(name)
        if not shown and following is not None and following["cell_type"] == "markdown":
            told.answer(cell["outputs"])
    return [slide for slide in told.slides if slide.body]


# --- the deck -----------------------------------------------------------------------------------------------


def copy_libraries(folder: Path) -> None:
    """Copy what the decks load. Raises SlidesError where a package is not installed."""
    for name, (package, inside, files) in LIBRARIES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SlidesError(f"{package.replace('_', '-')} is not installed: run `make env`")
        (folder / "libraries" / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(Path(spec.submodule_search_locations[0]) / inside / file, folder / "libraries" / name)


def recorded(build: Path, notebook: Path) -> dict:
    """Return what the last run recorded: its figures with captions; none where it has not run."""
    path = build / f"{notebook.stem}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"figures": {}}


def executed(notebook: Path, build: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of its last run. Raises SlidesError where a figure's code changed since."""
    if not (build / notebook.name).exists():
        raise SlidesError(f"{notebook.stem} has not run yet; run `make figures` first")
    now, before = (nbformat.read(path, as_version=4) for path in (notebook, build / notebook.name))
    ran = {cell["id"]: cell for cell in before.cells}
    for cell in now.cells:
        old = ran.get(cell["id"], {})
        if figures_of(cell.source) and cell.source.strip() != old.get("source", "").strip():
            name = figures_of(cell.source)[0]
            raise SlidesError(f"{notebook.stem}: the cell of {name} changed since it ran; run `make figures` first")
        if cell.cell_type == "code":
            cell.outputs = old.get("outputs", [])
    return now


def make(notebook: Path, build: Path, figures: Path, folder: Path) -> tuple[int, int]:
    """Write the deck of one notebook; return how many slides and figures it has. Raises SlidesError."""
    book = executed(notebook, build)
    slides = story(book.cells, recorded(build, notebook))
    shown = re.findall(r'src="figures/(\w+\.png)"', "".join(text for slide in slides for text in slide.body))
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in shown:
        if not (figures / name).exists():
            raise SlidesError(f"{notebook.stem}: {name} is missing; run `make figures` first")
        shutil.copy(figures / name, folder / "figures")
    deck = nbformat.v4.new_notebook(metadata={"title": slides[0].section})
    deck.cells = [cell for slide in slides for cell in slide.cells()]
    page, _ = SlidesExporter(
        raw_template=PAGE.read_text(encoding="utf-8"), exclude_anchor_links=True
    ).from_notebook_node(deck)
    write(folder / f"{notebook.stem[:2]}.html", page)
    return len(slides), len(shown)


def main(arguments: list[str] | None = None) -> int:
    """Command line: numbers of notebooks; returns the exit status."""
    begun, names = time.monotonic(), sys.argv[1:] if arguments is None else arguments
    build, folder = ROOT / "build" / "quick", ROOT / "build" / "slides"
    try:
        chosen = [find(name) for name in names] or [path for path in notebooks() if recorded(build, path)["figures"]]
        copy_libraries(folder)
        counts = [make(p, build, figures_folder("quick", "quick"), folder) for p in tqdm(chosen, "slides", leave=False)]
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    slides, figures = (sum(count[k] for count in counts) for k in (0, 1))
    place, seconds = folder.relative_to(ROOT), time.monotonic() - begun
    print(f"slides: {len(counts)} decks, {slides} slides, {figures} figures in {place}, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
