"""What every process of a run derives alike from the same inputs: plan, output and pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import distinct
from eplb_cli.checkpoint.expert_maps import require_as_inside
from eplb_cli.checkpoint.places import Places, other_numbers, places_of
from eplb_cli.checkpoint.rank_numbers import choose_numbers
from eplb_cli.checkpoint.sharded import (
    ShardedCheckpoint,
    bind,
    require_ranks,
    with_layers,
    with_layers_beside,
)
from eplb_cli.checkpoint.shards import Shards
from eplb_cli.checkpoint.unnamed import with_unnamed_layers
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.names import is_mtp
from eplb_cli.output.serving import Served
from eplb_cli.output.tree import OutputTree, plan_output
from eplb_cli.placements.findings import check_pair, raise_first
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.check import verify_plan
from eplb_cli.plan.choice import RankScalars, Senders
from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.nodes import Nodes
from eplb_cli.plan.pieces import Pieces, row_pieces
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.values import dataclass

_EMBEDDINGS = ("embed_tokens.weight", "embedding.weight")


def new_places(plan: ReshardPlan, checkpoint: ShardedCheckpoint, output: OutputTree) -> Places:
    """The places of the output; other tensors in the order of `output.others`."""
    rank = np.array([copy.dst_rank for copy in output.others], np.int64)
    where = [(copy.dst_file, copy.dst_offset, copy.source.entry.nbytes) for copy in output.others]
    return places_of(
        output.extents,
        checkpoint.row_nbytes,
        plan.new.rank_of_slot,
        rank,
        np.array(where, np.int64).reshape(-1, 3),
    )


def cut_pieces(plan: ReshardPlan, checkpoint: ShardedCheckpoint, output: OutputTree) -> Pieces:
    """Cut a plan into pieces: every move times every expert tensor of its layer, then the others."""
    rows = row_pieces(plan, checkpoint.row_nbytes)
    num_cells, num_rows = checkpoint.row_nbytes.size, len(rows.cell)
    numbers = other_numbers(checkpoint.others)
    source = np.array([numbers[copy.src_rank, copy.key] for copy in output.others], np.int64)
    ordered = np.argsort(source, kind="stable")
    cells, cell = np.unique(source[ordered], return_inverse=True)
    src_rank = np.array([copy.src_rank for copy in output.others], np.int64)[ordered]
    dst_rank = np.array([copy.dst_rank for copy in output.others], np.int64)[ordered]
    nbytes = np.array([copy.source.entry.nbytes for copy in output.others], np.int64)[ordered]
    cell_nbytes = np.zeros(len(cells), np.int64)
    cell_nbytes[cell] = nbytes
    num_old = num_cells * plan.old.num_slots
    num_new = num_cells * plan.new.num_slots
    return Pieces(
        np.r_[rows.cell, num_cells + cell],
        np.r_[rows.source, num_old + source[ordered]],
        np.r_[rows.destination, num_new + ordered],
        np.r_[rows.src_rank, src_rank],
        np.r_[rows.dst_rank, dst_rank],
        np.r_[rows.leader, num_rows + np.arange(len(ordered))],
        np.r_[rows.cell_nbytes, cell_nbytes],
        np.r_[rows.move, np.full(len(ordered), -1)],
    )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checkpoint, the plan for it, and the tree that comes of it.

    Attributes:
        hosts: who hosts which rank; None for one worker.
    """

    checkpoint: ShardedCheckpoint
    plan: ReshardPlan
    output: OutputTree
    hosts: Hosting | None = None

    @cached_property
    def hosting(self) -> Hosting:
        """Who hosts which rank."""
        return self.hosts or Hosting.one_host(self.plan.old.num_ranks, self.plan.new.num_ranks)

    def is_on(self, node: int) -> NDArray[np.bool_]:
        """(F',) the files of the output that a host writes."""
        ranks = np.array([file.rank for file in self.output.files], np.int64)
        return np.asarray(self.hosting.node_of_new[ranks] == node)

    @cached_property
    def pieces(self) -> Pieces:
        """The byte ranges of the plan."""
        return cut_pieces(self.plan, self.checkpoint, self.output)

    @property
    def old_places(self) -> Places:
        """Where everything lies in SRC."""
        return self.checkpoint.places

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
        for key, rank in sorted(self.checkpoint.chosen_rank.items()):
            sha.update(f"{key} {rank}\n".encode())
        return sha.hexdigest()

    @property
    def decisions(self) -> Mapping[str, object]:
        """What had to be decided for the plan, as `eplb.json` holds it."""
        nodes = self.plan.uneven_nodes
        return {**self.checkpoint.decisions, **({} if nodes is None else {"nodes": nodes.to_json()})}

    @cached_property
    def served(self) -> Served:
        """The output as an engine gets it, as far as a manifest and config.json beside SRC say it."""
        shards = self.checkpoint.shards
        config, manifest = shards.config, shards.manifest
        engine = "" if manifest is None else manifest.engine
        return Served(
            self.plan.new,
            shards.layout.name,
            engine,
            "" if config is None else config.model_type,
            None if config is None else config.num_expert_groups,
            bool(engine) or _is_whole(self.checkpoint, config),  # `shard` writes no slices
            _has_mtp(self.checkpoint, config),
            bool(self.checkpoint.maps),
        )

    def place_name(self, place: int) -> str:
        """A new place in words: file, layer, slot and tensor."""
        new, checkpoint = self.plan.new, self.checkpoint
        num_rows = checkpoint.row_nbytes.size * new.num_slots
        if place >= num_rows:
            copy = self.output.others[place - num_rows]
            return f"{self.output.files[copy.dst_file].name}: {copy.key!r}"
        cell, slot = divmod(place, new.num_slots)
        layer, tensor = divmod(cell, checkpoint.row_nbytes.shape[1])
        file = self.output.files[int(self.new_places.file[place])].name
        return (
            f"{file}: layer {new.layer_number(layer)}, slot {slot} (rank {new.rank_of_slot[slot]}, "
            f"row {new.row_of_slot[slot]}) of {checkpoint.expert_tensors[tensor].template!r}"
        )


def _is_whole(checkpoint: ShardedCheckpoint, config: ModelConfig | None) -> bool | None:
    """Whether a rank has the embedding of every token, and so no slices; None where nothing says.

    Engines pad the vocabulary a little, and tensor parallelism cuts it in two at the least.
    """
    if checkpoint.shards.num_ranks == 1 and checkpoint.others:
        return True
    size = None if config is None else config.vocab_size
    shapes = [at.entry.shape for key, at in checkpoint.others[0].items() if key.endswith(_EMBEDDINGS)]
    return shapes[0][0] >= size if shapes and shapes[0] and size is not None else None


def _has_mtp(checkpoint: ShardedCheckpoint, config: ModelConfig | None) -> bool:
    """Whether there are tensors of MTP: of a module of its own, or of layers behind the hidden ones."""
    placement = checkpoint.placement
    hidden = None if config is None else config.num_hidden_layers
    last = max(map(placement.layer_number, range(placement.num_layers)))
    return (hidden is not None and last >= hidden) or any(map(is_mtp, checkpoint.others[0]))


def bind_and_plan(
    shards: Shards,
    old: Placement,
    new: Placement,
    senders: Senders,
    ranks_per_node: int | None,
    rank_scalars: RankScalars | None = None,
    nodes: Nodes | None = None,
) -> tuple[ShardedCheckpoint, ReshardPlan]:
    """Lay OLD over the shards, and plan the way to NEW; of the data only numbers of ranks are read.

    Args:
        rank_scalars: what to do with numbers that ranks computed from their own experts; None to refuse
            them where they would stay behind.
        nodes: the node of each rank, where `ranks_per_node` does not say it.

    Raises:
        PlacementError, CheckpointError, PlanError: the inputs cannot be used, separately or together.
    """
    require_ranks(shards, old)
    old = with_layers(old, shards)
    new = with_layers_beside(new, old, shards)
    old, new, added = with_unnamed_layers(shards, old, new)
    checkpoint = bind(shards, old)
    require_as_inside(shards, old)
    raise_first(check_pair(old, new))
    plan = plan_reshard(
        old,
        new,
        senders,
        expert_nbytes=checkpoint.expert_nbytes,
        ranks_per_node=ranks_per_node,
        nodes=nodes,
    )
    verify_plan(plan)
    chosen = choose_numbers(checkpoint, _changing_layers(plan), rank_scalars)
    decisions = {
        **({"layers_in_order": sorted(added)} if added else {}),
        **({"rank_scalars": rank_scalars, "numbers_of_rank": dict(chosen)} if chosen else {}),
    }
    largest = [f"every rank gets the largest {key!r}{_and_more(chosen)}" for key in list(chosen)[:1]]
    odd = (*checkpoint.odd, *added.values(), *largest)
    return replace(checkpoint, chosen_rank=chosen, decisions=decisions, odd=odd), plan


def _and_more(keys: Collection[str]) -> str:
    return f", and {len(keys) - 1:,} more such numbers" if len(keys) > 1 else ""


def _changing_layers(plan: ReshardPlan) -> frozenset[int]:
    """The model's own numbers of the layers of which an expert comes to another rank; all if R changes."""
    if plan.old.num_ranks != plan.new.num_ranks:
        return frozenset(map(plan.new.layer_number, range(plan.new.num_layers)))
    layers = distinct(plan.moves.layer[plan.src_rank != plan.dst_rank])
    return frozenset(plan.new.layer_number(int(layer)) for layer in layers)


def prepare(  # noqa: PLR0913, PLR0917 - what few callers have comes last
    shards: Shards,
    old: Placement,
    new: Placement,
    senders: Senders,
    ranks_per_node: int | None,
    shared: frozenset[str] = frozenset(),
    rank_scalars: RankScalars | None = None,
    nodes: Nodes | None = None,
    hosts: Hosting | None = None,
) -> Prepared:
    """Plan a reshard down to the last byte; of the data only numbers of ranks are read.

    Args:
        shared: other tensors that are known to be alike on all ranks.
        rank_scalars, nodes: as for `bind_and_plan`.
        hosts: who hosts which rank; None for one worker.

    Raises:
        PlacementError, CheckpointError, PlanError: the inputs cannot be used, separately or together.
    """
    checkpoint, plan = bind_and_plan(shards, old, new, senders, ranks_per_node, rank_scalars, nodes)
    return Prepared(checkpoint, plan, plan_output(checkpoint, plan.new, shared, hosts), hosts)
