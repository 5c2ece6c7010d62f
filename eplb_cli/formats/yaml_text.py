"""YAML from strangers: mappings, sequences and scalars; no aliases, no tags, no repeated keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from eplb_cli.formats.budget import (
    LIST_NBYTES,
    MAX_DEPTH,
    MAX_FILE_NBYTES,
    OBJECT_NBYTES,
    WORD_NBYTES,
    Allowance,
    NotReadableError,
)
from eplb_cli.formats.json_text import Place
from eplb_cli.values import dataclass

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
_MAX_DIGITS = 30
MAX_PLACED = 1 << 16
"""Lists whose place is told: far more than any map has rows, and no more memory than a text may take."""


@dataclass(frozen=True)
class YamlText:
    """A well-formed text: its value, and the first `MAX_PLACED` lists in that with where they begin."""

    value: Any
    lists: list[tuple[list[Any], Place]]
    repeated_keys: tuple[str, ...] = ()

    def list_places(self) -> list[tuple[list[Any], Place]]:
        """As those of `JsonText`."""
        return self.lists

    def key_places(self) -> dict[str, Place]:
        """None are told."""
        return {}


def parse_yaml(data: bytes, limit: int = MAX_FILE_NBYTES) -> YamlText:
    """The only document; whole numbers are integers, every other scalar is a string.

    Args:
        limit: bytes that a file of this kind may have.

    Raises:
        NotReadableError: it is no YAML, or more of it than is looked at.
    """
    try:
        lists: list[tuple[list[Any], Place]] = []
        return YamlText(_document(_counted(data, Allowance.of(len(data), limit)), lists), lists)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise NotReadableError(f"not well-formed YAML: {problem}", mark and mark.line + 1) from error
    except UnicodeDecodeError as error:
        raise NotReadableError(f"not well-formed YAML: {str(error)[:200]}") from error


def _counted(data: bytes, allowance: Allowance) -> Iterator[Any]:
    """The events of a text, as far as they are in the budget. Aliases could repeat themselves without end."""
    depth = 0
    for event in yaml.parse(data, Loader=_LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise NotReadableError("aliases (*name) are not read", line)
        if isinstance(event, yaml.ScalarEvent):
            allowance.take_memory(WORD_NBYTES, line)
        if isinstance(event, yaml.CollectionStartEvent):
            is_list = isinstance(event, yaml.SequenceStartEvent)
            allowance.take_memory(LIST_NBYTES if is_list else OBJECT_NBYTES, line)
            depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise NotReadableError("it nests too deeply", line)
        allowance.take_values(1, line)
        yield event


def _document(events: Iterator[Any], lists: list[tuple[list[Any], Place]]) -> Any:  # noqa: ANN401 - YAML is anything
    """The value of the first document, None without one; there is no second. Adds all its lists."""
    value, found = None, False
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if found:
                line = event.start_mark.line + 1
                raise NotReadableError("not well-formed YAML: another document begins", line)
            value, found = _value(next(events), events, lists), True
    return value


def _value(event: Any, events: Iterator[Any], lists: list[tuple[list[Any], Place]]) -> Any:  # noqa: ANN401 - as above
    """The value that begins with `event`; takes from `events` what belongs to it."""
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        if len(lists) < MAX_PLACED:
            lists.append((items, Place(event.start_mark.line + 1, event.start_mark.column + 1)))
        items += (_value(item, events, lists) for item in _until(yaml.SequenceEndEvent, events))
        return items
    content = {}
    for key_event in _until(yaml.MappingEndEvent, events):
        key = _scalar(key_event) if isinstance(key_event, yaml.ScalarEvent) else None
        if key is None or key in content:
            problem = "a key is no word or number" if key is None else f"{key!r} is there more than once"
            raise NotReadableError(problem, key_event.start_mark.line + 1)
        content[key] = _value(next(events), events, lists)
    return content


def _until(end: type, events: Iterator[Any]) -> Iterator[Any]:
    """Events up to one of the type `end`, which is taken too."""
    for event in events:
        if isinstance(event, end):
            return
        yield event


def _scalar(event: Any) -> Any:  # noqa: ANN401 - as above
    text = event.value
    if event.style:  # quoted, or a block
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    digits = text.removeprefix("-")
    return int(text) if digits.isdecimal() and digits.isascii() and len(digits) <= _MAX_DIGITS else text
