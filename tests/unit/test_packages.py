"""Which package may import which: arrows go down, and there is no other way around."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import eplb_cli

PACKAGE = Path(eplb_cli.__file__).parent
GROUND = {"errors", "files", "machine", "progress", "arrays", "digests"}
"""Modules that every package may import; of each other only `errors`."""

MAY_IMPORT = {
    "formats": set(),
    "models": {"formats"},
    "placements": {"formats", "models"},
    "plan": {"placements"},
    "checkpoint": {"formats", "models", "placements"},
    "exchange": set(),
    "report": {"placements", "plan"},
    "live": {"exchange", "placements", "plan"},
    "output": {"checkpoint", "formats", "placements", "plan"},
    "inputs": {"checkpoint", "models", "placements", "plan", "report"},
    "transfer": {"checkpoint", "exchange", "formats", "output", "plan"},
    "run": {"checkpoint", "exchange", "inputs", "output", "placements", "plan", "report", "transfer"},
    "huggingface": {
        "checkpoint", "formats", "inputs", "models", "output", "placements", "plan", "report", "transfer",
    },
    "audit": {"checkpoint", "formats", "huggingface", "models", "output", "placements", "plan", "transfer"},
    "render": {"placements", "plan", "report"},
    "cli": {"audit", "huggingface", "inputs", "models", "placements", "render", "report", "run"},
}  # fmt: skip
"""In the order of the flow: whoever stands below may import from above, never the reverse."""


def imported(path: Path) -> set[str]:
    """The packages and ground modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eplb_cli."):
            found.add(str(node.module).split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "eplb_cli":
            found |= {alias.name for alias in node.names} - {"__version__"}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_go_down(package):
    """A package imports what stands below it, and uses all that it may."""
    files = list((PACKAGE / package).rglob("*.py"))
    found = set().union(*map(imported, files)) - {package} - GROUND
    assert found == MAY_IMPORT[package]


def test_the_ground():
    """Six modules that stand on nothing but errors."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == GROUND
    for name in GROUND - {"errors"}:
        assert imported(PACKAGE / f"{name}.py") <= {"errors"}
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(MAY_IMPORT)


def test_there_is_no_circle():
    """The table itself can be stood up."""
    below = dict(MAY_IMPORT)
    while below:
        free = [name for name, uses in below.items() if not uses & below.keys()]
        assert free
        for name in free:
            del below[name]
