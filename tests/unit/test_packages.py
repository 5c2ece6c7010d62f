"""Which package may import which: arrows go down, and there is no other way around."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import eplb_cli

PACKAGE = Path(eplb_cli.__file__).parent
GROUND = {"errors", "files", "machine", "progress", "arrays", "digests", "interrupts", "values"}
"""Modules that every package may import; of each other only `errors` and `values`."""

MAY_IMPORT = {
    "formats": set(),
    "models": {"formats"},
    "placements": {"formats", "models"},
    "plan": {"placements"},
    "balance": {"models", "placements", "plan"},
    "checkpoint": {"formats", "models", "placements", "plan"},
    "exchange": set(),
    "hosts": set(),
    "report": {"balance", "formats", "models", "placements", "plan"},
    "live": {"exchange", "models", "placements", "plan"},
    "output": {"checkpoint", "formats", "hosts", "models", "placements", "plan"},
    "inputs": {"balance", "checkpoint", "formats", "hosts", "models", "placements", "plan", "report"},
    "transfer": {"checkpoint", "exchange", "formats", "hosts", "output", "plan"},
    "huggingface": {
        "checkpoint", "formats", "inputs", "models", "output", "placements", "plan", "report", "transfer",
    },
    "engines": {"checkpoint", "models", "output", "placements"},
    "audit": {"checkpoint", "formats", "huggingface", "output", "placements", "plan", "report", "transfer"},
    "run": {
        "audit", "balance", "checkpoint", "exchange", "formats", "hosts", "inputs", "output", "placements",
        "plan", "report", "transfer",
    },
    "render": {"balance", "models", "placements", "plan", "report"},
    "cli": {
        "audit", "checkpoint", "formats", "huggingface", "inputs", "models", "placements", "plan", "render",
        "report", "run",
    },
}  # fmt: skip
"""In the order of the flow: whoever stands below may import from above, never the reverse."""


def _module(path: Path) -> str:
    """The name of a file as a module, without `eplb_cli.`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it, without `eplb_cli.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {_whole(node.module, alias.name) for alias in node.names}
    return {name.removeprefix("eplb_cli.") for name in found if name.startswith("eplb_cli.")}


def _whole(module: str, name: str) -> str:
    """What `from module import name` imports: a module in it, or the module itself."""
    return f"{module}.{name}" if f"{module}.{name}".removeprefix("eplb_cli.") in MODULES else module


def packages(path: Path) -> set[str]:
    """The packages and ground modules that a file imports."""
    return {name.partition(".")[0] for name in imported(path)}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_go_down(package):
    """A package imports what stands below it, and uses all that it may."""
    files = list((PACKAGE / package).rglob("*.py"))
    found = set().union(*map(packages, files)) - {package} - GROUND
    assert found == MAY_IMPORT[package]


def test_the_ground():
    """Eight modules that stand on nothing but errors and values."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == GROUND
    for name in GROUND:
        assert packages(PACKAGE / f"{name}.py") <= {"errors", "values"} - {name}
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "uses",
    [MAY_IMPORT, {name: imported(path) - {name} for name, path in MODULES.items()}],
    ids=["packages", "modules"],
)
def test_there_is_no_circle(uses):
    """Packages can be stood up one upon the other, and so can the modules."""
    standing: set[str] = set()
    while left := uses.keys() - standing:
        free = {name for name in left if not (uses[name] & uses.keys()) - standing}
        assert free, f"a circle in {sorted(left)}"
        standing |= free
