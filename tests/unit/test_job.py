"""The job file: what a worker refuses before it looks at anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplb_cli import __version__
from eplb_cli.errors import UsageError, WorkerError
from eplb_cli.plan.hosting import Hosting
from eplb_cli.run.crew import Crew, Present
from eplb_cli.run.job import Job
from eplb_cli.run.preparing import choose_workers
from eplb_cli.run.request import Request
from eplb_cli.transfer.traffic import TransferOptions


def test_another_version_of_the_launcher_is_refused():
    """EP404 with both versions, before SRC is opened."""
    options = TransferOptions(64, 1, 1)
    job = Job(
        source="/nowhere",
        staging="/nowhere",
        old={},
        new={},
        layout={},
        senders="balanced",
        ranks_per_node=None,
        nodes=None,
        hosting=Hosting.one_host(1, 1),
        rank_scalars=None,
        shared=[],
        backend="gloo",
        digest="",
        transfer=options,
        progress="/nowhere",
        tool="0.0.0",
    )
    with pytest.raises(WorkerError, match=f"eplb {__version__}.*eplb 0.0.0") as caught:
        job.prepare()
    assert caught.value.code == "EP404"


def test_file_has_no_workers_of_a_launcher():
    """EP001: one process would do its own share, and nobody that of the others."""
    crew = Crew(present=Present(0, (2,), ((1, 1), (2, 1)), "run"))
    with pytest.raises(UsageError, match="--backend file has one process") as caught:
        choose_workers(Request(Path("src"), Path("dst"), new="linear", backend="file"), 2, crew)
    assert caught.value.code == "EP001"
