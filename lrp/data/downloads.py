"""Fetch pretrained weights and data: `python -m lrp.data.downloads [names] [--check] [--list]`, which is what
`make data` runs.

What there is stands in `data/manifest.toml`, and any classifier of torchvision can be asked for by its name.
A file first grows as `NAME.part`, taken up again where the last attempt broke off; it gets its name under
`data/raw` only when its size and SHA-256 are right. So a file with its final name is whole. A failure takes one
line and does not stop the rest.
"""

import argparse
import http.client
import os
import shutil
import sys
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pooch
from tqdm import tqdm

from ..errors import DataError
from .datasets import DATA

MANIFEST, RAW = DATA / "manifest.toml", DATA / "raw"
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 3
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Item:
    """One file of the manifest: where it comes from, what it must be, and where it goes below `data/raw`.

    `bytes` is its exact size, 0 where only `megabytes` (2**20 bytes, rounded to 3 digits) is known; `sha256` is the
    whole hash or its beginning. A file that `grows` gets new months from its owner, so its size and hash are not known:
    it is whole when as much came as the server announced, and parts of two calls are never put together.
    """

    name: str
    url: str
    path: str
    sha256: str
    bytes: int = 0
    megabytes: float = 0.0
    license: str = ""
    used_by: tuple = ()
    grows: bool = False

    @property
    def size(self):
        """Its size in MiB, as well as it is known."""
        return self.bytes / 2**20 or self.megabytes

    def problem(self, file):
        """What is wrong with a local file, in words; empty when it is this item."""
        size = file.stat().st_size
        if self.grows:
            return "" if size else "it is empty"
        if self.bytes and size != self.bytes:
            return f"it has {size} bytes instead of {self.bytes}"
        if not self.bytes and self.megabytes and abs(size / 2**20 - self.megabytes) > 0.001:
            return f"it has {size / 2**20:.3f} MiB instead of {self.megabytes:.3f}"
        found = pooch.file_hash(str(file), alg="sha256")
        if not found.startswith(self.sha256):
            return f"its SHA-256 is {found[:12]}... instead of {self.sha256[:12]}..."
        return ""


def manifest(path=MANIFEST):
    """The items of `data/manifest.toml`, by name, in its order; DataError for one that is not complete."""
    items = {}
    for entry in tomllib.loads(Path(path).read_text())["file"]:
        try:
            item = Item(**entry)
        except TypeError as error:
            raise DataError(f"{path}: entry {entry.get('name', entry)} is not complete: {error}") from None
        if not item.sha256 and not item.grows:
            raise DataError(f"{path}: entry {item.name} has no sha256, and does not say that it grows")
        if Path(item.path).is_absolute() or ".." in Path(item.path).parts:
            raise DataError(f"{path}: entry {item.name} would be written outside {RAW}: {item.path}")
        items[item.name] = item
    return items


def item(name):
    """The item of this name: of the manifest, else torchvision's classifier; DataError for neither."""
    known = manifest()
    if name in known:
        return known[name]
    from torchvision.models import list_models

    from .models import torchvision_weights

    try:
        weights = torchvision_weights(name)
    except ValueError:
        near = ", ".join([*known, *(m for m in list_models() if name.lower()[:4] in m)][:20])
        raise DataError(f"nothing is called {name!r}; there are {near} and the classifiers of torchvision") from None
    file, size, license = Path(weights.url), weights.meta["_file_size"], "BSD-3-Clause (torchvision)"
    sha256 = file.stem.rsplit("-", 1)[-1]
    return Item(name, weights.url, f"weights/{file.name}", sha256, megabytes=size, license=license)


def fetch(item, folder=None):
    """Download one item into the folder (`data/raw`), or find it there whole; returns its path.

    Raises DataError naming the item, what happened and the way out. A broken connection is taken up again at
    once, up to `ATTEMPTS` times without progress, and what has arrived is kept for the next call.
    """
    target = Path(folder or RAW) / item.path
    if target.exists():
        if fault := item.problem(target):
            raise DataError(f"{item.name}: {target} is not what it should be, {fault}: delete it and run `make data`")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < item.size * 2**20:
        raise DataError(f"{item.name}: {item.size:.0f} MiB do not fit on the disk of {target.parent}: make room")
    part = target.with_name(target.name + ".part")
    if item.grows:
        part.unlink(missing_ok=True)  # what is there may be of another day
    if not part.exists() or item.problem(part):
        _fill(item, part)
    if fault := item.problem(part):
        part.unlink()
        raise DataError(
            f"{item.name}: what {item.url} sent is not the file of the manifest, {fault}; nothing was kept. "
            "Run `make data` again; if it stays so, the source has changed: look at data/manifest.toml"
        )
    os.replace(part, target)
    return target


def _fill(item, part):
    """Append to the part file what is missing, over as many connections as it takes."""
    idle = 0  # connections in a row that brought nothing
    while idle < ATTEMPTS:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(item, part, before):
                return
            broken = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code != 416:  # range not satisfiable: the part is as long as the file, or too long
                raise DataError(
                    f"{item.name}: {item.url} answers {error.code} {error.reason}: is its address in "
                    "data/manifest.toml still right?"
                ) from None
            part.unlink()
            broken = "what was there did not fit"
        except BROKEN as error:
            broken = str(getattr(error, "reason", None) or error or type(error).__name__)
        idle = 0 if part.exists() and part.stat().st_size > before else idle + 1
    size = part.stat().st_size if part.exists() else 0
    kept = f", {size / 2**20:.1f} MiB are kept" if size else ""
    raise DataError(
        f"{item.name}: {item.url} cannot be read ({broken}){kept}: check the network and run `make data` "
        f"again, or put the file at {part.with_suffix('')}"
    )


def _receive(item, part, start):
    """One connection, from byte `start` on; True when the server sent everything it had announced."""
    request = urllib.request.Request(item.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != 206:
            start = 0  # this server sends the whole file again
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(total=total, initial=start, desc=item.name, unit="B", unit_scale=True, leave=False, delay=1)
        with open(part, "ab" if start else "wb") as file, bar:
            while block := answer.read1(1 << 18):
                file.write(block)
                bar.update(len(block))
    return total is None or part.stat().st_size >= total


def check(item, folder=None):
    """Say whether an item is here: `whole`, `missing`, `half`, or what is wrong with it."""
    target = Path(folder or RAW) / item.path
    if target.exists():
        return item.problem(target) or "whole"
    return "half" if target.with_name(target.name + ".part").exists() else "missing"


def main(arguments=None):
    """Fetch or check what is named, by default the whole manifest; returns 1 when something failed."""
    parser = argparse.ArgumentParser(
        "python -m lrp.data.downloads", description="Fetch weights and data into data/raw."
    )
    names = "names of the manifest or of torchvision's classifiers; default: the manifest"
    parser.add_argument("names", nargs="*", help=names)
    parser.add_argument("--check", action="store_true", help="only say what is here and whole")
    parser.add_argument("--list", action="store_true", help="only list what there is, with sizes and licenses")
    options = parser.parse_args(arguments)
    items, failed = [], 0
    for name in options.names or manifest():
        try:
            items.append(item(name))
        except DataError as error:
            failed += _say(error)
    if options.list:
        for one in items:
            size = f"{one.size:8.1f} MiB" if one.size else f"{'growing':>12}"
            print(f"{one.name:16} {size}  {one.license}")
        return int(failed > 0)
    if options.check:
        states = {one.name: check(one) for one in items}
        print(*(f"{name:16} {state}" for name, state in states.items()), sep="\n")
        return int(failed > 0 or any(state != "whole" for state in states.values()))
    missing = [one for one in items if not (RAW / one.path).exists()]
    total = sum(one.size for one in missing)
    print(f"{len(missing)} of {len(items)} files to fetch, {total:.0f} MiB, into {RAW}")
    for one in items:
        try:
            print(f"{one.name:16} {fetch(one)}", flush=True)
        except (DataError, OSError) as error:
            failed += _say(error if isinstance(error, DataError) else f"{one.name}: {error}")
    return int(failed > 0)


def _say(error):
    print(f"make data: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
