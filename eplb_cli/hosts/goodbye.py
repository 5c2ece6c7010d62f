"""Who keeps the board stays until nobody needs it any more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from eplb_cli.errors import EplbError
from eplb_cli.hosts.board import Board, BoardError
from eplb_cli.hosts.watch import Watch, bye_of

POLL_S = 0.05
GOODBYE_S = 5.0
"""Seconds that host 0 waits, after a failure, for others to learn of it."""


def say_goodbye(board: Board, watch: Watch, node: int, others: Sequence[int], timeout_s: float) -> None:
    """Leave the board; host 0 waits until the others have, since it may be what keeps it. Never raises.

    Args:
        others: the hosts that host 0 waits for.
        timeout_s: seconds to wait at most; after a failure that is `GOODBYE_S`, or less.
    """
    all_left = False
    with contextlib.suppress(BoardError, EplbError):
        board.set(bye_of(node), b"")
        all_left = node == 0 and _all_left(board, watch, others, timeout_s)
    watch.end()
    board.close(all_left=all_left)


def _all_left(board: Board, watch: Watch, others: Sequence[int], timeout_s: float) -> bool:
    begin = time.monotonic()
    while board.get_many([bye_of(node) for node in others if node not in watch.lost]) is None:
        if time.monotonic() - begin > (min(GOODBYE_S, timeout_s) if watch.has_failed else timeout_s):
            return False
        time.sleep(POLL_S)
    return True
