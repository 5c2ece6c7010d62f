"""All dialects by name. The names alone cost nothing; a dialect is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eplb_cli.placements.dialects.dialect import Dialect

OWN = "eplb"
NAMES = (OWN, "vllm", "sglang", "tensorrt-llm", "ascend", "deepseek")
"""In the order they are tried; each is the `DIALECT` of the module of its name, with _ for -."""


def dialect_called(name: str) -> Dialect:
    """The dialect of one of the names."""
    found: Dialect = import_module(f"{__package__}.{name.replace('-', '_')}").DIALECT
    return found
