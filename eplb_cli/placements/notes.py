"""What is good to know of a placement and no mistake: one note of a kind for a file, at its first place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import EMPTY, Placement


def notes_on(placement: Placement, *, has_load: bool = False) -> list[Finding]:
    """EP121, and EP122 where no load says whether replicas are where they should be."""
    return [*_empty_slots(placement), *([] if has_load else _unequal_replicas(placement))]


def _empty_slots(placement: Placement) -> Iterator[Finding]:
    """EP121: slots that take memory and hold nothing."""
    is_empty = placement.physical_to_logical == EMPTY
    layers = np.flatnonzero(is_empty.any(axis=1))
    if len(layers):
        index, slot = int(layers[0]), int(is_empty[layers[0]].argmax())
        layer, rank = placement.layer_number(index), int(placement.rank_of_slot[slot])
        rest = f"; {_plural(int(is_empty.sum()), 'empty slot')} in {_plural(len(layers), 'layer')}"
        yield Finding(
            "EP121", "note", f"layer {layer}, slot {slot} is empty{rest}", layer=layer, slot=slot, rank=rank
        )


def _unequal_replicas(placement: Placement) -> Iterator[Finding]:
    """EP122: experts of a layer whose numbers of slots differ by more than one, which equal shares need not.

    Experts in no slot are EP110, and not counted here.
    """
    counts = placement.num_replicas
    least = np.where(counts > 0, counts, counts.max(initial=0)).min(axis=1)
    spread = counts.max(axis=1) - least
    layers = np.flatnonzero(spread > 1)
    if len(layers):
        index = int(spread.argmax())
        layer, most = placement.layer_number(index), int(counts[index].argmax())
        few = int(np.flatnonzero(counts[index] == least[index])[0])
        message = (
            f"layer {layer}: expert {most} is in {counts[index, most]:,} slots and expert {few} in "
            f"{least[index]:,}; {_plural(len(layers), 'layer')} with replicas as unequal or nearly so"
        )
        yield Finding("EP122", "note", message, layer=layer)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
