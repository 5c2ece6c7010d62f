"""`python -m tests.support.tiny_buffers ARGUMENTS...`: eplb with buffers below what the command line takes.

A few bytes of `--buffer-size` cut the smallest checkpoint into many chunks; nobody else wants them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from eplb_cli.run import request


@contextlib.contextmanager
def tiny_buffers() -> Iterator[None]:
    """Take any `--buffer-size` in this process."""
    least, request.LEAST_BUFFER_NBYTES = request.LEAST_BUFFER_NBYTES, 1
    try:
        yield
    finally:
        request.LEAST_BUFFER_NBYTES = least


if __name__ == "__main__":
    from eplb_cli.cli import entry

    with tiny_buffers():
        entry.main()
