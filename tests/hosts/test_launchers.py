"""The three ways to start a run of several hosts, as processes that load everything themselves."""

from __future__ import annotations

import sys

import pytest

from tests.support.runs import command
from tests.support.spread import PORT

pytestmark = pytest.mark.distributed


def require_ended(case, processes, num_workers):
    """All are done, and the first of all has the report."""
    ended = [process.wait() for process in processes]
    assert [end.code for end in ended] == [0] * len(ended), ended
    assert f"resharded 4 ranks with gloo, {num_workers} workers" in ended[0].out, ended
    assert [end.out for end in ended if "resharded" in end.out] == [ended[0].out]
    case.require_whole()


@pytest.fixture
def case(spread, monkeypatch):
    """Two hosts, without small files that ranks share: only forks have these."""
    made = spread([[0, 1], [2, 3]], ranks_per_node=2)
    monkeypatch.undo()
    return made


def test_the_command_on_each_host(case):
    """It starts torchrun for the workers of its host."""
    words = [command(*case.words(node, nproc_per_node=1)) for node in range(2)]
    started = [machine.popen(said) for machine, said in zip(case.machines, words, strict=True)]
    require_ended(case, started, 2)


@pytest.fixture
def saved(case):
    """The same with a job file on each host."""
    words = case.words(
        0, "--save-job", "job.json", nnodes=None, node_rank=None, rdzv_endpoint=None, nproc_per_node=None
    )
    for machine in case.machines:
        ended = machine.run(command(*words))
        assert ended.code == 0, ended
    return case


def test_torchrun_on_each_host(saved):
    """Its store is where they meet."""
    started = [
        machine.popen(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--nnodes", 2, "--node-rank", node, "--nproc-per-node", 1),
                *("--master-addr", saved.machines[0].address, "--master-port", PORT),
                *("-m", "eplb_cli.run.worker", "job.json"),
            ]
        )
        for node, machine in enumerate(saved.machines)
    ]
    require_ended(saved, started, 2)


def test_processes_with_numbers(saved):
    """As srun and others start them: which of them share a host is found out."""
    started = [
        machine.popen(
            [sys.executable, "-m", "eplb_cli.run.worker", "job.json"],
            {
                "RANK": str(number),
                "WORLD_SIZE": "4",
                "MASTER_ADDR": saved.machines[0].name,
                "MASTER_PORT": str(PORT),
            },
        )
        for number, machine in enumerate([*saved.machines, *saved.machines])
    ]
    require_ended(saved, started, 4)
