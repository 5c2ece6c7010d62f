"""What `shard`, `merge` and `bake` have made."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path

from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Written:
    """What was made.

    Attributes:
        output: the directory.
        engine: whose names its tensors have.
        num_ranks: R.
        num_layers: L, the MoE layers that the placement names.
        num_logical_experts: E.
        rows_proved: rows (an expert in a slot, with all its tensors) that were read back and compared; None
            where nothing was made, because only a dry run was wanted.
        nbytes: bytes written; a file under several names counts once.
        seconds: wall-clock time.
        serving: how each engine loads it.
        warnings: what is odd about the placement or the bytes.
        misread: what an engine would load without an error, and wrongly; `warnings` has it too.
        beside: sentences on layers that the placement does not name: those of MTP, and of other modules.
        notes: what a run that went on has taken over.
    """

    output: Path
    engine: str
    num_ranks: int
    num_layers: int
    num_logical_experts: int
    rows_proved: int | None
    nbytes: int
    seconds: float
    serving: list[str]
    warnings: list[str]
    beside: list[str] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def proved(self, rows: int, warnings: list[str], notes: list[str]) -> Written:
        """The same, now that it is there, with what its proof and the run had to say."""
        return replace(self, rows_proved=rows, warnings=[*self.warnings, *warnings], notes=notes)
