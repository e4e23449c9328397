"""Pages of the book from what the repository holds: Markdown with its links turned, notebooks with their outputs.

A notebook's page is its source, so that prose is never stale, with the outputs of the executed copy put in by cell id.
"""

import base64
import json
import os
import re
import struct
from itertools import groupby
from pathlib import Path

from ..teach.records import is_picture
from .editions import figures_of
from .keys import ROOT, BuildError, notebooks, read
from .pages import judging_cell

MARKDOWN = {  # file of the repository: its page
    "README.md": "index.md",
    "notebooks/TEACHING.md": "teaching.md",
    "figures/README.md": "gallery.md",
    "figures/full/README.md": "gallery_full.md",
    "figures/scorecard.md": "scorecard.md",
    "figures/coverage.md": "coverage.md",
    "figures/benchmark.md": "benchmark.md",
    "figures/benchmark_metrics.md": "benchmark_metrics.md",
    "CONTRIBUTING.md": "contributing.md",
    "data/README.md": "data.md",
    "CHANGELOG.md": "changelog.md",
}
TEXT = r"(?:[^\[\]`]|`[^`\n]*`|!?\[[^\[\]]*\](?:\([^()\s]*\))?)*"
LINK = re.compile(rf"```.*?```|(?P<picture>!?)\[(?P<text>{TEXT})\]\((?P<target>[^()\s]+)\)|`[^`\n]*`", flags=re.DOTALL)
SHOWN = re.compile(r"!\[(?P<alt>[^\]\n]*)\]\((?P<name>\d\d_\w+)\.png\)\n\n(?P<caption>\*\*(?P=name)\.\*\*[^\n]*)")
BAR = re.compile(r"[^\r\n]*?(?:\d+%\|[^|\r\n]*\|[^\[\r\n]*|\d\S* ?)\[[\d:]+[<,][^\]\r\n]*\]")  # as tqdm draws it
NAVIGATION = re.compile(r"\n*<!-- navigation -->.*?<!-- /navigation -->", flags=re.DOTALL)
WIDGET = "application/vnd.jupyter.widget-view+json"
NO_WIDGET = "*(An interactive control: open the notebook in JupyterLab, `make lab`, to use it.)*"
LONG = 20  # lines of code that a reader is shown at once
FOLDED = {  # tag of a cell: what myst-nb makes of it
    "parameters": ("hide-input", "Show the parameters", "Hide the parameters"),
    "solution": ("hide-cell", "Show the solution", "Hide the solution"),
}


def existing() -> dict[str, str]:
    """Return {file: page} of the Markdown files and the numbered notebooks that there are, notebooks in order."""
    books = [path.relative_to(ROOT).as_posix() for path in notebooks()]
    return {name: page for name, page in MARKDOWN.items() if (ROOT / name).exists()} | {name: name for name in books}


def label(*parts: str) -> str:
    """Return an anchor, as docutils would write it."""
    return "-".join(parts).replace("_", "-")


def figure(picture: str, alt: str, caption: str, anchor: str) -> str:
    """Return MyST for a figure; `picture` is its path, in the repository as in the book."""
    return f"```{{figure}} /{picture}\n:alt: {json.dumps(alt, ensure_ascii=False)}\n:name: {anchor}\n\n{caption}\n```"


class Pages:
    """Makes the text of pages.

    `pages` is {file of the repository: page of the book}, `repository` the address on GitHub, empty without one.
    """

    def __init__(self, pages: dict[str, str], repository: str = ""):
        self.pages, self.repository = pages, repository

    def markdown(self, name: str) -> str:
        """Return a Markdown file as a page. Raises BuildError for a link that leads nowhere."""
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("```mermaid", "```text")  # a git host draws it, the book shows it as text
        if Path(name).name == "README.md" and name.startswith("figures/"):
            text = SHOWN.sub(lambda shown: self.shown(name, shown), text)
        if name.startswith("figures/full/"):
            text = text.replace("# Figures\n", "# Figures of the full profile\n", 1)
        return self.relinked(text, name)

    def shown(self, gallery: str, shown: re.Match) -> str:
        """Return the figure for a picture and its caption in a gallery."""
        picture = (Path(gallery).parent / f"{shown['name']}.png").as_posix()
        return figure(picture, shown["alt"], shown["caption"], self.anchor(picture))

    def anchor(self, picture: str) -> str | None:
        """Return where a gallery of the book shows this picture, or None."""
        path = ROOT / picture
        gallery = self.pages.get((Path(picture).parent / "README.md").as_posix(), "")
        if not gallery.startswith("gallery") or f"({path.name})" not in path.with_name("README.md").read_text("utf-8"):
            return None
        return label(Path(gallery).stem, path.stem)

    def relinked(self, text: str, name: str) -> str:
        """Return Markdown of the file `name` with its links turned to the book.

        Links lead to the page of a file, to the gallery for a picture of it, otherwise to GitHub or, without an
        address there, nowhere: the text stays. A picture of another host becomes its description. Raises
        BuildError for a relative link whose file is missing.
        """

        def turned(found: re.Match) -> str:
            target = found["target"]
            if target is None:  # code
                return found[0]
            outside = re.match(r"[a-z][a-z0-9+.-]*:", target)
            if found["picture"]:
                return found["text"] if outside else f"![{found['text']}](/{inside(target, name)})"
            words = self.relinked(found["text"], name)
            if outside or target.startswith("#"):
                return f"[{words}]({target})"
            path, _, fragment = target.partition("#")
            where = self.turned(inside(path, name), Path(self.pages[name]).parent, fragment)
            return f"[{words}]({where})" if where else words

        return LINK.sub(turned, text)

    def turned(self, path: str, folder: Path, fragment: str) -> str | None:
        """Return where a link to this file of the repository leads from a page in `folder`."""
        if path in self.pages:
            page = Path(os.path.relpath(self.pages[path], folder)).as_posix()
            if path.endswith(".ipynb"):  # JupyterLab's fragments: #cell-id=ID, #Heading
                cell = fragment.removeprefix("cell-id=")
                fragment = fragment.lower() if cell == fragment else label("cell", Path(path).stem, cell)
            return f"{page}#{fragment}" if fragment else page
        if path.endswith(".png") and (anchor := self.anchor(path)):
            return f"#{anchor}"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{self.repository}/{kind}/HEAD/{path}" if self.repository else None

    def notebook(self, name: str) -> str:
        """Return a notebook as a page. Raises BuildError where code has changed since it ran, or never ran."""
        executed = ROOT / "build" / "quick" / Path(name).name
        if not executed.exists():
            raise BuildError(f"{name} has not run: run `make figures` first")
        ran, record = read(executed), read(executed.with_suffix(".json")).get("figures", {})
        by_id = {cell["id"]: cell for cell in ran["cells"] if cell["cell_type"] == "code"}
        cells, judging = [], judging_cell(ROOT / name)
        for cell in read(ROOT / name)["cells"]:
            source, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
            if cell["cell_type"] != "code":
                source = NAVIGATION.sub("", source)  # pages have their own
                text = self.relinked(source, name) if cell["cell_type"] == "markdown" else source
                cells.append({**cell, "source": closed(text) if "solution" in tags else text, "metadata": {}})
                continue
            twin = by_id.get(cell["id"])
            if twin is None or "".join(twin["source"]).strip() != source.strip():
                raise BuildError(f"{name}: the code of cell {cell['id']} has changed since it ran: run `make figures`")
            if cell["id"] == judging:
                anchor = f"({label('cell', Path(name).stem, cell['id'])})="
                cells.append({"cell_type": "markdown", "id": "judging", "metadata": {}, "source": anchor})
            cells.append({**cell, "source": source, "metadata": folding(tags, source)})
            figures = [(n, record[n]) for n in figures_of(source) if n in record]
            cells[-1]["outputs"] = page_outputs(twin["outputs"], figures)
        kept = {key: ran["metadata"][key] for key in ("kernelspec", "language_info") if key in ran["metadata"]}
        return json.dumps({**ran, "cells": cells, "metadata": kept}, indent=1, ensure_ascii=False)


def page_outputs(outputs: list[dict], figures: list[tuple[str, dict]]) -> list[dict]:
    """Return outputs fit for a page: figures with caption and description, no progress bars, no widgets.

    `figures` are the figures that the cell saved, in order. Each takes the place of the next picture of its
    proportions; one that the cell does not show stands last.
    """
    made, left = [], list(figures)
    for (kind, stream), group in groupby(outputs, key=lambda output: (output["output_type"], output.get("name"))):
        if kind == "stream":
            text = tidy("".join("".join(output["text"]) for output in group), errors=stream == "stderr")
            made += [{"output_type": kind, "name": stream, "text": text}] if text else []
            continue
        for output in group:
            data = output.get("data", {})
            if twin := next((each for each in left if same_shape(data.get("image/png"), each[0])), None):
                left.remove(twin)
                made.append(saved_figure(*twin))
            elif not (WIDGET in data and BAR.search("".join(data.get("text/plain", "")))):
                made.append(output | ({"data": without_widget(data), "metadata": {}} if data else {}))
    return made + [saved_figure(*each) for each in left]


def saved_figure(name: str, record: dict) -> dict:
    """Return the output for a figure that a notebook saved."""
    text = figure(saved_picture(name), record["alt"], record["caption"], label("fig", name))
    return {"output_type": "display_data", "data": {"text/markdown": text}, "metadata": {}}


def inside(target: str, name: str) -> str:
    """Return the path in the repository of a link in the file `name`. Raises BuildError if nothing is there."""
    path = os.path.normpath(Path(name).parent / target)
    if path.startswith("..") or not (ROOT / path).exists():
        raise BuildError(f"{name}: dead link {target}")
    return Path(path).as_posix()


def saved_picture(name: str) -> str:
    """Return the path of a figure that a notebook saved. Raises BuildError if it is not there."""
    picture = f"figures/{name}.png"
    if not is_picture(ROOT / picture):
        raise BuildError(f"{picture} is missing or cut short: run `make figures` first")
    return picture


def same_shape(shown: str | None, name: str) -> bool:
    """Whether a picture of a notebook (PNG in base64) has the proportions of a saved figure, to a pixel or two."""
    if shown is None:
        return False
    files = base64.b64decode("".join(shown)), (ROOT / saved_picture(name)).read_bytes()
    (width, height), (across, down) = (struct.unpack(">II", png[16:24]) for png in files)
    return abs(across * height - down * width) <= 2 * max(across, down)


def folding(tags: list[str], source: str) -> dict:
    """Return a code cell's metadata for myst-nb: what is folded, and the description of a picture without one."""
    first = next((line.strip("# ") for line in source.splitlines() if line.strip()), "")
    shown = {"image": {"alt": f"Picture drawn by the code above: {first}"}}
    lines = len(source.splitlines())
    long = ("hide-input", f"Show the code ({lines} lines)", "Hide the code") if lines > LONG else None
    if (found := next((FOLDED[tag] for tag in tags if tag in FOLDED), long)) is None:
        return {"tags": tags, "mystnb": shown}
    folded, show, hide = found
    return {"tags": [*tags, folded], "mystnb": shown | {"code_prompt_show": show, "code_prompt_hide": hide}}


def closed(text: str) -> str:
    """Return prose of a solution as a closed box, of the kind that myst-nb makes of code."""
    title = '<summary><p class="admonition-title">Solution</p></summary>'
    box = f'<div class="cell container"><details class="admonition hide above-input">{title}'
    return f"{box}\n\n{text}\n\n</details></div>"


def tidy(text: str, errors: bool) -> str:
    """Return printed text without places of this machine and, on stderr, without progress bars."""
    if errors:
        lines = re.split(r"[\r\n]+", BAR.sub("\n", text))  # a warning follows a bar on the same line
        text = "".join(f"{line}\n" for line in lines if line.strip())
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "this cell, line ", text).replace("line :", "line ")
    return re.sub(r"\S*/(site-packages/|(?=lrp/[\w/]+\.py\b))", "", text).replace(f"{ROOT}{os.sep}", "")


def without_widget(data: dict) -> dict:
    """Return the data of an output, where a still picture or a note stands in place of a widget."""
    stills = ("image/png", "text/html")
    if WIDGET not in data:
        return data
    return {mime: data[mime] for mime in stills if mime in data} or {"text/markdown": NO_WIDGET}
