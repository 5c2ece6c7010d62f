"""Processes that wait for work, so that a case among 2 to 4 ranks costs a tenth of a second.

    tests ── a pipe each ──► rank 0, rank 1, ...      all forked from one server that has loaded torch

The first ranks of the pool form a process group through a file, which cases of as many ranks share until
one of them fails. When a case has ended, no message of it is left on its way. Every wait ends: in the
group after `GROUP_TIMEOUT_S`, in the pool after `CASE_TIMEOUT_S`, with the stacks of the ranks that have
not come back.
"""

from __future__ import annotations

import faulthandler
import importlib
import itertools
import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

GROUP_TIMEOUT_S = 12.0
CASE_TIMEOUT_S = 15.0
ERROR_TIMEOUT_S = 4.0
"""No result depends on these: they only end what hangs, the last where a rank has raised already."""

_START_TIMEOUT_S = 90.0
_PRELOADED = ["numpy", "torch", "torch.distributed", "eplb_cli.live.rearrange"]


class HungError(BaseException):
    """Ranks did not come back. Not an Exception: Hypothesis would try a hundred smaller ones."""


class RankError(AssertionError):
    """A rank raised what the case had not asked for."""


class Case(NamedTuple):
    """What a rank is asked for: `work` names a function below `tests.support`, called in a new group."""

    backend: str
    store: str
    num_ranks: int
    work: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """What a rank returns, or the traceback of what it raised; the last one when its process ended."""

    value: Any = None
    error: str = ""
    is_last: bool = False


class Ranks:
    """A pool of `size` ranks on which cases of up to as many are run, one after the other.

    Args:
        directory: for rendezvous and stacks.
        backend: "gloo", or "nccl" with a device for each rank.
    """

    def __init__(self, directory: Path, size: int, backend: str) -> None:
        self.size, self.backend = size, backend
        self._directory = directory
        self._stores = (directory / f"store-{number}" for number in itertools.count())
        self._joined: tuple[int, Path] | None = None
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._start()

    def run(self, num_ranks: int, work: str, *arguments: Any, fresh: bool = False) -> list[Any]:
        """What `work(group, device, *arguments)` returns on each of `num_ranks` ranks.

        Args:
            work: "module.function" below `tests.support`, imported by the ranks only.
            fresh: in a group that has not been used.

        Raises:
            RankError: some of them raised.
            HungError: some of them did not come back.
        """
        store = self._store(num_ranks, fresh=fresh)
        case = Case(self.backend, str(store), num_ranks, work, arguments)
        for connection in self._connections[:num_ranks]:
            connection.send(case)
        try:
            answers = self._receive(num_ranks, CASE_TIMEOUT_S, case)
        except HungError:
            self._restart()
            raise
        errors = [f"rank {rank}: {answer.error}" for rank, answer in sorted(answers.items()) if answer.error]
        if errors:
            self._joined = None
            if any(answer.is_last for answer in answers.values()):
                self._restart()
            raise RankError("\n".join(errors))
        return [answers[rank].value for rank in range(num_ranks)]

    def _store(self, num_ranks: int, *, fresh: bool) -> Path:
        """Where a group meets: a new file, or that of the group which is there already.

        All ranks leave a group together: nccl waits for those that are still in it.
        """
        if self._joined is None or self._joined[0] != num_ranks or fresh:
            if self._joined is not None:
                for connection in self._connections[: self._joined[0]]:
                    connection.send(None)
                self._receive(self._joined[0], CASE_TIMEOUT_S, "leaving a group")
            self._joined = (num_ranks, next(self._stores))
        return self._joined[1]

    def stop(self) -> None:
        """End all processes, whatever they do."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._connections, self._processes = [], []
        self._joined = None

    def _start(self) -> None:
        for rank in range(self.size):
            mine, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(theirs, rank, str(self._stacks(rank))), daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(mine)
            self._processes.append(process)
        answers = self._receive(self.size, _START_TIMEOUT_S, "the start of the processes")
        if any(answer.error for answer in answers.values()):
            raise RankError("the processes do not start")
        if self.backend == "nccl":
            self._warm_up()

    def _warm_up(self) -> None:
        """Load what devices need, and compile kernels, in no case's time."""
        case = Case(self.backend, str(self._store(self.size, fresh=True)), self.size, "live.runs.warm_up", ())
        for connection in self._connections:
            connection.send(case)
        answers = self._receive(self.size, _START_TIMEOUT_S, case)
        if errors := [answer.error for answer in answers.values() if answer.error]:
            raise RankError("\n".join(errors))

    def _restart(self) -> None:
        self.stop()
        self._start()

    def _receive(self, num_ranks: int, timeout_s: float, what: object) -> dict[int, Answer]:
        """An answer from each of the first ranks."""
        deadline = time.monotonic() + timeout_s
        rank_of = {id(connection): rank for rank, connection in enumerate(self._connections)}
        missing = self._connections[:num_ranks]
        answers: dict[int, Answer] = {}
        while missing and (ready := wait(missing, max(deadline - time.monotonic(), 0))):
            for connection in missing[:]:
                if connection in ready:
                    missing.remove(connection)
                    answer = answers[rank_of[id(connection)]] = _answer(connection)
                    if answer.error:
                        deadline = min(deadline, time.monotonic() + ERROR_TIMEOUT_S)
        if missing:
            stuck = [rank_of[id(connection)] for connection in missing]
            message = f"{what}\nhangs on ranks {stuck}\n{self._told(stuck, answers)}"
            raise HungError(message)
        return answers

    def _told(self, stuck: list[int], answers: dict[int, Answer]) -> str:
        """Where ranks are stuck, and what others raised."""
        for rank in stuck:
            os.kill(self._processes[rank].pid or 0, signal.SIGUSR1)
        time.sleep(0.2)
        told = [f"rank {rank}: {self._stacks(rank).read_text()}" for rank in stuck]
        told += [f"rank {rank}: {answer.error}" for rank, answer in answers.items() if answer.error]
        return "\n".join(told)

    def _stacks(self, rank: int) -> Path:
        return self._directory / f"stacks-{rank}.txt"


def _answer(connection: Connection) -> Answer:
    try:
        answer: Answer = connection.recv()
    except (EOFError, ConnectionError):
        return Answer(error="the process ended", is_last=True)
    return answer


def _serve(connection: Connection, rank: int, stacks: str) -> None:
    """Do cases until nobody asks any more."""
    import torch  # here, as below: the process that collects the tests may not need it

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with Path(stacks).open("w", encoding="utf-8") as file, suppress(EOFError, ConnectionError):
        faulthandler.register(signal.SIGUSR1, file)
        connection.send(Answer())
        joined = ""
        while True:
            case = connection.recv()
            if case is None:
                _leave()
                answer, joined = Answer(), ""
            else:
                answer = _do(case, rank, is_member=case.store == joined)
                joined = "" if answer.error else case.store
            connection.send(answer)
            if answer.error:
                _leave()  # told before: nccl may wait for others here


def _do(case: Case, rank: int, *, is_member: bool) -> Answer:
    """Do a case; a member of its group need not join."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if case.backend == "nccl":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        if torch.cuda.device_count() < case.num_ranks:
            os.environ["NCCL_HOSTID"] = str(rank)  # nccl refuses two ranks of one host on a device
    module, _, function = case.work.rpartition(".")
    try:
        if not is_member:
            _join(case, rank, device)
        work = getattr(importlib.import_module(f"tests.support.{module}"), function)
        value = work(dist.group.WORLD, device, *case.arguments)
        _require_silence(rank, case.num_ranks, device)
        return Answer(value)
    except BaseException:  # noqa: BLE001 - whatever it is, it is for the test to see
        return Answer(error=traceback.format_exc())


def _join(case: Case, rank: int, device: torch.device) -> None:
    """Form the group of a case, after leaving that of another."""
    import torch
    import torch.distributed as dist

    _leave()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.FileStore(case.store, case.num_ranks)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group(case.backend, store=store, rank=rank, world_size=case.num_ranks, timeout=timeout)
    store.set(f"connected {rank}", "")  # none may fail, and leave, while another still connects
    store.wait([f"connected {peer}" for peer in range(case.num_ranks)], timeout)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _require_silence(rank: int, num_ranks: int, device: torch.device) -> None:
    """Each rank's next message from the rank before it is the one that is sent now, and no older one."""
    import torch
    import torch.distributed as dist

    if num_ranks == 1:
        return
    sent, received = torch.arange(2 * 11, dtype=torch.int32, device=device).view(2, 11) + 1000 * rank
    operations = [
        dist.P2POp(dist.isend, sent, (rank + 1) % num_ranks),
        dist.P2POp(dist.irecv, received, (rank - 1) % num_ranks),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    expected = [1000 * ((rank - 1) % num_ranks) + number for number in range(11)]
    if received.tolist() != expected:
        raise ValueError(f"a message was left on its way: {received.tolist()}")
