"""A process, or a host, that is gone at any phase: no host has DST, or `--resume` on all of them finishes."""

from __future__ import annotations

import signal

import pytest

from eplb_cli.placements.own_format import format_placement
from tests.support.machines import Link
from tests.support.phases import SignalAt
from tests.support.runs import wait_until
from tests.support.spread import placed

pytestmark = pytest.mark.distributed

LAUNCHER = "launcher"
PHASES = {
    "looking": (LAUNCHER, "open", "*src/model-rank-*"),
    "planning": (LAUNCHER, "read", "*/new.json"),
    "staging": (LAUNCHER, "mkdir", "*/.dst.eplb-staging"),
    "worker starts": ("worker", "open", "*/job.json"),
    "moving": ("worker", "write", "*/.dst.eplb-staging/model-rank-*"),
    "proving": (LAUNCHER, "read", "*/digests-new-*"),
    "before the agreement": (LAUNCHER, "sync", "*/eplb.json"),
    "after the agreement": (LAUNCHER, "rename", "*/.eplb"),
    "after some of its own files are gone": (LAUNCHER, "unlink", "*/.eplb-ended/host-?/*"),
    "renaming": (LAUNCHER, "rename", "*/.dst.eplb-staging"),
    "renamed": (LAUNCHER, "sync", "*/home"),
}
"""By name the process, and the call that it does not make any more."""

AGREED = list(PHASES).index("after the agreement")
LOST_S = 5
"""`--timeout`: seconds after which a host that says nothing is lost."""


def fault_at(phase, node, number=signal.SIGKILL, report=None):
    """A signal at a phase on a host, which has one worker, as `Spread.start` takes it."""
    process, operation, pattern = PHASES[phase]
    fault = SignalAt(operation, pattern, number, report)
    return {node: {str(0) if process == "worker" else process: fault}}


@pytest.mark.parametrize(
    ("phase", "node"), [(phase, number % 2) for number, phase in enumerate(PHASES)], ids=str
)
def test_kill_9_of_a_process(spread, phase, node):
    """All others end within the timeout, and none has DST, unless all had agreed."""
    case = spread([[0, 1], [2, 3]])
    ended = case.run("--timeout", LOST_S, faults=fault_at(phase, node))
    is_worker = PHASES[phase][0] == "worker"
    assert ended[node].code == (4 if is_worker else -signal.SIGKILL), ended
    assert ended[1 - node].code == 4 or list(PHASES).index(phase) >= AGREED, ended
    case.require_sound(ended, agreed=list(PHASES).index(phase) >= AGREED)


@pytest.mark.parametrize(
    ("phase", "node"), [("planning", 0), ("moving", 1), ("before the agreement", 0), ("renaming", 1)]
)
def test_a_host_without_power(spread, phase, node):
    """Nobody hears from it any more, and none of its processes said goodbye: EP407 names it."""
    case = spread([[0, 1], [2, 3]])
    report = case.machines[node].home / "hit"
    processes = case.start("--timeout", LOST_S, faults=fault_at(phase, node, signal.SIGSTOP, report))
    wait_until((case.machines[node].path / "hit").exists)
    case.machines[node].lose()
    ended = [process.wait() for process in processes]
    survivor = ended[1 - node]
    is_agreed = list(PHASES).index(phase) >= AGREED
    assert survivor.code == 4, ended
    assert "error[EP407]" in survivor.err, ended
    assert f"host {node}" in survivor.err, ended
    assert ("is there and whole here" in survivor.err) == is_agreed, ended
    assert ("--resume` on all hosts finishes it" in survivor.err) == is_agreed, ended
    case.machines[node].mend()
    case.require_sound(ended, agreed=is_agreed)


def test_a_cable_that_is_cut_while_rows_travel(spread):
    """Each host says that it does not hear the other, neither has DST, and later both go on."""
    case = spread([[0, 1], [2, 3]], link=Link(delay_s=0.01), row_nbytes=1 << 17)
    processes = case.start("--timeout", LOST_S)
    wait_until(lambda: case.machines[1].interface_bytes().sent > 1 << 17, processes[1])
    case.machines[1].cut()
    ended = [process.wait() for process in processes]
    for end in ended:
        assert end.code == 4, ended
        assert "error[EP407]" in end.err, ended
        assert "not heard from" in end.err, ended
    case.machines[1].mend()
    case.require_sound(ended, agreed=False)


@pytest.mark.parametrize("node", range(2))
def test_sigterm_on_one_host(spread, node):
    """All staging is kept, the others say whom it was, and `--resume` on all hosts goes on."""
    case = spread([[0, 1], [2, 3]])
    report = case.machines[1 - node].home / "hit"
    processes = case.start(faults=fault_at("moving", 1 - node, signal.SIGSTOP, report))
    wait_until((case.machines[1 - node].path / "hit").exists)
    processes[node].signal(signal.SIGTERM)
    ended = [process.wait() for process in processes]
    assert ended[node].code == 130, ended
    assert ended[1 - node].code == 4, ended
    assert f"error[EP407]: host {node} (node-{'ab'[node]}) was interrupted" in ended[1 - node].err
    for machine, end in zip(case.machines, ended, strict=True):
        assert "--resume" in end.err, ended
        assert case.staging(machine).exists()
    case.require_sound(ended, agreed=False)


def test_a_worker_that_outlives_its_command(spread):
    """The next run is refused as long as it is there, or has bytes of its own alone."""
    case = spread([[0, 1], [2, 3]])
    report = case.machines[1].home / "hit"
    processes = case.start("--timeout", LOST_S, faults=fault_at("moving", 1, signal.SIGSTOP, report))
    wait_until((case.machines[1].path / "hit").exists)
    for process in processes:
        process.signal(signal.SIGKILL)
    ended = case.run()
    while any("error[EP605]" in end.err for end in ended):
        ended = case.run()
    assert [end.code for end in ended] == [0, 0], ended
    case.require_whole()


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        (0, SignalAt("write", "*/.dst.eplb-staging/model-rank-*")),
        (1, SignalAt("write", "*/.dst.eplb-staging/model-rank-*")),
        (0, SignalAt("sync", "*/eplb.json")),
        (0, SignalAt("rename", "*/.dst.eplb-staging")),
    ],
    ids=["host 0 moves", "host 1 moves", "host 0 proves", "host 0 renames"],
)
def test_kill_9_where_hosts_share_storage_alone(spread, node, fault):
    """They commit once: one of them renames for all, and what is left is for `--resume`."""
    case = spread([[0, 1, 2], []], 3, common_source=True, common_destination=True)
    options = ("--timeout", LOST_S)
    ended = case.run(*options, backend="file", faults={node: {LAUNCHER: fault}})
    assert ended[node].code == -signal.SIGKILL, ended
    assert ended[1 - node].code == 4, ended
    case.require_nothing()
    case.require_sound(ended, agreed=False, backend="file")
    shared = case.destination(case.machines[0]).parent
    assert sorted(path.name for path in shared.iterdir()) == ["dst", "src"]


def test_what_is_there_of_another_run_is_not_taken_for_this_one(spread):
    """EP601: `--resume` finishes what was asked for, and nothing else; a dry run says what the run would."""
    case = spread([[0, 1, 2], []], 3, common_source=True, common_destination=True)
    assert [end.code for end in case.run(backend="file")] == [0, 0]
    for options in (["--resume", "--dry-run"], ["--resume"]):
        again = case.run(*options, backend="file")
        assert [end.code for end in again] == [0, 0], again
    case.require_whole()
    for machine in case.machines:
        (machine.path / "new.json").write_text(format_placement(placed(3, 5)))
    for options in (["--resume", "--dry-run"], ["--resume"]):
        ended = case.run(*options, backend="file")
        assert [end.code for end in ended] == [6, 6], ended
        assert all("error[EP601]" in end.err for end in ended), ended
    case.require_whole()
