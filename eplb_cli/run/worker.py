"""What each process of a job runs: `python -m eplb_cli.run.worker JOB`.

A job in a staging directory is one that a command has planned and started processes for; any other is a file
of `eplb reshard --save-job`, for processes that another launcher starts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from eplb_cli.checkpoint.staged import WORK
from eplb_cli.run.leash import tie


def main() -> int:
    """Be a worker: first the ties, then what takes long to import."""
    job = Path(sys.argv[1])
    if WORK not in job.parts:
        from eplb_cli.run.launched import take_part

        return take_part(job)
    held = tie(job, generations=2)
    from eplb_cli.run.work import work

    return work(held, job, int(os.environ["RANK"]))


if __name__ == "__main__":
    sys.exit(main())
