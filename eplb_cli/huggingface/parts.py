"""Moving and proving a checkpoint by the parts of its experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from eplb_cli import files
from eplb_cli.arrays import Digests
from eplb_cli.errors import CheckpointError, PlacementError
from eplb_cli.huggingface.one_rank import OneRank
from eplb_cli.inputs.old_and_new import read_new
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.machine import available_memory_nbytes, reading_threads, writing_threads
from eplb_cli.models.model import Model
from eplb_cli.output.journal import Known, write_written
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import Staging
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.check import verify_plan
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.progress import ProgressBar
from eplb_cli.transfer.resume import known_before, written_before
from eplb_cli.transfer.traffic import TransferOptions
from eplb_cli.transfer.transfer import transfer_here


def placement_for(
    checkpoint: OneRank, num_experts: int, name: str, options: PlacementOptions
) -> tuple[Placement, list[Finding]]:
    """A placement for a checkpoint, with layer_ids; and its warnings.

    A map speaks of the layers of the main module. It names those of MTP, and of other modules, by layer_ids.

    Raises:
        CheckpointError: EP212, no layer is one that placements speak of.
        PlacementError: it cannot be read, or is of another model.
        UsageError: EP001, an option is not of such a placement.
    """
    options.require_used(None, [name])
    if name in NAMED_MAPS and options.num_ranks is None:
        raise PlacementError("EP114", f"the map {name} needs --num-ranks", "say it with --num-ranks R")
    layers, where = checkpoint.layers, str(checkpoint.path)
    if not layers.placed:
        raise CheckpointError(
            "EP212",
            f"{where}: config.json says {layers.hidden} hidden layers, and the first one with experts is "
            f"layer {layers.name(layers.beside[0])}",
            "is config.json of this model?",
        )
    old = all_on_one_rank(num_experts, layers.placed)
    model = Model(where, layers.hidden, tuple(layers.placed), tuple(layers.beside), num_experts)
    return read_new(name, old, replace(options, model=model))


def all_on_one_rank(num_experts: int, layers: Sequence[int]) -> Placement:
    """All experts in order, on one rank."""
    table = np.tile(np.arange(num_experts), (len(layers), 1))
    return Placement(table, np.array([0, num_experts]), num_experts, np.array(layers, np.int64))


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


def begin_parts(
    prepared: Prepared, stage: Staging, progress: ProgressBar, share: Callable[[], Known] | None = None
) -> Known:
    """Create all files, and say what of them need not be done: what is shared, and what an earlier run did.

    Args:
        share: shares whole files with SRC, once all are created.

    Raises:
        PlanError: EP305, the earlier run had other inputs.
        OutputError: EP603 or EP604.
    """
    told = written_before(prepared, stage.path, was_proved=stage.was_proved)
    stage.create(prepared)
    num_old, num_new = len(prepared.old_places.rank), len(prepared.new_places.rank)
    shared = Known.nothing(num_old, num_new) if share is None else share()
    before = known_before(prepared, stage, told & ~shared.written, shared.digests, progress)
    return Known(before.digests, shared.written | before.written)


def move_parts(
    prepared: Prepared, stage: Staging, known: Known, advance: Callable[[int], None], *, verify: bool
) -> tuple[Digests, Digests]:
    """Move all bytes in this process; digests of old places, and of new ones if they are to be verified."""
    shards, output = prepared.checkpoint.shards, prepared.output
    files.allow_open_files(len(shards.files) + len(output.files))
    nbytes = shards.nbytes + output.own_nbytes
    options = TransferOptions(
        0,
        writing_threads(1, output.num_own),
        reading_threads(1),
        verify=verify,
        durable=stage.durable,
        keep_cache=nbytes < available_memory_nbytes() // 2,
    )
    write_written(stage.work, known.written, prepared.digest)
    result = transfer_here(prepared, stage, options, advance, known)
    return result.old_digests, result.new_digests


def left_nbytes(prepared: Prepared, known: Known) -> int:
    """Bytes that are to be moved."""
    pieces = prepared.pieces
    return int(pieces.nbytes[~known.written[pieces.destination]].sum())
