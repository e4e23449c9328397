"""The story of a notebook as slides: what is shown, and what is told (the speaker's notes).

Shown are the question, formulas, lists, tables, questions to predict, figures and the summary. Paragraphs are told; the
first of a section lends its first sentence to the slide.
"""

import html
import re
from collections import Counter
from dataclasses import dataclass, field

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

LINES = 12  # lines of text that fit on a slide, under its title
WIDTH = 68  # characters of a line
ROW = 88  # characters of a row of a table
CAPTION = 150  # characters of a figure's short line
ENDINGS = ("exercises", "references")  # cells at which the story ends


@dataclass
class Slide:
    """One slide: `kind` is title, text, statement, predict or figure; `body` and `notes` are HTML.

    `section` is the heading under which the slide stands, `lines` an estimate of its height.
    """

    kind: str
    section: str
    body: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: float = 0
    led: str = ""  # the sentence that opens the section, where it is all there is


# --- Markdown -----------------------------------------------------------------------------------------------


def formula(content: str, options: dict) -> str:
    left, right = ("\\[", "\\]") if options["display_mode"] else ("\\(", "\\)")
    return f"{left}{html.escape(content.strip())}{right}"


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
MARKDOWN.use(dollarmath_plugin, renderer=formula, double_inline=True)


def rendered(text: str) -> str:
    """Return Markdown as HTML, without links and pictures: a deck stands alone."""
    return MARKDOWN.render(re.sub(r"!?\[([^\[\]]*)\]\([^)]*\)", r"\1", text)).strip()


def inline(text: str) -> str:
    return rendered(text).removeprefix("<p>").removesuffix("</p>")


def blocks(text: str) -> list[tuple[str, str]]:
    """Split Markdown into its top-level blocks: (type, source)."""
    lines, found = text.splitlines(), []
    for token in MARKDOWN.parse(text):
        if token.level == 0 and token.map and token.nesting >= 0:
            found.append((token.type.removesuffix("_open"), "\n".join(lines[slice(*token.map)])))
    return found


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+(?=[A-ZÀ-Þ`*\"“$])", " ".join(text.split()))


def opening(text: str, least: int = 60) -> str:
    """Return the first sentence, and as many more as it takes to say something."""
    said = ""
    for sentence in sentences(text):
        said = f"{said} {sentence}".strip()
        if len(said) >= least:
            break
    return said


def short_line(caption: str) -> str:
    """Return what a figure shows, in a line or two: the first sentence of its caption, or of that the first clause."""
    sentence = opening(caption, least=0)
    clauses = (sentence[: m.start()] for m in re.finditer(r"(?<=.{40})[:;](?=\s)", sentence))
    whole = next((clause for clause in clauses if clause.count("(") == clause.count(")")), None)
    return f"{whole}." if whole and len(sentence) > CAPTION else sentence


def height(text: str) -> float:
    """Estimate how many lines an item, a sentence or a row of a table takes; formulas are shorter than their source."""
    plain = re.sub(r"\\[A-Za-z]+|[{}$*`\\|]", "", text)
    width, gap = (ROW, 0.05) if text.startswith("|") else (WIDTH, 0.25)
    return max(1, -(-len(plain) // width)) + gap


def portions(parts: list[str]) -> list[list[str]]:
    """Split items or rows into groups that fill a slide each, about evenly."""
    total = sum(map(height, parts))
    limit = total / -(-total // LINES)
    groups, used = [[]], 0.0
    for part in parts:
        if groups[-1] and used + height(part) / 2 > limit:
            groups.append([])
            used = 0.0
        groups[-1].append(part)
        used += height(part)
    return groups


# --- the story ----------------------------------------------------------------------------------------------


class Story:
    """Turns the cells of a notebook into slides, one after the other."""

    def __init__(self, record: dict):
        self.record, self.slides, self.section = record, [], ""

    @property
    def last(self) -> Slide:
        return self.slides[-1]

    def add(self, kind: str, *body: str) -> None:
        self.slides.append(Slide(kind, self.section, list(body)))

    def open(self, text: str) -> None:
        """The first cell: the question is the title, and the first paragraph."""
        (_, heading), (_, question), *rest = blocks(text)
        self.section = inline(heading.lstrip("# "))
        self.add("title", rendered(question))
        self.last.notes += [rendered(block) for _, block in rest if "![" not in block]

    def put(self, text: str, lines: float) -> None:
        """Add Markdown to the text slide at hand, or to a new one where it does not fit."""
        if self.last.kind != "text" or (self.last.lines and self.last.lines + lines > LINES):
            self.add("text")
        self.last.body.append(rendered(text))
        self.last.lines += lines
        self.last.led = ""

    def markdown(self, text: str) -> None:
        """Prose: headings open a slide, formulas, lists and tables are shown, paragraphs are told."""
        fresh = False  # whether a heading waits for its first sentence
        for kind, block in blocks(text):
            if kind == "heading":
                self.section = inline(block.lstrip("# "))
                self.add("text")
                if self.section == "Scorecard":
                    self.verdicts()
            elif kind == "math_block":
                self.put(block, 3)
            elif kind in ("bullet_list", "ordered_list", "table"):
                self.parts(kind, block)
            elif "**Predict:**" in block:
                told, question = (part.strip() for part in block.split("**Predict:**", maxsplit=1))
                self.tell(told, fresh)
                self.add("predict", rendered(question[0].upper() + question[1:]))
                self.last.led = rendered(sentences(told)[-1]) if told else ""
            else:
                self.tell(block, fresh)
            fresh = kind == "heading"

    def tell(self, paragraph: str, fresh: bool) -> None:
        """A paragraph is told; the first one of a section lends its first sentence to the slide."""
        if not paragraph.strip():
            return
        if fresh:
            sentence = opening(paragraph)
            self.put(sentence, height(sentence))
            self.last.led = rendered(sentence) if len(self.last.body) == 1 else ""
        for shown in re.findall(r"\$\$.+?\$\$", paragraph, flags=re.DOTALL):
            self.put(shown, 3)
        self.last.notes.append(rendered(paragraph))

    def parts(self, kind: str, block: str) -> None:
        """A list or a table, on as many slides as it needs; long items are cut to their opening."""
        head, whole = [], block.splitlines()
        if kind == "table":
            head, whole = whole[:2], whole[2:]
            shown = whole
        else:
            pieces = re.split(r"(?m)^(?:[*-]|\d+\.)\s+", block)
            whole = [" ".join(piece.split()) for piece in pieces if piece.strip()]
            marks = ["*"] * len(whole) if kind == "bullet_list" else [f"{k}." for k in range(1, len(whole) + 1)]
            cut = [part if height(part) < 4 else opening(part) for part in whole]
            shown, whole = ([f"{m} {part}" for m, part in zip(marks, parts, strict=True)] for parts in (cut, whole))
        groups = [shown] if sum(map(height, head[:1] + shown)) <= LINES else portions(shown)
        for group in groups:
            if len(groups) > 1:
                self.add("text")
            self.put("\n".join(head + group), sum(map(height, head[:1] + group)))
        self.last.notes += [rendered(block)] if shown != whole else []

    def verdicts(self) -> None:
        """How many claims of the papers were reproduced."""
        counts = Counter(claim["verdict"] for claim in self.record.get("claims", {}).values())
        if counts:
            self.put("\n".join(f"* **{count}** {verdict}" for verdict, count in counts.most_common()), len(counts))

    def figure(self, name: str) -> None:
        """A figure, as large as it goes, with a short line."""
        entry = self.record["figures"][name]
        picture = f'<img src="figures/{name}.png" alt="{html.escape(entry["alt"])}">'
        self.add("figure", picture, f"<p>{inline(short_line(entry['caption']))}</p>")
        self.last.notes.append(f"<p>{inline(entry['caption'])}</p>")

    def answer(self, outputs: list[dict]) -> None:
        """A small table that comes right after a question is its answer."""
        tables = ["".join(o["data"]["text/html"]) for o in outputs if "text/html" in o.get("data", {})]
        if self.last.kind == "predict" and tables and tables[0].count("<tr") <= LINES:
            self.add("text", re.sub(r"<style.*?</style>| border=\"1\"", "", tables[0], flags=re.DOTALL))

    def finished(self) -> list[Slide]:
        """Return the slides; what a section's lone first sentence says goes to the slide that follows at once."""
        kept = []
        for slide, following in zip(self.slides, [*self.slides[1:], None], strict=True):
            alone = slide.kind == "text" and (not slide.body or slide.led)
            if alone and following is not None and following.section == slide.section:
                following.notes[:0] = slide.notes
                following.led = following.led or (slide.led if following.kind == "predict" else "")
            elif slide.body:
                slide.kind = "statement" if alone else slide.kind
                kept.append(slide)
        return kept


def figures_of(code: str) -> list[str]:
    """Return the names of the figures that a cell saves."""
    return re.findall(r"\bsave\(\s*\w+,\s*[\"'](\w+)[\"']", code)


def story(cells: list[dict], outputs: dict[str, list], record: dict) -> list[Slide]:
    """Return the slides of a notebook's cells; `outputs` {cell id: outputs} and `record` are those of its run."""
    told = Story(record)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        text = "".join(cell["source"])
        if cell["id"] in ENDINGS:
            break
        if cell["cell_type"] == "markdown":
            told.markdown(text) if told.slides else told.open(text)
            continue
        shown = [name for name in figures_of(text) if name in record["figures"]]
        for name in shown:
            told.figure(name)
        if not shown and following is not None and following["cell_type"] == "markdown":
            told.answer(outputs.get(cell["id"], []))
    return told.finished()
