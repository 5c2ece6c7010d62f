"""Numbers that a rank may have computed from its own experts: they are of a set of experts, not of a rank.

Engines fold the activation scales of a rank's experts into one, the largest. When experts leave, such a
number is no longer that of the experts beside it. So where it differs between ranks and rows of its layer
change rank, nothing is moved; but of a maximum every rank may get the largest over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.errors import CheckpointError
from eplb_cli.plan.choice import RankScalars

_MAXIMA = ("w13_input_scale", "w2_input_scale")
"""What vLLM and SGLang make the largest of the rank's experts (static fp8, modelopt), and use as it is."""

_DERIVED = ("alpha", "input_scale")
"""What the names of products and inverses of them have."""

_MAX_NBYTES = 4096
_HINT = "write the new shards with the engine, or with `eplb shard` from the Hugging Face checkpoint"


def differing_numbers(checkpoint: ShardedCheckpoint) -> dict[str, dict[int, bytes]]:
    """By key, the bytes that each rank has, of the rank numbers that are not the same on all that have them.

    Raises:
        CheckpointError: EP201 or EP220, a shard cannot be read, or has changed.
    """
    found: dict[str, dict[int, bytes]] = {}
    for rank, tensors in enumerate(checkpoint.others):
        for key in sorted(checkpoint.rank_numbers & tensors.keys()):
            at = tensors[key]
            content = checkpoint.shards.read(at.file, at.offset, min(at.entry.nbytes, _MAX_NBYTES))
            found.setdefault(key, {})[rank] = content
    return {key: values for key, values in found.items() if len(set(values.values())) > 1}


def choose_numbers(
    checkpoint: ShardedCheckpoint, changing: frozenset[int], rule: RankScalars | None
) -> Mapping[str, int]:
    """By key, the old rank whose number all new ranks get: the largest.

    Args:
        changing: layers of which a row changes rank.
        rule: what to do; None to refuse.

    Raises:
        CheckpointError: EP231, a number would stay behind, or is not known to be a maximum.
    """
    if not checkpoint.rank_numbers or not changing:
        return {}
    of_layer = {
        key: found.layer for key, found in checkpoint.shards.expert_keys.items() if found.layer in changing
    }
    known = checkpoint.shards.expert_keys
    differing = {
        key: values
        for key, values in differing_numbers(checkpoint).items()
        if key in of_layer or key not in known
    }
    if not differing:
        return {}
    not_maxima = [key for key in differing if not _is_maximum(checkpoint, key)]
    derived = _derived(checkpoint, {of_layer[key] for key in differing if key in of_layer})
    if rule is None:
        hint = _HINT if not_maxima or derived else "--rank-scalars max gives all ranks the largest"
        raise _stays_behind(min(differing), differing, hint)
    if not_maxima or derived:
        key = min(not_maxima or derived)
        problem = f"{key!r} is not known to be a maximum of a rank's experts, so no rank can get the largest"
        raise CheckpointError("EP231", problem, _HINT)
    return {key: _largest(checkpoint, key, values) for key, values in differing.items()}


def _stays_behind(key: str, differing: Mapping[str, Mapping[int, bytes]], hint: str) -> CheckpointError:
    more = f" (and {len(differing) - 1:,} more)" if len(differing) > 1 else ""
    problem = (
        f"{key!r}{more} is one number a rank, differs between ranks, and experts of its layer "
        "change rank: a rank computed it from the experts that it had"
    )
    return CheckpointError("EP231", problem, hint)


def _is_maximum(checkpoint: ShardedCheckpoint, key: str) -> bool:
    known = checkpoint.shards.expert_keys.get(key)
    return known is not None and known.tensor in _MAXIMA


def _derived(checkpoint: ShardedCheckpoint, layers: set[int]) -> list[str]:
    """Other tensors of the layers that an engine computes from such numbers."""
    return [
        key
        for key, found in checkpoint.shards.expert_keys.items()
        if found.layer in layers
        and found.tensor not in _MAXIMA
        and any(word in found.tensor for word in _DERIVED)
    ]


def _largest(checkpoint: ShardedCheckpoint, key: str, values: Mapping[int, bytes]) -> int:
    """The first rank that has the largest number. Raises EP231 where it is no number."""
    dtypes = {checkpoint.others[rank][key].entry.dtype for rank in values}
    numbers = {rank: _number(dtypes, content) for rank, content in values.items()}
    if any(number is None or not np.isfinite(number) for number in numbers.values()):
        raise CheckpointError("EP231", f"{key!r} has no largest number over ranks: {sorted(dtypes)}", _HINT)
    return max(numbers, key=lambda rank: (numbers[rank] or 0.0, -rank))


def _number(dtypes: set[str], content: bytes) -> float | None:
    """The value of one number; None where it is of no single known dtype."""
    if dtypes == {"BF16"}:
        content = bytes(2) + content
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<f4"}.get(min(dtypes))
    if kind is None or len(dtypes) > 1 or len(content) != np.dtype(kind).itemsize:
        return None
    return float(np.frombuffer(content, kind)[0])
