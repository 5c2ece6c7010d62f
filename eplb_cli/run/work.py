"""The work of one process of the torchrun job."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eplb_cli import files
from eplb_cli.checkpoint.staged import staging_of
from eplb_cli.errors import EplbError, WorkerError
from eplb_cli.exchange.wire import Schedule
from eplb_cli.hosts.addresses import interfaces_towards, read_endpoint
from eplb_cli.hosts.tcp_board import tcp_store
from eplb_cli.output.journal import LAUNCHER, Journal, Known, WrittenLog, journals, read_written
from eplb_cli.output.prepared import Prepared
from eplb_cli.progress import Count
from eplb_cli.run.job import (
    ASKED,
    ENDING,
    JOINING,
    KEEPS,
    PLANNING,
    Job,
    Outcome,
    leave_digests,
    progress_counters,
    read_job,
    take_digests,
)
from eplb_cli.transfer.meter import Meter
from eplb_cli.transfer.transfer import Link, TransferResult, transfer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


POLL_S = 0.05
JOIN_S = 600.0
"""How long a worker may look for the store that the command has found before."""

_LIFE = timedelta(days=1)
"""No collective waits on storage for its life: the launcher judges progress, not the group."""


def work(held: Path, path: Path, number: int) -> int:
    """Do a worker's share of a job; the outcome is in a file, and the exit code says whether all is well.

    Args:
        held: the staging directory, as `leash.tie` gives it: nothing in it is reached by another path.
        path: the job's file, by its name.
        number: of the worker, among those of this host.
    """
    staging = staging_of(path)
    job = replace(read_job(held / path.relative_to(staging)), staging=str(held))
    worker = job.first_worker + number
    try:
        files.write_file(job.desk / f"pid-{worker}", str(os.getpid()).encode(), durable=False)
        outcome = _outcome_of(worker, run(job, worker))
    except EplbError as error:
        outcome = _failed(worker, error)
    except OSError as error:  # of the files of the run: those of SRC and DST have coded errors
        outcome = _failed(worker, files.output_error(error, error.filename or job.work))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the launcher has to hear of it
        outcome = _unexpected(worker, error)
    _by_name(outcome, held, staging).write(job.desk)
    # The group may be broken; interpreter teardown would wait for it, or abort in its threads.
    sys.stdout.flush()
    os._exit(0 if outcome.error is None else 1)


def _failed(worker: int, error: EplbError) -> Outcome:
    return Outcome(worker, time.time_ns(), (error.code, error.message, error.hint))


def _by_name(outcome: Outcome, held: Path, staging: Path) -> Outcome:
    """The outcome with paths as a person knows them."""
    if outcome.error is None:
        return outcome
    code, message, hint = (text.replace(str(held), str(staging)) for text in outcome.error)
    return replace(outcome, error=(code, message, hint))


def run(job: Job, worker: int) -> TransferResult:
    """Join the group, agree on the plan, transfer, and leave the digests for the launcher."""
    import torch
    import torch.distributed as dist

    from eplb_cli.exchange.agree import agree
    from eplb_cli.exchange.transport import DeviceLink, HostLink

    torch.set_num_threads(1)
    device = _device(job, worker - job.first_worker)
    num_workers = job.hosting.num_workers
    progress = progress_counters(job.progress)[worker - job.first_worker]
    files.count_calls(memoryview(progress)[2:ASKED])
    progress[1] = JOINING
    logs: list[WrittenLog] = []
    threading.Thread(target=_end_when_asked, args=(progress, logs), daemon=True).start()
    store = _store(job)
    dist.init_process_group(job.backend, store=store, rank=worker, world_size=num_workers, timeout=_LIFE)
    group = dist.distributed_c10d._get_default_group()  # noqa: SLF001 - `group.WORLD` may be None to mypy
    progress[1] = PLANNING
    prepared, error = _prepare(job, device)
    agree(job.digest if prepared is None else prepared.digest, group, device, error)
    if prepared is None:
        raise WorkerError("EP401", "no plan, and no error")

    def connect(schedule: Schedule) -> Link:
        return HostLink(schedule, group) if device.type == "cpu" else DeviceLink(schedule, group, device)

    known = known_of(prepared, job)
    journal = Journal(job.work, str(worker), job.digest) if job.transfer.digests else None
    log = WrittenLog(prepared.new_places.nbytes, journal)
    progress[KEEPS] = 1
    logs.append(log)
    staging, meter, done = Path(job.staging), Meter(), Count()
    with _published(progress, meter, done):
        result = transfer(prepared, staging, job.transfer, worker, connect, done.add, known, log, meter)
    progress[KEEPS] = 0
    progress[1] = ENDING
    leave_digests(job.desk, "old", worker, result.old_digests)
    leave_digests(job.desk, "new", worker, result.new_digests)
    dist.barrier(group=group)
    dist.destroy_process_group()
    return result


@contextlib.contextmanager
def _published(progress: NDArray[np.int64], meter: Meter, done: Count) -> Iterator[None]:
    """Let the launcher see, while the block runs, how many bytes are done and what is going on."""
    ended = threading.Event()

    def publish() -> None:
        while not ended.wait(POLL_S):
            progress[0], progress[1] = done.total, meter.doing

    thread = threading.Thread(target=publish, daemon=True)
    progress[1] = 0
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        progress[0] = done.total


def _end_when_asked(progress: NDArray[np.int64], logs: list[WrittenLog]) -> None:
    """End this process when the launcher asks for it, whatever its other threads wait for.

    All that is written by then is in the journal, once there is one.
    """
    while not progress[ASKED]:
        time.sleep(POLL_S)
    for log in logs:
        with contextlib.suppress(EplbError):
            log.tell()
    progress[KEEPS] = 0
    os._exit(1)


def known_of(prepared: Prepared, job: Job) -> Known:
    """What the launcher has left for the workers."""
    if not job.transfer.digests:
        return Known.nothing(len(prepared.old_places.rank), len(prepared.new_places.rank))
    paths = [path for path in journals(job.work) if path.name.endswith(LAUNCHER)]
    written = read_written(paths, job.digest, len(prepared.new_places.rank))
    return Known(take_digests(job.desk, "old", LAUNCHER), written)


def _store(job: Job) -> Any:  # noqa: ANN401 - torch has no types for them
    """Where the workers find each other: a file for those of one host, else the store of the hosts.

    From here on they listen nowhere but on the interface that leads there, whoever has started them.
    """
    import torch.distributed as dist

    endpoint = None if job.endpoint is None else read_endpoint(job.endpoint)
    os.environ.update(interfaces_towards(endpoint, os.environ))
    if endpoint is None:
        return dist.FileStore(str(job.work / "store"), job.hosting.num_workers)  # type: ignore[attr-defined]
    store = tcp_store(endpoint, JOIN_S)
    return dist.PrefixStore(f"eplb/workers/{job.run}/", store)  # type: ignore[attr-defined]


def _prepare(job: Job, device: torch.device) -> tuple[Prepared | None, EplbError | None]:
    """The plan as this worker sees it, or the error to raise on all workers."""
    try:
        _require_memory(job, device)
        return job.prepare(), None
    except EplbError as error:
        return None, error


def _require_memory(job: Job, device: torch.device) -> None:
    """EP406 where a device has no room for the buffers."""
    import torch

    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < job.transfer.buffer_nbytes:
        free, needed = torch.cuda.mem_get_info(device)[0] >> 20, job.transfer.buffer_nbytes >> 20
        raise WorkerError("EP406", f"{device} has {free} MiB free, and the buffers need {needed} MiB")


def _device(job: Job, local_rank: int) -> torch.device:
    import torch

    if job.backend != "nccl":
        return torch.device("cpu")
    local_rank %= torch.cuda.device_count()  # a launcher may show each process its own device alone
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _outcome_of(worker: int, result: TransferResult) -> Outcome:
    return Outcome(
        worker,
        time.time_ns(),
        ended=result.ended,
        activity=result.activity,
        wire_nbytes=result.wire_nbytes,
        peak_rss_nbytes=result.peak_rss_nbytes,
        peak_anonymous_nbytes=result.peak_anonymous_nbytes,
    )


def _unexpected(worker: int, error: BaseException) -> Outcome:
    text = f"worker {worker}: {type(error).__name__}: {error}".splitlines()[0][:1000]
    lowered = str(error).lower()
    # SIGINT comes from torchrun when it is interrupted itself: no terminal reaches this process group.
    is_victim = isinstance(error, KeyboardInterrupt) or any(
        sign in lowered
        for sign in ("connection closed by peer", "connection reset", "broken pipe", "remote process exited")
    )
    return Outcome(
        worker,
        time.time_ns(),
        ("EP401", text, "run again with EPLB_DEBUG=1 for its traceback"),
        is_victim,
        traceback.format_exc(),
    )
