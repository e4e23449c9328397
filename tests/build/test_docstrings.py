"""The docstrings of the package as Sphinx reads them: restructured text, code in single backquotes."""

import ast
import io
import re
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from sphinx.ext.napoleon import Config, GoogleDocstring

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "lrp").rglob("*.py")), ids=lambda file: f"{file.parent.name}/{file.stem}"
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
