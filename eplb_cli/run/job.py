"""The job file that the launcher writes and every worker reads, and the outcome each worker writes."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eplb_cli import __version__, files
from eplb_cli.checkpoint.layout_file import layout_from_json
from eplb_cli.checkpoint.left import open_left
from eplb_cli.checkpoint.manifest import npy_bytes
from eplb_cli.checkpoint.pooled import Pool
from eplb_cli.checkpoint.shards import open_pool
from eplb_cli.checkpoint.staged import WORK
from eplb_cli.errors import WorkerError
from eplb_cli.output.prepared import Prepared, prepare
from eplb_cli.placements.own_format import placement_from_json
from eplb_cli.plan.choice import RankScalars, Senders
from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.nodes import Nodes
from eplb_cli.transfer.meter import STAGES, Activity
from eplb_cli.transfer.traffic import TransferOptions
from eplb_cli.values import dataclass

JOB = "job.json"
POOL = "seen"
"""What several hosts see of SRC together: a worker reads this instead of the headers of all shards."""

STARTING, JOINING, PLANNING, ENDING = -1, -2, -3, -4
STEPS = {
    STARTING: "starting",
    JOINING: "joining the other workers",
    PLANNING: "planning",
    ENDING: "waiting for the other workers to end",
}
"""What a worker is doing before and after it moves bytes."""

WAITS = (JOINING, ENDING, 0)
"""Where others keep a worker."""


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; placements and layout in their JSON forms.

    Attributes:
        nodes: the node of each rank, where `ranks_per_node` does not say it.
        first_worker: the number of this host's first worker. num_local: how many it has.
        own: in staging, the directory of the files of this host's processes.
        endpoint: HOST:PORT where workers of several hosts find each other; None where there is one host.
        run: of these hosts.
    """

    source: str
    staging: str
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    layout: Mapping[str, Any]
    senders: Senders
    ranks_per_node: int | None
    nodes: Nodes | None
    hosting: Hosting
    rank_scalars: RankScalars | None
    shared: list[str]
    backend: str
    digest: str
    transfer: TransferOptions
    progress: str
    first_worker: int = 0
    num_local: int = 1
    own: str = WORK
    endpoint: str | None = None
    run: str = ""
    lost: list[int] = field(default_factory=list)
    missing_from: str | None = None
    tool: str = __version__

    @property
    def work(self) -> Path:
        """The directory of the run's own files."""
        return Path(self.staging) / WORK

    @property
    def desk(self) -> Path:
        """That of this host's processes, through which the command and its workers talk."""
        return Path(self.staging) / self.own

    @property
    def workers(self) -> range:
        """The numbers of this host's workers."""
        return range(self.first_worker, self.first_worker + self.num_local)

    def prepare(self) -> Prepared:
        """Derive plan and output anew.

        Raises:
            WorkerError: EP404, the launcher is another version of eplb.
            EplbError: what `prepare.prepare` raises.
        """
        if self.tool != __version__:
            raise WorkerError("EP404", f"a worker runs eplb {__version__}, and the launcher eplb {self.tool}")
        layout = layout_from_json(self.layout, JOB)
        missing_from = None if self.missing_from is None else Path(self.missing_from)
        if self.endpoint is not None:
            pooled = Pool.from_bytes(files.read_own_file(self.desk / POOL))
            shards = open_pool(pooled, layout)
        else:
            shards = open_left(Path(self.source), layout, self.lost, missing_from)
        old = placement_from_json(dict(self.old), "OLD")
        new = placement_from_json(dict(self.new), "NEW")
        shared = frozenset(self.shared)
        return prepare(
            shards,
            old,
            new,
            self.senders,
            self.ranks_per_node,
            shared,
            self.rank_scalars,
            self.nodes,
            self.hosting,
        )

    def write(self) -> Path:
        """Write the job file."""
        path = self.desk / JOB
        columns = {"hosting": self.hosting.to_json(), "nodes": self.nodes and self.nodes.to_json()}
        files.write_file(path, json.dumps({**asdict(self), **columns}).encode(), durable=False)
        return path


def read_job(path: Path) -> Job:
    """Read a job file, which the same version of this program wrote."""
    raw = json.loads(files.read_own_file(path))
    made = {
        "transfer": TransferOptions(**raw["transfer"]),
        "hosting": Hosting.from_json(raw["hosting"]),
        "nodes": raw["nodes"] and Nodes.from_json(raw["nodes"]),
    }
    return Job(**{**raw, **made})


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
    ended: dict[str, float] = field(default_factory=dict)
    activity: Activity | None = None
    wire_nbytes: int = 0
    peak_rss_nbytes: int = 0
    peak_anonymous_nbytes: int = 0

    def write(self, work: Path) -> None:
        """Write the outcome, whole or not at all."""
        path = work / f"outcome-{self.worker}.json"
        partial = path.with_suffix(".partial")
        files.write_file(partial, json.dumps(asdict(self)).encode(), durable=False)
        with files.writing(path):
            files.attempt("replace", os.replace, partial, path)


def read_outcomes(work: Path, workers: range) -> dict[int, Outcome]:
    """The outcomes there are, by worker."""
    found = {}
    for worker in workers:
        path = work / f"outcome-{worker}.json"
        with files.calls:
            is_there = path.exists()
        if is_there:
            raw = json.loads(files.read_own_file(path))
            activity = raw.pop("activity")
            found[worker] = Outcome(**raw, activity=activity and Activity(**activity))
    return found


@contextlib.contextmanager
def shared_memory(num_workers: int) -> Iterator[str]:
    """Memory for `progress_counters`: a path by which the workers of this process open it.

    It is a file of no file system, so that no disk can keep whoever reads or writes it.
    """
    with files.closing(os.memfd_create("eplb-progress")) as descriptor:
        begin = np.array([[0, STARTING, 0, 0, 0, 0]] * num_workers, np.int64)
        os.pwrite(descriptor, begin.tobytes(), 0)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"


def progress_counters(path: str) -> NDArray[np.int64]:
    """How far each worker is, int64 (W, 6), in memory that all processes share.

    Columns are the bytes done; what it is doing, a number of `STEPS` or while it moves bytes the mask of a
    `Meter`; its calls to the file system that were begun, and that have come back; `ASKED`, that it is to
    end, and `KEEPS`, that it has done what only it can tell its journal.
    """
    with files.closing(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as descriptor:
        return np.frombuffer(mmap.mmap(descriptor, 0), np.int64).reshape(-1, NUM_COUNTERS)


def doing_in_words(doing: int) -> str:
    """What a worker is doing."""
    if doing < 0:
        return STEPS[doing]
    names = [name for bit, name in enumerate(STAGES) if doing >> bit & 1]
    verbs = {"read": "reading files", "digest": "hashing rows", "write": "writing files"}
    return " and ".join(verbs[name] for name in names) or "waiting for the other workers"


ASKED, KEEPS, NUM_COUNTERS = 4, 5, 6
"""Columns of `progress_counters` through which the end of a run is settled, and how many there are."""

Side = Literal["old", "new"]


def leave_digests(work: Path, side: Side, process: int | str, digests: NDArray[np.uint8]) -> None:
    """Leave the digests of one side that a worker, or the launcher, has taken, for the other."""
    files.write_file(_digest_path(work, side, process), npy_bytes(digests), durable=False)


def take_digests(work: Path, side: Side, process: int | str) -> NDArray[np.uint8]:
    """The digests (X, 16) that a worker, or the launcher, has left."""
    content = files.read_own_file(_digest_path(work, side, process))
    return np.asarray(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False), np.uint8)


def _digest_path(work: Path, side: Side, process: int | str) -> Path:
    return work / f"digests-{side}-{process}.npy"
