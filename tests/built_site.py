"""What is wrong with a site made of files: dead links and anchors, pictures without words, what comes from outside."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
