"""The command line."""

from __future__ import annotations

import atexit
import gc
import os
import sys

__all__ = ["main"]

GC_THRESHOLD = 200000
"""Objects between two looks for cycles: what a command makes stays, and Python would look after 700."""


def main() -> None:
    """Run the command line. Without a package that it is made of, as typer, that is an error like others."""
    _spare_the_process()
    try:
        from eplb_cli.cli import entry
    except ImportError as error:
        from eplb_cli.machine import not_imported
        from eplb_cli.render import print_error

        missing = not_imported(error, str(error.name), "eplb")
        print_error(missing)
        sys.exit(missing.exit_code)
    entry.main()


def _spare_the_process() -> None:
    """Leave out what costs each command time, and serves none.

    numpy's OpenBLAS starts a thread for every core when it is imported, which wait for work at full speed,
    and nothing here multiplies matrices; the workers of a run inherit that. At the end all objects would be
    searched for cycles once more, only to be left to the system.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)
