"""From a job file to the outcomes of all workers, through torchrun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.staged import OWNER
from eplb_cli.errors import EplbError, WorkerError, error_of
from eplb_cli.machine import find_process
from eplb_cli.output.lock import inheritable
from eplb_cli.progress import before_bytes
from eplb_cli.run.job import ASKED, KEEPS, Job, Outcome, doing_in_words, progress_counters, read_outcomes
from eplb_cli.run.torchrun import read_ends

POLL_S = 0.05
GRACE_S = 2.0
"""How long the other workers may take to write their outcomes after the first has failed."""

_PROGRESS = (0, 3)
"""Columns of `progress_counters` that show that a worker goes on."""
_MAX_QUOTED = 1000
_MAX_TOLD = 4
"""Workers, and ranks of one, that a message lists."""
_ENDED_HINT = "something outside of eplb ended it: a scheduler, a limit on memory, a person?"


def launch(job: Job, timeout_s: float, show: Callable[[int], None]) -> dict[int, Outcome]:
    """Run the job's workers under torchrun until all of them are done.

    Args:
        timeout_s: seconds without any progress of any worker after which the run is ended.
        show: called with the bytes done by all workers together.

    Raises:
        EplbError: the root cause, a worker's own error or EP402, EP403, EP404.
    """
    if find_process("self") is None:  # workers could not tell whether this process has ended
        problem = "the workers could not be started: /proc says nothing of this process"
        raise WorkerError("EP404", problem, "mount /proc, or use --backend file")
    counters = progress_counters(job.progress)
    path = job.write()
    with (job.work / "torchrun.log").open("wb") as log, inheritable(job.work / OWNER) as owner:
        process = subprocess.Popen(
            _command(job, path),
            stdin=owner,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
            process_group=0,
        )
    before_bytes.set("starting workers")
    try:
        _watch(job, process, counters, timeout_s, show)
    except Exception:
        raise
    except BaseException:  # an interruption: what is done is to be kept
        _ask_to_end(counters)
        raise
    finally:
        before_bytes.set("")
        code = _end(process)
    outcomes = read_outcomes(job.work, job.transfer.num_workers)
    if len(outcomes) == job.transfer.num_workers and all(
        outcome.error is None for outcome in outcomes.values()
    ):
        return outcomes
    raise _root_cause(job, outcomes, code)


def _command(job: Job, path: Path) -> list[str]:
    return [
        sys.executable,
        "-P",
        "-m",
        "eplb_cli.run.torchrun",
        f"--nproc-per-node={job.transfer.num_workers}",
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


def _environment() -> dict[str, str]:
    """Of this process, where no name is looked up in whatever directory somebody happens to stand in."""
    root = str(Path(__file__).parents[2])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([root, *filter(os.path.isabs, given)])
    defaults = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return {**defaults, **os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _watch(
    job: Job,
    process: subprocess.Popen[bytes],
    counters: NDArray[np.int64],
    timeout_s: float,
    show: Callable[[int], None],
) -> None:
    """Return when torchrun has ended, or all workers are done, or one has failed; raise EP403.

    Progress is bytes that are done, or calls to the file system that have come back.
    Where workers have only seen another one go, torchrun ends soon, and it knows how that one ended.
    """
    seen = counters.copy()
    moved_at = time.monotonic()
    failed_at = None
    while process.poll() is None:
        time.sleep(POLL_S)
        now = counters.copy()
        if (now[:, _PROGRESS] != seen[:, _PROGRESS]).any():
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > timeout_s:
            raise _stands_still(job, now, timeout_s)
        seen = now
        show(int(seen[:, 0].sum()))
        outcomes = read_outcomes(job.work, len(seen))
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


def _end(process: subprocess.Popen[bytes]) -> int | None:
    """Let torchrun end by itself for a moment, then kill it; its workers die with it.

    None of them is waited for longer than a moment: what hangs in the kernel dies when its disk answers.

    Returns:
        its exit code where it ended by itself, negative for a signal that was not ours.
    """
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(timeout=POLL_S * 10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_S)
    return code


def _stands_still(job: Job, counters: NDArray[np.int64], timeout_s: float) -> WorkerError:
    """EP403; workers that have ended well only wait, and no disk is asked which these are."""
    return WorkerError("EP403", f"no progress for {timeout_s:g} s: {_standing(job, counters)}")


def _has_own_error(outcome: Outcome) -> bool:
    return outcome.error is not None and not outcome.is_victim


def _root_cause(job: Job, outcomes: Mapping[int, Outcome], torchrun_code: int | None) -> EplbError:
    """The earliest error that is not just the echo of another end, or what died without a word."""
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
    codes = {worker: code for worker, code in read_ends(job.work).items() if worker not in outcomes}
    if codes:
        # SIGTERM is what torchrun ends all others with.
        worker = min(codes, key=lambda worker: codes[worker] == -signal.SIGTERM)
        return _died(job, worker, codes[worker])
    if failed and failed[0].error:
        return error_of(*failed[0].error)
    return _not_started((job.work / "torchrun.log").read_text(errors="replace"))


def _not_started(log: str) -> WorkerError:
    """EP404 with the last that torchrun said, which is what a traceback ends with."""
    if os.environ.get("EPLB_DEBUG") == "1":
        sys.stderr.write(log)
    last = log.strip().rpartition("\n")[2][:_MAX_QUOTED]
    return WorkerError("EP404", f"the workers could not be started: {last or 'torchrun said nothing'}")


def _standing(job: Job, counters: NDArray[np.int64]) -> str:
    """What workers that stand still are doing; of many that do the same, the first few."""
    by_step: dict[str, list[int]] = {}
    for worker, doing in enumerate(counters[:, 1].tolist()):
        by_step.setdefault(doing_in_words(doing), []).append(worker)
    told = []
    for step, same in by_step.items():
        names = [f"worker {worker} ({ranks_of(job, worker)})" for worker in same[:_MAX_TOLD]]
        more = [f"{len(same) - _MAX_TOLD} more"] if len(same) > _MAX_TOLD else []
        told.append(f"{', '.join([*names, *more])}: {step}")
    return "; ".join(told)


def ranks_of(job: Job, worker: int) -> str:
    """The ranks of a worker, old or new, in words."""
    num_ranks = max(side["num_ranks"] for side in (job.old, job.new))
    ranks = [str(rank) for rank in range(worker, num_ranks, job.transfer.num_workers)]
    more = ["..."] if len(ranks) > _MAX_TOLD else []
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {', '.join(ranks[:_MAX_TOLD] + more)}"


def _died(job: Job, worker: int, code: int) -> WorkerError:
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return WorkerError("EP402", f"worker {worker} ({ranks_of(job, worker)}) ended {how}")
