"""Codes, hints and exit codes: all of them said in one place, and used as said."""

from __future__ import annotations

import ast
import importlib
import pickle
import re
import sys
import tomllib
from pathlib import Path

import pytest

import eplb_cli
from eplb_cli import errors
from eplb_cli.errors import CODES, HINTS, EplbError, error_of

PACKAGE = Path(eplb_cli.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
FAMILIES = {name: getattr(errors, name) for name in dir(errors) if name.endswith("Error")}
CODE = re.compile(r"EP[0-9]{3}")

EXITS = {"0": 2, "1": 3, "2": 3, "3": 3, "4": 4, "5": 5, "6": 6}


def constants(tree: ast.AST) -> set[str]:
    """Every string of a tree that is a code and nothing else."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    }


def test_every_code_is_used_and_every_used_code_is_listed():
    """`CODES` is the list of all of them, in order."""
    used = set().union(*(constants(tree) for path, tree in TREES.items() if path.name != "errors.py"))
    assert used == set(CODES)
    assert list(CODES) == sorted(CODES)
    assert all(text and text[-1] != "." for text in CODES.values())


def test_every_code_has_a_hint():
    """What to do about it, for whoever raises it without one."""
    assert list(HINTS) == list(CODES)
    assert all(HINTS.values())
    for code in CODES:
        assert error_of(code, "x").hint == HINTS[code]
        assert error_of(code, "x", "own").hint == "own"


def test_codes_in_docstrings_exist():
    """No docstring promises a code that there is not."""
    for path in SOURCES:
        assert set(CODE.findall(path.read_text())) <= set(CODES), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_error_is_of_the_family_of_its_code(path):
    """`CheckpointError` carries EP2xx and nothing else, and so on, wherever one is made."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FAMILIES:
            family = FAMILIES[node.func.id]
            code = node.args[0] if node.args else None
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                assert type(error_of(code.value, "")) is family, f"{path}:{node.lineno}"


def test_exit_codes():
    """By family, as the design has them."""
    for code in CODES:
        assert error_of(code, "x").exit_code == EXITS[code[2]]


def test_errors_travel_between_processes():
    """Code, message and hint survive, and the type is the family's."""
    for code in CODES:
        error = pickle.loads(pickle.dumps(error_of(code, "message", "hint")))  # noqa: S301 - our own
        assert (type(error), error.code, str(error), error.hint) == (
            type(error_of(code, "")),
            code,
            "message",
            "hint",
        )
        assert isinstance(error, EplbError)


def test_no_bare_exceptions_and_no_asserts():
    """Outside of the tests, nothing a user can meet is without a code."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                assert name not in {"Exception", "RuntimeError", "SystemExit"}, f"{path}:{node.lineno}"


def tensor_modules() -> set[str]:
    """The modules to which pyproject.toml opens the door to torch."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    ignores = project["tool"]["ruff"]["lint"]["per-file-ignores"]
    (names,) = [key for key, rules in ignores.items() if "TID251" in rules and "transport" in key]
    patterns = names.removeprefix("eplb_cli/{").removesuffix("}.py").split(",")
    return {str(path.relative_to(PACKAGE)) for pattern in patterns for path in PACKAGE.glob(f"{pattern}.py")}


TENSOR_MODULES = tensor_modules()


def imported(tree: ast.AST) -> set[str]:
    """The top-level packages a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("typer", {str(path.relative_to(PACKAGE)) for path in (PACKAGE / "cli").glob("*.py")}),
        ("click", set()),
        ("rich", {f"render/{path.name}" for path in (PACKAGE / "render").glob("*.py")}),
        ("torch", TENSOR_MODULES),
        ("triton", {"live/copy_kernel.py"}),
        ("vllm", {"engines/vllm/vllm_internals.py"}),
        ("plotly", {f"render/html_{name}.py" for name in ("page", "figures", "balance", "rebalance")}),
    ],
)
def test_who_may_import_what(package, allowed):
    """The import rule of the design."""
    users = {str(path.relative_to(PACKAGE)) for path, tree in TREES.items() if package in imported(tree)}
    assert users <= allowed


def test_only_known_packages():
    """The standard library and what pyproject.toml depends on; the extra `html` for its page."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = [*project["dependencies"], *project["optional-dependencies"]["html"]]
    known = {re.split(r"[^a-z]", name)[0] for name in names} - {"pyyaml"}
    known |= {"yaml", "eplb_cli", "triton", "vllm"}
    for path, tree in TREES.items():
        assert imported(tree) <= known | set(sys.stdlib_module_names), path


def test_what_is_exported_exists():
    """`__all__` is sorted, without repeats, and every name is there."""
    pytest.importorskip("torch")  # some of the modules import one that imports it
    for path, tree in TREES.items():
        names = [
            [element.value for element in node.value.elts if isinstance(element, ast.Constant)]
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.List)
            and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        ]
        for exported in names:
            plain = [str(name) for name in exported]
            constants_first = sorted(
                plain, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
            )
            assert plain == constants_first, path
            module = path.relative_to(PACKAGE.parent).with_suffix("")
            parts = [part for part in module.parts if part != "__init__"]
            if "torch" not in imported(tree):
                loaded = importlib.import_module(".".join(parts))
                assert all(hasattr(loaded, name) for name in plain)


def test_every_module_says_what_it_is():
    """A docstring; and wherever something is annotated, `from __future__ import annotations` below it.

    Two modules run before `python -m eplb_cli` has left the current directory, and import no file at all.
    """
    for path, tree in TREES.items():
        assert ast.get_docstring(tree), path
        if path.parent.name == "eplb_cli" and path.stem in {"__init__", "__main__"}:
            continue
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AnnAssign) for node in ast.walk(tree)):
            assert ast.unparse(tree.body[1]) == "from __future__ import annotations", path
