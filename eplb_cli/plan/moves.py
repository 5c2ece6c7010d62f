"""The table of moves, and the plan it belongs to."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.nodes import Nodes
from eplb_cli.values import dataclass

UNCHANGED, LOCAL, REMOTE, DUPLICATE = range(4)
"""Kinds of moves: same rank and row; same rank, another row; another rank; a further copy of what a
REMOTE of the same layer, rank and expert brought."""


@dataclass(frozen=True, eq=False)
class MoveTable:
    """One entry per filled slot of NEW, as columns of shape (N,).

    Sorted by (layer, src_rank, dst_rank, expert, dst_slot). For every entry
    `old[layer, src_slot] == expert == new[layer, dst_slot]`.

    Attributes:
        layer: (N,) int64, an index into the placements.
        expert: (N,) int64, the expert that the slot of NEW holds.
        src_slot: (N,) int64, the slot of OLD that it comes from.
        dst_slot: (N,) int64, the slot of NEW.
        kind: (N,) uint8: 0 unchanged, the same rank and row; 1 local, another row of the same rank; 2 remote,
            from another rank; 3 duplicate, a further copy of what a remote of the same layer, rank and expert
            brings.
    """

    layer: NDArray[np.int64]
    expert: NDArray[np.int64]
    src_slot: NDArray[np.int64]
    dst_slot: NDArray[np.int64]
    kind: NDArray[np.uint8]

    def __post_init__(self) -> None:
        for column in self.columns:
            column.setflags(write=False)

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def columns(self) -> tuple[NDArray[np.integer], ...]:
        """The five columns, in the order of the fields."""
        return self.layer, self.expert, self.src_slot, self.dst_slot, self.kind


@dataclass(frozen=True, eq=False)
class ReshardPlan:
    """Two placements, the table of moves between them, and the options that shaped it.

    Attributes:
        old: OLD.
        new: NEW.
        moves: where each filled slot of NEW comes from.
        senders: "balanced" or "vllm".
        ranks_per_node: G, None where there is one node, or where nodes are no blocks of G ranks.
        expert_nbytes: (L,) bytes of one expert in each layer, None where unknown.
        busiest_bound: bytes, or rows without sizes, that the busiest sender sends at the very least; known of
            "balanced" only.
        nodes: the node of each rank, before and after; None where there is one node.
    """

    old: Placement
    new: Placement
    moves: MoveTable
    senders: Senders
    ranks_per_node: int | None = None
    expert_nbytes: NDArray[np.int64] | None = None
    busiest_bound: int | None = None
    nodes: Nodes | None = None

    @property
    def num_ranks(self) -> int:
        """max(R, R'): old rank r and new rank r are one place."""
        return max(self.old.num_ranks, self.new.num_ranks)

    @property
    def changes_nothing(self) -> bool:
        """Whether OLD and NEW are the same: ranks, and in each of their rows the same expert, or none."""
        old, new = self.old, self.new
        return np.array_equal(old.first_slot, new.first_slot) and np.array_equal(
            old.physical_to_logical, new.physical_to_logical
        )

    def of_layers(self, layers: slice) -> ReshardPlan:
        """The part of the plan that is about some consecutive layers, numbered from 0."""
        placements = [
            replace(placement, physical_to_logical=placement.physical_to_logical[layers], layer_ids=None)
            for placement in (self.old, self.new)
        ]
        part = slice(*np.searchsorted(self.moves.layer, [layers.start, layers.stop]).tolist())
        moves = MoveTable(
            self.moves.layer[part] - layers.start,
            self.moves.expert[part],
            self.moves.src_slot[part],
            self.moves.dst_slot[part],
            self.moves.kind[part],
        )
        return ReshardPlan(
            placements[0], placements[1], moves, self.senders, self.ranks_per_node, nodes=self.nodes
        )

    @property
    def uneven_nodes(self) -> Nodes | None:
        """The nodes where `ranks_per_node` does not say them."""
        return self.nodes if self.ranks_per_node is None else None

    @cached_property
    def src_rank(self) -> NDArray[np.int64]:
        """(N,) the old rank each move reads from."""
        return self.old.rank_of_slot[self.moves.src_slot]

    @cached_property
    def dst_rank(self) -> NDArray[np.int64]:
        """(N,) the new rank each move writes to."""
        return self.new.rank_of_slot[self.moves.dst_slot]

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of both placements and the table."""
        import hashlib

        sha = hashlib.sha256((self.old.digest + self.new.digest).encode())
        for column in self.moves.columns:
            sha.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        return sha.hexdigest()
