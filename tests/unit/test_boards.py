"""Each kind of board does what a board has to, and says what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from eplb_cli import files
from eplb_cli.errors import EplbError, UsageError, WorkerError
from eplb_cli.hosts import file_board, tcp_board
from eplb_cli.hosts.addresses import Endpoint, interface_of, listen, local_address, read_endpoint
from eplb_cli.hosts.board import BoardError, SupersededError
from eplb_cli.hosts.bounded import Caller
from eplb_cli.hosts.file_board import meet_in
from eplb_cli.hosts.tcp_board import PART_NBYTES, SMALL_NBYTES, board_at, tcp_store
from eplb_cli.plan.hosting import Hosting
from eplb_cli.run import work
from tests.support.leaders import MemoryBoard, free_port, in_directory, over_tcp


@pytest.fixture(params=["memory", "directory", "tcp"])
def board(request, tmp_path):
    """One of each kind."""
    if request.param == "memory":
        yield MemoryBoard()
        return
    if request.param == "tcp":
        pytest.importorskip("torch")
    made = (over_tcp() if request.param == "tcp" else in_directory(tmp_path / "board"))(0)
    yield made
    made.close()


@pytest.mark.parametrize("nbytes", [0, 1, SMALL_NBYTES, SMALL_NBYTES + 1, PART_NBYTES, 9 * PART_NBYTES + 1])
def test_values(board, nbytes):
    """Of every size, whole, as another thread sees them; gone when they are removed."""
    value = bytes(range(256)) * (nbytes // 256 + 1)
    board.set("a/1", value[:nbytes])
    assert board.get("a/1") == value[:nbytes]  # has come to the store, so that all others see it
    assert board.again().get("a/1") == value[:nbytes]
    assert board.get_many(["a/1", "a/2"]) is None
    board.set("a/2", b"x")
    assert board.get_many(["a/2", "a/1"]) == [b"x", value[:nbytes]]
    board.set("a/1", b"other")
    assert board.get("a/1") == b"other"
    board.remove("a/1")
    board.remove("a/1")
    assert board.get("a/1") is None


def test_one_claims(board):
    """Of many at once, and all know which."""
    ours = [board.again() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(lambda number: ours[number].claim("first", b"%d" % number), range(8)))
    assert len(seen) == 1
    assert board.get("first") in seen


def test_a_call_that_does_not_come_back():
    """The caller goes on after its deadline, and no later call waits for it."""
    over = threading.Event()
    caller = Caller(0.05)
    with pytest.raises(BoardError, match="no answer for"):
        caller(over.wait)
    with pytest.raises(BoardError, match="earlier"):
        caller(int)
    over.set()
    caller.end()


def test_another_run_in_the_directory(tmp_path):
    """Host 0 of a run that nobody keeps is followed by another; whoever still looks at the first is told."""
    first = meet_in(tmp_path / "board", 0, 1.0, 5.0)
    first.set("a", b"x")
    second = meet_in(tmp_path / "board", 0, 1.0, 5.0)
    assert second.get("a") is None
    for call in (lambda: first.get("a"), lambda: first.set("b", b""), lambda: first.claim("c", b"")):
        with pytest.raises(SupersededError):
            call()
    second.close(all_left=True)
    assert not (tmp_path / "board").exists()


def test_another_run_beside_what_is_left(tmp_path, monkeypatch):
    """Where what the first has left cannot be removed, whoever waits there is told too."""
    first = meet_in(tmp_path / "board", 0, 1.0, 5.0)
    monkeypatch.setattr(file_board, "_remove_run", lambda _: None)
    meet_in(tmp_path / "board", 0, 1.0, 5.0)
    with pytest.raises(SupersededError):
        first.get("go")


def test_nobody_in_the_directory(tmp_path):
    """EP407 after the timeout, whether something is left of an earlier run or not."""
    for _ in range(2):
        with pytest.raises(WorkerError, match="host 0 has not begun in") as caught:
            meet_in(tmp_path / "board", 1, 0.3, 5.0)
        assert caught.value.code == "EP407"
        meet_in(tmp_path / "board", 0, 1.0, 5.0).set("beat/0", b"1")


def test_a_directory_that_cannot_be_written(tmp_path):
    """EP604."""
    (tmp_path / "board").write_bytes(b"")
    with pytest.raises(EplbError) as caught:
        meet_in(tmp_path / "board", 0, 1.0, 5.0)
    assert caught.value.code == "EP604"


def test_a_directory_that_is_not_there(tmp_path):
    """EP604: what DST lies in is for whoever starts the run to make."""
    with pytest.raises(EplbError) as caught:
        meet_in(tmp_path / "none" / "board", 0, 1.0, 5.0)
    assert caught.value.code == "EP604"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("node", range(2))
@pytest.mark.parametrize("kind", ["a link", "of another user"])
def test_a_directory_that_somebody_has_put_there(tmp_path, monkeypatch, node, kind):
    """EP604, and nothing in it is read or removed."""
    board, other = tmp_path / "board", tmp_path / "other"
    run = other / ("0" * 32)
    run.mkdir(parents=True)
    (run / "precious").write_bytes(b"x")
    if kind == "a link":
        board.symlink_to(other)
    else:
        other.rename(board)
        board.chmod(0o755)
        run = board / run.name
        monkeypatch.setattr("eplb_cli.hosts.file_board.os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(EplbError) as caught:
        meet_in(board, node, 1.0, 5.0)
    assert caught.value.code == "EP604"
    assert (run / "precious").exists()


def test_links_in_the_directory_are_not_followed(tmp_path):
    """What is called as a run is, and is none, stays."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_bytes(b"x")
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / ("0" * 32)).symlink_to(other)
    meet_in(tmp_path / "board", 0, 1.0, 5.0)
    assert (other / "precious").exists()


def test_calls_of_a_board_are_not_counted(tmp_path):
    """They go on where another disk stands still, which whoever judges this process has to see."""
    before = list(files.calls.counts)
    board = meet_in(tmp_path / "board", 0, 1.0, 5.0)
    board.set("a", b"x")
    board.get("a")
    assert list(files.calls.counts) == before


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1:29400", "10.0.0.1", 29400),
        ("[fe80::1]:1", "fe80::1", 1),
        (" node-a:65535", "node-a", 65535),
    ],
)
def test_endpoints(text, host, port):
    """As they are written, and written again."""
    assert read_endpoint(text) == (host, port)
    assert str(read_endpoint(text)) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "node-a",
        ":29400",
        "node-a:",
        "node-a:0",
        "node-a:65536",
        "node-a:x",
        "fe80::1:29400",
        "a:٣",
        "tcp://a:1",
    ],
)
def test_what_is_no_endpoint(text):
    """EP001 with an example."""
    with pytest.raises(UsageError, match="is not HOST:PORT") as caught:
        read_endpoint(text)
    assert caught.value.code == "EP001"


@pytest.mark.parametrize(
    ("host", "code", "words"),
    [
        ("192.0.2.1", "EP407", "is no address of this host"),
        ("0.0.0.0", "EP001", "is every address"),  # noqa: S104 - it is refused
        ("::", "EP001", "is every address"),
        ("no-such-host.invalid", "EP407", "is not known here"),
    ],
)
def test_where_host_0_cannot_listen(host, code, words):
    """Not on an address of another host, nor on all of its own."""
    with pytest.raises(EplbError, match=words) as caught:
        listen(Endpoint(host, 29400))
    assert caught.value.code == code


def test_a_name_that_only_this_host_knows_so(monkeypatch):
    """EP407 at once: the others would look for host 0 elsewhere until the timeout."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 29400))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(WorkerError, match="which no other host reaches") as caught:
        listen(Endpoint("node-a", 29400))
    assert caught.value.code == "EP407"


@pytest.mark.parametrize("serve", [True, False])
@pytest.mark.parametrize("early", ["nobody knows it", "it leads elsewhere"])
def test_a_name_that_leads_to_host_0_only_later(monkeypatch, serve, early):
    """As that of a pod, which comes up while others wait for it: nobody gives up at once."""
    pytest.importorskip("torch")
    port, known = free_port(), socket.getaddrinfo
    name, asked = "localhost" if serve else "pod-0.job", []  # no other name may lead to loopback on host 0

    def later(host, *args, **options):
        asked.append(host)
        if host == name and len(asked) < 3:
            if early == "nobody knows it":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return known("192.0.2.1" if serve else "127.0.0.2", *args, **options)
        return known("127.0.0.1" if host == name else host, *args, **options)

    kept = None if serve else tcp_board.serve_store(Endpoint("127.0.0.1", port), 30.0)
    monkeypatch.setattr(socket, "getaddrinfo", later)
    monkeypatch.setattr(tcp_board, "_store_class", lambda: lambda *_, **__: "a store")
    found: Any = (tcp_board.serve_store if serve else tcp_store)(Endpoint(name, port), 10.0)
    assert (found, asked[:3]) == ("a store", [name] * 3)
    del kept


def test_a_name_that_nobody_comes_to_know():
    """EP407 after the timeout says that it is the name."""
    pytest.importorskip("torch")
    for meet in (tcp_store, tcp_board.serve_store):
        with pytest.raises(WorkerError, match=r"no-such-host\.invalid is not known here") as caught:
            meet(Endpoint("no-such-host.invalid", 29400), 0.5)
        assert caught.value.code == "EP407"


def test_a_port_that_is_taken():
    """EP407."""
    with listen(Endpoint("127.0.0.1", free_port())) as first, pytest.raises(WorkerError, match="is in use"):
        listen(Endpoint(*first.getsockname()))


def test_the_address_and_interface_towards_an_endpoint():
    """Of loopback, which every system has; and none for what is no address of ours."""
    assert local_address(Endpoint("127.0.0.1", 29400)) == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(WorkerError, match="no interface") as caught:
        interface_of("192.0.2.1")
    assert caught.value.code == "EP407"
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        assert interface_of("::1") == "lo"


@pytest.mark.parametrize("endpoint", [None, "127.0.0.1:29400"])
def test_workers_listen_where_the_endpoint_is_whoever_starts_them(tmp_path, monkeypatch, endpoint):
    """Else torch takes whatever address the name of the host has; what somebody has set stays."""
    dist = pytest.importorskip("torch.distributed")
    monkeypatch.setattr(os, "environ", {"NCCL_SOCKET_IFNAME": "eth9"})
    monkeypatch.setattr("eplb_cli.run.work.tcp_store", lambda *_: dist.HashStore())
    job: Any = SimpleNamespace(endpoint=endpoint, run="a", work=tmp_path, hosting=Hosting.one_host(1, 1))
    work._store(job)
    assert os.environ == {"NCCL_SOCKET_IFNAME": "eth9", "GLOO_SOCKET_IFNAME": "lo"}


def test_nobody_answers():
    """EP407 after the timeout, for leaders and for workers."""
    pytest.importorskip("torch")
    endpoint = Endpoint("127.0.0.1", free_port())
    with pytest.raises(WorkerError, match="nobody answers at 127") as caught:
        board_at(endpoint, serve=False, timeout_s=0.3, lost_s=1.0)
    assert caught.value.code == "EP407"
    assert "--node-rank 0" in caught.value.hint


def test_what_answers_is_no_store():
    """EP407: somebody listens there who says nothing."""
    pytest.importorskip("torch")
    with listen(Endpoint("127.0.0.1", free_port())) as other:
        endpoint = Endpoint(*other.getsockname())
        with pytest.raises(WorkerError, match="is no store of torch's"):
            tcp_store(endpoint, 0.5)


def test_a_store_that_is_there_already():
    """As torchrun's agent has one: boards of different names are different boards on it."""
    pytest.importorskip("torch")
    endpoint = Endpoint("127.0.0.1", free_port())
    kept = tcp_board.serve_store(endpoint, 30.0)
    boards = [
        board_at(endpoint, serve=False, timeout_s=30.0, lost_s=5.0, name=name) for name in ("0", "1", "1")
    ]
    boards[1].set("a", b"x")
    assert [board.get("a") for board in boards] == [None, b"x", b"x"]
    kept.set("workers/a", "y")
    assert tcp_store(endpoint, 30.0).get("workers/a") == b"y"


@pytest.mark.parametrize(
    "value", [b"", b"?", b"c", b"c-1", b"c9999999999", b"c1025", b"s" + bytes(SMALL_NBYTES + 1)]
)
def test_what_a_stranger_puts_into_a_store(value):
    """Nothing is taken for a value that no board writes."""
    pytest.importorskip("torch")
    board = over_tcp()(0)
    board._store.set(f"{board._prefix}a", value)
    with pytest.raises(BoardError, match="not in the words of eplb"):
        board.get("a")


def test_without_torch(monkeypatch):
    """EP002 says what does without."""
    monkeypatch.setitem(__import__("sys").modules, "torch.distributed", None)
    with pytest.raises(UsageError, match="needs torch") as caught:
        board_at(Endpoint("127.0.0.1", 1), serve=True, timeout_s=1.0, lost_s=1.0)
    assert "--backend file" in caught.value.hint
