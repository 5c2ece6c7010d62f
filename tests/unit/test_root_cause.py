"""Which of several workers that ended is to blame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eplb_cli.run.job import Outcome
from eplb_cli.run.launch import _root_cause, exit_codes

VICTIM = ("EP401", "worker 0: RuntimeError: Connection closed by peer", "")


def log_of(*ends: tuple[int, int]) -> str:
    """What torchrun writes: (worker, exit code) of the failure it saw first, then of all the others."""
    entries = [
        f"  rank      : {worker} (local_rank: {worker})\n  exitcode  : {code} (pid: {70 + worker}) \n"
        for worker, code in ends
    ]
    worker, code = ends[0]
    return (
        f"E1124 api.py:1002] failed (exitcode: {code}) local_rank: {worker} (pid: 7) of: python\n"
        f"Failures:\n{''.join(entries[1:])}Root Cause (first observed failure):\n[0]:\n{entries[0]}"
    )


def cause(path, log: str, *outcomes: Outcome, num_workers: int = 3) -> tuple[str, str]:
    """The code and the message of the root cause."""
    (path / "torchrun.log").write_text(log)
    job: Any = SimpleNamespace(
        work=path,
        old={"num_ranks": 3},
        new={"num_ranks": 5},
        transfer=SimpleNamespace(num_workers=num_workers),
    )
    error = _root_cause(job, {outcome.worker: outcome for outcome in outcomes})
    return error.code, error.message


def test_exit_codes_come_from_both_places():
    """The line of the first failure, which may be all there is, and the summary."""
    log = log_of((1, -9), (0, 1), (12, -15))
    assert exit_codes(log) == {1: -9, 0: 1, 12: -15}
    assert exit_codes(log.splitlines()[0]) == {1: -9}
    assert exit_codes("torchrun said something else") == {}


@pytest.mark.parametrize("ends", [[(1, -9), (0, 1)], [(0, 1), (1, -9)], [(2, -15), (0, 1), (1, -9)]])
def test_who_dies_without_a_word_is_to_blame(tmp_path, ends):
    """In whatever order torchrun notices; not its neighbour, nor one that torchrun ended itself."""
    victim = Outcome(0, 5, VICTIM, is_victim=True)
    code, message = cause(tmp_path, log_of(*ends), victim)
    assert code == "EP402"
    assert message.startswith("worker 1 (ranks 1, 4) ")
    assert message.endswith("by SIGKILL")


def test_a_worker_with_an_error_of_its_own_comes_first(tmp_path):
    """Before those that died, and before later errors of others."""
    victim = Outcome(0, 1, VICTIM, is_victim=True)
    first, second = (Outcome(worker, 9 - worker, ("EP603", f"worker {worker}", "")) for worker in (2, 1))
    assert cause(tmp_path, log_of((0, 1)), victim, second, first) == ("EP603", "worker 2")


def test_victims_alone_say_what_they_saw(tmp_path):
    """Where nobody admits anything, the first complaint is all there is."""
    victims = [Outcome(worker, worker, VICTIM, is_victim=True) for worker in range(2)]
    assert cause(tmp_path, log_of((0, 1), (1, 1)), *victims, num_workers=2) == VICTIM[:2]


def test_without_workers_torchrun_is_quoted(tmp_path):
    """EP404 with the end of its log."""
    code, message = cause(tmp_path, "No module named torch.distributed.run\n")
    assert code == "EP404"
    assert message.endswith("No module named torch.distributed.run")
