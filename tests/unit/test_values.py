"""Frozen dataclasses that nobody compiles: what the standard ones do, they do."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import KW_ONLY, FrozenInstanceError, asdict, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import eplb_cli
from eplb_cli import values


def classes(dataclass: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """The same three classes by one of two decorators."""

    @dataclass(frozen=True)
    class Base:
        """A base."""

        a: int
        _: KW_ONLY
        b: list[int] = field(default_factory=list)

    @dataclass(frozen=True)
    class Derived(Base):
        """What follows it."""

        c: str
        d: str | None = None
        e: int = field(default=3, compare=False, repr=False)

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("negative")

        @cached_property
        def twice(self) -> int:
            return self.a * 2

    @dataclass(frozen=True, eq=False)
    class Itself:
        """Equal to nothing else."""

        a: int

    return Base, Derived, Itself


STANDARD, OURS = classes(dataclasses.dataclass), classes(values.dataclass)


@values.dataclass(frozen=True)
class Kept:
    """Found by its name, as pickle has to."""

    a: int = 0


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1, "x"), {}),
    ((1, "x", "y"), {"b": [1]}),
    ((), {"c": "x", "a": 1}),
    ((1,), {"c": "x", "d": None, "e": 9}),
]
MISTAKES: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1, "x"), {"a": 1}),
    ((1, "x"), {"z": 1}),
    ((1, "x", "y", 4, 5), {}),
]


def parameters(cls: type) -> list[tuple[str, Any, bool]]:
    """The name and kind of each parameter, and whether it may be left out."""
    found = inspect.signature(cls).parameters.values()
    return [(one.name, one.kind, one.default is one.empty) for one in found]


@pytest.mark.parametrize(("places", "names"), CALLS)
def test_they_are_what_the_standard_ones_are(places, names):
    """The same fields, defaults, text, equality and copies."""
    theirs, ours = (cls(*places, **names) for cls in (STANDARD[1], OURS[1]))
    assert asdict(theirs) == asdict(ours)
    assert repr(theirs) == repr(ours)
    assert [found.name for found in fields(theirs)] == [found.name for found in fields(ours)]
    assert ours == copy.deepcopy(ours) == replace(ours, e=7)
    assert ours != replace(ours, d="other")
    assert ours != theirs
    assert ours.twice == 2
    assert parameters(type(ours)) == parameters(type(theirs))
    assert type(ours).__match_args__ == type(theirs).__match_args__
    assert "b" in names or ours.b is not OURS[1](*places, **names).b


@pytest.mark.parametrize(("places", "names"), MISTAKES)
def test_a_wrong_call(places, names):
    """A TypeError, as for every function."""
    for cls in (STANDARD[1], OURS[1]):
        with pytest.raises(TypeError):
            cls(*places, **names)


def test_nothing_changes():
    """Neither a field nor another attribute; what `__post_init__` refuses is not made."""
    one = OURS[1](1, "x")
    for name in ("a", "new"):
        with pytest.raises(FrozenInstanceError):
            setattr(one, name, 1)
        with pytest.raises(FrozenInstanceError):
            delattr(one, name)
    with pytest.raises(ValueError, match="negative"):
        OURS[1](-1, "x")


def test_equality():
    """By the fields, or of the object itself; equal ones have one hash."""
    assert OURS[2](1) != OURS[2](1)
    assert hash(Kept(1)) == hash(Kept(1)) != hash(Kept(2))
    assert len({Kept(1), Kept(1), Kept(2)}) == 2
    assert pickle.loads(pickle.dumps(Kept(4))) == Kept(4)  # noqa: S301 - our own


def test_all_frozen_classes_are_of_this_kind():
    """No module takes the standard decorator for one: each class would cost every command 1 to 2 ms."""
    for path in Path(eplb_cli.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        standard = any(
            alias.name == "dataclass" and node.module == "dataclasses"
            for node in imports
            for alias in node.names
        )
        assert not (standard and "@dataclass(frozen=True" in path.read_text()), path
