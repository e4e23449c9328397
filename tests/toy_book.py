"""A small repository with the real code of the book, and what its notebook holds."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    *("moved.py", "build/__init__.py", "build/book.py", "build/book.css", "build/book_pages.py"),
    *("build/editions.py", "build/keys.py", "build/pages.py"),
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


def lay_out(root: Path) -> None:
    """Write the repository into a folder: a module, a README, a notebook and its run."""
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


def make(root: Path) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "LRP_ROOT"}
    command = [sys.executable, "-m", "lrp.build.book"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def page(toy: Path, name: str) -> str:
    return (toy / "build/book/html" / name).read_text(encoding="utf-8")
