"""The repository as a whole: what lies where, and that its parts agree with each other."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from lrp.build.keys import parameters
from lrp.build.lint import dead_links

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
FOLDERS = {"notebooks", "lrp", "data", "figures", "tests", "findings"}


def tracked() -> list[Path]:
    """Return the files in git; skip where there is no git."""
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode or not result.stdout:
        pytest.skip("needs a git checkout")
    return [path for name in result.stdout.split("\0") if name and (path := ROOT / name).exists()]


def text_files() -> list[Path]:
    suffixes = {".py", ".ipynb", ".md", ".yml", ".toml", ".cff", ".lock", ".mplstyle", ""}
    return [path for path in tracked() if path.suffix in suffixes and path.name != "LICENSE"]


def requirements() -> dict[str, str]:
    """Return {name: bound} of pyproject.toml, runtime and dev."""
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    return dict(re.fullmatch(r"([\w-]+)([>=<].*)", line).groups() for line in lines)


def test_top_level_folders():
    names = {path.relative_to(ROOT).parts[0] for path in tracked() if len(path.relative_to(ROOT).parts) > 1}
    assert {name for name in names if not name.startswith(".")} <= FOLDERS


def test_no_debris_and_no_large_files():
    for path in tracked():
        assert not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts), path
        assert path.name != "utils.py", "a module is named after what a reader wants to understand"
        assert path.stat().st_size < 1_500_000, f"{path} is large"


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(home|Users|root|tmp|work)/[A-Za-z]")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found


def test_conda_environment_names_the_same_set():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = [entry for item in entries if isinstance(item, dict) for entry in item["pip"]]
    named = dict(re.fullmatch(r"([\w-]+)(.*)", entry).groups() for entry in entries if isinstance(entry, str))
    named |= dict(re.fullmatch(r"([\w-]+)(.*)", entry).groups() for entry in pip)
    assert named.pop("python") == PROJECT["requires-python"]
    assert named.pop("pip") == ""
    assert named == {CONDA_NAMES.get(name, name): bound for name, bound in requirements().items()}


def test_conda_environment_gives_a_reason_per_line():
    lines = (ROOT / "environment.yml").read_text().split("dependencies:")[1].splitlines()
    bare = [line for line in lines if re.match(r"\s*- [\w-]+[>=]", line) and " # " not in line]
    assert not bare


def test_the_lock_satisfies_the_bounds_and_names_no_place():
    text = (ROOT / "environment.lock").read_text()
    assert not re.search(r"https?:|file:|@|^-|/", text, flags=re.MULTILINE)
    locked = dict(line.split(";")[0].strip().split("==") for line in text.splitlines() if line)
    for name, bound in requirements().items():
        have, want = (tuple(map(int, v.split("."))) for v in (locked[name], bound.lstrip(">=")))
        assert have == want if bound.startswith("==") else have >= want, name


def test_pre_commit_uses_the_locked_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {hook["repo"].rsplit("/", 1)[-1]: hook["rev"].lstrip("v") for hook in hooks}
    lock = (ROOT / "environment.lock").read_text().splitlines()
    assert f"ruff=={revisions['ruff-pre-commit']}" in lock
    assert f"nbstripout=={revisions['nbstripout']}" in lock


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_make_passes_only_parameters_that_notebooks_have(path):
    passed = set(re.findall(r"-p (\w+)=", (ROOT / "Makefile").read_text()))
    assert passed == {"PROFILE", "SEED", "DEVICE"}
    assert passed <= parameters(path)


def test_links_are_alive():
    pages = [path for path in tracked() if path.suffix == ".md"]
    assert not {page.name: dead for page in pages if (dead := dead_links(page.read_text(), page.parent))}


def snippets() -> list:
    readme = ROOT / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.DOTALL) if readme.exists() else []
    return [pytest.param(block, id=f"snippet{i}") for i, block in enumerate(blocks, start=1)]


@pytest.mark.parametrize("code", snippets())
def test_readme_snippet_runs(code, tmp_path):
    """Each block stands alone and runs in an empty folder, offline."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def clean_environment() -> dict:
    return os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True).stdout
