"""What hosts say to each other as JSON: of a limited size, and checked as it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eplb_cli.hosts.board import BoardError

MAX_WORDS_NBYTES = 1 << 20


def to_words(said: Mapping[str, object]) -> bytes:
    """JSON of names and values."""
    return json.dumps(said).encode()


def from_words(words: bytes) -> dict[str, Any]:
    """The names and values again. Raises BoardError where it is no JSON object, or too large for ours."""
    try:
        said = json.loads(words) if len(words) <= MAX_WORDS_NBYTES else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise BoardError("what is said there is not in the words of eplb")
    return said
