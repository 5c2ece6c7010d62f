"""Hosts that are killed, stopped or interrupted: all others end with one error that names them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leaders import free_port

PROGRAM = Path(__file__).parents[1] / "support" / "leader_process.py"
ROOT = PROGRAM.parents[2]
LOST_S = 3
NAME = os.uname().nodename


@pytest.fixture(params=["tcp", "directory"])
def where(request, tmp_path):
    """Where hosts meet."""
    if request.param == "directory":
        return str(tmp_path / "hosts")
    pytest.importorskip("torch")
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def start():
    """Start a host of some; all that are left are killed at the end."""
    with contextlib.ExitStack() as stack:

        def started(where, node, count):
            words = [sys.executable, PROGRAM, where, node, count, LOST_S]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(
                list(map(str, words)),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield started


@pytest.fixture
def three(where, start):
    """Three hosts that have joined."""
    hosts = [start(where, node, 3) for node in range(3)]
    for host in hosts:
        assert host.stdout.readline() == "joined\n"
    return hosts


def end_of(host):
    """The error and the exit code of a host; nothing else is said."""
    out, err = host.communicate()
    assert not err
    return *json.loads(out.splitlines()[-1])[:2], host.returncode


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_falls_silent(three, number):
    """It is killed, or stands still: host 0 misses its beat and tells the other; one that wakes ends too."""
    os.kill(three[1].pid, number)
    lost = ("EP407", f"host 1 ({NAME}) was not heard from for {LOST_S} s", 4)
    assert end_of(three[0]) == end_of(three[2]) == lost
    os.kill(three[1].pid, signal.SIGCONT)
    if number == signal.SIGSTOP:
        assert end_of(three[1])[::2] == ("EP407", 4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_host_0_falls_silent(three, number, where):
    """With it goes the store, if there is one: a connection that is closed, or does not answer."""
    os.kill(three[0].pid, number)
    for host in three[1:]:
        code, message, exit_code = end_of(host)
        assert (code, exit_code) == ("EP407", 4)
        assert message.startswith(f"host 0 ({NAME}) was not heard from")


@pytest.mark.parametrize("node", [0, 2])
def test_a_host_that_is_interrupted(three, node):
    """It says so; for the others it is a host that is lost, after which what is done is kept."""
    three[node].terminate()
    for other in {0, 1, 2} - {node}:
        assert end_of(three[other]) == ("EP407", f"host {node} ({NAME}) was interrupted", 4)
    assert three[node].wait() == 130


def test_only_the_address_that_was_given_is_listened_on(start):
    """One socket of host 0, none of the others."""
    pytest.importorskip("torch")
    port = free_port()
    hosts = [start(f"127.0.0.1:{port}", node, 2) for node in range(2)]
    for host in hosts:
        host.stdout.readline()
    pids = {str(host.pid) for host in hosts}
    assert [local for pid, local in listening() if pid in pids] == [("127.0.0.1", port)]


def listening():
    """Process and local address of all sockets of processes that listen."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                inodes[f"socket:[{words[9]}]"] = words[1]
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if (found := inodes.get(str(link.readlink()))) is not None:
                address, port = found.split(":")
                known = {"0100007F": "127.0.0.1", "0000000000000000FFFF00000100007F": "127.0.0.1"}
                yield link.parts[2], (known.get(address, address), int(port, 16))


def test_what_a_killed_run_has_left_fools_nobody(tmp_path, start):
    """Hosts of the next run wait for a host 0 that lives, in the order in which they come."""
    where = str(tmp_path / "hosts")
    first = [start(where, node, 2) for node in range(2)]
    for host in first:
        host.stdout.readline()
        host.kill()
        host.wait()
    assert (tmp_path / "hosts" / "current").exists()
    late = start(where, 1, 2)
    assert start(where, 0, 2).stdout.readline() == "joined\n"
    assert late.stdout.readline() == "joined\n"


def test_a_second_host_0_is_refused(where, start):
    """The first goes on."""
    hosts = [start(where, node, 2) for node in range(2)]
    for host in hosts:
        host.stdout.readline()
    code, message, exit_code = end_of(start(where, 0, 2))
    assert (code, exit_code) in {("EP001", 2), ("EP407", 4)}
    assert "another host has begun" in message or "in use" in message
    assert [host.poll() for host in hosts] == [None, None]
