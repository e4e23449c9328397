"""Slides of a notebook, `build/slides/NN.html`: its question, formulas, predictions, figures and exercises.

nbconvert's SlidesExporter makes the page, from the template `slides.html.j2`. Paragraphs stand in the speaker's notes
(key `s`). reveal.js and MathJax lie beside the decks, so that they open without a network.

Run it by `python -m lrp.build.slides 01 04` (default: every notebook whose run saved figures).
"""

import html
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from traitlets.config import Config

from .editions import figures_of
from .keys import ROOT, BuildError, figures_folder, find, notebooks, read, write

LIBRARIES = (  # what a deck loads: a file in an installed package
    ("sphinx_revealjs", "_static/revealjs/dist/reveal.css"),
    ("sphinx_revealjs", "_static/revealjs/dist/reveal.js"),
    ("sphinx_revealjs", "_static/revealjs/plugin/notes/notes.js"),
    ("sphinx-mathjax-offline", "static/mathjax/tex-svg.js"),
)
PAGE = Path(__file__).with_suffix(".html.j2")
HIDDEN = Config({"TagRemovePreprocessor": {"remove_cell_tags": ["solution", "check", "parameters"]}})
SHOWN = re.compile(r"\$\$|[*-] |\d+\. |\|")  # how a formula, a list or a table begins


class SlidesError(BuildError):
    """Slides cannot be made; the message says what to run first."""


@dataclass
class Slide:
    """One slide: `kind` is title, text, predict, exercise or figure; `body` and `notes` are blocks of Markdown."""

    kind: str
    body: list[str]
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[nbformat.NotebookNode]:
        """Return the slide as nbconvert wants it: a cell that starts a slide, and a cell of notes."""
        metadata = {"slideshow": {"slide_type": "slide", "data": {"kind": self.kind}}}
        shown = nbformat.v4.new_markdown_cell("\n\n".join(self.body), metadata=metadata)
        told = nbformat.v4.new_markdown_cell("\n\n".join(self.notes), metadata={"slideshow": {"slide_type": "notes"}})
        return [shown, told] if self.notes else [shown]


def unlinked(text: str) -> str:
    """Return Markdown without pictures, and with the words of its links only: a deck stands alone."""
    return re.sub(r"(!?)\[([^\[\]]*)\]\([^)]*\)", lambda match: "" if match[1] else match[2], text)


def opening(text: str, least: int) -> str:
    """Return the first sentence, and as many more as it takes for `least` characters."""
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-ZÀ-Þ`*\"“$])", " ".join(text.split()))
    return next((said for said in accumulate(sentences, "{} {}".format) if len(said) >= least), text)


def under(slides: list[Slide]) -> str:
    """Return the heading that the next slide stands under."""
    return "##" + slides[-1].body[0].lstrip("#")


def markdown(slides: list[Slide], text: str) -> None:
    """Add prose to the slides: headings and questions open one, formulas, lists and tables are shown, the rest told."""
    for block in filter(None, re.split(r"\n\s*\n", unlinked(text).strip())):
        if block.startswith("<!--"):  # links between notebooks
            continue
        if block.startswith("#"):
            slides.append(Slide("text", ["##" + block.lstrip("#")]) if slides else Slide("title", [block]))
        elif "**Predict:**" in block or block.startswith("**Exercise"):
            slides.append(Slide("predict" if "**Predict:**" in block else "exercise", [under(slides), block]))
        elif SHOWN.match(block):
            if slides[-1].kind in ("figure", "predict"):
                slides.append(Slide("text", [under(slides)]))
            slides[-1].body.append(block)
        else:
            slides[-1].body += [opening(block, 60)] if len(slides[-1].body) == 1 else []
            slides[-1].notes.append(block)


def story(figures: dict[str, dict], book: nbformat.NotebookNode, resources: dict) -> tuple:
    """Replace a notebook's cells by those of its slides; `figures` is what its run recorded. A preprocessor."""
    slides: list[Slide] = []
    for cell in book.cells:
        if cell.id == "references":
            break
        if cell.cell_type == "markdown":
            markdown(slides, cell.source)
            continue
        for name in filter(figures.__contains__, figures_of(cell.source)):
            caption, alt = unlinked(figures[name]["caption"]), html.escape(figures[name]["alt"])
            shown = [under(slides), f'<img src="figures/{name}.png" alt="{alt}">', opening(caption, 0)]
            slides.append(Slide("figure", shown, [caption]))
    book.metadata.title = slides[0].body[0].lstrip("# ")
    book.cells = [cell for slide in slides if len(slide.body) > 1 for cell in slide.cells()]
    return book, resources


def copy_libraries(folder: Path) -> None:
    """Copy what the decks load. Raises SlidesError where a package is not installed."""
    for package, file in LIBRARIES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.origin:
            raise SlidesError(f"{package.replace('_', '-')} is not installed: run `make env`")
        write(folder / "libraries" / Path(file).name, (Path(spec.origin).parent / file).read_bytes())


def recorded(notebook: Path) -> dict[str, dict]:
    """Return the figures of a notebook's last run, with captions; none where it has not run."""
    return read(ROOT / "build" / "quick" / f"{notebook.stem}.json").get("figures", {})


def make(notebook: Path, folder: Path) -> None:
    """Write the deck of one notebook. Raises SlidesError where it has not run, or where a picture is missing."""
    figures, pictures = recorded(notebook), figures_folder("quick", "quick")
    if not figures:
        raise SlidesError(f"{notebook.stem} has not run yet; run `make figures` first")
    for name in figures:
        if not (pictures / f"{name}.png").exists():
            raise SlidesError(f"{notebook.stem}: {name}.png is missing; run `make figures` first")
        write(folder / "figures" / f"{name}.png", (pictures / f"{name}.png").read_bytes())
    template, told = PAGE.read_text(encoding="utf-8"), partial(story, figures)
    exporter = SlidesExporter(HIDDEN, raw_template=template, preprocessors=[told], exclude_anchor_links=True)
    book = nbformat.read(notebook, as_version=4)
    book.metadata.pop("kernelspec", None)  # it has no display name, which nbconvert demands
    page, _ = exporter.from_notebook_node(book)
    write(folder / f"{notebook.stem[:2]}.html", page)


def main(arguments: list[str] | None = None) -> int:
    """Command line: numbers of notebooks; returns the exit status."""
    folder = ROOT / "build" / "slides"
    try:
        names = sys.argv[1:] if arguments is None else arguments
        chosen = [find(name) for name in names] or list(filter(recorded, notebooks()))
        copy_libraries(folder)
        for notebook in chosen:
            make(notebook, folder)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"slides: {len(chosen)} decks in {folder.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
