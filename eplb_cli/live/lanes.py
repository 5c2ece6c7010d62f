"""Lanes: steps that follow each other, beside the steps of other lanes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import torch

from eplb_cli.exchange.loop import Pending
from eplb_cli.exchange.transport import Done


class _Here(threading.local):
    """The stream of the lane whose step a thread is at."""

    stream: torch.cuda.Stream | None = None


_HERE = _Here()


def stream_here(device: torch.device) -> torch.cuda.Stream:
    """The current stream. Torch takes some microseconds to find it, which is long for what asks so often."""
    return _HERE.stream or torch.cuda.current_stream(device)


class Lane:
    """A CUDA stream on which steps follow each other, or on the CPU just the steps."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def run(self, step: Callable[[], Pending | None], after: Sequence[Pending]) -> Pending:
        """Run a step after others; on a device, order it after them without waiting here.

        On a device, what a step starts elsewhere is not waited for by the lane: its next step may start
        before that has ended. On the CPU it is waited for here, once: gloo knows no second time.
        """
        if self.stream is None:
            _wait(after)
            _wait(filter(None, [step()]))
            return Done()
        before = torch.cuda.current_stream(self.stream.device)
        torch.cuda.set_stream(self.stream)
        _HERE.stream = self.stream
        try:
            _wait(after)
            started = step()
        finally:
            _HERE.stream = None
            torch.cuda.set_stream(before)
        return OnStream(self.stream.record_event(), self.stream.device, started)

    def follow_current(self) -> None:
        """Order all further steps after what is on the current stream now."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))


def _wait(pendings: Iterable[Pending]) -> None:
    for pending in pendings:
        pending.wait()


class OnStream:
    """Work on a stream, and what that has started elsewhere, waited for by whatever stream is current."""

    __slots__ = ("_device", "_event", "_started")

    def __init__(self, event: torch.cuda.Event, device: torch.device, started: Pending | None) -> None:
        self._event, self._device, self._started = event, device, started

    def wait(self) -> None:
        """Order the current stream after the work."""
        stream_here(self._device).wait_event(self._event)
        if self._started is not None:
            self._started.wait()


class All:
    """Several pieces of work."""

    __slots__ = ("_pendings",)

    def __init__(self, pendings: Sequence[Pending]) -> None:
        self._pendings = pendings

    def wait(self) -> None:
        """Wait for each."""
        _wait(self._pendings)
