"""No code is taken from the current directory, from SRC or from staging."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eplb_cli.run.launch import _environment
from tests.support.runs import command
from tests.support.small import small_case

EPLB = str(Path(sys.executable).with_name("eplb"))
GLOO = ("--backend", "gloo", "--nproc-per-node", 2)
ROOT = Path(__file__).parents[2]

NOTE = """
import os, sys

class Note:
    def find_spec(self, name, path=None, target=None):
        if path is None:
            file.write(name + "\\n")

file = open(os.path.join(os.environ["NAMES"], str(os.getpid())), "w", buffering=1)
sys.meta_path.insert(0, Note())
"""
"""A `sitecustomize` that keeps the names that a process looks for along its path, found or not."""

PLANT = """
import os
open(os.path.join(os.environ["MARKS"], __name__ + "." + str(os.getpid())), "w").close()
raise ImportError(__name__ + " was taken from " + __file__)
"""


def environment(**more: object) -> dict[str, str]:
    """Ours, in which nothing is measured: what measures coverage is imported before any code of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    return kept | {key: str(value) for key, value in more.items()}


def commands(case) -> list[list[str]]:
    """A run with workers, and the commands that start nothing."""
    lines = [
        case.command(*GLOO),
        ["plan", case.home / "old.json", case.new],
        ["plan", case.home / "old.json", case.new, "--checkpoint", case.source],
        ["validate", case.new],
        ["inspect", case.source],
    ]
    return [list(map(str, line)) for line in lines]


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> set[str]:
    """The first names of all modules that a launcher, torchrun, workers and the other commands import."""
    home = tmp_path_factory.mktemp("imported")
    (home / "names").mkdir()
    (home / "note").mkdir()
    (home / "note" / "sitecustomize.py").write_text(NOTE)
    path = os.pathsep.join([str(home / "note"), str(ROOT)])
    (home / "case").mkdir()
    case = small_case(home / "case")
    for line in commands(case):
        result = subprocess.run(
            command(*line),
            capture_output=True,
            text=True,
            check=False,
            env=environment(NAMES=home / "names", PYTHONPATH=path),
        )
        assert result.returncode == 0, result
    files = list((home / "names").iterdir())
    assert len(files) == len(commands(case)) + 3  # torchrun, and two workers
    found = set().union(*(file.read_text().split() for file in files))
    assert {"torch", "numpy", "typer", "json", "ctypes"} <= found
    return found - {"eplb_cli", "__main__", "sitecustomize"} - set(sys.builtin_module_names)


def plant(directory: Path, names: set[str]) -> None:
    """A module of each name, which leaves a mark when it is imported."""
    for name in names:
        (directory / f"{name}.py").write_text(PLANT)


def test_the_names_are_plenty(imported):
    """The list is what a run imports, and not what this test thinks of."""
    assert len(imported) > 100


@pytest.mark.distributed
@pytest.mark.parametrize("program", [[sys.executable, "-m", "eplb_cli"], [EPLB]], ids=["-m", "script"])
@pytest.mark.parametrize("where", ["here", "src"])
def test_nothing_is_imported_from_where_somebody_stands(tmp_path, imported, program, where, count):
    """A module of every name that a run imports lies in the current directory, in SRC and in staging."""
    case = small_case(tmp_path)
    for directory in (case.home / "here", case.home / "marks", case.staging):
        directory.mkdir()
    for directory in (case.home / "here", case.source, case.staging):
        plant(directory, imported)
    for line in commands(case):
        result = subprocess.run(
            [*program, *line],
            capture_output=True,
            text=True,
            check=False,
            cwd=case.home / where,
            env=environment(MARKS=case.home / "marks", PYTHONPATH=ROOT),
        )
        assert result.returncode == 0, result
    assert sorted(path.name for path in (case.home / "marks").iterdir()) == []
    count("modules planted", len(imported) * 3)


@pytest.mark.parametrize("program", [["-m", "eplb_cli"], ["-P", "-m", "eplb_cli"]], ids=["-m", "-P -m"])
def test_a_checkout_can_be_run_where_it_lies(tmp_path, program):
    """In the directory that the package is in, where nothing else says where it is."""
    shutil.copytree(ROOT / "eplb_cli", tmp_path / "eplb_cli")
    path = {} if program[0] == "-m" else {"PYTHONPATH": tmp_path}
    result = subprocess.run(
        [sys.executable, *program, "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={key: value for key, value in environment(**path).items() if path or key != "PYTHONPATH"},
    )
    assert result.returncode == 0, result


def test_workers_look_nowhere_that_depends_on_the_directory(monkeypatch):
    """PYTHONPATH without what is empty or relative, and nothing put first by `-m`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "here", "/there", "."]))
    one_host: Any = SimpleNamespace(endpoint=None)
    given = _environment(one_host)
    assert given["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/there"])
    assert given["PYTHONSAFEPATH"] == "1"
