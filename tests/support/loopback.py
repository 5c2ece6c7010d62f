"""All workers of a job in one process, in lock-step, with a transport that forgives nothing.

Every worker posts a chunk and waits for the others. When all have come, what was sent must be exactly
what is waited for: the same pairs of workers, the same sizes. A worker that ends while another still
waits, a worker in another chunk, and bytes that nobody took are errors too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from eplb_cli.exchange.loop import Pending
from eplb_cli.exchange.wire import Schedule

T = TypeVar("T")
Pair = tuple[int, int]
"""Sender and receiver."""

_END = -1
_WAIT_S = 120.0
"""Only ends a test that would hang; no result depends on it."""


class LoopbackError(AssertionError):
    """The workers do not agree on what travels."""


class Loopback:
    """The mailbox of `num_workers` workers.

    `lazy` links do nothing before somebody waits for it, as a device does with what is on a stream: so
    a missing dependency in the core becomes a wrong byte.
    """

    def __init__(self, num_workers: int, *, lazy: bool = False) -> None:
        self.num_workers = num_workers
        self.num_messages = 0
        self.num_bytes = 0
        self._lazy = lazy
        self._barrier = threading.Barrier(num_workers, self._match, _WAIT_S)
        self._at: dict[int, int] = {}
        self._sent: dict[Pair, bytes] = {}
        self._expected: dict[Pair, int] = {}
        self._mail: dict[Pair, bytes] = {}

    def link(self, schedule: Schedule) -> LoopbackLink:
        """The link of one worker."""
        return LoopbackLink(self, schedule, lazy=self._lazy)

    def run(self, work: Callable[[int], T]) -> list[T]:
        """Do the work of every worker, each in a thread; raise the first error that is a cause."""
        results: dict[int, T] = {}
        errors: list[BaseException] = []

        def one(worker: int) -> None:
            try:
                results[worker] = work(worker)
                self.meet(worker, _END)
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(worker,)) for worker in range(self.num_workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if causes or errors:
            raise (causes or errors)[0]
        return [results[worker] for worker in range(self.num_workers)]

    def post(self, pair: Pair, data: bytes) -> None:
        """Send; before `meet`."""
        if self._sent.setdefault(pair, data) is not data:
            raise LoopbackError(f"two messages of one chunk for {pair}")

    def expect(self, pair: Pair, nbytes: int) -> None:
        """Say what will be taken; before `meet`."""
        if pair in self._expected:
            raise LoopbackError(f"two receives of one chunk for {pair}")
        self._expected[pair] = nbytes

    def meet(self, worker: int, chunk: int) -> None:
        """Wait for all the others to come to the same chunk."""
        self._at[worker] = chunk
        self._barrier.wait()

    def take(self, pair: Pair) -> bytes:
        """What was sent; after `meet`."""
        return self._mail.pop(pair)

    def _match(self) -> None:
        """In one thread, while all the others wait."""
        if len(set(self._at.values())) != 1:
            raise LoopbackError(f"workers are at different chunks: {self._at}")
        if self._mail:
            raise LoopbackError(f"nobody took {sorted(self._mail)}")
        sizes = {pair: len(data) for pair, data in self._sent.items()}
        if sizes != self._expected or 0 in sizes.values():
            raise LoopbackError(f"sent {sizes}, expected {self._expected}")
        self.num_messages += len(sizes)
        self.num_bytes += sum(sizes.values())
        self._mail = self._sent
        self._sent, self._expected = {}, {}


class LoopbackLink:
    """One worker's end; a message to oneself is the caller's. What has left is spoiled behind it."""

    def __init__(self, loopback: Loopback, schedule: Schedule, *, lazy: bool) -> None:
        sends, receives = schedule.sends.buffer_nbytes, schedule.receives.buffer_nbytes
        self.send_buffers = [memoryview(bytearray(b"\xee" * sends)) for _ in range(2)]
        self.receive_buffers = [memoryview(bytearray(b"\xdd" * receives)) for _ in range(2)]
        self._loopback, self._schedule, self._lazy = loopback, schedule, lazy
        self._last: Pending | None = None

    def exchange(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Send and receive a chunk, now or, if lazy, when waited for; always in order."""
        previous = [] if self._last is None else [self._last]
        self._last = Later(lambda: self._travel(chunk), [*previous, *after])
        if not self._lazy:
            self._last.wait()
        return self._last

    def spans(self) -> list[tuple[float, float]]:
        """What travels takes no time here."""
        return []

    def _travel(self, chunk: int) -> None:
        schedule, me = self._schedule, self._schedule.worker
        send, receive = self.send_buffers[chunk % 2], self.receive_buffers[chunk % 2]
        outgoing, incoming = (
            [message for message in schedule.messages(parcels, chunk) if message.peer != me]
            for parcels in (schedule.sends, schedule.receives)
        )
        for peer, position, nbytes in outgoing:
            self._loopback.post((me, peer), bytes(send[position : position + nbytes]))
        for peer, _, nbytes in incoming:
            self._loopback.expect((peer, me), nbytes)
        self._loopback.meet(me, chunk)
        send[:] = b"\xee" * len(send)
        for peer, position, nbytes in incoming:
            receive[position : position + nbytes] = self._loopback.take((peer, me))


class Later:
    """Work that is done, once, when somebody waits for it, after what it has to follow."""

    def __init__(self, work: Callable[[], None], after: Sequence[Pending] = ()) -> None:
        self._work: Callable[[], None] | None = work
        self._after = after

    def wait(self) -> None:
        if self._work is None:
            return
        work, self._work = self._work, None
        for pending in self._after:
            pending.wait()
        work()
