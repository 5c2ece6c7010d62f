"""What `shard`, `merge` and `bake` have made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Written:
    """What was made.

    Attributes:
        output: the directory.
        engine: whose names its tensors have.
        num_ranks: R.
        num_layers: L, the MoE layers that the placement names.
        num_logical_experts: E.
        rows_proved: rows (an expert in a slot, with all its tensors) that were read back and compared.
        nbytes: bytes written; a file under several names counts once.
        seconds: wall-clock time.
        serving: how each engine loads it.
        warnings: what is odd about the placement or the bytes.
        misread: what an engine would load without an error, and wrongly; `warnings` has it too.
        beside: sentences on layers that the placement does not name: those of MTP, and of other modules.
    """

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
    beside: list[str] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)
