"""The set-up of the Python environment, without installing anything."""

import subprocess
import sys

import pytest

from lrp.build import environment
from lrp.build.environment import STAMP, UNFINISHED, SetupError


@pytest.fixture
def commands(tmp_path, monkeypatch) -> list[list[str]]:
    """The commands that set-up would run, on a checkout in an empty folder that needs nothing but pytest."""
    (tmp_path / "environment.lock").write_text("pytest==8.0\n")
    bounds = '[project]\ndependencies = ["pytest>=8"]\n[project.optional-dependencies]\ndev = []\n'
    (tmp_path / "pyproject.toml").write_text(bounds)
    done: list[list[str]] = []
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "run", lambda *command: done.append([str(part) for part in command]))
    monkeypatch.setattr(environment.os, "execv", lambda *_: done.append(["execv"]))
    return done


def active(monkeypatch, folder):
    """Pretend that the running Python lives in this environment."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(environment.sys, "prefix", str(folder))
    return folder


def test_an_active_environment_that_satisfies_the_bounds_is_used_as_it_is(tmp_path, monkeypatch, commands):
    prefix = active(monkeypatch, tmp_path / "mine")
    environment.ready(prefix)
    assert [command[-2:] for command in commands] == [["-e", "."]]
    environment.ready(prefix)
    assert len(commands) == 1, "set-up happens once"
    (tmp_path / "environment.lock").write_text("pytest==9.0\n")
    environment.ready(prefix)
    assert len(commands) == 2 and len(list(prefix.glob(STAMP + "*"))) == 1


def test_an_active_environment_that_lacks_something_gets_the_lock(tmp_path, monkeypatch, commands, capsys):
    bounds = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(bounds.replace("pytest>=8", "no-such-distribution>=1"))
    environment.ready(active(monkeypatch, tmp_path / "mine"))
    assert commands[0][-2:] == ["-r", "environment.lock"]
    assert "lacks: no-such-distribution>=1" in capsys.readouterr().out


def test_an_unfinished_venv_is_made_again(tmp_path, monkeypatch, commands):
    prefix = active(monkeypatch, tmp_path / ".venv")
    (prefix / UNFINISHED).touch()
    monkeypatch.setattr(environment.shutil, "rmtree", lambda *_, **__: commands.append(["rmtree"]))
    monkeypatch.setattr(environment, "install", lambda *_: None)
    environment.ready(prefix)
    made = [sys._base_executable, "-m", "venv", str(prefix)]
    assert commands == [["rmtree"], made, ["execv"]], "by the base Python: the venv's own is gone by then"


def test_a_missing_venv_module_is_explained(tmp_path, monkeypatch, commands):
    def fail(*_):
        raise SetupError("no venv")

    monkeypatch.setattr(environment, "run", fail)
    with pytest.raises(SetupError, match="python3-venv"):
        environment.create(tmp_path / ".venv")


def test_another_environment_than_the_running_one_is_refused(tmp_path, commands):
    with pytest.raises(SetupError, match=r"no Python 3\.11"):
        environment.ready(tmp_path / "old")


def test_unsatisfied_requirements_are_found():
    assert environment.unsatisfied(["pytest>=1", "torch>=2.6"]) == []
    wrong = ["pytest>=999", "no-such-distribution>=1", "pytest==1.0"]
    assert environment.unsatisfied(wrong) == wrong


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "lrp.build.environment", str(environment.ROOT / "nowhere")]
    result = subprocess.run(command, cwd=environment.ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "[env] error" in result.stderr
