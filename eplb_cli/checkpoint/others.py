"""Tensors that are no experts': which look sharded, and which some rank lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eplb_cli.models.config import ModelConfig

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import TensorAt


def looks_sharded(
    shapes: Sequence[Mapping[str, tuple[int, ...]]], config: ModelConfig | None, num_ranks: int
) -> list[str]:
    """Keys whose shapes say that each rank has only a piece, as tensor parallelism leaves them.

    A shape that differs between ranks says so, or a key that not all ranks have; with a config.json,
    also a vocabulary of which the ranks have equal parts.

    Args:
        shapes: of each rank that is there, its tensors.
        num_ranks: how many ranks there are, those included that are elsewhere or lost.
    """
    keys = sorted({key for of_rank in shapes for key in of_rank})
    uneven = [key for key in keys if len({of_rank.get(key) for of_rank in shapes}) > 1]
    vocabulary = None if config is None else config.vocab_size
    pieces = [
        key
        for key, shape in shapes[0].items()
        if vocabulary
        and shape
        and num_ranks > 1
        and key.endswith(("embed_tokens.weight", "embed.weight", "lm_head.weight", "head.weight"))
        and shape[0] < vocabulary <= shape[0] * num_ranks
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
