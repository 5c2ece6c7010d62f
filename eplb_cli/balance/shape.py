"""What a placement is made for: experts, slots, ranks, nodes and groups."""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.errors import UsageError
from eplb_cli.placements.placement import MAX_RANKS, Placement
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Shape:
    """What a placement is made for; every rank gets as many slots.

    Attributes:
        num_experts: E.
        num_redundant_experts: N, so that there are P = E + N slots.
        num_ranks: R.
        ranks_per_node: G, None for one node.
        num_groups: of experts, each of as many consecutive ones, that the router chooses first; 1 for none.
    """

    num_experts: int
    num_redundant_experts: int
    num_ranks: int
    ranks_per_node: int | None = None
    num_groups: int = 1

    def __post_init__(self) -> None:
        """Refuse what no placement has. Raises EP001."""
        for option, count, most in (
            ("--num-ranks", self.num_ranks, MAX_RANKS),
            ("--ranks-per-node", 1 if self.ranks_per_node is None else self.ranks_per_node, MAX_RANKS),
            ("--num-groups", self.num_groups, self.num_experts),
        ):
            if not 1 <= count <= most:
                raise UsageError("EP001", f"{option} is {count:,}, not from 1 to {most:,}", "choose another")
        if self.num_experts % self.num_groups:
            problem = f"{self.num_experts:,} experts are not {self.num_groups:,} groups of as many each"
            raise UsageError("EP001", problem, "--num-groups has to divide them")
        self._require_even()

    def _require_even(self) -> None:
        """EP001 unless slots divide over ranks, with numbers of redundant experts that would do."""
        below = self.num_slots // self.num_ranks * self.num_ranks - self.num_experts
        if self.num_redundant_experts >= 0 and self.num_slots % self.num_ranks == 0:
            return
        good = [number for number in (below, below + self.num_ranks) if number >= 0]
        raise UsageError(
            "EP001",
            f"{self.num_experts:,} experts and {self.num_redundant_experts:,} redundant ones do not divide "
            f"over {self.num_ranks:,} ranks",
            f"--num-redundant-experts {' or '.join(map(str, good))} would do",
        )

    @property
    def num_slots(self) -> int:
        """P."""
        return self.num_experts + self.num_redundant_experts

    @property
    def num_nodes(self) -> int:
        """Nodes of G ranks; the last may have fewer."""
        return 1 if self.ranks_per_node is None else -(-self.num_ranks // self.ranks_per_node)

    @property
    def keeps_groups(self) -> bool:
        """Whether groups are kept on nodes: where as many fit on each."""
        nodes = self.num_nodes
        return nodes > 1 and self.num_groups % nodes == 0 and self.num_ranks % nodes == 0

    @property
    def room(self) -> int:
        """S, slots of a rank."""
        return self.num_slots // self.num_ranks

    @property
    def is_crowded(self) -> bool:
        """Whether a rank has as many slots as there are experts for it, or more: then all bear the same."""
        return self.room >= self.num_experts // (self.num_nodes if self.keeps_groups else 1)

    @property
    def node_of_rank(self) -> Int | None:
        """(R,) of each rank, where experts are not to come to other nodes: where groups are kept."""
        if self.ranks_per_node is None or not self.keeps_groups:
            return None
        return np.arange(self.num_ranks) // self.ranks_per_node


def placement_of(experts: Int, num_experts: int, layer_ids: Int | None) -> Placement:
    """The placement with (L, R, S) experts in the slots of its ranks."""
    num_layers, num_ranks, room = experts.shape
    first_slot = np.arange(num_ranks + 1) * room
    return Placement(experts.reshape(num_layers, -1), first_slot, num_experts, layer_ids)
