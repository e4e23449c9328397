"""Slides: the story of a small notebook, and a deck in a real browser."""

import base64
import html
import json
import re
from pathlib import Path

import pytest
from browser import chromium

from lrp.build import keys as notebook_keys
from lrp.build import slides

ROOT = Path(__file__).resolve().parents[2]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TABLE = "<table border='1'><tr><th>rule</th></tr><tr><td>half each</td></tr></table>"
OUTPUT = {"output_type": "display_data", "metadata": {}, "data": {"text/html": TABLE}}
LONG = "\n".join(f"* Point {k}, with [a link](x.md), $w_{{ij}}^{k}$ and {'many words ' * 12}in it." for k in range(9))
WIDE = r"$$R_i=\sum_j\frac{a_iw_{ij}}{\sum_i a_iw_{ij}}R_j\qquad " + r"\sum_i R_i=\sum_j R_j\qquad " * 4 + "$$"
CELLS = [
    ("title", "markdown", "# 9 · Who gets what?\n\nA sum must be shared. *How?*\n\n![Hero](../figures/09_bars.png)"),
    ("set-up", "code", "x = 1"),
    ("one", "markdown", f"## Shares\n\nThe shares of a unit sum to one. Nothing is lost.\n\n{WIDE}\n\nSo it goes."),
    ("two", "markdown", "And then this. **Predict:** who gets most of $R<1$?"),
    ("table", "code", "table"),
    ("three", "markdown", "## Bars\n\nA picture says more, and it says it quickly, and to everybody here."),
    ("bars", "code", "save(fig, '09_bars', caption='...')"),
    ("four", "markdown", "The first bar is the longest."),
    ("five", "markdown", f"## Summary\n\n{LONG}"),
    ("exercises", "markdown", "## Exercises\n\nNot on a slide."),
]
RECORD = {
    "figures": {"09_bars": {"caption": "Bars of shares. Made by hand.", "alt": "Three bars, the first the longest"}},
    "claims": {"a": {"verdict": "reproduced"}},
}


def notebook(executed: bool) -> dict:
    made = []
    for name, kind, text in CELLS:
        cell = {"cell_type": kind, "id": name, "metadata": {}, "source": text}
        shown = [OUTPUT] if executed and name == "table" else []
        made.append(cell | ({"outputs": shown, "execution_count": None} if kind == "code" else {}))
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A repository with one notebook that has run; returns its root."""
    for place, content in (
        ("notebooks/09_small.ipynb", json.dumps(notebook(False))),
        ("build/quick/09_small.ipynb", json.dumps(notebook(True))),
        ("build/quick/09_small.json", json.dumps(RECORD)),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(content, encoding="utf-8")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "09_bars.png").write_bytes(PNG)
    for module in (notebook_keys, slides):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.delenv("LRP_FIGURES", raising=False)
    return tmp_path


def told() -> list[slides.Slide]:
    return slides.story(notebook(True)["cells"], RECORD)


def test_the_story():
    deck = told()
    assert [s.kind for s in deck] == ["title", "text", "predict", "text", "figure", *["text"] * (len(deck) - 5)]
    title, shares, predict, answer, bars, *summary = deck
    assert title.section == "9 · Who gets what?"
    assert title.body == ["A sum must be shared. *How?*"]
    assert "Hero" not in "".join(title.body + title.notes)
    assert shares.body == ["The shares of a unit sum to one. Nothing is lost.", WIDE]
    assert predict.body[-1] == "Who gets most of $R<1$?"
    assert "half each" in answer.body[0]
    assert 'alt="Three bars, the first the longest"' in bars.body[0]
    assert bars.body[1] == "Bars of shares."
    notes = "".join(bars.notes)
    for words in ("A picture says more", "Made by hand", "The first bar is the longest"):
        assert words in notes
    assert len(summary) > 1, "a long list takes several slides"
    points = re.findall(r"Point (\d)", "".join("".join(s.body) for s in summary))
    assert points == [str(k) for k in range(9)]
    assert "Not on a slide" not in str(deck)
    assert "](" not in str(deck)


def test_a_lone_sentence_gives_way_to_the_slide_that_follows():
    """In its section: to a question it is the sentence above, to a figure a note. Otherwise it is a statement."""
    texts = [
        "# 9 · Who?\n\nA question.",
        "## One\n\nHere it is.",
        "**Predict:** which?",
        "## Two\n\nThere it is.",
        "## Three",
    ]
    cells = [{"cell_type": "markdown", "id": f"c{k}", "metadata": {}, "source": text} for k, text in enumerate(texts)]
    _, predict, statement = slides.story(cells, {"figures": {}})
    assert (predict.kind, predict.notes) == ("predict", ["Here it is."])
    assert predict.body == [
        '<div class="led">\n\nHere it is.\n\n</div>',
        '<p class="word">Predict</p>',
        "Which?",
    ]
    assert (statement.kind, statement.body, statement.notes) == ("statement", ["There it is."], ["There it is."])


@pytest.mark.parametrize("count", [1, 5, 9, 20])
def test_long_lists_are_split_evenly(count):
    items = [f"* item {k}" for k in range(count)]  # each takes a line and a quarter
    groups = slides.portions(items, 10)
    assert [item for group in groups for item in group] == items
    assert len(groups) == -(-count * 1.25 // 10)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_the_page(small):
    """nbconvert's page: slides in order, formulas as they are written, notes beside them, and nothing from outside."""
    assert slides.main(["09"]) == 0
    page = (small / "build" / "slides" / "09.html").read_text(encoding="utf-8")
    assert re.findall(r'<section data-kind="(\w+)"><div', page) == [slide.kind for slide in told()]
    assert "<h1>9 · Who gets what?</h1>\n<p>A sum must be shared. <em>How?</em></p>" in page
    assert "<p>Who gets most of $R&lt;1$?</p>" in page
    assert html.escape(WIDE) in page
    assert '<aside class="notes">' in page
    assert "<a " not in page
    assert not re.search(r"https?:|//cdn", page)


def test_short_lines():
    assert slides.short_line("Short: as it is. More.") == "Short: as it is."
    long = f"Shares of the seed on the way down ({'a; b: c, ' * 3}d): {'more and more ' * 10}. More."
    assert slides.short_line(long) == "Shares of the seed on the way down (a; b: c, a; b: c, a; b: c, d)."


def test_a_deck_stands_alone_and_fits(small, capsys):
    """From file://, at 1280 x 720: nothing beyond its slide, no request elsewhere, arrow keys move."""
    assert slides.main([]) == 0
    assert "1 decks, " in capsys.readouterr().out
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        look_through(page, small / "build" / "slides" / "09.html")
        assert page.evaluate("document.querySelectorAll('mjx-container svg').length") > 3
        assert page.evaluate("document.querySelector('[data-kind=figure] img').naturalWidth") == 1
        page.evaluate("Reveal.slide(4)")
        with page.context.expect_page() as opened:  # the speaker's view, also from file://
            page.keyboard.press("s")
        opened.value.wait_for_selector(".speaker-controls-notes:not(.hidden) >> text=The first bar is the longest")
    assert not faults
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert all(url.startswith((small.as_uri(), "data:")) for url in asked)


BEYOND = """() => {
  const slide = Reveal.getCurrentSlide(), box = slide.querySelector(".frame").getBoundingClientRect(), found = [];
  for (const e of slide.querySelectorAll(".frame *")) {
    if (e.closest("mjx-assistive-mml") || e.closest("defs")) continue;
    const r = e.getBoundingClientRect();
    if (r.left < box.left - 1 || r.top < box.top - 1 || r.right > box.right + 1 || r.bottom > box.bottom + 1)
      found.push(e.tagName + ": " + e.textContent.slice(0, 40));
  }
  if (box.width < 1279 || box.height < 719) found.push("the slide is smaller than the screen");
  return found;
}"""


def look_through(page, deck: Path) -> None:
    """Go through a deck by the arrow key; every slide must fit."""
    page.goto(deck.as_uri())
    page.wait_for_selector("body[data-ready]")
    count = page.evaluate("Reveal.getTotalSlides()")
    for k in range(count):
        assert page.evaluate("Reveal.getIndices().h") == k
        assert page.evaluate(BEYOND) == [], f"{deck.name}, slide {k + 1}"
        page.keyboard.press("ArrowRight")
    assert page.evaluate("Reveal.getIndices().h") == count - 1


@pytest.mark.slow
def test_real_decks_fit():
    decks = sorted((ROOT / "build" / "slides").glob("[0-9][0-9].html"))
    if not decks:
        pytest.skip("no decks here: make slides")
    with chromium() as browser:
        for deck in decks:
            look_through(browser.new_page(viewport={"width": 1280, "height": 720}), deck)


def test_faults_say_what_to_run(small, capsys):
    assert slides.main(["12"]) == 1
    assert "no notebook 12" in capsys.readouterr().err
    changed = json.dumps(notebook(False)).replace("save(fig", "ax.grid()\\nsave(fig")
    (small / "notebooks" / "09_small.ipynb").write_text(changed)
    assert slides.main(["09"]) == 1
    assert "09_bars changed since it ran; run `make figures` first" in capsys.readouterr().err
    (small / "notebooks" / "09_small.ipynb").write_text(json.dumps(notebook(False)))
    (small / "figures" / "09_bars.png").unlink()
    assert slides.main(["09"]) == 1
    assert "09_bars.png is missing" in capsys.readouterr().err
    (small / "build" / "quick" / "09_small.ipynb").unlink()
    assert slides.main(["09"]) == 1
    assert "has not run yet; run `make figures` first" in capsys.readouterr().err


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(slides.LIBRARIES, "reveal", ("no_such_package", "", ()))
    with pytest.raises(slides.SlidesError, match="no-such-package is not installed"):
        slides.copy_libraries(tmp_path)
