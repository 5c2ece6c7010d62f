"""JSON from strangers: parsed in bounded time and memory, with a line for what is wrong in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import field
from itertools import accumulate
from typing import Any

from eplb_cli.formats.budget import (
    KEY_NBYTES,
    LIST_NBYTES,
    MAX_DEPTH,
    MAX_FILE_NBYTES,
    OBJECT_NBYTES,
    WORD_NBYTES,
    Allowance,
    NotReadableError,
)
from eplb_cli.values import dataclass

MAX_SHOWN_CHARACTERS = 40
_MAX_SHOWN_KEYS = 5
"""What a message quotes of a value."""

_MAX_DIGITS = 4300
"""What Python converts without being asked."""

_CLAMPED_DIGITS = 30
_SHARED_INTEGERS = 1 << 16
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_LIST_OR_STRING = re.compile(r'\[|"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_GAP = re.compile(r"[\s,:]*")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


@dataclass(frozen=True)
class Place:
    """A place in a text: line and column (in characters), both from 1."""

    line: int
    column: int


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

    def key_places(self) -> dict[str, Place]:
        """Where the value of each key of the outermost object begins."""
        keys, offsets = self._keys()
        return dict(zip(keys, _places(self.text, offsets), strict=True))

    def list_places(self) -> list[tuple[list[Any], Place]]:
        """Every list in the value with the place of its bracket, in the order of the text.

        A list is told by what it is (`is`), not by what is in it: many are equal. Nothing where a key is
        there more than once, since the value has only one of its lists.
        """
        lists = list(_lists(self.value))
        offsets = [token.start() for token in _LIST_OR_STRING.finditer(self.text) if token[0] == "["]
        if len(lists) != len(offsets):
            return []
        return list(zip(lists, _places(self.text, offsets), strict=True))

    def _keys(self) -> tuple[list[str], list[int]]:
        """Keys of the outermost object as they come, and the offset of the value of each."""
        if not isinstance(self.value, dict):
            return [], []
        members = _members(self.text, _end_of_gap(self.text, 0))
        return [key for _, key in members[::2]], [offset for offset, _ in members[1::2]]


def parse_json(data: bytes, limit: int = MAX_FILE_NBYTES, *, strict: bool = False) -> JsonText:
    """Parse UTF-8 text of any origin; NaN and infinities pass as floats, for the reader to refuse.

    Args:
        limit: bytes that a file of this kind may have.
        strict: refuse what programs read in more than one way: a byte order mark, NaN and infinities, -0, and
            integers of more than 4,300 digits.

    Raises:
        NotReadableError: for anything else that is not JSON, nests too deeply, or has too many values.
    """
    require_budget(data, limit)
    _require_depth(data)
    text = _decode(data, "utf-8" if strict else "utf-8-sig")
    repeated: list[str] = []

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key in counts if counts[key] > 1)
        return content

    integers = _Integers(strict=strict).__getitem__
    constant = _refuse_constant if strict else None
    try:
        value = json.loads(text, object_pairs_hook=to_dict, parse_int=integers, parse_constant=constant)
    except json.JSONDecodeError as error:
        problem = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
        raise NotReadableError(f"not well-formed JSON: {problem}", error.lineno) from error
    return JsonText(text, value, list(dict.fromkeys(repeated)))


class _Integers(dict[str, int]):
    """Integers by their digits. Ids come again and again: each of them is one object, wherever it stands."""

    def __init__(self, *, strict: bool) -> None:
        super().__init__()
        self._strict = strict

    def __missing__(self, digits: str) -> int:
        if self._strict and (digits == "-0" or len(digits) > _MAX_DIGITS):
            raise NotReadableError("-0 is no size" if digits == "-0" else "an integer is too long")
        value = int(digits if len(digits) <= _MAX_DIGITS else digits[:_CLAMPED_DIGITS])
        if len(self) < _SHARED_INTEGERS and len(digits) < _CLAMPED_DIGITS:
            self[digits] = value
        return value


def _refuse_constant(name: str) -> float:
    raise NotReadableError(f"{name} is not JSON")


def with_strings(text: bytes, change: Callable[[str], str]) -> bytes:
    """A well-formed text with every string of it changed, keys too, and otherwise as it was."""

    def changed(token: re.Match[bytes]) -> bytes:
        word = json.loads(token[0], strict=False)
        new = change(word)
        return token[0] if new == word else json.dumps(new).encode()

    return _STRING.sub(changed, text)


def shown(value: object) -> str:
    """A JSON value as a message quotes it: on one line, ASCII only, never long."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value[: MAX_SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def shown_keys(keys: list[str]) -> str:
    """Keys as a message lists them, of any number of them."""
    names = ", ".join(map(shown, keys[:_MAX_SHOWN_KEYS]))
    return names if len(keys) <= _MAX_SHOWN_KEYS else f"{names} and {len(keys) - _MAX_SHOWN_KEYS:,} more"


def require_budget(data: bytes, limit: int = MAX_FILE_NBYTES) -> None:
    """NotReadableError where a text may become more than is built; what is within words counts too."""
    allowance = Allowance.of(len(data), limit)
    lists, objects, quotes, keys = map(data.count, (b"[", b"{", b'"', b":"))
    allowance.take_values(data.count(b",") + lists + objects + quotes)
    words = quotes * (WORD_NBYTES // 2)
    allowance.take_memory(lists * LIST_NBYTES + objects * OBJECT_NBYTES + keys * KEY_NBYTES + words)


def _require_depth(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
        if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
            raise NotReadableError("not well-formed JSON: lists or objects nest too deeply")


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotReadableError(f"not UTF-8 text: byte {error.start} cannot be decoded", line) from error


def _members(text: str, start: int) -> list[tuple[int, Any]]:
    """Offset and value of what is directly in the list or object at `start`; keys are members too."""
    members = []
    offset = _end_of_gap(text, start + 1)
    while text[offset] not in "]}":
        value, end = _DECODER.raw_decode(text, offset)
        members.append((offset, value))
        offset = _end_of_gap(text, end)
    return members


def _end_of_gap(text: str, offset: int) -> int:
    match = _GAP.match(text, offset)
    return match.end() if match else offset


def _lists(value: object) -> Iterator[list[Any]]:
    """All lists in a value, each before those inside it. The depth is bounded where the text is parsed."""
    if isinstance(value, list):
        yield value
    items = value.values() if isinstance(value, dict) else value
    if isinstance(items, Collection) and {list, dict} & set(map(type, items)):  # few lists hold others
        for item in items:
            yield from _lists(item)


def _places(text: str, offsets: list[int]) -> Iterator[Place]:
    """Line and column of each of the ascending offsets."""
    line, begin = 1, 0
    for offset in offsets:
        line += text.count("\n", begin, offset)
        begin = offset
        yield Place(line, offset - text.rfind("\n", 0, offset))
