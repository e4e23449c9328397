"""The book: a static site of the executed notebooks, the results and the reference, in `build/book/html`.

Its pages are made from the files of the repository into `build/book/source` (`book_pages.py`), each written only when
it changed, so that Sphinx reads only those again. Links between files are checked there, anchors by Sphinx: a dead one
fails. The site works from a disk, without a server and without a network.

Run it by `python -m lrp.build.book`.
"""

import ast
import fnmatch
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ..teach.records import write
from .book_pages import Pages, existing
from .keys import ROOT, BuildError, short_hash

TITLE = "Layer-wise Relevance Propagation"
CHAPTERS = {  # heading in the table of contents: pages under it
    "Notebooks": ("notebooks/*",),
    "Results": ("gallery.md", "gallery_full.md", "scorecard.md", "coverage.md", "benchmark.md", "benchmark_metrics.md"),
    "Package": ("api.md", "data.md", "contributing.md", "changelog.md"),
    "Teaching": ("teaching.md",),
}
FOLDERS = ("lrp", "lrp/data", "lrp/evaluate", "lrp/studies", "lrp/teach")  # whose modules have a page in the reference
WITHOUT_PAGE = ("__init__", "__main__", "moved")
CONF = "from lrp.build.book import setup  # noqa: F401\n"  # the settings follow
# a browser gives no excerpts of the pages found on a disk
SEARCH = 'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'


def repository() -> str:
    """Return the project's address on GitHub, or nothing if none is known.

    It is that of CITATION.cff (`repository-code`), of the workflow that runs, or of git's origin.
    """
    citation = ROOT / "CITATION.cff"
    told = citation.read_text(encoding="utf-8") if citation.exists() else ""
    if named := re.search(r"^repository-code:\s*[\"']?([^\"'\s]+)", told, flags=re.MULTILINE):
        return named[1]
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return f"https://github.com/{name}"
    command = ["git", "-C", str(ROOT), "config", "remote.origin.url"]
    origin = subprocess.run(command, capture_output=True, text=True).stdout if shutil.which("git") else ""
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?\s*$", origin)
    return f"https://github.com/{found[1]}" if found else ""


def settings(address: str) -> dict:
    """Return Sphinx's settings; buttons lead to GitHub, Colab and Binder only where an address on GitHub is known."""
    theme = {"show_toc_level": 2, "use_download_button": False, "home_page_in_toc": True}
    theme["footer_content_items"] = ["last-updated.html"]  # the default has an author too, and no author is set
    if address:
        theme |= {"repository_url": address, "repository_branch": "main"}
        theme |= {"use_repository_button": True, "use_issues_button": True}
        theme["launch_buttons"] = {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        }
    extensions = ("autodoc", "napoleon", "viewcode")
    return {
        "project": TITLE,
        "extensions": ["myst_nb", "sphinx-mathjax-offline", *(f"sphinx.ext.{name}" for name in extensions)],
        "default_role": "code",  # of text in single backquotes
        "html_theme": "sphinx_book_theme",
        "html_title": TITLE,
        "html_theme_options": theme,
        "html_static_path": ["_static"],
        "html_css_files": ["book.css"],
        "html_js_files": [(None, {"body": SEARCH})],
        "html_copy_source": False,
        "html_show_copyright": False,
        "html_show_sphinx": False,
        "myst_enable_extensions": ["amsmath", "colon_fence", "dollarmath"],
        "myst_heading_anchors": 4,
        "nb_execution_mode": "off",
        "nb_ipywidgets_js": {},
        "nb_render_markdown_format": "myst",
        "autodoc_member_order": "bysource",
        "autodoc_preserve_defaults": True,
        "maximum_signature_line_length": 100,
        "add_module_names": False,
        "toc_object_entries_show_parents": "hide",
        "highlight_language": "text",
    }


def setup(app) -> None:
    """Tell Sphinx to leave out fields of named tuples, whose docstrings are Python's own."""

    def skip(app, what, name, obj, skipped, options):
        return skipped or (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") or None

    app.connect("autodoc-skip-member", skip)


def modules() -> list[Path]:
    """Return the modules that have a page in the reference."""
    files = (file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.py")))
    return [file for file in files if file.stem not in WITHOUT_PAGE]


def dotted(file: Path) -> str:
    """Return the name of a module: "lrp.rules", "lrp.data.models"."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def page(file: Path) -> str:
    """Return the page of a module: "api/rules.md", "api/data.models.md"."""
    return f"api/{dotted(file).removeprefix('lrp.')}.md"


def summary(file: Path) -> str:
    """Return the first paragraph of a module's docstring, fit for a table."""
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")


def toctree(names: Iterable[str], *options: str) -> list[str]:
    """Return the lines of a hidden table of contents of these pages."""
    pages = [name.rsplit(".md", 1)[0].removesuffix(".ipynb") for name in names]
    return ["", "```{toctree}", ":hidden:", *options, "", *pages, "```", ""]


def contents(pages: list[str]) -> str:
    """Return the table of contents: every page but the first, under the headings of CHAPTERS."""
    lines = []
    for heading, patterns in CHAPTERS.items():
        chosen = [page for pattern in patterns for page in fnmatch.filter(pages, pattern)]
        lines += toctree(chosen, f":caption: {heading}") if chosen else []
    return "\n".join(lines)


def reference(files: list[Path]) -> dict[str, str]:
    """Return {page: text} of the API reference: a page for each module, and `api.md`, which lists them by folder."""
    if not files:
        return {}
    listed, made = ["# API reference", "", "```python", "from lrp import LRP, composites, rules, seeds", "```"], {}
    for folder, group in itertools.groupby(files, key=lambda file: file.parent):
        listed += [
            "",
            f"## {dotted(folder)}",
            "",
            summary(folder / "__init__.py"),
            "",
            "| module | says |",
            "|---|---|",
        ]
        for file in group:
            name = dotted(file)
            listed.append(f"| [`{name}`]({page(file)}) | {summary(file)} |")
            made[page(file)] = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
    return {"api.md": "\n".join([*listed, *toctree(made)])} | made


def sources() -> dict[str, bytes]:
    """Return {file: content} of the book's source. Raises BuildError for what is not ready."""
    known, address, files = existing(), repository(), modules()
    if "README.md" not in known:
        raise BuildError("there is no README.md, which is the book's first page")
    maker = Pages(known | {file.relative_to(ROOT).as_posix(): page(file) for file in files}, address)
    texts = {}
    for name, target in known.items():
        texts[target] = maker.notebook(name) if target.endswith(".ipynb") else maker.markdown(name)
    texts |= reference(files)
    texts["index.md"] += contents(list(texts))
    texts["conf.py"] = CONF + "".join(f"{name} = {value!r}\n" for name, value in settings(address).items())
    texts["_static/book.css"] = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    pictures = {name: (ROOT / name).read_bytes() for name in maker.pictures}
    return {name: text.encode() for name, text in texts.items()} | pictures


def digest(files: dict[str, bytes]) -> str:
    """Return what a finished book depends on, as a hash: its source, the package, the environment."""
    lock = ROOT / "environment.lock"
    used = sorted((ROOT / "lrp").rglob("*.py")) + ([lock] if lock.exists() else [])
    hashes = [short_hash(content) for content in (*map(files.get, sorted(files)), *map(Path.read_bytes, used))]
    return short_hash("\n".join([*sorted(files), *hashes]))


def lay_out(files: dict[str, bytes], folder: Path) -> bool:
    """Write the book's source into a folder, only what changed; return whether a file went away."""
    for name, content in files.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            write(folder / name, content)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in there - set(files):
        (folder / name).unlink()
    return bool(there - set(files))


def build(folder: Path) -> bool:
    """Run Sphinx on the source; return whether it found no fault."""
    from sphinx.cmd.build import build_main

    quiet = [] if sys.stderr.isatty() else ["-q"]
    places = ["-d", str(folder / "doctrees"), str(folder / "source"), str(folder / "html")]
    return not build_main(["-b", "html", "-W", "--keep-going", *quiet, *places])


def make(folder: Path) -> bool:
    """Make the book in a folder unless it is up to date; return whether it is sound. Raises BuildError."""
    start, stamp, index = time.monotonic(), folder / "made", folder / "html" / "index.html"
    files = sources()
    key = digest(files)
    where = os.path.relpath(index, ROOT)
    if index.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        print(f"{where}: up to date")
        return True
    stamp.unlink(missing_ok=True)
    if lay_out(files, folder / "source"):
        remove(folder / "doctrees", folder / "html")  # Sphinx keeps pages whose source is gone
    print(f"{len(files)} files of source; Sphinx reads what changed (all of it: about a minute)", flush=True)
    if not build(folder):
        remove(folder / "doctrees")  # Sphinx warns only of pages that it reads: the next run reads all
        return False
    figures = sum(content.count(b"{figure} /") for content in files.values())
    took = time.monotonic() - start
    print(f"{len(list(folder.glob('html/**/*.html')))} pages, {figures} figures with captions: {where} ({took:.0f} s)")
    write(stamp, key.encode())
    return True


def remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Make the book in build/book; return the exit status."""
    try:
        return int(not make(ROOT / "build" / "book"))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
