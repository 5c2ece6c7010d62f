"""torchrun, which here also says how its workers ended: `python -m eplb_cli.run.torchrun ARGUMENTS JOB`.

What torchrun knows of a worker that died without a word is in the exception that it ends with, and it
writes that nowhere but into its log. This module is the process of torchrun, and keeps what it knew.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from eplb_cli import files
from eplb_cli.checkpoint.staged import staging_of
from eplb_cli.run.leash import tie

_ENDS = "ends.json"


def leave_ends(work: Path, codes: Mapping[int, int]) -> None:
    """Leave the exit codes of workers that failed for the launcher, in the order in which they were seen."""
    partial = work / f"{_ENDS}.partial"
    files.write_file(partial, json.dumps(list(codes.items())).encode(), durable=False)
    with files.writing(work / _ENDS):
        files.attempt("replace", partial.replace, work / _ENDS)


def read_ends(work: Path) -> dict[int, int]:
    """Worker to exit code, negative for a signal, the first that was seen first; empty where none failed."""
    path = work / _ENDS
    return dict(json.loads(files.read_own_file(path))) if path.exists() else {}


def main() -> int:
    """Be torchrun, with its arguments; what a signal ends, ends by that signal.

    The rendezvous is through a file, so that nothing listens beyond loopback.
    """
    job = Path(sys.argv[-1])
    work = tie(job, generations=1) / job.parent.relative_to(staging_of(job))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun([f"--rdzv-endpoint={work / 'rendezvous'}", *sys.argv[1:]])
    except ChildFailedError as error:
        codes = {worker: failure.exitcode for worker, failure in error.failures.items()}
        leave_ends(work, codes)
        return 1
    except SignalException as error:  # torchrun has ended its workers
        signal.signal(error.sigval, signal.SIG_DFL)
        signal.raise_signal(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
