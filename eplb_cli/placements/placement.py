"""A placement: which logical expert each slot holds, layer by layer."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eplb_cli.values import dataclass

EMPTY = -1
"""The id in a slot that holds no expert."""

MAX_ENTRIES = 1 << 22
"""L × P of no placement: 61 layers could have 68,000 slots each."""

MAX_RANKS = 1_000_000
"""R of no placement; ranks may have no slot, so that P does not bound them."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Which expert each slot holds.

    Attributes:
        physical_to_logical: (L, P) int64, the expert in each slot, `EMPTY` where there is none.
        first_slot: (R + 1,) int64, the first slot of each rank; the last entry is P.
        num_logical_experts: E.
        layer_ids: (L,) int64, the model's own layer numbers, or None where nothing says them yet.
    """

    physical_to_logical: NDArray[np.int64]
    first_slot: NDArray[np.int64]
    num_logical_experts: int
    layer_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for array in (self.physical_to_logical, self.first_slot, self.layer_ids):
            if array is not None:
                array.setflags(write=False)

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.physical_to_logical.shape[0])

    @property
    def num_slots(self) -> int:
        """P."""
        return int(self.physical_to_logical.shape[1])

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.first_slot) - 1

    @property
    def slots_per_rank(self) -> NDArray[np.int64]:
        """(R,) S of each rank."""
        return np.diff(self.first_slot)

    @cached_property
    def rank_of_slot(self) -> NDArray[np.int64]:
        """(P,) the rank that owns each slot."""
        return np.repeat(np.arange(self.num_ranks), self.slots_per_rank)

    @cached_property
    def row_of_slot(self) -> NDArray[np.int64]:
        """(P,) the slot's index inside its rank's tensors."""
        return np.arange(self.num_slots) - self.first_slot[self.rank_of_slot]

    @cached_property
    def num_replicas(self) -> NDArray[np.int64]:
        """(L, E) slots that hold each expert."""
        layer, slot = np.nonzero(self.physical_to_logical != EMPTY)
        key = layer * self.num_logical_experts + self.physical_to_logical[layer, slot]
        size = self.num_layers * self.num_logical_experts
        return np.bincount(key, minlength=size).reshape(self.num_layers, -1)

    def layer_number(self, layer: int) -> int:
        """The model's own number of MoE layer `layer`, or `layer` itself where nothing says it."""
        return layer if self.layer_ids is None else int(self.layer_ids[layer])

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of all that the placement says."""
        import hashlib

        layers = [] if self.layer_ids is None else self.layer_ids.tolist()
        head = f"{self.num_logical_experts} {self.first_slot.tolist()} {layers} "
        table = np.ascontiguousarray(self.physical_to_logical, dtype="<i8").tobytes()
        return hashlib.sha256(head.encode() + table).hexdigest()
