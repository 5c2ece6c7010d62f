"""The job file that the launcher writes and every worker reads, and the outcome each worker writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.checkpoint import open_shards
from eplb_cli.layout import layout_from_json
from eplb_cli.meter import Activity
from eplb_cli.placement_file import placement_from_json
from eplb_cli.plan import Senders
from eplb_cli.prepare import Prepared, prepare
from eplb_cli.shards import WORK
from eplb_cli.transfer import TransferOptions

JOB = "job.json"


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; placements and layout in their JSON forms."""

    source: str
    staging: str
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    layout: Mapping[str, Any]
    senders: Senders
    ranks_per_node: int | None
    shared: list[str]
    backend: str
    digest: str
    transfer: TransferOptions
    launcher_pid: int

    @property
    def work(self) -> Path:
        """The directory of the run's own files."""
        return Path(self.staging) / WORK

    def prepare(self) -> Prepared:
        """Derive plan and output anew. Raises what `prepare.prepare` raises."""
        shards = open_shards(Path(self.source), layout_from_json(self.layout, JOB))
        old = placement_from_json(dict(self.old), "OLD")
        new = placement_from_json(dict(self.new), "NEW")
        return prepare(shards, old, new, self.senders, self.ranks_per_node, frozenset(self.shared))

    def write(self) -> Path:
        """Write the job file."""
        path = self.work / JOB
        path.write_text(json.dumps(asdict(self)))
        return path


def read_job(path: Path) -> Job:
    """Read a job file, which the same version of this program wrote."""
    raw = json.loads(path.read_text())
    return Job(**{**raw, "transfer": TransferOptions(**raw["transfer"])})


@dataclass(frozen=True)
class Outcome:
    """How a worker ended.

    Attributes:
        error: [code, message, hint], None where all went well.
        time_ns: when, so that the first error can be told from its victims.
        is_victim: the error only says that another worker is gone.
        traceback: for `EPLB_DEBUG=1`.
    """

    worker: int
    time_ns: int
    error: tuple[str, str, str] | None = None
    is_victim: bool = False
    traceback: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    activity: Activity | None = None
    wire_nbytes: int = 0
    peak_rss_nbytes: int = 0
    peak_anonymous_nbytes: int = 0

    def write(self, work: Path) -> None:
        """Write the outcome, whole or not at all."""
        path = work / f"outcome-{self.worker}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(path)


def read_outcomes(work: Path, num_workers: int) -> dict[int, Outcome]:
    """The outcomes there are, by worker."""
    found = {}
    for worker in range(num_workers):
        path = work / f"outcome-{worker}.json"
        if path.exists():
            raw = json.loads(path.read_text())
            activity = raw.pop("activity")
            found[worker] = Outcome(**raw, activity=activity and Activity(**activity))
    return found


def progress_counters(
    work: Path, num_workers: int, *, create: bool = False
) -> np.memmap[Any, np.dtype[np.int64]]:
    """Bytes done by each worker, int64 (W,), in a file that all processes map."""
    path = work / "progress"
    if create:
        path.write_bytes(bytes(8 * num_workers))
    return np.memmap(path, np.int64, "r+", shape=(num_workers,))


def digest_path(work: Path, side: str, worker: int) -> Path:
    """Where a worker leaves its digests of the "old" or "new" side for the launcher."""
    return work / f"digests-{side}-{worker}.npy"
