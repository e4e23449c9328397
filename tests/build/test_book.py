"""The book made of a small repository: pages, links, captions, solutions, and no host but the disk."""

import ast
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium
from docutils import nodes
from docutils.core import publish_doctree
from PIL import Image
from sphinx.ext.napoleon import Config, GoogleDocstring

from lrp.build import book, book_pages
from lrp.build.keys import BuildError

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("moved.py", "build/__init__.py", "build/book.py", "build/book.css", "build/book_pages.py"),
    *("build/keys.py", "build/lint.py", "build/pages.py"),
    *("teach/__init__.py", "teach/records.py", "teach/scorecard.py"),
)
BAR = "\rwork:  43%|████▎     | 53/124 [00:05<00:06, 10.55it/s]"
WARNED = (
    "/var/ipykernel_12/345.py:2: UserWarning: mind the gap\n  warn()\n/elsewhere/lrp/tiny.py:3: UserWarning: mind\n"
)
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "interactive(children=())"}
DOCUMENTED = '''"""Tiny: `|R|`, `*args` and `x_` are `code`, a|b is text.

Its sum::

    z = sum of x_i
"""

from typing import NamedTuple


def double(x: float) -> float:
    r"""Twice the value of `x`.

    .. math:: y = 2 |x_i|

    Raises nothing.
    """
    return 2 * x


class Pair(NamedTuple):
    """Two of them."""

    first: float
    second: float
'''
README = """# Toy

See [the first](notebooks/01_first.ipynb), [`tiny`](lrp/tiny.py), [figures](figures/README.md), [licence](LICENSE).
[![badge](https://example.org/badge.svg)](https://example.org/there)

```python
a = b[0](c)
```
"""


def png(size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def code(name: str, source: str, *outputs: dict, tags: tuple = ()) -> dict:
    return {
        **{"cell_type": "code", "id": name, "metadata": {"tags": list(tags)}, "source": source},
        **{"outputs": list(outputs), "execution_count": None},
    }


def stream(text: str) -> dict:
    return {"output_type": "stream", "name": "stderr", "text": text}


def shown(**data) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": data}


def notebook(*cells: dict) -> str:
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    return json.dumps({"cells": list(cells), "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def prose(name: str, text: str, *tags: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {"tags": list(tags)}, "source": text}


def executed(title: str = "# 1 · Stale title") -> str:
    picture = shown(**{"image/png": base64.b64encode(png()).decode(), "text/plain": "<Figure>"})
    table = "<table class='dataframe'><tr>" + "<td>0.123456789</td>" * 40 + "</tr></table>"
    wide = shown(**{"text/html": table, "text/plain": "table"})
    return notebook(
        prose("t", title),
        code("p", "SEED: int = 0  # seed", tags=("parameters",)),
        code("f", 'save(fig, "01_red", caption="It is red: $x_1$.")', stream(BAR), stream(WARNED), wide, picture),
        code("w", "explore()", shown(**WIDGET)),
        code("l", "\n".join(f"long_{i} = {i}" for i in range(30))),
        code("s", "6 * 7", shown(**{"text/plain": "42"}), tags=("solution",)),
        prose("m", "Because **six** sevens are $42$.", "solution"),
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A small repository with the real code of the book, its notebook run; the book is made once."""
    root = tmp_path_factory.mktemp("toy")
    for folder in ("lrp/build", "lrp/teach", "notebooks", "figures", "build/quick"):
        (root / folder).mkdir(parents=True)
    for name in COPIED:
        shutil.copy(ROOT / "lrp" / name, root / "lrp" / name)
    (root / "lrp/__init__.py").write_text("from . import tiny\n")
    (root / "lrp/tiny.py").write_text(DOCUMENTED)
    (root / "README.md").write_text(README)
    (root / "LICENSE").write_text("Free.")
    text = json.loads(
        executed(
            "# 1 · Fresh title\n\n![red](../figures/01_red.png)\n\nBack to [the start](../README.md).\n\n## A part"
        )
    )
    for cell in text["cells"]:
        cell |= {"outputs": []} if cell["cell_type"] == "code" else {}
    (root / "notebooks/01_first.ipynb").write_text(json.dumps(text))
    (root / "build/quick/01_first.ipynb").write_text(executed())
    record = {"figures": {"01_red": {"caption": "It is red: $x_1$.", "alt": "A red: field", "numbers": {}}}}
    (root / "build/quick/01_first.json").write_text(json.dumps(record))
    (root / "figures/01_red.png").write_bytes(png())
    gallery = "# Figures\n\n## [01_first](../notebooks/01_first.ipynb)\n\n![A red: field](01_red.png)\n\n"
    (root / "figures/README.md").write_text(gallery + "**01_red.** It is red: $x_1$.\n")
    (root / "figures/scorecard.md").write_text(
        "# Scorecard\n\n| claim | in |\n|---|---|\n| red | [01_red](01_red.png) |\n"
    )
    code, output = make(root)
    assert code == 0, output
    return root


def make(root: Path) -> tuple[int, str]:
    gone = ("LRP_ROOT", "GITHUB_REPOSITORY")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    command = [sys.executable, "-m", "lrp.build.book"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def page(toy: Path, name: str) -> str:
    return (toy / "build/book/html" / name).read_text(encoding="utf-8")


def test_a_notebook_is_its_fresh_prose_with_its_outputs(toy):
    text = page(toy, "notebooks/01_first.html")
    assert "Fresh title" in text and "Stale title" not in text
    assert re.search(
        r'<figure[^>]* id="fig-01-red">.*?alt="A red: field".*?<figcaption>.*?It is red', text, flags=re.DOTALL
    )
    assert "mind the gap" in text and "this cell, line 2: UserWarning" in text
    assert "elsewhere" not in text and "lrp/tiny.py:3: UserWarning" in text
    assert "it/s]" not in text and "ipykernel" not in text
    assert "interactive(children" not in text and "open the notebook in JupyterLab" in text


def test_solutions_parameters_and_long_cells_are_closed(toy):
    boxes = re.findall(
        r"<details( class=.admonition[^>]*)>(.*?)</details>", page(toy, "notebooks/01_first.html"), flags=re.DOTALL
    )
    assert [re.search('SEED|long_0|<span class="mi">6</span>|sevens', body)[0] for _, body in boxes] == [
        *("SEED", "long_0", '<span class="mi">6</span>', "sevens")
    ]
    assert "Show the code (30 lines)" in page(toy, "notebooks/01_first.html")
    assert not any(re.search(r"\bopen\b", attributes) for attributes, _ in boxes)


def test_links_lead_to_pages_of_the_book(toy):
    text = page(toy, "index.html")
    for target in ("notebooks/01_first.html", "api/tiny.html", "gallery.html"):
        assert f'href="{target}"' in text
    assert "LICENSE" not in text and "licence" in text  # no address on GitHub: the words stay
    assert "badge.svg" not in text and 'href="https://example.org/there"' in text
    assert "gallery.html#gallery-01-red" in page(toy, "scorecard.html")
    assert "launch" not in text and "colab" not in text.lower()


def test_docstrings_are_read_as_they_stand(toy):
    text = page(toy, "api/tiny.html")
    words = re.sub(r"</?span[^>]*>", "", text)
    for part in (">|R|</code>", ">*args</code>", ">x_</code>", "a|b is text", "Two of them."):
        assert part in words, part
    assert r"\[y = 2 |x_i|\]" in text
    assert re.search(r"<pre>.*z = sum of x_i", words, flags=re.DOTALL)
    assert "Alias for field" not in text
    listed = page(toy, "api.html")
    assert 'href="api/tiny.html"' in listed and 'href="api/teach.records.html"' in listed and "build" not in listed


@pytest.mark.parametrize(
    "file", sorted((ROOT / "lrp").glob("*/*.py")), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_docstrings_of_the_package_are_restructured_text(file):
    """Sphinx reads them without a complaint, and as they are meant: blocks that are set in are code."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (said := ast.get_docstring(node)):
            what = {"Module": "module", "ClassDef": "class"}.get(type(node).__name__, "function")
            assert complaints(said, what) == [], getattr(node, "name", "module")


def complaints(docstring: str, what: str = "function") -> list[str]:
    """Return what docutils says of a docstring, and blocks that are set in without `::`."""
    warnings = io.StringIO()
    text = str(GoogleDocstring(docstring, Config(napoleon_use_param=False, napoleon_use_ivar=True), what=what))
    tree = publish_doctree(
        f".. default-role:: code\n\n{text}", settings_overrides={"warning_stream": warnings, "report_level": 2}
    )
    found = re.findall(r"\((?:WARNING|ERROR|SEVERE)/\d\) (.*)", warnings.getvalue())
    return found + [f"a block without `::`: {block.astext()[:40]}" for block in tree.findall(nodes.block_quote)]


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [
        ("Sum of |R|.", 'Undefined substitution referenced: "R"'),
        ("Of *args.", "Inline emphasis start-string"),
        ("Twice `x`s value.", "Inline interpreted text"),
        ("Its sum:\n\n    z = 1", "a block without `::`: z = 1"),
    ],
)
def test_a_docstring_that_sphinx_would_misread_is_found(docstring, complaint):
    assert [line[: len(complaint)] for line in complaints(docstring)] == [complaint]
    assert complaints("Sum of `|R|`, `*args`:\n\n* of `x`::\n\n    z = 1\n\nReturns:\n    `z`.\n") == []


def test_what_did_not_change_is_not_made_again(toy):
    before = (toy / "build/book/html/index.html").stat().st_mtime_ns
    assert make(toy) == (0, "build/book/html/index.html: up to date\n")
    assert (toy / "build/book/html/index.html").stat().st_mtime_ns == before


LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "embed": "src", "link": "href"}


class Read(HTMLParser):
    """What a page says: its anchors, its references as (address, whether a browser loads it), faults of pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.references, self.faults = set(), [], []
        text = path.read_text(encoding="utf-8")
        styles = text if path.suffix == ".css" else "".join(re.findall(r"<style.*?</style>", text, flags=re.DOTALL))
        urls = re.findall(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", styles)
        self.references += [(url, True) for url in urls]
        if path.suffix == ".html":
            self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.anchors |= {given.get("id"), given.get("name")}
        loaded = [
            given.get(LOADED.get(tag)),
            *(part.split()[0] for part in (given.get("srcset") or "").split(",") if part),
        ]
        self.references += [(address, True) for address in loaded if address is not None]
        if tag == "a" and "href" in given:
            self.references.append((given["href"], False))
        if tag == "img" and not (given.get("alt") or "").strip():
            self.faults.append(f"picture {given['src']} has no description")


def faults(site: Path) -> list[str]:
    """Return what is wrong with a site: dead links and anchors, silent pictures, what it loads from outside."""
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    pages = {path: Read(path) for path in files if path.suffix == ".css" or "_static" not in path.parts}
    found = []
    for path, read in pages.items():
        found += read.faults
        for address, loaded in read.references:
            parts = urlsplit(address)
            there = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            if parts.scheme or parts.netloc:
                found += [f"loads {address} from outside"] if loaded and parts.scheme != "data" else []
            elif site not in there.parents or not there.is_file():
                found.append(f"dead link {address}")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors:
                found.append(f"no such anchor: {address}")
    return found


def test_the_site_is_sound(toy):
    assert faults(toy / "build/book/html") == []


def test_a_site_that_is_not_sound_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html">x</a><a href="#no">x</a><a href="c.html#yes">x</a><a href="c.html#no">x</a>'
        '<img src="gone.png" alt="x"><img src="c.html"><script src="https://example.org/x.js"></script>'
        '<a href="https://example.org/">x</a><a href="http//x">x</a><a href="../up.html">x</a>'
        '<img src="c.html" srcset="//example.org/y.png 2x" alt="x"><style>@import "//example.org/z.css";</style>'
    )
    (tmp_path / "c.html").write_text('<p id="yes">')
    (tmp_path / "d.css").write_text(
        'b { background: url("https://example.org/x.png") } i { background: url(gone.woff) }'
    )
    assert sorted(faults(tmp_path)) == [
        *("dead link ../up.html", "dead link b.html", "dead link gone.png", "dead link gone.woff", "dead link http//x"),
        *("loads //example.org/y.png from outside", "loads //example.org/z.css from outside"),
        *("loads https://example.org/x.js from outside", "loads https://example.org/x.png from outside"),
        *("no such anchor: #no", "no such anchor: c.html#no", "picture c.html has no description"),
    ]


@pytest.mark.parametrize(
    ("file", "link", "complaint"),
    [
        ("README.md", "[x](notebooks/01_first.ipynb#A-partt)", "a-partt"),
        ("README.md", "[x](figures/README.md#nowhere)", "nowhere"),
        ("README.md", "[x](#nowhere)", "nowhere"),
        ("README.md", "[x](notebooks/02_gone.ipynb)", "dead link notebooks/02_gone.ipynb"),
        ("notebooks/01_first.ipynb", "[x](../README.md#nowhere)", "nowhere"),
    ],
)
def test_make_book_fails_on_a_dead_link(repository, file, link, complaint):
    path = repository / file
    path.write_text(path.read_text().replace("Back to" if file.endswith("ipynb") else "See", f"{link} See", 1))
    code, output = make(repository)
    assert code and complaint in output, output


@pytest.fixture
def repository(toy, tmp_path, monkeypatch) -> Path:
    """The toy again, to be spoiled."""
    root = tmp_path / "spoiled"
    shutil.copytree(toy, root, ignore=shutil.ignore_patterns("book"))
    monkeypatch.setattr(book_pages, "ROOT", root)
    return root


def pages() -> book_pages.Pages:
    return book_pages.Pages({"README.md": "index.md", "notebooks/01_first.ipynb": "notebooks/01_first.ipynb"})


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("6 * 7", "6 * 8", "cell s has changed since it ran: run `make figures`"),
        ('"id": "w"', '"id": "new"', "cell new has changed since it ran"),
        ("../figures/01_red.png", "../figures/02_gone.png", "dead link ../figures/02_gone.png"),
    ],
)
def test_what_is_not_ready_is_refused(repository, old, new, complaint):
    path = repository / "notebooks/01_first.ipynb"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BuildError, match=re.escape(complaint)):
        pages().notebook("notebooks/01_first.ipynb")


def test_a_notebook_that_has_not_run_is_refused(repository):
    (repository / "build/quick/01_first.ipynb").unlink()
    with pytest.raises(BuildError, match="run `make figures` first"):
        pages().notebook("notebooks/01_first.ipynb")
    result = make(repository)
    assert result[0] == 2 and "make figures" in result[1]


def test_a_figure_takes_the_place_of_its_own_picture(repository):
    """The cell shows another picture first, and does not show all that it saves."""
    other = shown(**{"image/png": base64.b64encode(png((20, 40))).decode()})
    own = shown(**{"image/png": base64.b64encode(png((80, 40))).decode()})
    (repository / "figures/01_more.png").write_bytes(png((30, 30)))
    record = {"caption": "A caption.", "alt": "A description"}
    made = pages().outputs([other, own], [("01_more", record), ("01_red", record)])
    assert [next(iter(output["data"])) for output in made] == ["image/png", "text/markdown", "text/markdown"]
    assert "01_red.png" in made[1]["data"]["text/markdown"] and "01_more.png" in made[2]["data"]["text/markdown"]
    (repository / "figures/01_more.png").unlink()
    with pytest.raises(BuildError, match=r"01_more\.png is missing"):
        pages().outputs([], [("01_more", record)])


def test_with_an_address_links_and_buttons_lead_there(repository, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/toy")
    monkeypatch.setattr(book, "ROOT", repository)
    address = book.repository()
    assert address == "https://github.com/someone/toy"
    assert {"launch_buttons", "repository_url"} <= set(book.settings(address)["html_theme_options"])
    assert "launch_buttons" not in book.settings("")["html_theme_options"]
    maker = book_pages.Pages({"README.md": "index.md"}, address)
    assert f"[licence]({address}/blob/HEAD/LICENSE)" in maker.markdown("README.md")
    assert "a = b[0](c)" in maker.markdown("README.md")  # code is no link


def walk(site: Path, start: str) -> None:
    """Read a site in a browser, from the disk and without a network: search, links, phone, dark."""
    outside = []
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="dark")
        context.route("**/*", lambda route: route.continue_() if local(route.request.url) else route.abort())
        context.on("request", lambda request: None if local(request.url) else outside.append(request.url))
        tab = context.new_page()
        tab.goto((site / start).as_uri())
        assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
        tab.locator(".theme-switch-button:visible").first.click()
        assert tab.locator("article img").first.evaluate("image => getComputedStyle(image).filter") == "none"
        tab.wait_for_selector("mjx-container")
        assert tab.locator("a.left-prev, a.right-next").count()
        assert tab.locator(".bd-sidebar-secondary, .bd-toc-nav").count()
        assert not tab.locator("details[open]").count()
        tab.goto((site / "search.html").as_uri() + "?q=red")
        tab.wait_for_selector("#search-results li a")
        for width in (390, 1280):
            tab.set_viewport_size({"width": width, "height": 844})
            tab.goto((site / start).as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, width
        context.close()
    assert not outside


def local(address: str) -> bool:
    return address.startswith(("file:", "data:", "blob:"))


def test_a_browser_reads_it_from_the_disk(toy):
    walk(toy / "build/book/html", "notebooks/01_first.html")


@pytest.mark.slow
def test_the_real_book():
    """As `make book` makes it; needs the executed notebooks."""
    if book_pages.notebooks() and all(map(ran, book_pages.notebooks())):
        assert book.main() == 0
        assert faults(ROOT / "build/book/html") == []
        walk(ROOT / "build/book/html", f"notebooks/{book_pages.notebooks()[0].stem}.html")
    else:
        pytest.skip("needs fresh notebooks: make figures")


def ran(path: Path) -> bool:
    """Whether the code of a notebook is that of its executed copy."""
    try:
        book_pages.Pages(book_pages.existing()).notebook(f"notebooks/{path.name}")
    except BuildError as error:
        return "make figures" not in str(error)
    return True
