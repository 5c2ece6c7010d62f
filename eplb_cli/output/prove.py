"""The proof: what was read back is what was in SRC, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.places import Places
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.digests import zero_digests
from eplb_cli.errors import BytesError
from eplb_cli.output.prepared import Prepared
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.plan.pieces import Pieces
from eplb_cli.values import dataclass

MAX_WARNINGS = 5

_LEAST_REPLICATED = 4
"""Experts with replicas from which on it is no chance that all of them differ."""


@dataclass(frozen=True)
class Proof:
    """Rows (an expert in a slot, with all its tensors) proved, and what was odd about SRC."""

    rows_proved: int
    warnings: list[str]


def differing_replicas(
    placement: Placement, row_digests: Digests, exists: NDArray[np.bool_]
) -> list[tuple[int, int, int]]:
    """(layer, expert, tensor) whose replicas have several digests, ascending.

    Args:
        row_digests: (L, K, P, 16).
        exists: (L, K), where a layer has the tensor.
    """
    layer, slot = np.nonzero(placement.physical_to_logical != EMPTY)
    expert = placement.physical_to_logical[layer, slot]
    key = layer * placement.num_logical_experts + expert
    order = np.argsort(key, kind="stable")
    first = order[np.searchsorted(key[order], key)]
    own = row_digests[layer, :, slot]
    differs = (own != own[first]).any(axis=-1) & exists[layer]
    entry, tensor = np.nonzero(differs)
    found = {(int(layer[e]), int(expert[e]), int(t)) for e, t in zip(entry, tensor, strict=True)}
    return sorted(found)


def row_view(digests: Digests, checkpoint_shape: tuple[int, int], num_slots: int) -> Digests:
    """The digests of rows, as (L, K, P, 16)."""
    num_layers, num_tensors = checkpoint_shape
    return digests[: num_layers * num_tensors * num_slots].reshape(num_layers, num_tensors, num_slots, -1)


def prove(
    prepared: Prepared,
    old_digests: Digests,
    new_digests: Digests,
    name_of: Callable[[int], str] | None = None,
) -> Proof:
    """Compare what was read back with what was read.

    For every piece the digest of its destination is that of its source; empty rows are zero; every
    replica of an expert has one digest; the set of (layer, expert, tensor, digest) is the same before
    and after. The last two are left out for experts whose replicas differ in SRC already.

    Args:
        old_digests, new_digests: (X, 16) of the places of SRC and of the output.
        name_of: the place of a new row or tensor, in words; as the plan has it where it is left out.

    Raises:
        BytesError: EP501 to EP504, naming the first place that differs.
    """
    checkpoint, new, pieces = prepared.checkpoint, prepared.plan.new, prepared.pieces
    name_of = name_of or prepared.place_name
    wrong = (new_digests[pieces.destination] != old_digests[pieces.source]).any(axis=1)
    _require_same(pieces.destination[wrong], checkpoint.row_nbytes.size * new.num_slots, name_of)
    _require_zero(pieces, prepared.new_places, new_digests, name_of)
    shape = checkpoint.row_nbytes.shape
    exists = checkpoint.row_nbytes > 0
    before = row_view(old_digests, shape, checkpoint.placement.num_slots)
    after = row_view(new_digests, shape, new.num_slots)
    odd = set(differing_replicas(checkpoint.placement, before, exists))
    _require_some_alike(checkpoint, odd)
    for layer, expert, tensor in differing_replicas(new, after, exists):
        if (layer, expert, tensor) not in odd:
            raise BytesError(
                "EP503", f"layer {new.layer_number(layer)}: replicas of expert {expert} differ in the output"
            )
    _require_same_set(checkpoint, new, before, after, odd)
    rows = int((new.physical_to_logical != EMPTY).sum())
    alike = alike_warnings(checkpoint, before)
    return Proof(rows, [*replica_warnings(checkpoint, odd), *alike])


def _require_some_alike(checkpoint: ShardedCheckpoint, odd: Iterable[tuple[int, int, int]]) -> None:
    """EP503 where the replicas differ of every expert that has several: they are none.

    A single damaged replica is one of many in a checkpoint; of a wrong OLD, or of slices, all differ.
    """
    table = checkpoint.placement.physical_to_logical
    layer, slot = np.nonzero(table != EMPTY)
    pairs, counts = np.unique(np.stack([layer, table[layer, slot]]), axis=1, return_counts=True)
    several = {(int(layer), int(expert)) for layer, expert in pairs[:, counts > 1].T}
    if len(several) >= _LEAST_REPLICATED and several == {(layer, expert) for layer, expert, _ in odd}:
        raise BytesError(
            "EP503",
            f"the replicas of all {len(several):,} experts (of a layer each) that have several differ in SRC",
            "OLD is not the placement that SRC was written under, or each rank has a slice of every expert",
        )


def alike_warnings(checkpoint: ShardedCheckpoint, row_digests: Digests) -> list[str]:
    """A sentence where different experts of a layer have the same bytes, as if one were saved for all.

    Args:
        row_digests: (L, K, P, 16).
    """
    placement, found = checkpoint.placement, []
    for layer in range(placement.num_layers):
        experts, slots = np.unique(placement.physical_to_logical[layer], return_index=True)
        slots = slots[experts != EMPTY]
        experts = experts[experts != EMPTY]
        num_tensors, _, digest_nbytes = row_digests[layer].shape
        content = row_digests[layer][:, slots].swapaxes(0, 1).reshape(-1, num_tensors * digest_nbytes)
        _, first, which = np.unique(content, axis=0, return_index=True, return_inverse=True)
        twin = first[which.ravel()]
        found += [
            (layer, int(experts[twin[at]]), int(experts[at]))
            for at in np.flatnonzero(twin != np.arange(len(twin))).tolist()
        ]
    if not found:
        return []
    layer, twin_of, expert = found[0]
    more = f" ({len(found):,} such experts in all)" if len(found) > 1 else ""
    said = f"layer {placement.layer_number(layer)}: experts {twin_of} and {expert} have the same bytes{more}"
    return [f"{said}: did every rank save the same experts?"]


def replica_warnings(checkpoint: ShardedCheckpoint, odd: Iterable[tuple[int, int, int]]) -> list[str]:
    """Sentences on the (layer, expert) whose replicas differ in SRC, at most `MAX_WARNINGS`, and a hint."""
    pairs = sorted({(layer, expert) for layer, expert, _ in odd})
    texts = [
        f"layer {checkpoint.placement.layer_number(layer)}: the replicas of expert {expert} differ in SRC"
        for layer, expert in pairs
    ]
    more = len(texts) - MAX_WARNINGS
    rest = [f"the replicas of {more} more experts differ in SRC"] if more > 0 else []
    advice = ["replicas should be alike: is OLD the placement that SRC was written under?"] if texts else []
    return [*texts[:MAX_WARNINGS], *rest, *advice]


def _require_same(wrong: NDArray[np.int64], num_rows: int, name_of: Callable[[int], str]) -> None:
    """EP501 or EP504 where there are wrong places; the first `num_rows` places are rows."""
    if len(wrong):
        first = int(wrong.min())
        raise BytesError(
            "EP501" if first < num_rows else "EP504",
            f"{name_of(first)} differs from its source; {len(wrong)} pieces differ in all",
            "memory or storage is failing: do not use this output, check the machine",
        )


def _require_zero(
    pieces: Pieces, new_places: Places, new_digests: Digests, name_of: Callable[[int], str]
) -> None:
    """Places that no piece fills hold zeros."""
    empty = new_places.nbytes > 0
    empty[pieces.destination] = False
    sizes = new_places.nbytes[empty]
    digests = zero_digests(sizes.tolist())
    for place in np.flatnonzero(empty).tolist():
        if new_digests[place].tobytes() != digests[int(new_places.nbytes[place])]:
            raise BytesError("EP502", f"{name_of(place)} is empty and not zero")


def _require_same_set(
    checkpoint: ShardedCheckpoint,
    new: Placement,
    before: Digests,
    after: Digests,
    odd: set[tuple[int, int, int]],
) -> None:
    """The set of (layer, expert, tensor, digest) is the same before and after, but for odd experts."""
    for layer in range(new.num_layers):
        left = _by_expert(checkpoint.placement, layer, before)
        right = _by_expert(new, layer, after)
        for expert, tensor in zip(*np.nonzero((left != right).any(axis=-1)), strict=True):
            if (layer, int(expert), int(tensor)) not in odd:
                raise BytesError(
                    "EP501",
                    f"layer {new.layer_number(layer)}: expert {expert} is not the same before and after",
                )


def _by_expert(placement: Placement, layer: int, row_digests: Digests) -> Digests:
    """(E, K, 16) the digests of one layer by expert, zero where it is in no slot."""
    row = placement.physical_to_logical[layer]
    filled = np.flatnonzero(row != EMPTY)
    result = np.zeros(
        (placement.num_logical_experts, *row_digests.shape[1:2], row_digests.shape[-1]), np.uint8
    )
    result[row[filled]] = row_digests[layer][:, filled].swapaxes(0, 1)
    return result
