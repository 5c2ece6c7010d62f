"""What each process of the torchrun job runs: `python -m eplb_cli.run.worker JOB`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from eplb_cli.run.leash import tie


def main() -> int:
    """Be a worker: first the ties, then what takes long to import."""
    job = Path(sys.argv[1])
    held = tie(job, generations=2)
    from eplb_cli.run.work import work

    return work(held, job, int(os.environ["RANK"]))


if __name__ == "__main__":
    sys.exit(main())
