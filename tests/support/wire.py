"""A bad cable: `python wire.py PID NAME PID NAME DELAY_S JITTER_S LOSS`.

It makes an interface of a name in the network of each of two processes, and carries frames between them:
each is lost with a chance, or comes later by a delay and up to a jitter, and so after others perhaps. It is
what `tc netem` does, of which not every kernel has been built with; and it imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TAP, _NO_HEADER = 0x0002, 0x1000
_FRAME_NBYTES = 1 << 17
_SEED = 20
_STDIN = 0


def open_end(pid: int, name: str) -> int:
    """The descriptor of a new interface in the network of a process."""
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(network, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_HEADER))
    return end


def carry(ends: tuple[int, int], delay_s: float, jitter_s: float, loss: float) -> None:
    """Carry frames until standard input ends."""
    chance = random.Random(_SEED)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    count = itertools.count()
    travelling: list[tuple[float, int, int, bytes]] = []
    while True:
        wait_s = max(0.0, travelling[0][0] - time.monotonic()) if travelling else None
        ready, _, _ = select.select([*ends, _STDIN], [], [], wait_s)
        if _STDIN in ready:
            return
        for end in ready:
            with contextlib.suppress(OSError):  # there is none left, or the interface is down
                while frame := os.read(end, _FRAME_NBYTES):
                    if chance.random() >= loss:
                        due = time.monotonic() + delay_s + jitter_s * chance.random()
                        heapq.heappush(travelling, (due, next(count), other[end], frame))
        while travelling and travelling[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(travelling)
            with contextlib.suppress(OSError):  # nobody there
                os.write(end, frame)


def main() -> None:
    """Be the cable; say so when it is there."""
    pid, name, other_pid, other_name, *figures = sys.argv[1:]
    ends = (open_end(int(pid), name), open_end(int(other_pid), other_name))
    sys.stdout.write(sys.stdin.readline())
    sys.stdout.flush()
    carry(ends, *map(float, figures))


if __name__ == "__main__":
    main()
