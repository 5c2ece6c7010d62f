"""`python -m tests.support.slow_writes ARGUMENTS...`: eplb on a disk that takes its time for every write.

There is more time for a second interruption, too: the machine that tests run on may be busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from eplb_cli import files, interrupts

WRITE_S = 0.2
SECOND_S = 4.0


def make_call(operation: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Stands for `files.make_call`."""
    if operation == "write":
        time.sleep(WRITE_S)
    return call(*arguments)


if __name__ == "__main__":
    from eplb_cli.cli import entry

    files.make_call = make_call
    interrupts.SECOND_S = SECOND_S
    entry.main()
