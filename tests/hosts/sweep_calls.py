"""kill -9 at every call to the file system of every process of every host: too much for each run of CI.

`scripts/hosts-sweep` runs it, before a release and after changes to staging, hosts or launching; about an
hour on two cores. `-k part0` is an eighth of it.
"""

from __future__ import annotations

import itertools
from fnmatch import fnmatch

import pytest

from tests.hosts.test_lost_hosts import LAUNCHER, PHASES
from tests.support.faults import Fault

NUM_PARTS = 8
TIMEOUT_S = 4
_, AGREED_OPERATION, AGREED_PATTERN = PHASES["after the agreement"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(NUM_PARTS), ids=lambda part: f"part{part}")
@pytest.mark.parametrize("node", range(2))
@pytest.mark.parametrize("process", [LAUNCHER, "0"])
def test_kill_9_at_every_call(spread, process, node, part):
    """No host has DST, or all can have it."""
    case = spread([[0, 1], [2, 3]])
    agreed = False
    for number in itertools.count(part, NUM_PARTS):
        report = case.machines[node].home / "hit"
        fault = Fault(number, "kill", report)
        ended = case.run("--timeout", TIMEOUT_S, faults={node: {process: fault}})
        fault.report = case.machines[node].path / "hit"
        fault.take_report()
        if fault.hit is None:
            assert [end.code for end in ended] == [0, 0], ended
            case.require_whole()
            break
        operation, path = fault.hit
        agreed = agreed or (operation == AGREED_OPERATION and fnmatch(path, AGREED_PATTERN))
        agreed = agreed or ".eplb-ended" in path
        print(process, node, number, fault.hit, [end.code for end in ended])  # noqa: T201 - for -s
        case.require_sound(ended, agreed=agreed)
        case.remove_destination()
    assert number > 40
