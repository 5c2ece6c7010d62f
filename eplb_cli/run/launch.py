"""From a job file to the outcomes of all workers, through torchrun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.staged import OWNER
from eplb_cli.errors import EplbError, WorkerError, error_of
from eplb_cli.hosts.addresses import interfaces_towards, read_endpoint
from eplb_cli.hosts.board import Board
from eplb_cli.hosts.hosts import Hosts
from eplb_cli.hosts.watch import lost_after
from eplb_cli.hosts.words import to_words
from eplb_cli.machine import find_process
from eplb_cli.output.lock import inheritable
from eplb_cli.progress import before_bytes
from eplb_cli.run.crew import ONE_HOST, Crew, Present, job_key
from eplb_cli.run.job import (
    ASKED,
    KEEPS,
    WAITS,
    Job,
    Outcome,
    doing_in_words,
    progress_counters,
    read_outcomes,
)
from eplb_cli.run.torchrun import read_ends

POLL_S = 0.05
CAUSE_S = 10.0
"""How long a host may take to say what keeps its workers, or why they went, where it is not lost."""

GRACE_S = 2.0
"""How long the other workers may take to write their outcomes after the first has failed."""

_PROGRESS = (0, 3)
"""Columns of `progress_counters` that show that a worker goes on."""
_MAX_QUOTED = 1000
_MAX_TOLD = 4
"""Workers, and ranks of one, that a message lists."""
_ENDED_HINT = "something outside of eplb ended it: a scheduler, a limit on memory, a person?"


class Started(Protocol):
    """The workers of this host, however they were started."""

    def is_running(self, there: Collection[int]) -> bool:
        """Whether they may still do their work, but for those whose outcomes are there."""

    def end(self) -> int | None:
        """End them; the exit code of what started them, negative for a signal, if it ended by itself."""

    def ends(self) -> dict[int, int | None]:
        """Worker to exit code of those that ended without an outcome, the first that was seen first."""


def launch(
    job: Job, timeout_s: float, show: Callable[[int], None], crew: Crew = ONE_HOST
) -> dict[int, Outcome]:
    """Run the job's workers of this host until all of them are done.

    Args:
        timeout_s: seconds without any progress of any worker after which the run is ended.
        show: called with the bytes done by all workers together.
        crew: the hosts, and workers that are there already; torchrun starts them where none are.

    Raises:
        EplbError: the root cause, a worker's own error, that of another host, or EP402, EP403, EP404.
    """
    if find_process("self") is None:  # workers could not tell whether this process has ended
        problem = "the workers could not be started: /proc says nothing of this process"
        raise WorkerError("EP404", problem, "mount /proc, or use --backend file")
    counters = progress_counters(job.progress)
    path = job.write()
    started = _started(job, path, crew)
    before_bytes.set("starting workers")
    try:
        _watch(job, started, counters, timeout_s, show, crew.hosts)
    except Exception:
        raise
    except BaseException:  # an interruption: what is done is to be kept
        _ask_to_end(counters)
        raise
    finally:
        before_bytes.set("")
        code = started.end()
    outcomes = read_outcomes(job.desk, job.workers)
    if len(outcomes) == job.num_local and all(outcome.error is None for outcome in outcomes.values()):
        return outcomes
    error = _root_cause(job, outcomes, code, started.ends())
    if not any(map(_has_own_error, outcomes.values())) and any(end.is_victim for end in outcomes.values()):
        _wait_for_cause(crew.hosts, timeout_s)
    raise error


def _wait_for_cause(hosts: Hosts, timeout_s: float) -> None:
    """Raise what another host says it was, or that it is lost, if that is known within a while.

    Here workers only saw others go, or wait for them.
    """
    give_up = time.monotonic() + lost_after(timeout_s) + CAUSE_S
    while hosts.count > 1 and time.monotonic() < give_up:
        hosts.check()
        time.sleep(POLL_S)


def _started(job: Job, path: Path, crew: Crew) -> Started:
    """Start the workers of this host, or tell those that are there what their job is."""
    if crew.present is not None and crew.board is not None:
        return PresentWorkers(job, path, crew.present, crew.board)
    return TorchrunJob(job, path)


class TorchrunJob:
    """Workers that torchrun has started, each of which dies with it."""

    def __init__(self, job: Job, path: Path) -> None:
        self._job = job
        with (job.desk / "torchrun.log").open("wb") as log, inheritable(job.desk / OWNER) as owner:
            self._process = subprocess.Popen(
                _command(job, path),
                stdin=owner,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(job),
                process_group=0,
            )

    def is_running(self, there: Collection[int]) -> bool:
        """As `Started.is_running`."""
        del there
        return self._process.poll() is None

    def end(self) -> int | None:
        """Let torchrun end by itself for a moment, then kill it.

        None of its workers is waited for longer than a moment: what hangs in the kernel dies when its disk
        answers.
        """
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=POLL_S * 10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE_S)
        return code

    def ends(self) -> dict[int, int | None]:
        """As `Started.ends`; torchrun numbers the workers of its host."""
        first = self._job.first_worker
        return {first + number: code for number, code in read_ends(self._job.desk).items()}


class PresentWorkers:
    """Workers that another launcher has started: they end with their work, or with this process."""

    def __init__(self, job: Job, path: Path, present: Present, board: Board) -> None:
        self._job, self._processes = job, present.processes
        self._had_gone: list[int] = []
        self._counters = progress_counters(job.progress)
        board.set(job_key(present.node), to_words({"job": str(path), "run": job.run}))

    def _gone(self) -> list[int]:
        return [
            worker
            for worker, (pid, start) in zip(self._job.workers, self._processes, strict=True)
            if (found := find_process(pid)) is None or found.start != start
        ]

    def is_running(self, there: Collection[int]) -> bool:
        """As `Started.is_running`."""
        return {*self._gone()} <= {*there}

    def end(self) -> int | None:
        """Tell them to end; their launcher sees how they do."""
        self._had_gone = self._gone()
        self._counters[:, ASKED] = 1
        give_up = time.monotonic() + GRACE_S
        while len(self._gone()) < self._job.num_local and time.monotonic() < give_up:
            time.sleep(POLL_S)
        return None

    def ends(self) -> dict[int, int | None]:
        """As `Started.ends`: those that had gone before they were told to."""
        return dict.fromkeys(self._had_gone)


def _command(job: Job, path: Path) -> list[str]:
    return [
        sys.executable,
        "-P",
        "-m",
        "eplb_cli.run.torchrun",
        f"--nproc-per-node={job.num_local}",
        "--nnodes=1",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        "--local-addr=127.0.0.1",
        "-m",
        "eplb_cli.run.worker",
        str(path),
    ]


def _environment(job: Job) -> dict[str, str]:
    """Of this process, where no name is looked up in whatever directory somebody happens to stand in.

    Workers listen on loopback; where there are several hosts, on what leads to the address that was given.
    """
    endpoint = None if job.endpoint is None else read_endpoint(job.endpoint)
    root = str(Path(__file__).parents[2])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([root, *filter(os.path.isabs, given)])
    defaults = {
        "OMP_NUM_THREADS": "1",
        **interfaces_towards(endpoint, os.environ),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return {**defaults, **os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _watch(
    job: Job,
    started: Started,
    counters: NDArray[np.int64],
    timeout_s: float,
    show: Callable[[int], None],
    hosts: Hosts,
) -> None:
    """Return when the workers have ended, or all of them are done, or one has failed; raise EP403.

    Progress is bytes that are done, or calls to the file system that have come back, on any host.
    Where workers have only seen another one go, torchrun ends soon, and it knows how that one ended.
    """
    seen = counters.copy()
    moved_at = time.monotonic()
    failed_at = None
    outcomes: dict[int, Outcome] = {}
    while started.is_running(outcomes):
        time.sleep(POLL_S)
        hosts.check()
        now = counters.copy()
        if (now[:, _PROGRESS] != seen[:, _PROGRESS]).any():
            moved_at = time.monotonic()
            hosts.tell_progress(int(now[:, _PROGRESS].sum()))
        elif hosts.moved_at() > moved_at:
            moved_at = hosts.moved_at()
        elif time.monotonic() - moved_at > timeout_s:
            if np.isin(now[:, 1], WAITS).all():
                _wait_for_cause(hosts, timeout_s)
            raise _stands_still(job, now, timeout_s)
        seen = now
        show(int(seen[:, 0].sum()))
        outcomes = read_outcomes(job.desk, job.workers)
        own = any(map(_has_own_error, outcomes.values()))
        if len(outcomes) == len(seen) and (own or not any(end.is_victim for end in outcomes.values())):
            return
        if failed_at is None and own:
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            return


def _ask_to_end(counters: NDArray[np.int64]) -> None:
    """Let the workers tell their journals what they have done, which takes them a moment; then they end."""
    counters[:, ASKED] = 1
    give_up = time.monotonic() + GRACE_S
    while counters[:, KEEPS].any() and time.monotonic() < give_up:
        time.sleep(POLL_S)


def _stands_still(job: Job, counters: NDArray[np.int64], timeout_s: float) -> WorkerError:
    """EP403; workers that have ended well only wait, and no disk is asked which these are."""
    return WorkerError("EP403", f"no progress for {timeout_s:g} s: {_standing(job, counters)}")


def _has_own_error(outcome: Outcome) -> bool:
    return outcome.error is not None and not outcome.is_victim


def _root_cause(
    job: Job,
    outcomes: Mapping[int, Outcome],
    torchrun_code: int | None,
    ends: Mapping[int, int | None],
) -> EplbError:
    """The earliest error that is not just the echo of another end, or what died without a word.

    Args:
        ends: as `Started.ends`.
    """
    failed = sorted(
        (outcome for outcome in outcomes.values() if outcome.error), key=lambda outcome: outcome.time_ns
    )
    own = list(filter(_has_own_error, failed))
    if own and own[0].error:
        if os.environ.get("EPLB_DEBUG") == "1":
            sys.stderr.write(own[0].traceback)
        return error_of(*own[0].error)
    if torchrun_code is not None and torchrun_code < 0:
        name = signal.Signals(-torchrun_code).name
        return WorkerError("EP404", f"torchrun was ended by {name}", _ENDED_HINT)
    codes = {worker: code for worker, code in ends.items() if worker not in outcomes}
    if codes:
        # SIGTERM is what torchrun ends all others with.
        worker = min(codes, key=lambda worker: codes[worker] == -signal.SIGTERM)
        return _died(job, worker, codes[worker])
    if failed and failed[0].error:
        return error_of(*failed[0].error)
    return _not_started((job.desk / "torchrun.log").read_text(errors="replace"))


def _not_started(log: str) -> WorkerError:
    """EP404 with the last that torchrun said, which is what a traceback ends with."""
    if os.environ.get("EPLB_DEBUG") == "1":
        sys.stderr.write(log)
    last = log.strip().rpartition("\n")[2][:_MAX_QUOTED]
    return WorkerError("EP404", f"the workers could not be started: {last or 'torchrun said nothing'}")


def _standing(job: Job, counters: NDArray[np.int64]) -> str:
    """What workers that stand still are doing; of many that do the same, the first few."""
    by_step: dict[str, list[int]] = {}
    for worker, doing in zip(job.workers, counters[:, 1].tolist(), strict=True):
        by_step.setdefault(doing_in_words(doing), []).append(worker)
    told = []
    for step, same in by_step.items():
        names = [f"worker {worker} ({ranks_of(job, worker)})" for worker in same[:_MAX_TOLD]]
        more = [f"{len(same) - _MAX_TOLD} more"] if len(same) > _MAX_TOLD else []
        told.append(f"{', '.join([*names, *more])}: {step}")
    return "; ".join(told)


def ranks_of(job: Job, worker: int) -> str:
    """The ranks of a worker, old or new, in words."""
    sides = (job.hosting.of_old, job.hosting.of_new)
    ranks = [
        str(rank)
        for rank in sorted({rank for side in sides for rank in np.flatnonzero(side == worker).tolist()})
    ]
    more = ["..."] if len(ranks) > _MAX_TOLD else []
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {', '.join(ranks[:_MAX_TOLD] + more)}"


def _died(job: Job, worker: int, code: int | None) -> WorkerError:
    how = "without a word"
    if code is not None:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return WorkerError("EP402", f"worker {worker} ({ranks_of(job, worker)}) ended {how}")
