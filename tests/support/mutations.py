"""Accidents and attacks on files, seeded: what is done to a text follows from the random generator alone.

A mutation knows bytes (flips, cuts, copies, splices), the tokens of JSON (a number becomes a float, a
boolean, a path, a list) or its structure (a key twice, a value nested, one value in the place of another).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][-+.0-9eE]*|true|false|null|[][{},:]')

NUMBERS = (
    *b"-1 -0 0 1 2 24 25 1.0 0.5 1e3 1E400 -1e-9 NaN Infinity -Infinity 00 01 0x10 +1 1_000".split(),
    *b"2147483648 4294967296 9007199254740993 4611686018427387904 9223372036854775807".split(),
    *b"9223372036854775808 18446744073709551615 18446744073709551616 -9223372036854775809".split(),
    b"9" * 40,
    b"9" * 4301,
)
STRINGS = (
    *rb'"" "a" "b" "__metadata__" "F32" "BF16" "F4" "F6_E2M3" "f32" "F128" "1"'.split(),
    *rb'"../../etc/passwd" "/etc/passwd" "a/b" ".." "." "\u0000" "\u001b[2J" "\x" "open'.split(),
    *rb'"\ud800" "\udc00\ud800" "\ud83d\ude00" "{layer}" "%s{0}[bold]" "layers.0.mlp.experts.w1"'.split(),
    *(b'"\xff"', b'"\xc3\xa9"', b'"\xed\xa0\x80"', b'"a\nb"', b'"' + b"x" * 5000 + b'"'),
)
OTHERS = (
    *rb'true false null [] {} [[]] [0] [{"a":1}] {"":{}} /**/ , : ] } \\'.split(),
    *(b"", b"[" * 70 + b"]" * 70, b"[" * 2000, b'{"a":' * 2000, b"\xef\xbb\xbf", b"\x00"),
)
VALUES = NUMBERS + STRINGS + OTHERS


def mutate(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """`text` after one to three accidents; `others` are texts of its kind, for splices."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        text = rng.choice(MUTATIONS)(rng, text, others)
    return text


def flip(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """One bit, or one byte that becomes any other."""
    if not text:
        return b"\0"
    at = rng.randrange(len(text))
    value = text[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.7 else rng.randrange(256)
    return text[:at] + bytes([value]) + text[at + 1 :]


def cut(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """A few bytes fewer, or nothing after some place."""
    begin = rng.randrange(len(text) + 1)
    return text[:begin] + (text[begin + rng.randrange(1, 9) :] if rng.random() < 0.7 else b"")


def repeat(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """A part of the text again, somewhere."""
    begin, at = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
    return text[:at] + text[begin : begin + rng.randrange(1, 60)] * rng.choice((1, 1, 2, 9)) + text[at:]


def splice(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of this text and the end of another."""
    other = rng.choice(others)
    return text[: rng.randrange(len(text) + 1)] + other[rng.randrange(len(other) + 1) :]


def replace_token(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """A token becomes another one, mostly of its own kind."""
    tokens = list(TOKEN.finditer(text))
    if not tokens:
        return rng.choice(VALUES)
    token = rng.choice(tokens)
    kinds = {b'"': STRINGS, b"[": OTHERS, b"]": OTHERS, b"{": OTHERS, b"}": OTHERS}
    own = kinds.get(token[0][:1], NUMBERS)
    return text[: token.start()] + rng.choice(own if rng.random() < 0.6 else VALUES) + text[token.end() :]


def nudge(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """A number becomes a neighbour of itself, or of another number of the text."""
    numbers = [token for token in TOKEN.finditer(text) if token[0].isdigit()]
    if not numbers:
        return text
    token, model = rng.choice(numbers), rng.choice(numbers)
    value = int(model[0][:30]) + rng.choice((-8, -1, 0, 1, 8, 1 << 63))
    return text[: token.start()] + b"%d" % value + text[token.end() :]


def restructure(rng: Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """Another value in the place of one, or a key twice; what is no JSON is left alone."""
    try:
        value = json.loads(text, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        return text
    places = list(_places(value))
    if not places:
        return text
    holder, at = rng.choice(places)
    donor, place = rng.choice(places)
    new = donor[place][1] if isinstance(donor, Pairs) else donor[place]
    if isinstance(holder, Pairs):
        key = rng.choice((holder[at][0], holder[at][0], "a", "../x", "__metadata__"))
        holder[at : at + rng.randrange(2)] = [(key, new)]
    else:
        holder[at : at + rng.randrange(2)] = [new]
    try:
        return dump(value).encode("utf-8", "surrogatepass")
    except (RecursionError, MemoryError):  # a value that was put into itself
        return text


class Pairs(list[tuple[str, Any]]):
    """The members of an object, in which a key may be there twice."""


def _places(value: object) -> Any:
    if isinstance(value, list):
        for at, item in enumerate(value):
            yield value, at
            yield from _places(item[1] if isinstance(value, Pairs) else item)


def dump(value: object) -> str:
    """JSON of a value with `Pairs` in it."""
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {dump(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]
MUTATIONS: tuple[Mutation, ...] = (
    *(flip, flip, cut, repeat, splice, restructure, restructure),
    *(replace_token, replace_token, replace_token, nudge, nudge, nudge),
)
