"""No test's result depends on the date, or on how fast the machine is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parents[1]
DATES = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "thread_time"}
_MODULES = {"time", "datetime", "date"}


def complaints(source: str) -> Iterator[str]:
    """What a test file does with clocks that it must not: `line: why`.

    Durations may be compared with durations of the same run. A time of day, and a duration compared with
    anything else, may not be used.
    """
    tree = ast.parse(source)
    measured = set(_measured(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in DATES:
            yield f"{node.lineno}: the time of day"
        if isinstance(node, ast.ImportFrom) and {name.name for name in node.names} & (DATES | CLOCKS):
            yield f"{node.lineno}: import the module, so that what is called can be seen"
        if isinstance(node, ast.keyword) and node.arg == "deadline" and ast.unparse(node.value) != "None":
            yield f"{node.value.lineno}: a deadline"
        if isinstance(node, ast.Assert):
            yield from (
                f"{compare.lineno}: a duration against a constant"
                for compare in ast.walk(node.test)
                if isinstance(compare, ast.Compare)
                and 0 < sum(_has_clock(side, measured) for side in (compare.left, *compare.comparators)) < 2
                and not any(isinstance(part, ast.Div) for part in ast.walk(compare))
            )


def _measured(tree: ast.AST) -> Iterator[str]:
    """Names of variables that hold what a clock said."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value:
            if not _has_clock(node.value, set()):
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def _called(call: ast.Call) -> str:
    """The name of a function of a clock module; nothing for any other."""
    function = call.func
    if isinstance(function, ast.Attribute) and ast.unparse(function.value).split(".")[-1] in _MODULES:
        return function.attr
    return ""


def _has_clock(node: ast.AST, measured: set[str]) -> bool:
    return any(
        (isinstance(part, ast.Call) and _called(part) in CLOCKS)
        or (isinstance(part, ast.Name) and part.id in measured)
        for part in ast.walk(node)
    )


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_depends_on_absolute_time(path):
    """Neither on the date nor on a number of seconds; loops that wait may give up after some."""
    assert list(complaints(path.read_text())) == []


def test_hypothesis_measures_no_time():
    """No deadline for an example, and no complaint that drawing one was slow."""
    assert settings.default is not None
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import time\nassert time.time() > 1\n", ["2: the time of day"]),
        ("import datetime\nx = datetime.datetime.now()\n", ["2: the time of day"]),
        ("from time import perf_counter\n", ["1: import the module, so that what is called can be seen"]),
        ("from datetime import timedelta\n", []),
        ("took = time.perf_counter() - begin\nassert took < 2\n", ["2: a duration against a constant"]),
        ("assert time.monotonic() - begin < 2\n", ["1: a duration against a constant"]),
        ("@settings(deadline=200)\ndef f(): ...\n", ["1: a deadline"]),
        ("@settings(deadline=None)\ndef f(): ...\n", []),
        ("a = time.perf_counter()\nb = time.perf_counter()\nassert b < 1.6 * a\n", []),
        ("a = time.perf_counter()\nb = time.perf_counter()\nassert b / a < 1.6\n", []),
        ("end = time.monotonic() + 60\nassert time.monotonic() < end\n", []),
        ("assert report.time() == 3\n", []),
    ],
)
def test_the_check_finds_what_it_is_for(source, expected):
    """Each rule in one line, and what is allowed."""
    assert list(complaints(source)) == expected
