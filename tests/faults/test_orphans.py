"""A command that is killed while its workers start: the next one is refused, or has the right bytes."""

from __future__ import annotations

import pytest

from eplb_cli.placements.own_format import format_placement
from tests.support.orphans import ROWS, START, Seen, kill_and_run_again, require_namespaces
from tests.support.placements import placement
from tests.support.runs import command, contents
from tests.support.small import NEW, SmallCase, small_case

pytestmark = pytest.mark.distributed

GLOO = ("--backend", "gloo", "--nproc-per-node", 2)
FILE = ("--backend", "file")
OTHER_NEW = placement([[1, 2, 3, 3, 0, 0], [2, 3, 0, 1, 1, -1]], 2, 4, [3, 4])


@pytest.fixture
def case(tmp_path):
    """A small checkpoint, and a NEW for the run that is killed that is not the next one's."""
    require_namespaces()
    (tmp_path / "other.json").write_text(format_placement(OTHER_NEW))
    assert OTHER_NEW != NEW
    return small_case(tmp_path)


def killed(case: SmallCase, **how) -> Seen:
    """Kill a run under the other NEW, run again under NEW, and hold the bytes to account."""
    first = command(*case.command(*GLOO, new=case.home / "other.json"))
    seen = kill_and_run_again(case.home, first, command(*case.command(*FILE)), **how)
    if not seen.killed:  # it was the sooner one, and DST is its own
        return seen
    assert seen.codes[-1] == 0, seen
    assert set(seen.codes[:-1]) <= {6}, seen
    assert contents(case.destination) == case.result
    assert contents(case.source) == case.source_contents
    assert not case.staging.exists()
    return seen


@pytest.mark.parametrize(
    ("gates", "is_refused"),
    [
        (("eplb_cli.run.worker", "numpy", ROWS), False),
        (("eplb_cli.run.worker", START), True),
        (("eplb_cli.run.torchrun", START), True),
    ],
    ids=["worker-imports", "worker-starts", "torchrun-starts"],
)
def test_a_process_that_wakes_up_when_its_command_is_gone(case, gates, is_refused, count):
    """It ends before it writes anything, and as long as it has not, the next run is refused with EP605.

    PID 1 has reaped its parent, and says nothing of the command.
    """
    seen = killed(case, gates=gates)
    assert seen.killed
    assert seen.codes == [6, 0] if is_refused else [0]
    count("commands killed before their workers", 1)


@pytest.mark.parametrize("step", range(4))
def test_a_kill_at_any_moment(case, step, count):
    """Four of the moments, of which `scripts/bench faults --starting N` takes every 20 ms."""
    killed(case, after_s=0.3 + 0.9 * step)
    count("commands killed before their workers", 1)
