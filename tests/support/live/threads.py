"""Ranks of one host without a device: lanes are threads, and memory that all see is just memory.

What orders the steps is the code under test alone: every step of every lane may be late.
"""

from __future__ import annotations

import ctypes
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from eplb_cli.arrays import Int
from eplb_cli.exchange.loop import Pending
from eplb_cli.live.connection import Connection
from eplb_cli.live.plan import plan_live
from eplb_cli.live.rows import LiveRows
from eplb_cli.live.tensors import Layers, row_nbytes
from eplb_cli.plan.moves import ReshardPlan

WAIT_S = 20.0
"""No result depends on it: it ends what hangs."""


@dataclass
class Host:
    """What all ranks see: two counts of each, and each other's buffers."""

    num_ranks: int
    num_turns: int
    turn_nbytes: int
    seed: int
    most_late_s: float
    pushed: list[int] = field(default_factory=list)
    drained: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.pushed, self.drained = [0] * self.num_ranks, [0] * self.num_ranks
        shape = (self.num_ranks, self.num_turns, self.turn_nbytes)
        self.memory = torch.full(shape, 0xDD, dtype=torch.uint8)
        self.failures: list[BaseException] = []


class ThreadLane:
    """A lane whose steps are done by a thread, each of them late by a random time."""

    def __init__(self, host: Host, name: str) -> None:
        self.stream = None
        self._random = random.Random(f"{host.seed} {name}")
        self._host = host
        self._steps: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def run(self, step: Callable[[], Pending | None], after: Sequence[Pending]) -> Pending:
        done = threading.Event()

        def late() -> None:
            for pending in after:
                pending.wait()
            time.sleep(self._random.choice([0, 0, 0, self._random.random() * self._host.most_late_s]))
            assert step() is None
            done.set()

        self._steps.put(late)
        return Later(done)

    def follow_current(self) -> None:
        pass

    def end(self) -> None:
        self._steps.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                step()
            except BaseException as failure:  # noqa: BLE001 - for the test to raise
                self._host.failures.append(failure)
                return


@dataclass(frozen=True)
class Later:
    """A step of a thread."""

    done: threading.Event

    def wait(self) -> None:
        if not self.done.wait(WAIT_S):
            raise TimeoutError("a step was never done")


class ThreadNeighbours:
    """All ranks, as one of them sees them; with the names of `Neighbours`."""

    def __init__(self, host: Host, me: int) -> None:
        self.ranks, self.me, self.num_turns, self.turn_nbytes = (
            range(host.num_ranks),
            me,
            host.num_turns,
            host.turn_nbytes,
        )
        self.count = 0
        self._host = host
        names = ["fills", "sends", "drains", "copies", "pushes", "tells"]
        self._all = [ThreadLane(host, f"{me} {name}") for name in names]
        self.lanes, self.pushes, self.tells = self._all[:4], self._all[4], self._all[5]
        self.buffers = list(host.memory[me])
        self.base = np.array([[turn.data_ptr() for turn in turns] for turns in host.memory])

    def push(self, destination: Int, source: Int, nbytes: Int) -> None:
        for goal, origin, size in zip(destination.tolist(), source.tolist(), nbytes.tolist(), strict=True):
            ctypes.memmove(goal, origin, size)

    def await_pushed(self, ranks: Sequence[int], count: int) -> None:
        self._await(self._host.pushed, ranks, count)

    def await_drained(self, ranks: Sequence[int], count: int) -> None:
        self._await(self._host.drained, ranks, count)

    def say_pushed(self, count: int) -> None:
        self._say(self._host.pushed, count)

    def say_drained(self, count: int) -> None:
        self._say(self._host.drained, count)

    def _await(self, counts: list[int], ranks: Sequence[int], count: int) -> None:
        with self._host.changed:
            if not self._host.changed.wait_for(lambda: all(counts[rank] >= count for rank in ranks), WAIT_S):
                raise TimeoutError(f"rank {self.me} waits for {count} of {counts}")

    def _say(self, counts: list[int], count: int) -> None:
        with self._host.changed:
            assert counts[self.me] < count
            counts[self.me] = count
            self._host.changed.notify_all()

    def end(self) -> None:
        for lane in self._all:
            lane.end()


class Group:
    """As much of a process group as a plan asks for."""

    def __init__(self, num_ranks: int, me: int) -> None:
        self._num_ranks, self._me = num_ranks, me

    def size(self) -> int:
        return self._num_ranks

    def rank(self) -> int:
        return self._me


@contextmanager
def neighbours(host: Host) -> Iterator[list[ThreadNeighbours]]:
    """Each rank's view of a host."""
    made = [ThreadNeighbours(host, me) for me in range(host.num_ranks)]
    yield made
    for one in made:
        one.end()
    if host.failures:
        raise host.failures[0]


def move(
    plans: Sequence[ReshardPlan],
    weights: Sequence[Layers],
    made: Sequence[ThreadNeighbours],
    chunk_nbytes: int,
) -> None:
    """Carry out plans on all ranks, each of which goes on to its next plan as soon as it has done one.

    Layer by layer, as parts of a plan that follow each other without a pause.
    """

    def work(rank: int) -> None:
        for plan in plans:
            started = []
            for layer in range(len(weights[rank])):
                part = slice(layer, layer + 1)
                layers = weights[rank][part]
                live = plan_live(plan.of_layers(part), row_nbytes(layers), rank, chunk_nbytes * 4)
                near = made[rank]
                connection = Connection(b"threads", near, has_far=False, backend="none")  # type: ignore[arg-type]
                rows = LiveRows(live, layers, layers, Group(plan.num_ranks, rank), connection)  # type: ignore[arg-type]
                rows.start()
                started.append(rows)
            for rows in started:
                rows.finish()

    with ThreadPoolExecutor(len(made)) as pool:
        for done in [pool.submit(work, rank) for rank in range(len(made))]:
            done.result()
