"""All dialects by name. The names alone cost nothing; a dialect is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

from eplb_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from eplb_cli.placements.dialects.dialect import Dialect

OWN = "eplb"
DialectName = Literal["eplb", "vllm", "sglang", "tensorrt-llm", "ascend", "deepseek"]
NAMES: tuple[DialectName, ...] = get_args(DialectName)
"""In the order they are tried; each is the `DIALECT` of the module of its name, with _ for -."""


def dialect_called(name: str) -> Dialect:
    """The dialect of this name. Raises EP001 where there is none."""
    if name not in NAMES:
        hint = did_you_mean(name, NAMES, f"dialects: {', '.join(NAMES)}")
        raise UsageError("EP001", f"{name!r} is no dialect", hint)
    found: Dialect = import_module(f"{__package__}.{name.replace('-', '_')}").DIALECT
    return found
