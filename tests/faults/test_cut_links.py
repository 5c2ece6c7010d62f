"""A link between hosts that is cut, or bad: leaders on hosts of their own, which namespaces are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.runs import wait_until

machines = pytest.importorskip("tests.support.machines", reason="no hosts of namespaces here")

PROGRAM = Path(__file__).parents[1] / "support" / "leader_process.py"
LOST_S = 3
PORT = 29400


@pytest.fixture
def three(tmp_path):
    """Three hosts."""
    pytest.importorskip("torch")
    with machines.hosts(3, tmp_path) as made:
        yield made


def started(hosts):
    """Their leaders, which have joined."""
    where = f"{hosts[0].address}:{PORT}"
    words = [[sys.executable, PROGRAM, where, node, len(hosts), LOST_S] for node in range(len(hosts))]
    environment = {"PYTHONPATH": str(PROGRAM.parents[2])}
    leaders = [host.popen(line, environment) for host, line in zip(hosts, words, strict=True)]
    wait_until(lambda: all("joined" in leader.out() for leader in leaders))
    return leaders


def end_of(leader):
    """Its error, and its exit code; nothing else is said."""
    ended = leader.wait()
    assert not leader.err()
    return *json.loads(leader.out().splitlines()[-1])[:2], ended.code


def test_a_host_that_nobody_reaches_any_more(three):
    """Both sides of the cut end: host 0 tells those that it reaches, and who is alone has lost host 0."""
    leaders = started(three)
    three[1].cut()
    lost = ("EP407", f"host 1 (node-b) was not heard from for {LOST_S} s", 4)
    assert end_of(leaders[0]) == end_of(leaders[2]) == lost
    code, message, exit_code = end_of(leaders[1])
    assert (code, exit_code) == ("EP407", 4)
    assert message.startswith(f"host 0 (node-a) was not heard from at {three[0].address}:{PORT}")


def test_a_cut_that_is_mended_in_time(three):
    """Nobody minds; what was sent meanwhile comes again."""
    leaders = started(three)
    three[1].cut()
    wait_until(lambda: three[1].interface_bytes() == three[1].interface_bytes())
    three[1].mend()
    assert [leader.poll() for leader in leaders] == [None] * 3
    assert three[0].listening() - {"127.0.0.1"} == {three[0].address}
    assert three[1].listening() == three[2].listening() == set()


def test_host_0_loses_its_power(three):
    """Both others have lost host 0."""
    leaders = started(three)
    three[0].lose()
    for leader in leaders[1:]:
        code, message, exit_code = end_of(leader)
        assert (code, exit_code) == ("EP407", 4)
        assert message.startswith("host 0 (node-a) was not heard from")
