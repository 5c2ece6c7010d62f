"""The hosts that other tests here stand on are what they say."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.namespaces import Link, descendants
from tests.support.runs import wait_until

NBYTES = 300_000

LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
peer, _ = server.accept()
"""
TAKE = LISTEN + "print(len(b''.join(iter(lambda: peer.recv(1 << 16), b''))), flush=True)"
ECHO = LISTEN + "\nwhile data := peer.recv(1 << 16): peer.sendall(data)"

CONNECT = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 7000))
"""
GIVE = CONNECT + "peer.sendall(bytes(int(sys.argv[2])))"
PING = (
    CONNECT
    + """
for _ in range(5):
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start = time.perf_counter()
    peer.sendall(b"x")
    peer.recv(1)
    print(time.perf_counter() - start, flush=True)
"""
)
TALK = (
    CONNECT
    + """
from pathlib import Path
peer.sendall(b"before")
peer.recv(6)
print("connected", flush=True)
while not Path("go").exists():
    time.sleep(0.01)
peer.sendall(b"after")
peer.settimeout(1)
try:
    print("came back", peer.recv(5), flush=True)
except TimeoutError:
    print("silence", flush=True)
peer.settimeout(None)
print(peer.recv(5).decode(), flush=True)
"""
)


def listening(machine, code):
    """A process that listens at the address of a host."""
    process = machine.python(code, machine.address)
    wait_until(lambda: "ready" in process.out() or process.poll() is not None)
    return process


def test_no_host_sees_what_another_has(hosts):
    """One path, which is another directory on each; the common one is one."""
    machines = hosts(3, shared=True)
    home = machines[0].home
    for number, machine in enumerate(machines):
        (machine.path / "own").write_text(str(number))
        machine.run(["sh", "-c", f"echo {number} > shared/of-{number}"])
    for number, machine in enumerate(machines):
        assert machine.run(["cat", home / "own"]).out == str(number)
        assert machine.run(["ls", home / "shared"]).out.split() == ["of-0", "of-1", "of-2"]
        assert machine.run(["find", home.parent / "all"]).out.split() == [str(home.parent / "all")]
    assert not list(home.iterdir())


def test_each_is_a_host_of_its_own(hosts):
    """Name, address, PID 1, the start of its kernel, shared memory."""
    machines = hosts(2)
    boots = set()
    for machine in machines:
        assert machine.run(["hostname"]).out.strip() == machine.name
        assert machine.run(["cat", "/proc/1/comm"]).out.strip() == "cat"
        assert machine.run(["sh", "-c", "ls /dev/shm; touch /dev/shm/of-one"]).out == ""
        boots.add(machine.run(["cat", "/proc/sys/kernel/random/boot_id"]).out)
        assert machine.run(["sh", "-c", "exit 7"]).code == 7
    assert len(boots) == 2
    for machine in machines:
        found = machine.run(["getent", "hosts", machines[0].name]).out.split()
        assert found == [machines[0].address, machines[0].name]


def test_bytes_between_hosts_are_counted(hosts):
    """On the interfaces of both that speak, and on none of the third."""
    machines = hosts(3)
    taker = listening(machines[0], TAKE)
    idle = [machine.interface_bytes() for machine in machines]
    assert machines[0].listening() == {machines[0].address}
    assert machines[1].python(GIVE, machines[0].name, NBYTES).wait().code == 0
    assert taker.wait().out.split() == ["ready", str(NBYTES)]
    received, sent = zip(
        *(
            (after.received - before.received, after.sent - before.sent)
            for before, after in zip(idle, (machine.interface_bytes() for machine in machines), strict=True)
        ),
        strict=True,
    )
    assert NBYTES < received[0] < 1.1 * NBYTES
    assert NBYTES < sent[1] < 1.1 * NBYTES
    assert max(received[2], sent[2], received[1], sent[0]) < 0.1 * NBYTES


def test_a_cut_is_silent_until_it_is_mended(hosts):
    """Who sends gets no reset and no answer; afterwards what was sent comes."""
    machines = hosts(2)
    listening(machines[0], ECHO)
    talker = machines[1].python(TALK, machines[0].address)
    wait_until(lambda: "connected" in talker.out())
    machines[0].cut()
    (machines[1].path / "go").touch()
    wait_until(lambda: len(talker.out().split()) > 1)
    assert talker.out().split() == ["connected", "silence"], talker.err()
    machines[0].mend()
    assert talker.wait().out.split()[2:] == ["after"]


def test_nobody_says_goodbye_on_a_host_that_is_lost(hosts):
    """The others only do not hear of it any more, whatever died on it."""
    machines = hosts(2)
    listening(machines[0], ECHO)
    talker = machines[1].python(TALK, machines[0].address)
    wait_until(lambda: "connected" in talker.out())
    machines[0].lose()
    assert machines[0].processes() == []
    (machines[1].path / "go").touch()
    wait_until(lambda: len(talker.out().split()) > 1)
    assert talker.out().split() == ["connected", "silence"]


def test_a_delay_is_on_every_cable(hosts):
    """There and back over two of them."""
    machines = hosts(2, link=Link(delay_s=0.02))
    listening(machines[0], ECHO)
    trips = [float(line) for line in machines[1].python(PING, machines[0].address).wait().out.split()]
    assert len(trips) == 5
    assert min(trips) >= 4 * 0.02


def test_what_is_lost_is_sent_again(hosts):
    """One frame in twenty on each cable, and others out of order; all bytes come."""
    machines = hosts(2, link=Link(delay_s=0.001, jitter_s=0.002, loss=0.05))
    taker = listening(machines[0], TAKE)
    assert machines[1].python(GIVE, machines[0].address, NBYTES).wait().code == 0
    assert taker.wait().out.split() == ["ready", str(NBYTES)]
    assert NBYTES < machines[0].interface_bytes().received < 0.98 * machines[1].interface_bytes().sent


def test_a_pattern_kills_on_one_host_alone(hosts):
    """And the process that was started knows by which signal."""
    machines = hosts(2)
    sleeping = [machine.popen(["sleep", number]) for machine in machines for number in (1001, 1002)]
    wait_until(lambda: all(len(machine.processes("sleep 100")) == 2 for machine in machines))
    assert machines[0].kill("sleep 1001", signal.SIGTERM) == 1
    assert sleeping[0].wait().code == -signal.SIGTERM
    sleeping[2].signal(signal.SIGKILL)
    assert sleeping[2].wait().code == -signal.SIGKILL
    assert [process.poll() for process in sleeping] == [-signal.SIGTERM, None, -signal.SIGKILL, None]


OWNER = """
import sys, time
from pathlib import Path
from tests.support.machines import Link, hosts
with hosts(2, Path(sys.argv[1]), link=Link()) as machines:
    for machine in machines:
        machine.popen(["sh", "-c", "setsid sleep 1003 & exec sleep 1004"])
    while sum(len(machine.processes("sleep 100")) for machine in machines) < 4:
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(1000)
"""


def test_all_ends_with_the_test_however_that_ends(hosts, tmp_path):
    """Also what has left its parent, and the cables."""
    hosts(1)  # or this is skipped
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", OWNER, str(tmp_path / "of-owner")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "ready\n"
        below = descendants(owner.pid)
        assert len(below) > 8
        owner.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
