"""What a command prints into a pipe, passed on by its judge.

Whoever reads a pipe waits until all who can write to it are gone, and a command whose disk does not answer is
not gone for as long as that lasts. So it gets pipes of its own, and the judge, which can end, has the others.

    command ──► pipe ──► judge ──► `... | tee log`
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading

STDOUT, STDERR = 1, 2
_BLOCK_NBYTES = 1 << 16


class Relay:
    """Pipes for stdout and stderr where they are pipes, or sockets, themselves; one where both are the same.

    It has to be made before the fork, and told after it on which side it is.
    """

    def __init__(self) -> None:
        self._pipes: dict[int, tuple[int, int]] = {}
        self._threads: list[threading.Thread] = []
        for stream in (STDOUT, STDERR):
            if _keeps_its_reader_waiting(stream) and not self._is_the_same(stream):
                self._pipes[stream] = os.pipe()

    def _is_the_same(self, stream: int) -> bool:
        """Whether it is stderr, which goes where stdout does (`2>&1`) and stays in order with it."""
        return STDOUT in self._pipes and os.path.samestat(os.fstat(STDOUT), os.fstat(stream))

    def in_command(self) -> None:
        """Print into the pipes from now on."""
        both = _keeps_its_reader_waiting(STDERR) and STDERR not in self._pipes
        for stream, (reading, writing) in self._pipes.items():
            os.close(reading)
            os.dup2(writing, stream)
            if both:
                os.dup2(writing, STDERR)
            os.close(writing)

    def in_judge(self) -> None:
        """Pass on what comes, from threads of their own."""
        for stream, (reading, writing) in self._pipes.items():
            os.close(writing)
            thread = threading.Thread(target=_pass_on, args=(reading, stream), daemon=True)
            thread.start()
            self._threads.append(thread)

    def finish(self) -> None:
        """Return when all has been passed on that a command which has ended had to say."""
        for thread in self._threads:
            thread.join()


def _keeps_its_reader_waiting(stream: int) -> bool:
    try:
        mode = os.fstat(stream).st_mode
    except OSError:  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _pass_on(reading: int, stream: int) -> None:
    """All that comes, until there is no more, or nobody who wants it: then the command is told so too."""
    with contextlib.suppress(OSError):
        while data := os.read(reading, _BLOCK_NBYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(stream, view) :]
    os.close(reading)
