"""Moving and proving a checkpoint by the parts of its experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from eplb_cli import files
from eplb_cli.arrays import Digests
from eplb_cli.errors import PlacementError
from eplb_cli.inputs.old_and_new import read_new
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.machine import available_memory_nbytes, default_threads
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.model import Model
from eplb_cli.output.journal import Known
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import Staging
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.named_map import NAMED_MAPS
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.check import verify_plan
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.transfer.traffic import TransferOptions
from eplb_cli.transfer.transfer import transfer


def placement_for(
    source: Path, config: ModelConfig, name: str, old: Placement, options: PlacementOptions
) -> tuple[Placement, list[Finding]]:
    """A placement for a checkpoint that has the layers and experts of `old`; and its warnings.

    Raises:
        PlacementError: it cannot be read, or is of another model.
    """
    if name in NAMED_MAPS and options.num_ranks is None:
        raise PlacementError("EP114", f"the map {name} needs --num-ranks", "say it with --num-ranks R")
    hidden = config.num_hidden_layers
    layers = [] if old.layer_ids is None else old.layer_ids.tolist()
    counted = tuple(layer for layer in layers if hidden is None or layer < hidden)
    model = Model(str(source), hidden, counted, tuple(layers[len(counted) :]), old.num_logical_experts)
    return read_new(name, old, replace(options, model=model))


def in_layer_order(placement: Placement) -> Placement:
    """A placement with its rows in the order of the model's layers, as both forms have them."""
    if placement.layer_ids is None:
        return placement
    order = np.argsort(placement.layer_ids)
    table, layer_ids = placement.physical_to_logical[order], placement.layer_ids[order]
    return Placement(table, placement.first_slot, placement.num_logical_experts, layer_ids)


def plan_moves(old: Placement, new: Placement) -> ReshardPlan:
    """The table of moves, verified."""
    plan = plan_reshard(old, new)
    verify_plan(plan)
    return plan


def move_parts(
    prepared: Prepared,
    stage: Staging,
    advance: Callable[[int], None],
    *,
    verify: bool,
    known: Known | None = None,
) -> tuple[Digests, Digests]:
    """Move all bytes in this process; digests of old places, and of new ones if they are to be verified."""
    shards, output = prepared.checkpoint.shards, prepared.output
    files.allow_open_files(len(shards.files) + len(output.files))
    nbytes = shards.nbytes + output.own_nbytes
    options = TransferOptions(
        1,
        0,
        default_threads(1),
        verify=verify,
        durable=stage.durable,
        keep_cache=nbytes < available_memory_nbytes() // 2,
    )
    result = transfer(prepared, stage.path, options, 0, None, advance, known)
    return result.old_digests, result.new_digests
