"""What was done for ranks that are lost, as it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eplb_cli.placements.survivors import Survivors
from eplb_cli.report.balance import Balances, balances_json
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Repair:
    """A placement for the ranks that are left.

    Attributes:
        name: of OLD.
        output: where NEW is written.
        lost_ranks: the numbers of the ranks that are lost.
        survivors: what was left of OLD.
        num_slots: P of NEW.
        expert_nbytes: bytes of an expert; None where nothing says them.
        replicated_rows: slots that got one more replica of an expert that was not lost.
        load: OLD and NEW under a load, where there is one.
        warnings: what is odd about OLD.
    """

    name: str
    output: str
    lost_ranks: tuple[int, ...]
    survivors: Survivors
    num_slots: int
    replicated_rows: int = 0
    expert_nbytes: int | None = None
    load: Balances | None = None
    warnings: Sequence[str] = ()

    @property
    def missing_bytes(self) -> int | None:
        """What has to come from the Hugging Face checkpoint."""
        return None if self.expert_nbytes is None else self.expert_nbytes * self.survivors.num_lost

    @property
    def lost_experts(self) -> list[tuple[int, list[int]]]:
        """The layers that lost experts, by the model's own numbers, and which."""
        old = self.survivors.old
        found = enumerate(self.survivors.lost_experts)
        return [(old.layer_number(layer), experts.tolist()) for layer, experts in found if len(experts)]


def repair_json(found: Repair) -> dict[str, Any]:
    """What `balance --repair --format json` shows; "load" is there only where a load is given."""
    left = found.survivors.placement
    result: dict[str, Any] = {
        "format": "eplb-repair/1",
        "output": found.output,
        "num_ranks": left.num_ranks,
        "num_slots": found.num_slots,
        "num_redundant_experts": found.num_slots - left.num_logical_experts,
        "lost_ranks": list(found.lost_ranks),
        "old_ranks": found.survivors.old_rank.tolist(),
        "missing_rows": found.survivors.num_lost,
        "missing_bytes": found.missing_bytes,
        "missing_experts": [{"layer": layer, "experts": experts} for layer, experts in found.lost_experts],
        "replicated_rows": found.replicated_rows,
        "warnings": list(found.warnings),
    }
    return result if found.load is None else {**result, "load": balances_json(found.load)}
