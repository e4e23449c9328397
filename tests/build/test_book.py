"""The book made of a small repository: pages, links, captions, solutions, and no host but the disk."""

import base64
import re
import shutil
from pathlib import Path

import pytest
from browser import chromium
from built_site import faults
from toy_book import lay_out, make, page, png, shown

from lrp.build import book, book_pages
from lrp.build.keys import BuildError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A small repository with the real code of the book, its notebook run; the book is made once."""
    root = tmp_path_factory.mktemp("toy")
    lay_out(root)
    code, output = make(root)
    assert code == 0, output
    return root


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
    for target in ("notebooks/01_first.html", "api/lrp.tiny.html", "gallery.html"):
        assert f'href="{target}"' in text
    assert "LICENSE" not in text and "licence" in text  # no address on GitHub: the words stay
    assert "badge.svg" not in text and 'href="https://example.org/there"' in text
    assert "gallery.html#gallery-01-red" in page(toy, "scorecard.html")
    assert "launch" not in text and "colab" not in text.lower()


def test_docstrings_are_read_as_they_stand(toy):
    text = page(toy, "api/lrp.tiny.html")
    words = re.sub(r"</?span[^>]*>", "", text)
    for part in (">|R|</code>", ">*args</code>", ">x_</code>", "a|b is text", "Two of them."):
        assert part in words, part
    assert r"\[y = 2 |x_i|\]" in text
    assert re.search(r"<pre>.*z = sum of x_i", words, flags=re.DOTALL)
    assert "Alias for field" not in text
    listed = page(toy, "api.html")
    assert all(f'href="api/{name}.html"' in listed for name in ("lrp.tiny", "lrp.teach.records"))
    assert "build" not in listed


def test_the_site_is_sound(toy):
    assert faults(toy / "build/book/html") == []


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
    made = book_pages.page_outputs([other, own], [("01_more", record), ("01_red", record)])
    assert [next(iter(output["data"])) for output in made] == ["image/png", "text/markdown", "text/markdown"]
    assert "01_red.png" in made[1]["data"]["text/markdown"] and "01_more.png" in made[2]["data"]["text/markdown"]
    (repository / "figures/01_more.png").unlink()
    with pytest.raises(BuildError, match=r"01_more\.png is missing"):
        book_pages.page_outputs([], [("01_more", record)])


def test_a_still_picture_or_a_note_stands_for_a_widget():
    """A progress bar that is a widget goes."""
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox()"}
    bar = widget | {"text/plain": " 43%|████▎     | 53/124 [00:05<00:06, 10.55it/s]"}
    made = book_pages.page_outputs([shown(**widget, **{"text/html": "still"}), shown(**widget), shown(**bar)], [])
    assert [output["data"] for output in made] == [{"text/html": "still"}, {"text/markdown": book_pages.NO_WIDGET}]


def test_with_an_address_links_and_buttons_lead_there(repository, monkeypatch):
    (repository / "CITATION.cff").write_text('title: x\nrepository-code: "https://github.com/someone/toy"\n')
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
