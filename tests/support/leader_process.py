"""A host as a process: `leader_process.py WHERE NODE COUNT LOST_S`; it joins, and talks until it is ended.

WHERE is HOST:PORT or a directory. It says "joined" when all are there, and as its last line, as JSON, the
error by which it ends: code, message and hint.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from eplb_cli.errors import EplbError
from eplb_cli.hosts import watch
from eplb_cli.hosts.addresses import read_endpoint
from eplb_cli.hosts.board import Board
from eplb_cli.hosts.file_board import meet_in
from eplb_cli.hosts.joining import joined
from eplb_cli.hosts.tcp_board import board_at

TIMEOUT_S = 60.0


def meet(where: str, node: int, lost_s: float) -> Board:
    """The board of either kind."""
    if where.startswith("/"):
        return meet_in(Path(where), node, TIMEOUT_S, lost_s)
    return board_at(read_endpoint(where), serve=node == 0, timeout_s=TIMEOUT_S, lost_s=lost_s)


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def interrupt(number: int, frame: object) -> NoReturn:
    """As the command line ends by a signal."""
    raise KeyboardInterrupt


def main() -> int:
    """Be a host."""
    where, node, count, lost_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    watch.LOST_S = lost_s
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with joined(lambda: meet(where, node, lost_s), node, count, {}, TIMEOUT_S) as hosts:
            say("joined")
            while True:
                hosts.gather(b"x" * 1000, "talk")
                time.sleep(0.01)
    except EplbError as error:
        say(json.dumps([error.code, error.message, error.hint]))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
