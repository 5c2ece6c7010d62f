"""Which of several workers that ended is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eplb_cli.hosts.hosts import ALONE
from eplb_cli.plan.hosting import Hosting
from eplb_cli.run.job import Outcome
from eplb_cli.run.launch import _root_cause, _watch
from eplb_cli.run.torchrun import leave_ends, read_ends

VICTIM = ("EP401", "worker 0: RuntimeError: Connection closed by peer", "")


def cause(
    path,
    ends: Mapping[int, int | None],
    *outcomes: Outcome,
    log: str = "",
    code: int | None = 1,
    num_workers: int = 3,
) -> tuple[str, str]:
    """The code and the message of the root cause, where torchrun saw `ends` and ended with `code`."""
    (path / "torchrun.log").write_text(log)
    job: Any = SimpleNamespace(
        desk=path,
        hosting=Hosting.one_host(3, 5, num_workers),
    )
    error = _root_cause(job, {outcome.worker: outcome for outcome in outcomes}, code, ends)
    return error.code, error.message


def test_ends_are_read_as_they_were_left(tmp_path):
    """In the order in which they were seen, and nothing where no worker failed."""
    assert read_ends(tmp_path) == {}
    leave_ends(tmp_path, {1: -9, 0: 1, 12: -15})
    assert list(read_ends(tmp_path).items()) == [(1, -9), (0, 1), (12, -15)]


@pytest.mark.parametrize("ends", [{1: -9, 0: 1}, {0: 1, 1: -9}, {2: -15, 0: 1, 1: -9}])
def test_who_dies_without_a_word_is_to_blame(tmp_path, ends):
    """In whatever order torchrun notices; not its neighbour, nor one that torchrun ended itself."""
    victim = Outcome(0, 5, VICTIM, is_victim=True)
    code, message = cause(tmp_path, ends, victim)
    assert code == "EP402"
    assert message.startswith("worker 1 (ranks 1, 4) ")
    assert message.endswith("by SIGKILL")


def test_nobody_may_know_how_a_worker_ended(tmp_path):
    """As of those that another launcher has started, which sees it alone."""
    assert cause(tmp_path, {1: None}) == ("EP402", "worker 1 (ranks 1, 4) ended without a word")


def test_a_worker_with_an_error_of_its_own_comes_first(tmp_path):
    """Before those that died, and before later errors of others."""
    victim = Outcome(0, 1, VICTIM, is_victim=True)
    first, second = (Outcome(worker, 9 - worker, ("EP603", f"worker {worker}", "")) for worker in (2, 1))
    assert cause(tmp_path, {0: 1}, victim, second, first) == ("EP603", "worker 2")


def test_victims_alone_say_what_they_saw(tmp_path):
    """Where nobody admits anything, the first complaint is all there is."""
    victims = [Outcome(worker, worker, VICTIM, is_victim=True) for worker in range(2)]
    assert cause(tmp_path, {0: 1, 1: 1}, *victims, num_workers=2) == VICTIM[:2]


def test_torchrun_that_a_signal_ended_is_told(tmp_path):
    """EP404 with the signal, before what workers saw of it; an error of a worker's own still comes first."""
    victim = Outcome(0, 1, VICTIM, is_victim=True)
    assert cause(tmp_path, {}, victim, code=-15) == ("EP404", "torchrun was ended by SIGTERM")
    own = Outcome(1, 9, ("EP603", "disk full", ""))
    assert cause(tmp_path, {}, victim, own, code=-11) == ("EP603", "disk full")


@pytest.mark.parametrize(("is_victim", "polls_left"), [(True, 0), (False, 3)])
def test_torchrun_is_waited_for_where_all_workers_are_victims(tmp_path, is_victim, polls_left):
    """However late it ends, since only it knows why; an error of a worker's own needs no word of it."""
    for worker in range(2):
        Outcome(worker, worker, VICTIM, is_victim=is_victim).write(tmp_path)
    polls: list[int | None] = [None, None, None, -2]
    job: Any = SimpleNamespace(desk=tmp_path, workers=range(2))
    started: Any = SimpleNamespace(is_running=lambda _: polls.pop(0) is None)
    _watch(job, started, np.zeros((2, 4), np.int64), 300, lambda _: None, ALONE)
    assert len(polls) == polls_left


def test_without_workers_torchrun_is_quoted(tmp_path):
    """EP404 with the last line of its log, which is all of a traceback that helps."""
    log = "Traceback (most recent call last):\n  File ...\nNo module named torch.distributed.run\n"
    code, message = cause(tmp_path, {}, log=log)
    assert code == "EP404"
    assert message == "the workers could not be started: No module named torch.distributed.run"
