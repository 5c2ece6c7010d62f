"""What a proof of a tree has covered; one that fails is an error and has no such value."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from eplb_cli.values import dataclass

Compared = Literal["plan", "expert", "content"]
"""How a tree was compared with shards: place by place, expert by expert, or as sets of rows."""


@dataclass(frozen=True)
class Verification:
    """What was proved of a tree: all of it, or of some ranks.

    Attributes:
        path: the tree.
        against: what it was made from, or None where its own manifest was the witness.
        rows_proved: all its rows, or all of these ranks; a row is an expert in a slot, with all its tensors.
        others_proved: tensors that are no expert's, counted on every rank that has them.
        num_files: shard files.
        nbytes: their bytes, all of which were read.
        seconds: wall-clock time.
        warnings: experts whose replicas differ, as they did before; or experts with the same bytes.
        compared: how it was compared with shards; None where it was not.
        ranks: the ranks whose files were looked at.
        num_ranks: how many the tree has.
    """

    path: Path
    against: Path | None
    rows_proved: int
    others_proved: int
    num_files: int
    nbytes: int
    seconds: float
    warnings: tuple[str, ...] = ()
    compared: Compared | None = None
    ranks: tuple[int, ...] = ()
    num_ranks: int = 0


def verification_json(verification: Verification) -> dict[str, Any]:
    """A verification as `--format json` shows it."""
    against = verification.against
    return {
        "format": "eplb-verification/1",
        "dst": str(verification.path),
        "against": None if against is None else str(against),
        "ok": True,
        "rows_proved": verification.rows_proved,
        "rows_total": verification.rows_proved,
        "others_proved": verification.others_proved,
        "files": verification.num_files,
        "bytes": verification.nbytes,
        "seconds": verification.seconds,
        "warnings": list(verification.warnings),
        "compared": verification.compared,
        "ranks": list(verification.ranks),
    }
