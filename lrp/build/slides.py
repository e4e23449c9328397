"""Slides of a notebook, `build/slides/NN.html`: its question, formulas, predictions, figures and summary.

Prose comes from the notebook, tables from its executed copy, figures and captions from what the run recorded. A slide
shows a sentence, a formula, a list or one figure, as large as it goes; all other prose stands in the speaker's notes
(key `s`). reveal.js and MathJax lie beside the decks, so that they open without a network.

Run it by `python -m lrp.build.slides 01 04` (default: every notebook whose run saved figures).
"""

import importlib.util
import json
import re
import shutil
import sys
import time
from pathlib import Path

from tqdm import tqdm

from .keys import ROOT, BuildError, figures_folder, find, notebooks, write
from .slides_page import PAGE
from .slides_story import figures_of, story

LIBRARIES = {  # what a deck loads: an installed package, a folder in it, and files in that
    "reveal": ("sphinx_revealjs", "_static/revealjs/dist", ("reset.css", "reveal.css", "reveal.js")),
    "notes": ("sphinx_revealjs", "_static/revealjs/plugin/notes", ("notes.js",)),
    "mathjax": ("sphinx-mathjax-offline", "static/mathjax", ("tex-svg.js",)),
}


class SlidesError(BuildError):
    """Slides cannot be made; the message says what to run first."""


def copy_libraries(folder: Path) -> None:
    """Copy what the decks load. Raises SlidesError where a package is not installed."""
    for name, (package, inside, files) in LIBRARIES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SlidesError(f"{package.replace('_', '-')} is not installed: run `make env`")
        (folder / "libraries" / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(
                Path(spec.submodule_search_locations[0]) / inside / file, folder / "libraries" / name / file
            )


def recorded(build: Path, notebook: Path) -> dict:
    """Return what the last run recorded: its figures with captions; none where it has not run."""
    path = build / f"{notebook.stem}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"figures": {}}


def outputs(notebook: Path, executed: Path) -> dict[str, list]:
    """Return each cell's outputs, {id: outputs}. Raises SlidesError where a figure's code changed since the run."""
    before, now = (
        {c["id"]: c for c in json.loads(p.read_text(encoding="utf-8"))["cells"]} for p in (executed, notebook)
    )
    for identity, cell in now.items():
        text = "".join(cell["source"])
        if figures_of(text) and text.strip() != "".join(before.get(identity, {}).get("source", "")).strip():
            name = figures_of(text)[0]
            raise SlidesError(f"{notebook.stem}: the cell of {name} changed since it ran; run `make figures` first")
    return {identity: cell.get("outputs", []) for identity, cell in before.items()}


def make(notebook: Path, build: Path, figures: Path, folder: Path) -> tuple[int, int]:
    """Write the deck of one notebook; return how many slides and figures it has. Raises SlidesError."""
    executed = build / notebook.name
    if not executed.exists():
        raise SlidesError(f"{notebook.stem} has not run yet; run `make figures` first")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    slides = story(cells, outputs(notebook, executed), recorded(build, notebook))
    shown = [name for slide in slides for name in re.findall(r'src="figures/(\w+)\.png"', "".join(slide.body))]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in shown:
        if not (figures / f"{name}.png").exists():
            raise SlidesError(f"{notebook.stem}: {name}.png is missing; run `make figures` first")
        shutil.copyfile(figures / f"{name}.png", folder / "figures" / f"{name}.png")
    write(folder / f"{notebook.stem[:2]}.html", PAGE.render(title=slides[0].section, slides=slides))
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
