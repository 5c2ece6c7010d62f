"""TOML from strangers: short texts, because the time that it takes grows faster than they do."""

from __future__ import annotations

import tomllib
from typing import Any

from eplb_cli.formats.budget import MAX_DEPTH, NotReadableError


def parse_toml(data: bytes) -> dict[str, Any]:
    """The table in the content of a file.

    Raises:
        NotReadableError: it is no TOML, or nests too deeply.
    """
    try:
        table = tomllib.loads(data.decode())
    except RecursionError as error:
        raise NotReadableError("it nests too deeply") from error
    except ValueError as error:  # no UTF-8, no TOML, or an integer that is too long
        raise NotReadableError(f"not well-formed TOML: {str(error)[:200]}") from error
    if _depth(table) > MAX_DEPTH:
        raise NotReadableError("it nests too deeply")
    return table


def _depth(table: dict[str, Any]) -> int:
    """How many tables and lists are in each other; keys with dots nest without a bracket."""
    level: list[Any] = [table]
    depth = 0
    while level:
        depth += 1
        inner = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
        level = [value for value in inner if isinstance(value, dict | list)]
    return depth
