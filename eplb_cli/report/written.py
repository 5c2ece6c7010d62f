"""What `shard`, `merge` and `bake` have made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Written:
    """What was made: rows are experts in slots, `nbytes` what was written."""

    output: Path
    engine: str
    num_ranks: int
    num_layers: int
    num_logical_experts: int
    rows_proved: int
    nbytes: int
    seconds: float
    serving: list[str]
    warnings: list[str]
