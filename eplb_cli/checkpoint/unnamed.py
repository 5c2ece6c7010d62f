"""Layers with experts that a placement does not name: MTP's, and those of a second tower.

They stay as they are where ranks and slots do. Where those change, and where OLD names them and NEW does not,
their experts are laid out in order, as engines do: slot 0 has expert 0, and after the last one comes 0 again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.checkpoint.shards import Shards
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.beside import with_linear_layers
from eplb_cli.placements.placement import Placement


def with_unnamed_layers(
    shards: Shards, old: Placement, new: Placement
) -> tuple[Placement, Placement, dict[int, str]]:
    """OLD and NEW with all layers that have to move, in one order; and by layer what was decided of some.

    Args:
        old, new: with layer_ids.

    Raises:
        CheckpointError: EP219, a layer that neither names cannot follow.
    """
    of_old, of_new = _numbers(old), _numbers(new)
    beside = shards.layers.beside
    stays = old.num_ranks == new.num_ranks and np.array_equal(old.slots_per_rank, new.slots_per_rank)
    notes: dict[int, str] = {}
    dropped = [layer for layer in of_old if layer in beside and layer not in of_new]
    if dropped:
        new = _with_rows_of(old, new, dropped) if stays else with_linear_layers(new, dropped)
    unnamed = [] if stays else [layer for layer in shards.moe_layers if layer not in {*of_old, *of_new}]
    for layer in unnamed:
        _require_placeable(shards, layer, old)
    if unnamed:
        old = _in_order(shards, old, unnamed)
        new = with_linear_layers(new, unnamed)
        said = (
            "taken to have its experts in order" if not shards.layout.names_experts else "laid out in order"
        )
        notes |= {layer: f"layer {shards.layers.name(layer)}: {said}" for layer in unnamed}
    if not stays:
        said = "NEW does not name it, and its experts are laid out in order"
        notes |= {layer: f"layer {shards.layers.name(layer)}: {said}" for layer in dropped}
    return old, _in_order_of(old, new), notes


def _numbers(placement: Placement) -> list[int]:
    return [] if placement.layer_ids is None else placement.layer_ids.tolist()


def _require_placeable(shards: Shards, layer: int, old: Placement) -> None:
    """EP219 for a layer of the main module, or one with other rows than OLD has."""
    name = shards.layers.name(layer)
    if layer not in shards.layers.beside:
        problem = f"layer {name} has experts, the placement does not name it, and its ranks or slots change"
        raise CheckpointError("EP219", problem)
    rows = shards.rows_of(layer)
    if not np.array_equal(rows, old.slots_per_rank):
        problem = f"layer {name} has {int(rows.sum()):,} rows in all, and OLD {old.num_slots:,} slots"
        raise CheckpointError("EP219", problem)


def _in_order(shards: Shards, old: Placement, layers: list[int]) -> Placement:
    """OLD with further layers: in order, or where keys name experts as these say."""
    if not shards.layout.names_experts:
        return with_linear_layers(old, layers)
    rows = [np.concatenate(shards.named_experts(layer)).astype(np.int64) for layer in layers]
    return _with_rows(old, layers, np.stack(rows))


def _with_rows_of(old: Placement, new: Placement, layers: list[int]) -> Placement:
    return _with_rows(new, layers, old.physical_to_logical[[_numbers(old).index(layer) for layer in layers]])


def _with_rows(placement: Placement, layers: list[int], rows: Int) -> Placement:
    table = np.concatenate([placement.physical_to_logical, rows])
    return replace(
        placement, physical_to_logical=table, layer_ids=np.array([*_numbers(placement), *layers], np.int64)
    )


def _in_order_of(old: Placement, new: Placement) -> Placement:
    """NEW with its layers in the order of OLD's, if they are the same."""
    of_old, of_new = _numbers(old), _numbers(new)
    if of_old == of_new or sorted(of_old) != sorted(of_new):
        return new
    order = [of_new.index(layer) for layer in of_old]
    return replace(new, physical_to_logical=new.physical_to_logical[order], layer_ids=old.layer_ids)
