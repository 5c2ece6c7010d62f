"""Hosts that see nothing of each other's files write together what one host writes that sees all."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.faults import run_here
from tests.support.machines import Link

pytestmark = pytest.mark.distributed


def succeed(case, *options, **changes):
    """Run on all hosts, and hold the bytes to account; what each said."""
    ended = case.run(*options, **changes)
    assert [end.code for end in ended] == [0] * len(case.machines), ended
    case.require_whole()
    return ended


def refuse(case, code, *options, **changes):
    """The same error on all hosts, and nothing is written; what the hosts said."""
    ended = case.run(*options, **changes)
    for end in ended:
        assert f"error[{code}]" in end.err, ended
        assert "Traceback" not in end.err
        assert end.code, ended
    case.require_nothing()
    return [end.err for end in ended]


@pytest.mark.parametrize(
    ("ranks_of", "num_new", "ranks_per_node"),
    [
        ([[0, 1], [2, 3]], 4, 2),
        ([[3, 0], [], [1, 2]], 6, None),
        ([[0], [1, 2], [3], [4]], 3, None),
    ],
    ids=["2 hosts", "3 hosts, one without old ranks, more new ranks", "4 hosts, fewer new ranks"],
)
def test_the_same_as_on_one_host(spread, ranks_of, num_new, ranks_per_node):
    """Byte for byte, in all files; every host says so by its exit code, and the first has the report."""
    case = spread(ranks_of, num_new, ranks_per_node=ranks_per_node)
    said = succeed(case)
    assert (
        f"resharded {max(num_new, sum(map(len, ranks_of)))} ranks with gloo, {len(ranks_of)} workers"
        in said[0].out
    )
    for node, end in enumerate(said[1:], 1):
        assert end.out == ""
        assert f"host {node} of {len(ranks_of)}" in end.err
    case.gather(case.home / "gathered")
    verified = run_here("verify", case.home / "gathered")
    assert verified.code == 0, verified


@pytest.mark.parametrize("common", ["common_source", "common_destination", "both"])
def test_shared_storage_is_used_where_it_is_there(spread, common):
    """For SRC, DST or both: each file is read once and written once, and DST appears once."""
    names = ("common_source", "common_destination") if common == "both" else (common,)
    succeed(spread([[0, 1], [2, 3]], **dict.fromkeys(names, True)))


def test_file_on_shared_storage(spread):
    """No torch and no network: hosts split the new ranks, and speak through the storage."""
    case = spread([[0, 1, 2], []], 3, common_source=True, common_destination=True)
    for machine in case.machines:
        machine.cut()
    succeed(case, backend="file")


def test_a_copy_of_a_shard_is_no_second_shard(spread):
    """Found on two hosts, and taken from one of them."""
    case = spread([[0, 1], [2, 3]])
    case.give(case.machines[1], [1])
    succeed(case)


def test_two_different_files_of_one_name(spread):
    """EP237 names the file and both hosts."""
    case = spread([[0, 1], [2, 3]])
    case.give(case.machines[1], [1])
    path = case.source(case.machines[1]) / "model-rank-1-part-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for said in refuse(case, "EP237"):
        assert all(word in said for word in (path.name, "host 0 (node-a)", "host 1 (node-b)"))


def test_a_shard_that_no_host_has(spread):
    """The rank is named on all hosts, and who was asked."""
    case = spread([[0, 1], [2, 3]])
    for path in case.source(case.machines[1]).glob("model-rank-3-*"):
        path.unlink()
    for said in refuse(case, "EP202"):
        assert "rank 3 is missing (asked: host 0 (node-a) in " in said
        assert "host 1 (node-b) in " in said


def test_a_cable_with_delay_and_loss(spread):
    """The same bytes."""
    case = spread([[0, 1], [2, 3]], link=Link(delay_s=0.005, jitter_s=0.005, loss=0.01))
    succeed(case)


def test_no_more_crosses_than_the_report_says(spread):
    """Bytes between hosts are those of the plan, and on each interface there is little more, either way."""
    case = spread([[0, 1], [2, 3]], row_nbytes=1 << 20)
    idle = [machine.interface_bytes() for machine in case.machines]
    report = json.loads(succeed(case, "--format", "json")[0].out)
    assert report["cross_host_bytes"] == report["totals"]["cross_node_bytes"]
    assert report["cross_host_bytes"] == sum(host["sent_bytes"] for host in report["hosts"])
    for before, machine, host in zip(idle, case.machines, report["hosts"], strict=True):
        now = machine.interface_bytes()
        assert host["name"] == machine.name
        assert 1 < (now.sent - before.sent) / host["sent_bytes"] < 1.1
        assert 1 < (now.received - before.received) / host["received_bytes"] < 1.1


def test_nothing_listens_beyond_the_address(spread):
    """While rows travel."""
    case = spread([[0, 1], [2, 3]], link=Link(delay_s=0.02))
    processes = case.start()
    heard: list[set[str]] = [set(), set()]
    while any(process.poll() is None for process in processes):
        for node, machine in enumerate(case.machines):
            heard[node] |= machine.listening()
        time.sleep(0.1)
    assert [process.wait().code for process in processes] == [0, 0]
    for machine, addresses in zip(case.machines, heard, strict=True):
        assert addresses <= {machine.address, "127.0.0.1", "::1"}
    assert case.machines[0].address in heard[0]
