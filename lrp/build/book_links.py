"""Check a built site: every link, fragment and picture is there, and nothing is loaded from outside.

Links to other hosts are checked in form only: nothing is fetched.

Standard library only.
"""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "area": "href"}  # what a reader follows
LOADED = {  # what a browser loads by itself
    **dict.fromkeys(("img", "script", "iframe", "source", "audio", "video", "embed"), "src"),
    **{"link": "href", "object": "data"},
}
CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?(?!data:)([^"')\s;]+)""")


class Reference(NamedTuple):
    """An address on a page, and whether a browser loads it by itself."""

    target: str
    loaded: bool


class Page(HTMLParser):
    """The anchors and references of a page, and its pictures without a description."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.references: list[Reference] = []
        self.silent: list[str] = []
        self.pictures = 0
        self.in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        self.in_style = tag == "style"
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        for kind, loaded in ((LINKS, False), (LOADED, True)):
            if (target := given.get(kind.get(tag, ""))) is not None:
                self.references.append(Reference(target, loaded))
        for candidate in (given.get("srcset") or "").split(","):
            if candidate.strip():
                self.references.append(Reference(candidate.split()[0], True))
        self.references += [Reference(target, True) for target in CSS_URL.findall(given.get("style") or "")]
        if tag == "img":
            self.pictures += 1
            if not (given.get("alt") or "").strip():
                self.silent.append(given.get("src", ""))

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.references += [Reference(target, True) for target in CSS_URL.findall(data)]

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False


class Checked(NamedTuple):
    """What a check found: numbers for a closing line, and one line per fault."""

    pages: int
    pictures: int
    links: int
    faults: list[str]


def check(site: Path) -> Checked:
    """Check the pages and style sheets below a folder."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    faults, links = [], 0
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        links += len(page.references)
        faults += [f"{here}: {why}" for reference in page.references if (why := fault(reference, path, pages, site))]
        faults += [f"{here}: picture {picture[:60]} has no description (alt)" for picture in page.silent]
    for path in sorted(site.rglob("*.css")):
        for target in CSS_URL.findall(path.read_text(encoding="utf-8")):
            links += 1
            if why := fault(Reference(target, True), path.resolve(), pages, site):
                faults.append(f"{path.relative_to(site)}: {why}")
    return Checked(len(pages), sum(page.pictures for page in pages.values()), links, faults)


def fault(reference: Reference, path: Path, pages: dict[Path, Page], site: Path) -> str | None:
    """Return what is wrong with a reference of the file at `path`, or None."""
    target, loaded = reference
    try:
        parts = urlsplit(target)
    except ValueError as error:
        return f"malformed address {target}: {error}"
    if parts.scheme == "data" and loaded:
        return None
    if parts.scheme or parts.netloc:
        if loaded:
            return f"loads {target} from outside"
        sound = parts.scheme == "mailto" or (parts.scheme in ("http", "https") and "." in parts.netloc)
        return None if sound else f"malformed address {target}"
    there = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
    if there.is_dir():
        return f"link to a folder, {target}: name its index.html"
    if site.resolve() not in there.parents:
        return f"{target} leads out of the site"
    if not there.exists():
        return f"dead {'file' if loaded else 'link'} {target}"
    fragment = unquote(parts.fragment)
    if fragment and there in pages and fragment not in pages[there].anchors:
        return f"no such anchor: {target}"
    return None
