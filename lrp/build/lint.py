"""Check the notebooks without running them.

A notebook tells and the package computes, everything a result depends on is visible to the build, and nothing in git
belongs to one machine or one run. Standard library only; run it by `python -m lrp.build.lint`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .keys import assigned, notebooks, parse, read

DEFINITION = (ast.FunctionDef, ast.ClassDef)
REQUIRED = ("SEED", "DEVICE", "PROFILE")
FORBIDDEN = {  # pattern in code: what to do instead
    r"^\s*!": "no shell commands: make installs and downloads",
    r"^\s*%+(pip|conda|sh|bash|system|run)\b": "no such magic: make installs and downloads",
    r"\burlretrieve\b|\burlopen\b|\brequests\.|\bdownload\s*=\s*True": "no downloads: `make data` fetches",
    r"\bweights\s*=\s*None\b": "never explain an untrained network: load a checkpoint",
    r"\bimport_module\s*\(|\b__import__\s*\(": "no dynamic imports: the build could not see them",
    r"\btorch\.(cuda\.)?manual_seed\s*\(|(?<!\w)random\.seed\s*\(": "seeds are set by setup(SEED, ...) alone",
    r"\bsavefig\s*\(": "figures are saved by lrp.teach.figures.save",
    r"""["'](~/|/(home|Users|root|tmp|usr|opt|mnt|data|content|work)/|[A-Z]:\\)""": "no path of one machine",
}


class Notebook:
    """A notebook read for checking."""

    def __init__(self, path: Path):
        self.path, self.number, self.raw = path, path.stem[:2], read(path)
        self.cells = self.raw["cells"]
        self.source = ["".join(cell["source"]) for cell in self.cells]
        self.markdown = [i for i, cell in enumerate(self.cells) if cell["cell_type"] == "markdown"]
        self.trees = {i: parse(self.source[i]) for i, cell in enumerate(self.cells) if cell["cell_type"] == "code"}

    def tagged(self, tag: str) -> list[int]:
        """Return the code cells with this tag."""
        return [i for i in self.trees if tag in self.cells[i]["metadata"].get("tags", [])]


def stored_state(notebook: Notebook) -> Iterator[str]:
    """What a run or a machine may have left in the file."""
    for i, cell in enumerate(notebook.cells):
        if cell.get("outputs") or cell.get("execution_count") is not None:
            yield f"cell {i}: holds outputs; run nbstripout"
        if "id" not in cell:
            yield f"cell {i}: has no id; save it with a recent Jupyter"
    if (name := notebook.raw["metadata"].get("kernelspec", {}).get("name")) != "python3":
        yield f"the kernel's name is {name!r}, and must be 'python3'"


def title(notebook: Notebook) -> Iterator[str]:
    """One H1, in the first cell, that starts with the notebook's number."""
    if 0 not in notebook.markdown or not re.match(rf"# {int(notebook.number)}\b", notebook.source[0]):
        yield f"cell 0: must be Markdown that starts with the title, '# {int(notebook.number)} · ...'"
    headings = [line for i in notebook.markdown for line in prose(notebook.source[i]).splitlines() if line[:2] == "# "]
    if len(headings) > 1:
        yield f"has {len(headings)} titles (# ...), and needs one"


def parameters_cell(notebook: Notebook) -> Iterator[str]:
    """One cell of typed, commented literals before all other code."""
    tagged = notebook.tagged("parameters")
    if not tagged or tagged != [index := min(notebook.trees)]:
        yield f"needs exactly one cell tagged 'parameters', before any other code (tagged: {tagged})"
        return
    lines, body = notebook.source[index].splitlines(), notebook.trees[index].body
    for node in body:
        if not assigned(node) or not is_literal(node.value):
            yield f"cell {index}, line {node.lineno}: parameters are literals; derive values in the next cell"
        elif not re.search(r"\s#\s*\S", lines[node.end_lineno - 1]):
            yield f"cell {index}, line {node.lineno}: say in a comment what the parameter does"
    names = set().union(*map(assigned, body))
    if missing := [name for name in REQUIRED if name not in names]:
        yield f"cell {index}: parameters lack {', '.join(missing)}"


def is_literal(node: ast.expr | None) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Return the calls of a function of lrp.teach.figures, by one of its three names."""
    names = (name, f"figures.{name}", f"lrp.teach.figures.{name}")
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]


def given(call: ast.Call, position: int, name: str) -> ast.expr | None:
    """Return what a call gives for a parameter, by position or by name."""
    named = (keyword.value for keyword in call.keywords if keyword.arg == name)
    return call.args[position] if len(call.args) > position else next(named, None)


def figures(notebook: Notebook) -> Iterator[str]:
    """Saved figures carry the notebook's number and an alt text, and a text reads them."""
    for i, tree in notebook.trees.items():
        saves = calls(tree, "save")
        for call in saves:
            name = given(call, 1, "name")
            if not isinstance(name, ast.Constant):
                yield f"cell {i}: the name of a figure is a literal, so that it can be found"
                continue
            if not str(name.value).startswith(f"{notebook.number}_"):
                yield f"cell {i}: figure {name.value!r} must start with {notebook.number}_"
            if given(call, 3, "alt") is None:
                yield f"cell {i}: figure {name.value!r} has no alt text: say what one sees"
        if saves and i + 1 not in notebook.markdown:
            yield f"cell {i}: saves a figure, and no Markdown after it reads the figure"


def forbidden(notebook: Notebook) -> Iterator[str]:
    """Code that would hide a dependency, reach outside or belong to one machine."""
    for i in notebook.trees:
        for number, line in enumerate(notebook.source[i].splitlines(), start=1):
            for pattern, advice in FORBIDDEN.items():
                if re.search(pattern, line):
                    yield f"cell {i}, line {number}: {advice} ({line.strip()[:60]})"
    count = sum(len(calls(tree, "setup")) for tree in notebook.trees.values())
    if count != 1:
        yield f"calls lrp.teach.figures.setup {count} times, and must call it once"


def rebinding(notebook: Notebook) -> Iterator[str]:
    """A name that a def gave keeps its meaning."""
    bound: dict[str, int] = {}
    for i, tree in notebook.trees.items():
        for node in tree.body:
            stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            names = {node.name} if isinstance(node, DEFINITION) else stored
            for name in names & set(bound):
                yield f"cell {i}: gives {name!r}, defined in cell {bound[name]}, another meaning"
            if isinstance(node, DEFINITION):
                bound[node.name] = i


def links(notebook: Notebook) -> Iterator[str]:
    """Relative links and pictures exist."""
    for i in notebook.markdown:
        for target in dead_links(notebook.source[i], notebook.path.parent):
            yield f"cell {i}: dead link {target}"


def prose(text: str) -> str:
    """Return Markdown without code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def dead_links(text: str, folder: Path) -> list[str]:
    """Return the relative link targets in Markdown that lead nowhere."""
    targets = re.findall(r"\]\(<?([^)\s>]+)", prose(text)) + re.findall(r'(?:src|href)="([^"]+)"', prose(text))
    return [t for t in targets if not re.match(r"[a-z]+:|#", t) and not (folder / t.split("#")[0]).exists()]


def solutions(notebook: Notebook) -> Iterator[str]:
    """Code under a heading 'Solutions' is tagged, so that a student edition can leave it out."""
    inside = False
    for i, text in enumerate(notebook.source):
        if i in notebook.markdown and (heading := re.match(r"#+\s*(.*)", text)):
            inside = bool(re.match(r"solution", heading[1], flags=re.IGNORECASE))
        if inside and i in notebook.trees and i not in notebook.tagged("solution"):
            yield f"cell {i}: stands under 'Solutions' without the tag 'solution'"


def repeated(books: list[Notebook]) -> Iterator[str]:
    """A function that two notebooks define belongs into the package."""
    homes: dict[str, str] = {}
    for notebook in books:
        for node in (node for tree in notebook.trees.values() for node in tree.body if isinstance(node, DEFINITION)):
            first = homes.setdefault(node.name, notebook.path.stem)
            if first != notebook.path.stem:
                yield f"{notebook.path.stem}: {node.name!r} is also defined in {first}; move it into lrp/"


FACTS = (stored_state, title, parameters_cell, figures, forbidden, rebinding, links, solutions)


def faults(paths: list[Path]) -> list[str]:
    """Return what is wrong with these notebooks, one line each."""
    books = [Notebook(path) for path in paths]
    found = [f"{book.path.stem}: {fault}" for book in books for fact in FACTS for fault in fact(book)]
    return found + list(repeated(books))


def main() -> int:
    """Print the faults of the notebooks; return 1 if there are any."""
    paths = notebooks()
    found = faults(paths)
    print(*found, f"notebooks: {len(paths)} checked, {len(found)} faults", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
