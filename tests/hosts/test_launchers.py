"""The three ways to start a run of several hosts, as processes that load everything themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from eplb_cli.run.launched import job_text
from tests.support.leaders import free_port
from tests.support.runs import command, wait_until
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, 137)])
def test_what_ends_while_the_others_have_not_come(tmp_path, number, code):
    """The first of two processes, told to end, or whose worker is killed: it ends, and says nothing odd."""
    job, port = tmp_path / "job.json", free_port()
    job.write_text(job_text(["reshard", "src", "dst", "--new", "linear"]))
    process = subprocess.Popen(
        [sys.executable, "-m", "eplb_cli.run.worker", str(job)],
        env={
            **os.environ,
            "RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        },
        stderr=subprocess.PIPE,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        wait_until(lambda: is_listened_on(port))
        worker = int(children.read_text().split()[-1])
        os.kill(process.pid if number == signal.SIGTERM else worker, number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, b"Traceback" in said) == (code, False), said


def is_listened_on(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
