"""JSON from strangers: parsed in bounded time and memory, with a line for what is wrong in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

MAX_MARKS = 1 << 22
"""Commas, quotes and opening brackets that a text may have: what is built from them stays below 1 GiB."""

MAX_SHOWN_CHARACTERS = 40
"""What a message quotes of a value."""

_CLAMPED_DIGITS = 30
_GAP = re.compile(r"[\s,:]*")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


class NotJsonError(Exception):
    """A text is no JSON, or more of it than is looked at; `line` counts from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True)
class JsonText:
    """A well-formed text and its value.

    Attributes:
        text: the characters, a byte order mark removed.
        value: what they say. An integer of more than 4,300 digits keeps only its first 30.
        repeated_keys: keys that some object has more than once; the last one counts in `value`.
    """

    text: str
    value: Any
    repeated_keys: list[str] = field(default_factory=list)

    def key_lines(self) -> dict[str, int]:
        """The line on which the value of each key of the outermost object begins."""
        keys, offsets = self._keys()
        return dict(zip(keys, _lines(self.text, offsets), strict=True))

    def item_lines(self, key: str) -> list[int]:
        """The line on which each item of the outermost object's list `key` begins; empty without one."""
        start = dict(zip(*self._keys(), strict=True)).get(key)
        if start is None or self.text[start] != "[":
            return []
        return list(_lines(self.text, [offset for offset, _ in _members(self.text, start)]))

    def _keys(self) -> tuple[list[str], list[int]]:
        """Keys of the outermost object as they come, and the offset of the value of each."""
        if not isinstance(self.value, dict):
            return [], []
        members = _members(self.text, _end_of_gap(self.text, 0))
        return [key for _, key in members[::2]], [offset for offset, _ in members[1::2]]


def parse_json(data: bytes, max_marks: int = MAX_MARKS) -> JsonText:
    """Parse UTF-8 text of any origin; NaN and infinities pass as floats, for the reader to refuse.

    Args:
        max_marks: commas, quotes and opening brackets that are read.

    Raises:
        NotJsonError: for anything else that is not JSON, nests too deeply, or has too many values.
    """
    if sum(map(data.count, (b",", b'"', b"[", b"{"))) > max_marks:
        raise NotJsonError(f"more than {max_marks:,} values are not read")
    text = _decode(data)
    repeated: list[str] = []

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key in counts if counts[key] > 1)
        return content

    try:
        return JsonText(text, _loads(text, to_dict), list(dict.fromkeys(repeated)))
    except json.JSONDecodeError as error:
        problem = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
        raise NotJsonError(f"not well-formed JSON: {problem}", error.lineno) from error
    except RecursionError as error:
        raise NotJsonError("not well-formed JSON: lists or objects nest too deeply") from error


def shown(value: object) -> str:
    """A JSON value as a message quotes it: on one line, ASCII only, never long."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value[: MAX_SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotJsonError(f"not UTF-8 text: byte {error.start} cannot be decoded", line) from error


def _loads(text: str, to_dict: Callable[[list[tuple[str, Any]]], Any]) -> Any:  # noqa: ANN401 - JSON is anything
    """Parse; a second time, with long integers cut, where one is longer than Python converts."""
    try:
        return json.loads(text, object_pairs_hook=to_dict)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, object_pairs_hook=to_dict, parse_int=_clamped)


def _clamped(digits: str) -> int:
    return int(digits[:_CLAMPED_DIGITS])


def _members(text: str, start: int) -> list[tuple[int, Any]]:
    """Offset and value of what is directly in the list or object at `start`; keys are members too.

    Nothing where the text, parsed once already, nests too deeply for this slightly deeper stack.
    """
    members = []
    offset = _end_of_gap(text, start + 1)
    try:
        while text[offset] not in "]}":
            value, end = _DECODER.raw_decode(text, offset)
            members.append((offset, value))
            offset = _end_of_gap(text, end)
    except RecursionError:
        return []
    return members


def _end_of_gap(text: str, offset: int) -> int:
    match = _GAP.match(text, offset)
    return match.end() if match else offset


def _lines(text: str, offsets: list[int]) -> Iterator[int]:
    """The line of each of the ascending offsets."""
    breaks = (text.count("\n", begin, end) for begin, end in pairwise([0, *offsets]))
    return (1 + count for count in accumulate(breaks))
