"""Maps inside the shards: vLLM's buffer of a layer says where each expert, or slot, is on its rank.

`expert_map` (N,) has for each of N ids the row on this rank, or -1. The ids are experts where N is E, and
slots where the layer has redundant experts. It is of the placement: read as OLD, and written anew for NEW.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.checkpoint.small_reads import MAP_DTYPES, MAX_MAP_NBYTES
from eplb_cli.errors import CheckpointError
from eplb_cli.models.names import split_expert_key
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import EMPTY, Placement

_HINT = "are the files of all ranks there, and from one run?"


class MapKey(NamedTuple):
    """A map in the shards, of one layer."""

    key: str
    layer: int


def map_keys(shards: Shards) -> list[MapKey]:
    """The maps of all layers, by layer. Raises EP215 for one whose layer has no experts."""
    keys = {key for tensors in shards.tensors for key in tensors if shards.layout.is_map(key)}
    found = [MapKey(key, _layer_of(shards, key)) for key in keys]
    return sorted(found, key=lambda each: (each.layer, each.key))


def _layer_of(shards: Shards, key: str) -> int:
    """The number of the layer whose experts are beside a map; patterns may say more than their module."""
    name, numbers = split_expert_key(key), shards.layers.numbers
    if name is not None and name.place in numbers:
        return numbers[name.place]
    for place, number in numbers.items():
        if name is not None and place[:2] == name.place[:2] and place.home.startswith(f"{name.place.home}."):
            return number
    raise CheckpointError("EP215", f"{key!r} says where the experts of a layer are that has none", _HINT)


def placement_inside(shards: Shards, num_logical_experts: int | None = None) -> Placement | None:
    """The placement that the maps in the shards say, of the layers that have one; None without any.

    Args:
        num_logical_experts: E, where it is known.

    Returns:
        The placement; None also where the maps are by slot, and so do not say it.

    Raises:
        CheckpointError: EP215, the maps contradict the shards; EP201 or EP220, these cannot be read.
    """
    rows: dict[int, NDArray[np.int64]] = {}
    first_slot = np.concatenate([[0], np.cumsum(shards.slots_per_rank)])
    num_ids = set()
    for key, layer in map_keys(shards):
        table = np.full(int(first_slot[-1]), EMPTY)
        for rank, ids in _read(shards, key):
            num_ids.add(len(ids))
            held = np.flatnonzero(ids != EMPTY)
            slots = int(first_slot[rank + 1] - first_slot[rank])
            if sorted(ids[held].tolist()) != list(range(slots)):
                problem = f"{key!r} on rank {rank} does not give each of its {slots} rows one id"
                raise CheckpointError("EP215", problem, _HINT)
            table[first_slot[rank] + ids[held]] = held
        if layer in rows and not np.array_equal(rows[layer], table):
            raise CheckpointError("EP215", f"{key!r} and another map of layer {layer} differ", _HINT)
        rows[layer] = table
    if not rows:
        return None
    if len(num_ids) > 1:
        raise CheckpointError("EP215", f"the maps in {shards.path} are of several lengths", _HINT)
    experts, layers = num_ids.pop(), sorted(rows)
    tables = np.array([rows[layer] for layer in layers], np.int64)
    if num_logical_experts not in (None, experts):
        if (tables != np.arange(tables.shape[1])).any():
            raise CheckpointError("EP215", f"the maps in {shards.path} give slots to other ranks", _HINT)
        return None
    return Placement(tables, first_slot, experts, np.array(layers, np.int64))


def guessed_inside(shards: Shards, inside: Placement) -> list[Finding]:
    """EP111 for maps of which nothing says whether their ids are experts, or slots: both may be in order.

    Args:
        inside: what they say where the ids are taken for experts, and E is not known.
    """
    if (inside.physical_to_logical != np.arange(inside.num_slots)).any():
        return []
    message = (
        f"the maps in {shards.path} number {inside.num_slots:,} rows in order: these are experts, or slots "
        "some of which hold replicas"
    )
    return [Finding("EP111", "warning", message, "say it with --num-logical-experts E")]


def require_as_inside(shards: Shards, old: Placement) -> None:
    """EP215 where a map in the shards says that a slot holds another expert than OLD.

    Raises:
        CheckpointError: EP215; EP201 or EP220, a shard cannot be read.
    """
    inside = placement_inside(shards, old.num_logical_experts)
    if inside is None or inside.layer_ids is None or old.layer_ids is None:
        return
    rows = dict(zip(old.layer_ids.tolist(), old.physical_to_logical, strict=True))
    for layer, row in zip(inside.layer_ids.tolist(), inside.physical_to_logical, strict=True):
        if layer in rows and not np.array_equal(rows[layer], row):
            at = int(np.flatnonzero(rows[layer] != row)[0])
            problem = (
                f"layer {shards.layers.name(layer)}: OLD has expert {rows[layer][at]} in slot {at}, "
                f"and the map inside the shards {row[at]}"
            )
            raise CheckpointError("EP215", problem, "leave out --old: the shards say it themselves")


def _read(shards: Shards, key: str) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Rank and content of a map on every rank that has it. Raises EP215."""
    for rank, tensors in enumerate(shards.tensors):
        if key not in tensors:
            raise CheckpointError("EP215", f"{key!r} is missing on rank {rank}", _HINT)
        yield rank, _content(shards, key, rank, tensors[key])


def _content(shards: Shards, key: str, rank: int, at: TensorAt) -> NDArray[np.int64]:
    entry = at.entry
    kind = MAP_DTYPES.get(entry.dtype)
    if kind is None or len(entry.shape) != 1 or not 0 < entry.nbytes <= MAX_MAP_NBYTES:
        problem = f"{key!r} on rank {rank} is {entry.dtype} {list(entry.shape)}, and no list of rows"
        raise CheckpointError("EP215", problem, _HINT)
    return np.frombuffer(shards.read(at.file, at.offset, entry.nbytes), kind).astype(np.int64)


def map_for(old: Placement, new: Placement, num_ids: int, layer: int, rank: int) -> NDArray[np.int64]:
    """What the map of a layer (index) and rank of NEW says: by expert, or by slot where it has replicas.

    Args:
        num_ids: length of the map in SRC.
    """
    first, last = int(new.first_slot[rank]), int(new.first_slot[rank + 1])
    by_expert = new.num_slots == new.num_logical_experts or num_ids == old.num_logical_experts < old.num_slots
    ids = new.physical_to_logical[layer, first:last] if by_expert else np.arange(first, last)
    result = np.full(new.num_logical_experts if by_expert else new.num_slots, EMPTY)
    rows = np.flatnonzero(ids != EMPTY)[::-1]
    result[ids[rows]] = rows
    return result
