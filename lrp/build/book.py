"""The book: a static site of the executed notebooks, the results and the reference, in `build/book/html`.

Its pages are made from the files of the repository into `build/book/source` (`book_pages.py`, `book_api.py`), each
written only when it changed, so that Sphinx reads only those again. Then every link is checked (`book_links.py`).
The site works from a disk, without a server and without a network.

Run it by `python -m lrp.build.book`.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ..teach.records import write
from . import book_api
from .book_links import check
from .book_pages import Pages, existing
from .keys import ROOT, BuildError, short_hash

TITLE = "Layer-wise Relevance Propagation"
CHAPTERS = {  # heading in the table of contents: pages under it
    "Notebooks": ("notebooks/*",),
    "Results": ("gallery", "gallery_full", "scorecard", "coverage", "benchmark", "benchmark_metrics"),
    "Package": ("api", "data", "contributing", "changelog"),
    "Teaching": ("teaching",),
}
STYLE = """/* tables, code and formulas scroll in their own box; figures keep the colours of their maps in the dark */
html { --pst-header-height: 0rem; }
.bd-header { display: none; } /* it would hold a second search field and nothing else */
.bd-main .bd-content .bd-article-container { max-width: 62rem; }
.bd-article pre { font-size: 0.8rem; }
.bd-article img { background: white; filter: none !important; border-radius: 3px; }
.bd-article figure { margin: 1rem 0 1.5rem; }
.bd-article figure img { display: block; margin: 0 auto; }
.bd-article figcaption, .bd-article figcaption p {
  color: var(--pst-color-text-base); font-size: 0.95rem; font-weight: normal; text-align: left;
}
.bd-article .cell_output .text_html, .pst-scrollable-table-container { overflow-x: auto; }
.bd-article table:has(th:nth-child(6)) { min-width: 54rem; font-size: 0.85em; }
.bd-article table.dataframe { width: auto; min-width: 0 !important; margin: 0; font-size: 0.85em; white-space: nowrap; }
.bd-article table.dataframe :is(td, th) { text-align: right; padding: 0.15rem 0.6rem; }
.bd-article table.dataframe tbody th { text-align: left; }
.bd-article .math, .bd-article mjx-container[display="true"] { overflow-x: auto; overflow-y: hidden; }
.bd-article :is(p, li) > code { overflow-wrap: anywhere; }
"""
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
    """Return what Sphinx is told; buttons that lead to GitHub, Colab and Binder only with an address there."""
    theme = {"show_toc_level": 2, "use_download_button": False, "home_page_in_toc": True}
    theme["footer_content_items"] = ["last-updated.html"]  # not the author, which Sphinx would have to be told
    if address:
        theme |= {"repository_url": address, "repository_branch": "main"}
        theme |= {"use_repository_button": True, "use_issues_button": True}
        theme["launch_buttons"] = {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        }
    extensions = [
        "myst_nb",
        "sphinx-mathjax-offline",
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
        "sphinx.ext.viewcode",
    ]
    return {
        "project": TITLE,
        "extensions": [*extensions, "lrp.build.book_api"],
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


def contents(pages: list[str]) -> str:
    """Return the table of contents: every page but the first, under the headings of CHAPTERS."""
    names = [page.rsplit(".", 1)[0] for page in pages]
    lines = []
    for heading, wanted in CHAPTERS.items():
        chosen = [name for pattern in wanted for name in names if fnmatch.fnmatch(name, pattern)]
        if chosen:
            lines += ["", "```{toctree}", ":hidden:", f":caption: {heading}", "", *chosen, "```"]
    return "\n".join(lines) + "\n"


def sources() -> dict[str, bytes]:
    """Return {file: content} of the book's source. Raises BuildError for what is not ready."""
    grouped = book_api.groups()
    modules = {
        file.relative_to(ROOT).as_posix(): f"api/{book_api.dotted(file)}.md"
        for files in grouped.values()
        for file in files
    }
    known, address = existing(), repository()
    if "README.md" not in known:
        raise BuildError("there is no README.md, which is the book's first page")
    maker = Pages(known | modules, address)
    texts = {}
    for name, page in known.items():
        texts[page] = maker.notebook(name) if page.endswith(".ipynb") else maker.markdown(name)
    texts |= book_api.pages(grouped)
    texts["index.md"] += contents(list(texts))
    texts["conf.py"] = "".join(f"{name} = {value!r}\n" for name, value in settings(address).items())
    texts["_static/book.css"] = STYLE
    pictures = {name: (ROOT / name).read_bytes() for name in maker.pictures}
    return {name: text.encode() for name, text in texts.items()} | pictures


def digest(files: dict[str, bytes]) -> str:
    """Return what a finished book depends on, as a hash: its source, the package, the environment."""
    lock = ROOT / "environment.lock"
    used = [*sorted((ROOT / "lrp").rglob("*.py")), *sorted(Path(__file__).parent.glob("book*.py"))]
    used += [lock] if lock.exists() else []
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
    """Run Sphinx on the source; return whether it had nothing to complain of."""
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
        remove(folder / "doctrees", folder / "html")  # Sphinx leaves the pages of what is gone
    print(f"{len(files)} files of source; Sphinx reads what changed (all of it: about a minute)", flush=True)
    if not build(folder):
        remove(folder / "doctrees")  # so that the next run says it again: Sphinx warns only where it reads
        return False
    found = check(folder / "html")
    for line in found.faults:
        print(line, file=sys.stderr)
    figures = sum(content.count(b"{figure} /") for content in files.values())
    print(
        f"{found.pages} pages, {figures} figures with captions, {found.pictures} pictures with descriptions, "
        f"{found.links} links checked, {len(found.faults)} faults: {where} ({time.monotonic() - start:.0f} s)"
    )
    if not found.faults:
        write(stamp, key.encode())
    return not found.faults


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
