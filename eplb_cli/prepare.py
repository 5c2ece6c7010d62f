"""What every process of a run derives alike from the same inputs: plan, output and pieces."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from eplb_cli.checkpoint import ShardedCheckpoint, Shards, bind, with_layers
from eplb_cli.findings import check_pair, raise_first
from eplb_cli.output import OutputTree, plan_output
from eplb_cli.pieces import Pieces, Places, cut_pieces, new_places, old_places
from eplb_cli.placement import Placement
from eplb_cli.plan import ReshardPlan, Senders, plan_reshard, verify_plan


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checkpoint, the plan for it, and the tree that comes of it."""

    checkpoint: ShardedCheckpoint
    plan: ReshardPlan
    output: OutputTree

    @cached_property
    def pieces(self) -> Pieces:
        """The byte ranges of the plan."""
        return cut_pieces(self.plan, self.checkpoint, self.output)

    @cached_property
    def old_places(self) -> Places:
        """Where everything lies in SRC."""
        return old_places(self.checkpoint)

    @cached_property
    def new_places(self) -> Places:
        """Where everything will lie."""
        return new_places(self.plan, self.checkpoint, self.output)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of the plan and of all that is known of both trees before data is read."""
        sha = hashlib.sha256(self.plan.digest.encode())
        for shard in self.checkpoint.shards.files:
            sha.update(
                f"{shard.path.name} {shard.nbytes} {shard.mtime_ns} {shard.header.data_start}\n".encode()
            )
        for file in self.output.files:
            sha.update(f"{file.name} {file.nbytes} {file.header_digest}\n".encode())
        return sha.hexdigest()


def prepare(
    shards: Shards,
    old: Placement,
    new: Placement,
    senders: Senders,
    ranks_per_node: int | None,
    shared: frozenset[str] = frozenset(),
) -> Prepared:
    """Plan a reshard down to the last byte, without reading any data.

    Args:
        shared: other tensors that are known to be alike on all ranks.

    Raises:
        PlacementError, CheckpointError, PlanError: the inputs cannot be used, separately or together.
    """
    old = with_layers(old, shards)
    new = with_layers(new, shards)
    raise_first(check_pair(old, new))
    checkpoint = bind(shards, old)
    plan = plan_reshard(
        old, new, senders, expert_nbytes=checkpoint.expert_nbytes, ranks_per_node=ranks_per_node
    )
    verify_plan(plan)
    return Prepared(checkpoint, plan, plan_output(checkpoint, new, shared))


def place_name(prepared: Prepared, place: int) -> str:
    """A new place in words: file, layer, slot and tensor."""
    new, checkpoint = prepared.plan.new, prepared.checkpoint
    num_rows = checkpoint.row_nbytes.size * new.num_slots
    if place >= num_rows:
        copy = prepared.output.others[place - num_rows]
        return f"{prepared.output.files[copy.dst_file].name}: {copy.key!r}"
    cell, slot = divmod(place, new.num_slots)
    layer, tensor = divmod(cell, checkpoint.row_nbytes.shape[1])
    file = prepared.output.files[int(prepared.new_places.file[place])].name
    return (
        f"{file}: layer {new.layer_name(layer)}, slot {slot} (rank {new.rank_of_slot[slot]}, "
        f"row {new.row_of_slot[slot]}) of {checkpoint.expert_tensors[tensor].template!r}"
    )
