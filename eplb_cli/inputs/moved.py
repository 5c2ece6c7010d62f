"""How much would move from OLD to each file, held to a limit: `validate --max-moved-bytes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.errors import UsageError
from eplb_cli.placements.draft import Draft
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.moves import REMOTE
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.progress import bytes_in_words
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards


@dataclass(frozen=True, eq=False)
class Moving:
    """A limit on `remote_bytes`, as `plan` counts them, and what they are counted by.

    Attributes:
        limit: bytes.
        expert_nbytes: of one expert in every layer; None where the shards say it.
        shards: under OLD.
    """

    limit: int
    expert_nbytes: int | None
    shards: Shards | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that nothing can be compared with. Raises EP001."""
        if self.expert_nbytes is None and self.shards is None:
            hint = "add --checkpoint, --model or --expert-bytes"
            raise UsageError("EP001", "--max-moved-bytes needs the size of an expert", hint)

    def of_file(self, draft: Draft, old: Placement) -> list[Finding]:
        """EP127 where a file without errors is too far from OLD. Raises CheckpointError."""
        if draft.placement is None:
            return []
        plan = plan_reshard(old, draft.placement, "vllm")  # who sends makes no difference
        rows = np.bincount(plan.moves.layer[plan.moves.kind == REMOTE], minlength=old.num_layers)
        nbytes = int((rows * self._sizes(old)).sum())
        if nbytes <= self.limit:
            return []
        moved, limit = (f"{bytes_in_words(number)} ({number:,} bytes)" for number in (nbytes, self.limit))
        message = f"{moved} would go from rank to rank, and --max-moved-bytes is {limit}"
        layer = draft.placement.layer_number(int(rows.argmax()))
        rest = f"; most in layer {layer}, {int(rows.max()):,} experts"
        return draft.origin.locate([Finding("EP127", "error", message + rest, layer=layer)], draft.placement)

    def _sizes(self, old: Placement) -> Int:
        """(L,) bytes of an expert in each layer of OLD."""
        if self.shards is None:
            return np.full(old.num_layers, self.expert_nbytes, np.int64)
        from eplb_cli.checkpoint.sharded import bind

        bound = bind(self.shards, old)
        named = {old.layer_number(row) for row in range(old.num_layers)}
        numbers = map(bound.placement.layer_number, range(bound.placement.num_layers))
        return bound.expert_nbytes[[number in named for number in numbers]]
