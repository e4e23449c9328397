"""Slides: the deck of a small notebook, as a page and in a real browser."""

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
LONG = "\n".join(f"* Point {k}, with [a link](x.md), $w_{{ij}}^{k}$ and {'many words ' * 12}in it." for k in range(9))
WIDE = r"$$R_i=\sum_j\frac{a_iw_{ij}}{\sum_i a_iw_{ij}}R_j\qquad " + r"\sum_i R_i=\sum_j R_j\qquad " * 4 + "$$"
CELLS = [
    ("title", "# 9 · Who gets what?\n\nA sum must be *shared*, but how?\n\n![Hero](../figures/09_bars.png)", ""),
    ("parameters", "SEED: int = 0", "parameters"),
    ("one", f"## Shares\n\nThe shares of a unit sum to one. So nothing of it is ever lost. So.\n\n{WIDE}\n\nTold.", ""),
    ("two", "And then this. **Predict:** who gets most of $R<1$?\n\n* A hint", ""),
    ("three", "## Bars\n\nA picture says more, and it says it quickly, and to everybody here.", ""),
    ("bars", "save(fig, '09_bars', caption='...')", "code"),
    ("unsaved", "save(fig, '09_full', caption='of the full profile only')", "code"),
    ("four", "The first bar is the longest.", ""),
    ("five", f"## Summary\n\n{LONG}", ""),
    ("exercises", "## Exercises\n\n**Exercise 9.1** ★ Sum them, as [above](x.md).", ""),
    ("solution", "secret = 6", "solution"),
    ("words", "**Solution 9.1.** A secret.", "solution in words"),
    ("check", "course.check('9.1', secret)", "check"),
    ("references", "## References\n\nNot on a slide.", ""),
]
RECORD = {
    "figures": {"09_bars": {"caption": "Bars of shares. Made by hand.", "alt": 'Three bars, the "first" the longest'}}
}


def notebook() -> dict:
    made = []
    for name, text, kind in CELLS:
        tags = [kind.split()[0]] if kind not in ("", "code") else []
        cell = {"cell_type": "markdown", "id": name, "metadata": {"tags": tags} if tags else {}, "source": text}
        code = {"cell_type": "code", "outputs": [], "execution_count": None}
        made.append(cell if kind in ("", "solution in words") else cell | code)
    return {"cells": made, "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A repository with one notebook that has run, and one that has not; returns its root."""
    for place, content in (
        ("notebooks/09_small.ipynb", notebook()),
        ("notebooks/10_next.ipynb", notebook()),
        ("build/quick/09_small.json", RECORD),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "09_bars.png").write_bytes(PNG)
    for module in (notebook_keys, slides):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.delenv("LRP_FIGURES", raising=False)
    return tmp_path


def test_the_deck(small, capsys):
    """Slides in order, formulas as they are written, prose in the notes; no code, no solution, nothing from outside."""
    assert slides.main([]) == 0
    assert "1 decks" in capsys.readouterr().out
    page = (small / "build" / "slides" / "09.html").read_text(encoding="utf-8")
    assert "<title>9 · Who gets what?</title>" in page
    found = re.findall(r'<section data-kind="(\w+)">(.*?)</section>', page, flags=re.DOTALL)
    assert [kind for kind, _ in found] == ["title", "text", "predict", "text", "text", "figure", "text", "exercise"]
    title, shares, predict, hint, bars, figure, summary, exercise = (body.split("<aside") for _, body in found)
    assert "<h1>9 · Who gets what?</h1>\n<p>A sum must be <em>shared</em>, but how?</p>" in title[0]
    assert "<p>The shares of a unit sum to one. So nothing of it is ever lost.</p>" in shares[0]
    assert html.escape(WIDE) in shares[0]
    assert "lost. So.</p>\n<p>Told.</p>" in shares[1]
    assert "<h2>Shares</h2>\n<p>And then this. <strong>Predict:</strong> who gets most of $R&lt;1$?</p>" in predict[0]
    assert "<h2>Shares</h2>\n<ul>\n<li>A hint</li>" in hint[0]
    assert "<p>A picture says more" in bars[0]
    assert 'alt=\'Three bars, the "first" the longest\' src="figures/09_bars.png"' in figure[0]
    assert "<p>Bars of shares.</p>" in figure[0]
    assert "Made by hand." in figure[1]
    assert "The first bar is the longest." in figure[1]
    assert summary[0].count("<li>") == 9
    assert "Sum them, as above.</p>" in exercise[0]
    for hidden in ("secret", "SEED", "save(", "09_full", "Hero", "Not on a slide", "course.check", "<a "):
        assert hidden not in page
    assert not re.search(r"https?:|//cdn", page)


def test_a_deck_stands_alone_and_fits(small):
    """From file://, at 1280 x 720: nothing beyond its slide, no request elsewhere, arrow keys move."""
    assert slides.main(["09"]) == 0
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        look_through(page, small / "build" / "slides" / "09.html")
        assert page.evaluate("document.querySelectorAll('mjx-container svg').length") > 3
        assert page.evaluate("document.querySelector('[data-kind=figure] img').naturalWidth") == 1
        page.evaluate("Reveal.slide(5)")
        with page.context.expect_page() as opened:  # the speaker's view, also from file://
            page.keyboard.press("s")
        opened.value.wait_for_selector(".speaker-controls-notes:not(.hidden) >> text=The first bar is the longest")
    assert not faults
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
    assert slides.main(["10"]) == 1
    assert "10_next has not run yet; run `make figures` first" in capsys.readouterr().err
    (small / "figures" / "09_bars.png").unlink()
    assert slides.main(["09"]) == 1
    assert "09_bars.png is missing; run `make figures` first" in capsys.readouterr().err


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "LIBRARIES", [("no_such_package", "a.js")])
    with pytest.raises(slides.SlidesError, match="no-such-package is not installed"):
        slides.copy_libraries(tmp_path)
