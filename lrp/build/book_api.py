"""The API reference of the book: which modules have a page, and their docstrings as Sphinx reads them.

Docstrings are plain text with code in backquotes, blocks of code set in, and formulas as `.. math::`. The rest of
what reStructuredText would read into them is taken as it stands.

Standard library only; Sphinx loads it as an extension.
"""

import ast
import re
from pathlib import Path

from .keys import ROOT, imported, modules, notebooks, package, parse

CODE = re.compile(r"(:math:`[^`]*`|`[^`\n]+`)")
OWNER = re.compile(r"\s*(?:[*-] |\.\. |(?:Args|Attributes|Returns|Yields|Raises):$)")  # of the lines set in below it


def reachable(files: set[Path]) -> set[Path]:
    """Return these modules and all that they import, directly or through others."""
    seen, todo = set(), set(files)
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= imported(parse(file.read_text(encoding="utf-8")), package(file)) - seen
    return seen


def groups() -> dict[str, list[Path]]:
    """Return {heading: modules}: what `lrp` exports, what lies under it, and what the notebooks import beside it."""
    start = ROOT / "lrp" / "__init__.py"
    if not start.exists():
        return {}
    core = imported(parse(start.read_text(encoding="utf-8")), "lrp") - {start}
    under = reachable(core) - core - {start}
    studies = set().union(*map(modules, notebooks())) - core - under - {start}
    found = {"The core": core, "Studies, and what notebooks share": studies, "Under the core": under}
    found = {
        heading: sorted(f for f in files if f.suffix == ".py" and f.stem != "__init__")
        for heading, files in found.items()
    }
    return {heading: files for heading, files in found.items() if files}


def dotted(file: Path) -> str:
    """Return the name of a module within `lrp`: "rules", "data.models"."""
    return f"{package(file)}.{file.stem}".removeprefix("lrp.")


def pages(grouped: dict[str, list[Path]]) -> dict[str, str]:
    """Return {page: text} of the reference: one page for each module, and a page that lists them."""
    if not grouped:
        return {}
    lines = ["# API reference", "", "```python", "from lrp import LRP, composites, rules, seeds", "```"]
    made, listed = {}, []
    for heading, files in grouped.items():
        lines += ["", f"## {heading}", "", "| module | says |", "|---|---|"]
        for file in files:
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            first = " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")
            name = dotted(file)
            lines.append(f"| [`lrp.{name}`](api/{name}.md) | {first} |")
            listed.append(f"api/{name}")
            made[f"api/{name}.md"] = f"# lrp.{name}\n\n```{{eval-rst}}\n.. automodule:: lrp.{name}\n   :members:\n```\n"
    lines += ["", "```{toctree}", ":hidden:", "", *listed, "```"]
    return {"api.md": "\n".join(lines) + "\n"} | made


def restructured(lines: list[str]) -> list[str]:
    """Return a plain docstring as reStructuredText."""
    made: list[str] = []
    base = 0  # how far the paragraph before is set in
    owner, block = "", ""  # the first line of that paragraph; "formula" or "code" while in such a block
    for number, line in enumerate(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        starts = bool(text) and (number == 0 or not lines[number - 1].strip())
        if starts:
            if block != "code" or indent <= base:
                block = ""
            if text.startswith(".. "):
                block = "formula"
            elif not block and indent > base and owner and not OWNER.match(owner):
                block = "code"
                made += [" " * base + "::", ""]
            if not block:
                base, owner = indent, text
        elif text and not block and indent <= base and OWNER.match(line):  # the next bullet, or `Args:`
            base, owner = indent, text
        made.append(line if block else plain(line))
    return made


def plain(line: str) -> str:
    """Return a line with code as code and every other sign of markup escaped."""
    bullet, rest = re.fullmatch(r"(\s*(?:[*-] )?)(.*)", line).groups()
    parts = CODE.split(rest)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([\\*|]|(?<=\w)_(?!\w))", r"\\\1", part)
        elif not part.startswith(":math:"):
            parts[i] = f"`{part}`" + ("\\ " if parts[i + 1][:1].isalnum() else "")
    return bullet + "".join(parts)


def setup(app) -> dict:
    """Let Sphinx read docstrings this way."""

    def read(app, what, name, obj, options, lines):
        lines[:] = restructured(lines)

    def skip(app, what, name, obj, skipped, options):
        return skipped or (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") or None

    app.connect("autodoc-process-docstring", read, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
