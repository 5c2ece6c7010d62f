"""Engines that `shard` writes for: a file each, and the names of Hugging Face as they are."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.formats.shipped import Shipped

ENGINES = Shipped(Path(__file__).parent)
AS_THEY_ARE = "huggingface"
"""The engine that keeps all names."""


def engine_names() -> list[str]:
    """All engines, ascending."""
    return sorted([AS_THEY_ARE, *ENGINES.names])
