"""Processes that wait for work, so that a case among 2 to 4 ranks costs a tenth of a second.

    tests ── a pipe each ──► rank 0, rank 1, ...      all forked from one server that has loaded torch

Each case is a process group of its own, which the first ranks of the pool form through a file. Every
wait ends: in the group after `GROUP_TIMEOUT_S`, in the pool after `CASE_TIMEOUT_S`, with the stacks of
the ranks that have not come back.
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
from typing import Any, NamedTuple

GROUP_TIMEOUT_S = 12.0
CASE_TIMEOUT_S = 15.0
ERROR_TIMEOUT_S = 4.0
"""No result depends on these: they only end what hangs, the last where a rank has raised already."""

_START_TIMEOUT_S = 90.0
_PRELOADED = ["numpy", "torch", "torch.distributed", "eplb_cli.rearrange"]


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
    """What a rank returns, or the traceback of what it raised."""

    value: Any = None
    error: str = ""


class Ranks:
    """A pool of `size` ranks on which cases of up to as many are run, one after the other.

    Args:
        directory: for rendezvous and stacks.
        backend: "gloo", or "nccl" with a device for each rank.
    """

    def __init__(self, directory: Path, size: int, backend: str) -> None:
        self.size, self.backend = size, backend
        self._directory = directory
        self._number = itertools.count()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._start()

    def run(self, num_ranks: int, work: str, *arguments: Any) -> list[Any]:
        """What `work(group, device, *arguments)` returns on each of `num_ranks` ranks.

        Args:
            work: "module.function" below `tests.support`, imported by the ranks only.

        Raises:
            RankError: some of them raised.
            HungError: some of them did not come back.
        """
        store = self._directory / f"store-{next(self._number)}"
        case = Case(self.backend, str(store), num_ranks, work, arguments)
        for connection in self._connections[:num_ranks]:
            connection.send(case)
        answers = self._receive(num_ranks, CASE_TIMEOUT_S, case)
        store.unlink(missing_ok=True)
        errors = [f"rank {rank}: {answer.error}" for rank, answer in sorted(answers.items()) if answer.error]
        if errors:
            raise RankError("\n".join(errors))
        return [answers[rank].value for rank in range(num_ranks)]

    def stop(self) -> None:
        """End all processes, whatever they do."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._connections, self._processes = [], []

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
        self._receive(self.size, _START_TIMEOUT_S, "the start of the processes")

    def _receive(self, num_ranks: int, timeout_s: float, what: object) -> dict[int, Answer]:
        """An answer from each of the first ranks; the pool is made anew if one does not come back."""
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
            self.stop()
            self._start()
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
        return Answer(error="the process ended")
    return answer


def _serve(connection: Connection, rank: int, stacks: str) -> None:
    """Do cases until nobody asks any more."""
    import torch  # here: the process that collects the tests may not need it

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with Path(stacks).open("w", encoding="utf-8") as file, suppress(EOFError, ConnectionError):
        faulthandler.register(signal.SIGUSR1, file)
        connection.send(Answer())
        while True:
            connection.send(_do(connection.recv(), rank))


def _do(case: Case, rank: int) -> Answer:
    import torch
    import torch.distributed as dist

    module, _, function = case.work.rpartition(".")
    device = torch.device("cpu")
    if case.backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    store, timeout = dist.FileStore(case.store, case.num_ranks), timedelta(seconds=GROUP_TIMEOUT_S)  # type: ignore[attr-defined]
    try:
        dist.init_process_group(
            case.backend, store=store, rank=rank, world_size=case.num_ranks, timeout=timeout
        )
        store.set(f"connected {rank}", "")  # none may fail, and leave, while another still connects
        store.wait([f"connected {peer}" for peer in range(case.num_ranks)], timeout)
        work = getattr(importlib.import_module(f"tests.support.{module}"), function)
        return Answer(work(dist.group.WORLD, device, *case.arguments))
    except BaseException:  # noqa: BLE001 - whatever it is, it is for the test to see
        return Answer(error=traceback.format_exc())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
