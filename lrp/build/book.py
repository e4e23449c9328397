"""The book: a static site of the executed notebooks, the results and the reference, in `build/book/html`.

Its pages are made from the files of the repository into `build/book/source` (`book_pages.py`). Links between files are
checked there, anchors by Sphinx: a dead one fails. The site works from a disk, without a server and without a network.

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
from collections.abc import Iterable
from pathlib import Path

from ..teach.records import write
from .book_pages import Pages, existing
from .keys import ROOT, BuildError
from .pages import table

TITLE = "Layer-wise Relevance Propagation"
CHAPTERS = {  # heading in the table of contents: pages under it
    "Notebooks": ("notebooks/*",),
    "Results": ("gallery.md", "gallery_full.md", "scorecard.md", "coverage.md", "benchmark.md", "benchmark_metrics.md"),
    "Package": ("api.md", "data.md", "contributing.md", "changelog.md"),
    "Teaching": ("teaching.md",),
}
# whose modules have a page in the reference
FOLDERS = ("lrp", "lrp/network", "lrp/nodes", "lrp/data", "lrp/evaluate", "lrp/studies", "lrp/teach")
WITHOUT_PAGE = ("__init__", "__main__", "moved")
CONF = "from lrp.build.book import setup  # noqa: F401\n"  # the settings follow
# a browser gives no excerpts of the pages found on a disk
SEARCH = 'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'


def repository() -> str:
    """Return the project's address: of CITATION.cff (`repository-code`), of git's origin on GitHub, or nothing."""
    citation = ROOT / "CITATION.cff"
    text = citation.read_text(encoding="utf-8") if citation.exists() else ""
    if named := re.search(r"^repository-code:\s*[\"']?([^\"'\s]+)", text, flags=re.MULTILINE):
        return named[1]
    command = ["git", "-C", str(ROOT), "config", "remote.origin.url"]
    origin = subprocess.run(command, capture_output=True, text=True).stdout if shutil.which("git") else ""
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?\s*$", origin)
    return f"https://github.com/{found[1]}" if found else ""


def settings(address: str) -> dict:
    """Return Sphinx's settings; buttons lead to GitHub, Colab and Binder only where an address on GitHub is known."""
    theme = {"show_toc_level": 2, "use_download_button": False, "home_page_in_toc": True}
    theme["footer_content_items"] = ["last-updated.html"]  # the default has an author too, and no author is set
    if address:
        launch = {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"}
        theme |= {"repository_url": address, "repository_branch": "main", "launch_buttons": launch}
        theme |= {"use_repository_button": True, "use_issues_button": True}
    extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
    return {
        "project": TITLE,
        "extensions": ["myst_nb", "sphinx-mathjax-offline", *extensions],
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
    alias = "Alias for field number"
    app.connect("autodoc-skip-member", lambda app, what, name, obj, *_: str(obj.__doc__).startswith(alias) or None)


def modules() -> dict[str, str]:
    """Return {file: page} of the modules that have a page in the reference."""
    files = [file.relative_to(ROOT) for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.py"))]
    return {file.as_posix(): f"api/{dotted(file)}.md" for file in files if file.stem not in WITHOUT_PAGE}


def dotted(file: Path) -> str:
    """Return the name of a module: "lrp.rules", "lrp.data.models"."""
    return ".".join(file.with_suffix("").parts)


def summary(file: Path) -> str:
    """Return the first paragraph of a module's docstring, in one line."""
    said = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split())


def toctree(pages: Iterable[str], *options: str) -> str:
    """Return a hidden table of contents of these pages."""
    names = [page.removesuffix(".md").removesuffix(".ipynb") for page in pages]
    return "\n".join(["", "", "```{toctree}", ":hidden:", *options, "", *names, "```", ""])


def contents(pages: list[str]) -> str:
    """Return the table of contents: every page but the first, under the headings of CHAPTERS."""
    chapters = {
        heading: [page for pattern in patterns for page in fnmatch.filter(pages, pattern)]
        for heading, patterns in CHAPTERS.items()
    }
    return "".join(toctree(chosen, f":caption: {heading}") for heading, chosen in chapters.items() if chosen)


def reference(files: dict[str, str]) -> dict[str, str]:
    """Return {page: text} of the API reference: a page for each module, and `api.md`, which lists them by folder."""
    listed, made = "# API reference\n\n```python\nfrom lrp import LRP, composites, rules, seeds\n```\n", {}
    for folder, group in itertools.groupby(map(Path, files), key=lambda file: file.parent):
        rows = [(f"[`{dotted(file)}`]({files[file.as_posix()]})", summary(file)) for file in group]
        listed += f"\n## {dotted(folder)}\n\n{summary(folder / '__init__.py')}\n\n{table(('module', 'says'), rows)}\n"
    for file, page in files.items():
        name = dotted(Path(file))
        made[page] = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
    return {"api.md": listed + toctree(made)} | made


def sources() -> dict[str, str]:
    """Return {file: content} of the book's source. Raises BuildError for what is not ready."""
    known, address, files = existing(), repository(), modules()
    maker = Pages(known | files, address)
    texts = {}
    for name, target in known.items():
        texts[target] = maker.notebook(name) if target.endswith(".ipynb") else maker.markdown(name)
    texts |= reference(files)
    texts["index.md"] += contents(list(texts))
    texts["conf.py"] = CONF + "".join(f"{name} = {value!r}\n" for name, value in settings(address).items())
    return texts | {"_static/book.css": Path(__file__).with_suffix(".css").read_text(encoding="utf-8")}


def make(folder: Path) -> bool:
    """Make the book in a folder; return whether Sphinx found no fault. Raises BuildError for what is not ready."""
    from sphinx.cmd.build import build_main

    files = sources()
    shutil.rmtree(folder, ignore_errors=True)  # Sphinx warns only of pages that it reads: it reads all
    for name, text in files.items():
        write(folder / "source" / name, text)
    shutil.copytree(ROOT / "figures", folder / "source" / "figures", ignore=shutil.ignore_patterns("*.md", "*.json"))
    print(f"{len(files)} files of source, which Sphinx reads in about a minute", flush=True)
    quiet = [] if sys.stderr.isatty() else ["-q"]
    places = ["-d", str(folder / "doctrees"), str(folder / "source"), str(folder / "html")]
    if build_main(["-b", "html", "-W", "--keep-going", *quiet, *places]):
        return False
    figures = sum(text.count("{figure} /") for text in files.values())
    print(f"{figures} figures with captions in {os.path.relpath(folder / 'html' / 'index.html', ROOT)}")
    return True


def main() -> int:
    """Make the book in build/book; return the exit status."""
    try:
        return int(not make(ROOT / "build" / "book"))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
