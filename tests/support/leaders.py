"""Hosts as threads of this process, over a board in memory, in a directory, or over TCP."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eplb_cli.errors import WorkerError
from eplb_cli.hosts.addresses import Endpoint
from eplb_cli.hosts.board import BoardError
from eplb_cli.hosts.file_board import meet_in
from eplb_cli.hosts.joining import joined
from eplb_cli.hosts.tcp_board import board_at

TIMEOUT_S = 60.0


class MemoryBoard:
    """A board that is a dict; `is_silent` lets it not answer any more."""

    def __init__(self, values=None, lock=None):
        self.values = {} if values is None else values
        self.lock = lock or threading.Lock()
        self.is_silent = False

    def set(self, key, value):
        self._answer()
        with self.lock:
            self.values[key] = bytes(value)

    def get(self, key):
        self._answer()
        return self.values.get(key)

    def claim(self, key, value):
        self._answer()
        with self.lock:
            return self.values.setdefault(key, bytes(value))

    def get_many(self, keys):
        self._answer()
        with self.lock:
            found = [self.values.get(key) for key in keys]
        return None if None in found else found

    def remove(self, key):
        self.values.pop(key, None)

    def again(self):
        return self

    def lost(self, first, why):
        return WorkerError("EP407", f"{first} was not heard from: {why}")

    def close(self, *, all_left=False):
        """Nothing to close."""

    def _answer(self):
        if self.is_silent:
            raise BoardError("no answer")


def in_memory():
    """How each host meets the others, by node."""
    board = MemoryBoard()
    return lambda _: board


def over_tcp(timeout_s=TIMEOUT_S, lost_s=30.0):
    """The same over TCP."""
    endpoint = Endpoint("127.0.0.1", free_port())
    return lambda node: board_at(endpoint, serve=node == 0, timeout_s=timeout_s, lost_s=lost_s)


def in_directory(path: Path, timeout_s=TIMEOUT_S, lost_s=30.0):
    """The same in a directory."""
    return lambda node: meet_in(path, node, timeout_s, lost_s)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_hosts(meet, *works, same=None, timeout_s=TIMEOUT_S, counts=None, nodes=None):
    """Let each host do its work, a function of its `Hosts`; what each returns or raises, by node."""
    given = same or [{}] * len(works)

    def run(number, work):
        node = number if nodes is None else nodes[number]
        count = len(works) if counts is None else counts[number]
        with joined(lambda: meet(node), node, count, given[number], timeout_s) as hosts:
            return work(hosts)

    with ThreadPoolExecutor(len(works)) as pool:
        ends = [pool.submit(run, number, work) for number, work in enumerate(works)]
        return [end.exception() or end.result() for end in ends]


def wait_for(hosts):
    """A host that only waits for the others; it raises what one of them does."""
    while True:
        hosts.gather(b"", "waiting")
