"""A board over torch's TCPStore, which host 0 serves on the address that the user gave, and on no other.

The workers' process group meets at the same store (`tcp_store`). It takes messages of 8 MiB at most, so a
value is cut into parts, and under its key is how many they are, or the value itself where it is small.
Whoever reaches the port can read and write: as for torchrun, that is a network of people who trust each
other.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from eplb_cli.errors import WorkerError
from eplb_cli.hosts.addresses import Endpoint, addresses_of, is_address, listen
from eplb_cli.hosts.board import MAX_VALUE_NBYTES, BoardError
from eplb_cli.hosts.bounded import Caller
from eplb_cli.machine import needed

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

T = TypeVar("T")

PART_NBYTES = 1 << 20
SMALL_NBYTES = 1 << 16
"""Values up to this lie under their key: those of many hosts, which are read in one message, stay small."""
RETRY_S = 0.2
NAME_S = 30.0
"""Seconds in which the name of host 0 has to lead there; that of a pod does so a while after its start."""
_SMALL, _CUT = b"s", b"c"
_NAMES = "eplb/"


def tcp_store(endpoint: Endpoint, timeout_s: float) -> TCPStore:
    """A client of the store at an endpoint, for `init_process_group(store=PrefixStore(...))`.

    Args:
        timeout_s: seconds until it is there, and that each of its own calls may wait.

    Raises:
        WorkerError: EP407, nobody answers, or not as a store does.
        UsageError: EP002, torch is not installed.
    """
    made = _store_class()
    give_up = time.monotonic() + timeout_s
    _wait_for_listener(endpoint, timeout_s, give_up)
    left_s = max(RETRY_S, give_up - time.monotonic())
    wait = timedelta(seconds=timeout_s)
    caller = Caller(left_s)
    try:
        return caller(lambda: made(*endpoint, None, False, wait, wait_for_workers=False))  # noqa: FBT003
    except (BoardError, RuntimeError) as error:
        problem = f"what answers at {endpoint} is no store of torch's: {_first_line(error)}"
        hint = "is the port that of --rdzv-endpoint, and one version of torch on all hosts?"
        raise WorkerError("EP407", problem, hint) from error
    finally:
        caller.end()


def serve_store(endpoint: Endpoint, timeout_s: float) -> TCPStore:
    """The store itself, in this process as long as what is returned is kept; it listens on `endpoint` alone.

    Raises:
        WorkerError: EP407, `endpoint` is no free address of this host.
        UsageError: EP001, it is all addresses; EP002, torch is not installed.
    """
    made = _store_class()
    wait = timedelta(seconds=timeout_s)
    with _listen(endpoint, time.monotonic() + min(timeout_s, NAME_S)) as listening:
        address, port = listening.getsockname()[:2]
        descriptor = listening.detach()  # it belongs to the store from here on
    serve = partial(
        made,
        address,
        port,
        None,
        True,  # noqa: FBT003
        wait,
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )
    try:
        return serve()
    except NotImplementedError:  # torch 2.6: only its other server takes a socket
        return serve(use_libuv=False)


def _listen(endpoint: Endpoint, give_up: float) -> socket.socket:
    """As `listen`, also where the name of this host is not yet known, or leads to one that had it before."""
    while True:
        try:
            return listen(endpoint)
        except WorkerError as error:
            why = error.__cause__
            is_early = isinstance(why, socket.gaierror) or getattr(why, "errno", 0) == errno.EADDRNOTAVAIL
            if not is_early or is_address(endpoint.host) or time.monotonic() + RETRY_S > give_up:
                raise
        time.sleep(RETRY_S)


def board_at(
    endpoint: Endpoint, *, serve: bool, timeout_s: float, lost_s: float, name: str = "hosts"
) -> TcpBoard:
    """The board at an endpoint: served here, or by another process, which may also be torchrun's agent.

    Args:
        timeout_s: seconds until somebody has to answer there.
        lost_s: seconds that a call may take.
        name: of this run, where a store may have seen others.

    Raises:
        WorkerError: EP407. UsageError: EP001, EP002.
    """
    store = (serve_store if serve else tcp_store)(endpoint, timeout_s)
    return TcpBoard(store, endpoint, lost_s, f"{_NAMES}{name}/")


class TcpBoard:
    """A `Board` in a TCPStore, under names that begin with `prefix`."""

    def __init__(self, store: TCPStore, endpoint: Endpoint, lost_s: float, prefix: str) -> None:
        self._store = store
        self._endpoint = endpoint
        self._prefix = prefix
        self._caller = Caller(lost_s)
        self._num_parts: dict[str, int] = {}

    def set(self, key: str, value: bytes) -> None:
        """As `Board.set`; the parts before what counts them."""
        name = self._prefix + key
        if len(value) <= SMALL_NBYTES:
            self._ask(self._store.set, name, _SMALL + value)
            return
        begins = range(0, len(value), PART_NBYTES)
        self._num_parts[key] = len(begins)
        for part, begin in enumerate(begins):
            self._ask(self._store.set, f"{name}/part/{part}", value[begin : begin + PART_NBYTES])
        self._ask(self._store.set, name, _CUT + str(len(begins)).encode())

    def get(self, key: str) -> bytes | None:
        """As `Board.get`."""
        values = self.get_many([key])
        return None if values is None else values[0]

    def claim(self, key: str, value: bytes) -> bytes:
        """As `Board.claim`."""
        there = self._ask(self._store.compare_set, self._prefix + key, b"", _SMALL + value)
        return self._whole(key, bytes(there))

    def get_many(self, keys: Sequence[str]) -> list[bytes] | None:
        """As `Board.get_many`."""
        names = [self._prefix + key for key in keys]
        if not self._ask(self._store.check, names):
            return None
        found = self._ask(self._store.multi_get, names)
        return [self._whole(key, bytes(value)) for key, value in zip(keys, found, strict=True)]

    def remove(self, key: str) -> None:
        """As `Board.remove`."""
        self._ask(self._store.delete_key, self._prefix + key)
        for part in range(self._num_parts.pop(key, 0)):
            self._ask(self._store.delete_key, f"{self._prefix}{key}/part/{part}")

    def again(self) -> TcpBoard:
        """As `Board.again`: a connection of its own."""
        lost_s = self._caller.deadline_s
        address = Endpoint(self._store.host, self._store.port)
        return TcpBoard(tcp_store(address, lost_s), self._endpoint, lost_s, self._prefix)

    def lost(self, first: str, why: str) -> WorkerError:
        """As `Board.lost`."""
        return WorkerError("EP407", f"{first} was not heard from at {self._endpoint}: {why}")

    def close(self, *, all_left: bool = False) -> None:
        """As `Board.close`; the store ends with whoever serves it."""
        del all_left
        self._caller.end()

    def _ask(self, call: Callable[..., T], *args: object) -> T:
        try:
            return self._caller(call, *args)
        except RuntimeError as error:
            raise BoardError(_first_line(error)) from error

    def _whole(self, key: str, value: bytes) -> bytes:
        """A value as its parts have it."""
        kind, rest = value[:1], value[1:]
        if kind == _SMALL and len(rest) <= SMALL_NBYTES:
            return rest
        if kind != _CUT or not rest.isdigit() or len(rest) > 9 or int(rest) * PART_NBYTES > MAX_VALUE_NBYTES:  # noqa: PLR2004
            raise BoardError("what is said there is not in the words of eplb")
        names = [f"{self._prefix}{key}/part/{part}" for part in range(int(rest))]
        return b"".join(self._ask(self._store.get, name) for name in names)


def _store_class() -> type[TCPStore]:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what goes wrong is said by us, once
    with needed("torch", "--nnodes", "use --backend file on shared storage"):
        from torch.distributed import TCPStore  # type: ignore[attr-defined]
    return TCPStore


def _wait_for_listener(endpoint: Endpoint, timeout_s: float, give_up: float) -> None:
    """Return when something listens there. Raises EP407 where nothing does in time.

    That of a pod is a name that nobody knows before the pod is there.
    """
    while True:
        try:
            socket.create_connection(endpoint, timeout=max(RETRY_S, give_up - time.monotonic())).close()
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() + RETRY_S > give_up or isinstance(error, UnicodeError):
                addresses_of(endpoint)  # says so where it is the name that is not known
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                problem = f"nobody answers at {endpoint} for {timeout_s:g} s: {why}"
                hint = "does --node-rank 0 run, is HOST an address that others reach, is the port open?"
                raise WorkerError("EP407", problem, hint) from error
            time.sleep(RETRY_S)


def _first_line(error: Exception) -> str:
    """What torch says, without the stack that comes after it."""
    return str(error).partition("\n")[0][:200] or type(error).__name__
