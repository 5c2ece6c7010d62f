"""Several hosts join, say things to each other, and end alike; over each kind of board."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from eplb_cli import __version__
from eplb_cli.errors import EplbError, OutputError, WorkerError
from eplb_cli.hosts import watch
from eplb_cli.hosts.hosts import ALONE
from eplb_cli.hosts.sparse import or_into, pack
from tests.support.leaders import MemoryBoard, in_directory, in_memory, over_tcp, run_hosts, wait_for

NAMES = ("node-a", "node-b", "node-c")


@pytest.fixture(params=["memory", "directory", "tcp"])
def meet(request, tmp_path):
    """How hosts meet."""
    if request.param == "tcp":
        pytest.importorskip("torch")
        return over_tcp()
    return in_directory(tmp_path / "board") if request.param == "directory" else in_memory()


def refused(ends):
    """The one error of all hosts."""
    assert all(isinstance(end, EplbError) for end in ends), ends
    (same,) = {(end.code, end.message, end.hint) for end in ends}
    return same[:2]


def test_what_all_say(meet):
    """Small and large, empty too, in the order of the hosts; the next ones do not mix with it."""

    def work(hosts):
        large = bytes([hosts.node]) * 3_000_000
        return [hosts.gather(b"x" * hosts.node), hosts.gather(large, "large"), hosts.gather(b"")]

    first, *others = run_hosts(meet, work, work, work)
    assert first == [[b"", b"x", b"xx"], [bytes([node]) * 3_000_000 for node in range(3)], [b""] * 3]
    assert others == [first, first]


def test_nothing_stays_on_the_board():
    """What was gathered before the last is taken away."""
    board = MemoryBoard()

    def work(hosts):
        for _ in range(4):
            hosts.gather(b"x")

    run_hosts(lambda _: board, work, work)
    assert {key.split("/")[1] for key in board.values if key.startswith("gather")} == {"3"}


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(1000, 16), (1001,), (0, 16), (7, 0), (5, 2, 3)])
def test_union(dtype, shape):
    """Bitwise or, of rows that several hosts have too; nobody's own array changes."""
    rng = np.random.default_rng(3)
    told = [rng.integers(0, 256, shape, np.uint8).astype(dtype) for _ in range(3)]
    for values in told:
        values[rng.random(shape[0]) < 0.8] = 0
    before = [values.copy() for values in told]
    ends = run_hosts(in_memory(), *[lambda hosts: hosts.union(told[hosts.node])] * 3)
    for end in ends:
        assert end.dtype == dtype
        np.testing.assert_array_equal(end, told[0] | told[1] | told[2])
    np.testing.assert_array_equal(told, before)


def test_only_rows_that_are_set_travel():
    """One row in a million costs little more than itself."""
    values = np.zeros((1_000_000, 16), np.uint8)
    values[123_456] = 7
    assert len(pack(values)) < 1000


@pytest.mark.parametrize(
    "packed", [b"", b"\xff" * 20, pack(np.ones((9, 4), np.uint8)), pack(np.ones((80, 2), np.uint8))]
)
def test_what_is_no_union_is_refused(packed):
    """Another number or width of rows, or nothing of the kind."""
    with pytest.raises(ValueError, match="row"):
        or_into(np.zeros((80, 4), np.uint8), packed)


def test_unions_of_different_shapes_are_a_bug():
    """EP401, on all hosts."""
    ends = run_hosts(in_memory(), *[lambda hosts: hosts.union(np.zeros(5 + hosts.node, np.uint8))] * 2)
    assert {end.code for end in ends} == {"EP401"}


def test_steps_that_differ_are_a_bug():
    """A gather of one thing is never taken for that of another."""
    ends = run_hosts(in_memory(), *[lambda hosts: hosts.gather(b"", f"step {hosts.node}")] * 2)
    assert {end.code for end in ends} == {"EP401"}
    assert "'step 0'" in ends[1].message
    assert "'step 1'" in ends[1].message


def test_one_host_alone():
    """Nothing is said, and nothing is copied."""
    values = np.zeros(5, np.uint8)
    assert ALONE.union(values) is values
    assert ALONE.gather(b"x") == [b"x"]
    assert (ALONE.node, ALONE.count) == (0, 1)
    ALONE.check()
    ALONE.fail(ValueError())


def fails(hosts):
    """A host that cannot write."""
    hosts.gather(b"", "waiting")
    raise OutputError("EP603", "/data is full", "free some")


def test_the_error_of_one_is_that_of_all(meet):
    """With its code, its hint, its exit code, and who it was."""
    own, *others = run_hosts(meet, wait_for, fails, wait_for)[1::-1]
    assert own.message == "/data is full"
    for other in others:
        assert (other.code, other.hint, other.exit_code) == ("EP603", "free some", 6)
        assert other.message.startswith("host 1 (")
        assert other.message.endswith("): /data is full")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), "EP407", "was interrupted"),
        (ValueError("x"), "EP401", "unexpected ValueError: x"),
    ],
)
def test_ends_without_a_code(error, code, words):
    """An interruption keeps the others' staging, since a lost host is a WorkerError."""

    def end(hosts):
        hosts.gather(b"", "waiting")
        raise error

    other, own = run_hosts(in_memory(), wait_for, end)
    assert own is error
    assert isinstance(other, WorkerError)
    assert other.code == code
    assert words in other.message


def test_the_first_that_fails_counts():
    """By the order on the board; it is told once, and not by who only heard of it."""
    told = threading.Event()

    def first(hosts):
        hosts.fail(OutputError("EP603", "first"))
        told.set()
        hosts.fail(OutputError("EP603", "again"))
        raise OutputError("EP603", "at the end")

    def second(hosts):
        told.wait()
        raise OutputError("EP604", "second")

    ends = run_hosts(in_memory(), first, second, wait_for)
    assert [end.message.partition(": ")[2] or end.message for end in ends] == [
        "at the end",
        "second",
        "first",
    ]


def test_a_board_that_does_not_answer():
    """EP407 about host 0, also where nobody gathers."""
    board = MemoryBoard()

    def work(hosts):
        hosts.gather(b"")
        board.is_silent = True
        while hosts.node:
            hosts.check()
        hosts.gather(b"")

    for end in run_hosts(lambda _: board, work, work):
        assert end.code == "EP407"
        assert end.message.startswith("host 0 (")


def test_different_inputs_are_refused(meet):
    """EP302 names what, and both hosts; what only one of them has is a difference too."""
    same = [{"options": "x", "NEW": "1"}, {"options": "x", "NEW": "1"}, {"options": "x", "NEW": "2"}]
    code, message = refused(run_hosts(meet, wait_for, wait_for, wait_for, same=same))
    assert code == "EP302"
    assert message.startswith("host 0 (")
    assert " and host 2 (" in message
    assert message.endswith("have different NEW")
    assert refused(run_hosts(in_memory(), wait_for, wait_for, same=[{}, {"OLD": ""}]))[1].endswith("OLD")


@pytest.mark.parametrize(
    ("nodes", "counts", "words"),
    [
        ([0, 1], [2, 3], "--nnodes 3"),
        ([0, 2], [2, 2], "--node-rank 2"),
        ([0, -1], [2, 2], "--node-rank -1"),
    ],
)
def test_other_numbers_of_hosts_are_refused(nodes, counts, words):
    """EP001: --nnodes that differ, and a --node-rank that is none."""
    code, message = refused(run_hosts(in_memory(), wait_for, wait_for, nodes=nodes, counts=counts))
    assert code == "EP001"
    assert words in message


def test_two_hosts_of_one_number():
    """EP001 on all of them; it names both."""
    code, message = refused(run_hosts(in_memory(), wait_for, wait_for, wait_for, nodes=[0, 1, 1]))
    assert code == "EP001"
    assert message.endswith("both have --node-rank 1")


def test_a_host_that_comes_again_does_not_end_the_run():
    """It alone is refused, once all the others have begun."""
    meet = in_memory()

    def work(hosts):
        if hosts.node:
            again = run_hosts(meet, wait_for, nodes=[1], counts=[2])
            assert again[0].code == "EP001"
            assert "the run has begun without it" in again[0].message
        return hosts.gather(b"x")

    assert run_hosts(meet, work, work) == [[b"x"] * 2] * 2


def test_hosts_that_do_not_come():
    """EP407 after the timeout, with their numbers."""
    ends = run_hosts(in_memory(), wait_for, wait_for, nodes=[0, 2], counts=[4, 4], timeout_s=1)
    assert refused(ends) == ("EP407", "hosts 1, 3 of 4 did not join within 1 s")


def test_another_version_of_eplb():
    """EP404, also where it says nothing else that this one understands."""
    board = MemoryBoard()
    board.set("hello/0", b'{"version": "9.9", "name": "node-a"}')
    (end,) = run_hosts(lambda _: board, wait_for, nodes=[1], counts=[2])
    assert end.code == "EP404"
    assert end.message.endswith("host 0 (node-a) has 9.9")
    assert __version__ in end.message


@pytest.mark.parametrize(
    "words", [b"", b"[]", b"\x80\x04", b"[" * 100_000, b'{"version": 3}', b'{"a": 1}' + b" " * 2_000_000]
)
def test_words_of_a_stranger(words):
    """Whatever is on the board is no traceback."""
    board = MemoryBoard()
    board.set("hello/0", words)
    (end,) = run_hosts(lambda _: board, wait_for, nodes=[1], counts=[2])
    assert end.code == "EP407"
    assert end.message.startswith("host 0 was not heard from: what is said there is not")


def test_a_failure_of_a_stranger():
    """A code that there is not ends the run too, by an error that there is."""
    board = MemoryBoard()

    def work(hosts):
        board.set(watch.FAILURE, b'{"code": "EP999", "message": "", "hint": ""}')
        wait_for(hosts)

    assert {end.code for end in run_hosts(lambda _: board, work, work)} == {"EP407"}


def test_a_pause_of_this_process_is_none_of_the_others():
    """What was not looked at was not silent."""
    seen = watch.Watch.__new__(watch.Watch)
    seen._board, seen._lost_s = MemoryBoard(), 30.0
    seen._beats, seen._silent_s = {1: b"5"}, {1: 0.0}
    seen._progress_of, seen.moved_at = {1: 0}, 0.0
    seen._board.set(watch.beat_of(1), b"5")
    assert seen._first_lost(29.0) is None
    assert seen._first_lost(2.0) == 1
    seen._board.set(watch.bye_of(1), b"")
    assert seen._first_lost(2.0) is None
    seen._board.set(watch.beat_of(1), b"6")
    seen._board.remove(watch.bye_of(1))
    assert seen._first_lost(100.0) is None
    assert seen._first_lost(29.0) is None
