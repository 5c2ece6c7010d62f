"""Tensors that are no experts': which look sharded, and which some rank lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli.errors import CheckpointError
from eplb_cli.files import read_small_file

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import TensorAt


MAX_CONFIG_NBYTES = 1 << 24


def looks_sharded(shapes: Sequence[Mapping[str, tuple[int, ...]]], path: Path) -> list[str]:
    """Keys whose shapes say that each rank has only a piece, as tensor parallelism leaves them.

    A shape that differs between ranks says so, or a key that not all ranks have; with a config.json,
    also a vocabulary of which the ranks have equal parts.
    """
    keys = sorted({key for of_rank in shapes for key in of_rank})
    uneven = [key for key in keys if len({of_rank.get(key) for of_rank in shapes}) > 1]
    vocabulary = _vocabulary(path)
    pieces = [
        key
        for key, shape in shapes[0].items()
        if vocabulary
        and shape
        and len(shapes) > 1
        and key.endswith(("embed_tokens.weight", "embed.weight", "lm_head.weight", "head.weight"))
        and shape[0] < vocabulary <= shape[0] * len(shapes)
    ]
    return sorted({*uneven, *pieces})


def lacking_others(others: Sequence[Mapping[str, TensorAt]]) -> list[str]:
    """A sentence where a rank lacks other tensors that another rank has, as a lost file leaves it."""
    every = sorted({key for of_rank in others for key in of_rank})
    lacking = [(rank, key) for rank, of_rank in enumerate(others) for key in every if key not in of_rank]
    if not lacking:
        return []
    (rank, key), more = lacking[0], f" (and {len(lacking) - 1:,} more)" if len(lacking) > 1 else ""
    return [f"rank {rank} lacks {key!r}, which another rank has{more}: are all parts of its shard there?"]


def _vocabulary(path: Path) -> int:
    """vocab_size of the config.json beside the shards, 0 where there is none to be read."""
    return config_number(path, "vocab_size") or 0


def config_number(path: Path, *names: str) -> int | None:
    """The first of these numbers that the config.json beside the shards says, of all or of its text model."""
    if not (path / "config.json").is_file():
        return None
    try:
        config = json.loads(read_small_file(path / "config.json", MAX_CONFIG_NBYTES))
        values = [
            part[name] for part in (config, config.get("text_config", {})) for name in names if name in part
        ]
    except (ValueError, AttributeError, TypeError, RecursionError, CheckpointError):
        return None
    return next((value for value in values if type(value) is int and value > 0), None)
