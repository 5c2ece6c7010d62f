"""Ctrl-C, SIGTERM and SIGHUP, once and twice, at twenty moments of every command that publishes.

Once, what is done is kept, the message is the command that goes on, and that command does less than a tenth
of it again. Twice, nothing is left.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eplb_cli import interrupts
from eplb_cli.progress import NOTHING_WRITTEN, REMOVED
from tests.cli.tree import placement, write_json
from tests.support.faults import Ended, Recorder, run_here
from tests.support.forked import run_forked
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint
from tests.support.interrupts import APART_S, SIGNALS, Told
from tests.support.runs import SLOW_WRITES, contents, processes_about, run, start, wait_until
from tests.support.scratch import scratch
from tests.support.small import SmallCase, small_case

MOMENTS = 20
GLOO = ("--backend", "gloo", "--nproc-per-node", 2, "--buffer-size", 64)
LONG_S = 60.0
"""Within which a second signal comes, however busy the machine is."""

COMMANDS = ["reshard", "shard", "merge", "bake"]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Sources of all four commands, in memory."""
    with scratch() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)
        (path / "small").mkdir()
        small_case(path / "small")
        write_checkpoint(path / "hf", deepseek_v3(), "deepseek_v3")
        rows = [[3, 2, 1, 0]] * len(MOE_LAYERS)
        write_json(path / "map.json", placement(rows, layer_ids=list(MOE_LAYERS)))
        ended = run_here(*command(path, "shard", path / "shards"))
        assert ended.code == 0, ended
        yield path


def command(home: Path, name: str, out: Path) -> list[object]:
    """The arguments of a command."""
    placed = ["--placement", home / "map.json"]
    small = home / "small"
    return {
        "reshard": [
            *("reshard", small / "src", out, "--backend", "file"),
            *("--old", small / "old.json", "--new", small / "new.json"),
        ],
        "shard": ["shard", home / "hf", out, *placed, "--engine", "sglang"],
        "merge": ["merge", home / "shards", out],
        "bake": ["bake", home / "hf", out, *placed],
    }[name]


def whole_run(words: list[object], out: Path) -> tuple[dict[str, bytes], int, int]:
    """What comes of a command that nobody ends, its number of calls, and the bytes of rows it writes."""
    calls: list[tuple[str, str]] = []
    assert run_here(*words, fault=Recorder(calls)).code == 0
    shutil.rmtree(out)
    counted = Told(-1, "EINTR")
    assert run_here(*words, fault=counted).code == 0
    result = contents(out)
    shutil.rmtree(out)
    return result, len(calls), counted.nbytes


@pytest.mark.parametrize("name", COMMANDS)
def test_once(home, monkeypatch, name, count):
    """Exit 130; what was done is kept, and the command in the message does the rest."""
    monkeypatch.setattr(interrupts, "SECOND_S", 0.0)
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)
    out = home / "out"
    words = command(home, name, out)
    result, num_calls, all_nbytes = whole_run(words, out)
    kept = 0
    for moment in range(MOMENTS):
        told = Told(num_calls * moment // MOMENTS, "EINTR", signal_number=SIGNALS[moment % len(SIGNALS)])
        ended = run_here(*words, fault=told)
        where = f"{told}: {ended}"
        assert told.hit is not None, where
        assert (ended.code, ended.out, out.exists()) == (130, "", False), where
        again = Told(-1, "EINTR")
        kept += require_kept(words, ended, home / ".out.eplb-staging", again)
        assert told.nbytes + again.nbytes <= all_nbytes + told.nbytes / 10, where
        assert contents(out) == result, where
        shutil.rmtree(out)
    assert kept > MOMENTS / 4
    count("commands that were interrupted", MOMENTS)


def require_kept(words: list[object], ended: Ended, staging: Path, fault: Told) -> bool:
    """Go on as the message says, or begin anew where nothing was written; whether it was the former."""
    last = ended.err.splitlines()[-1]
    if last.removeprefix("interrupted: ") in {NOTHING_WRITTEN, REMOVED}:
        assert not staging.exists()
        assert run_here(*words, fault=fault).code == 0
        return False
    found = re.fullmatch(
        r"interrupted: what was done( \(.+ of .+\))? is kept in (.+): `eplb (.+)` goes on from it", last
    )
    assert found is not None, ended
    assert found[2] == str(staging)
    assert shlex.split(found[3]) == [*map(str, words), "--resume"]
    again = run_here(*shlex.split(found[3]), fault=fault)
    assert again.code == 0, again
    assert re.search(r" of .+ taken over, read again", again.out), again
    assert not staging.exists()
    return True


@pytest.fixture
def deaf() -> Iterator[None]:
    """No signal that comes when a command has ended already ends the tests."""
    before = [signal.signal(number, lambda *_: None) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("deaf")
def test_twice(home, tmp_path, monkeypatch, name, count):
    """Exit 130, and nothing is left, wherever the first one came."""
    monkeypatch.setattr(interrupts, "SAME_S", 0.001)
    monkeypatch.setattr(interrupts, "SECOND_S", LONG_S)
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)
    out = home / "out"
    words = command(home, name, out)
    _, num_calls, _ = whole_run(words, out)
    before, again = {path.name for path in home.iterdir()}, tmp_path / "again"
    for moment in range(MOMENTS):
        number = SIGNALS[moment % len(SIGNALS)]
        told = Told(num_calls * moment // MOMENTS, "EINTR", signal_number=number, again=again)
        ended = run_here(*words, fault=told)
        wait_until(again.exists)
        again.unlink()
        where = f"{told}: {ended}"
        assert (ended.code, ended.out) == (130, ""), where
        said = ended.err.splitlines()[-1].removeprefix("interrupted: ")
        assert said in {NOTHING_WRITTEN, REMOVED}, where
        assert {path.name for path in home.iterdir()} == before, where
    count("commands that were interrupted", MOMENTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_keep(home, monkeypatch, name):
    """One signal is enough."""
    monkeypatch.setattr(interrupts, "SECOND_S", 0.0)
    out = home / "out"
    words = command(home, name, out)
    _, num_calls, _ = whole_run(words, out)
    before = {path.name for path in home.iterdir()}
    ended = run_here(*words, "--no-keep", fault=Told(num_calls * 3 // 4, "EINTR"))
    assert (ended.code, ended.err.splitlines()[-1]) == (130, f"interrupted: {REMOVED}")
    assert {path.name for path in home.iterdir()} == before


@pytest.fixture
def least_shared_nbytes() -> int:
    """From how many bytes on a tensor is worth a file that ranks share."""
    return 1 << 20


@pytest.fixture
def case(monkeypatch, least_shared_nbytes) -> Iterator[SmallCase]:
    """A small checkpoint, for commands that are processes."""
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", least_shared_nbytes)
    with scratch() as path:
        (path / "said").mkdir()
        (path / "work").mkdir()
        yield small_case(path / "work")


@pytest.mark.distributed
@pytest.mark.parametrize("least_shared_nbytes", [0])
@pytest.mark.parametrize("is_twice", [False, True], ids=["once", "twice"])
def test_workers(case, is_twice, count):
    """Told through its judge, at twenty moments of a worker; what both workers had written is in journals."""
    said = case.home.parent / "said"
    for moment in range(MOMENTS):
        number = SIGNALS[moment % len(SIGNALS)]
        again = said / "again" if is_twice else None
        fault = Told(4 * moment, "EINTR", signal_number=number, again=again, staging=case.staging)
        ended = run_forked(said, case.command(*GLOO), {"0": fault}, second_s=LONG_S if is_twice else 0.0)
        where = f"{fault}: {ended}"
        if ended.code == 0:  # it was through before it was told
            case.remove_destination()
            continue
        assert ended.code == 130, where
        assert case.staging.exists() != is_twice, where
        wait_until(lambda: not processes_about(case.home))
        if not is_twice:
            require_resumed(case, ended)
    count("commands that were interrupted", MOMENTS)


def require_resumed(case: SmallCase, ended: Ended) -> None:
    """Staging is taken over, but for rows that two workers had in flight, and the bytes are the same."""
    staged = {path.name: path.read_bytes() for path in case.staging.glob("*.safetensors")}
    finished = sum(
        is_there != 0 and is_there == wanted
        for name, content in staged.items()
        for is_there, wanted in zip(content[4096:], case.result[name][4096:], strict=True)
    )
    again = Told(-1, "EINTR")
    resumed = run_here(*case.command("--backend", "file", "--resume"), fault=again)
    assert resumed.code == 0, (ended, resumed)
    assert contents(case.destination) == case.result
    whole = sum(len(content) - 4096 for content in case.result.values() if len(content) > 4096)
    assert again.nbytes <= whole - finished + finished / 10 + 4 * ROW_NBYTES, (finished, ended, resumed)
    case.remove_destination()


ROW_NBYTES = 30


@pytest.mark.parametrize(
    ("signals", "is_kept"),
    [
        ([signal.SIGINT], True),
        ([signal.SIGHUP], True),
        ([signal.SIGINT, signal.SIGINT], False),
        ([signal.SIGTERM, signal.SIGHUP], False),
    ],
)
def test_a_whole_group_is_told(case, signals, is_kept):
    """As a terminal does: the command and its judge hear each signal, and count it once."""
    process = start(*case.command("--backend", "file"), module=SLOW_WRITES, group=True)
    wait_until((case.staging / ".eplb" / "journal-0").exists, process)
    for number in signals:
        os.killpg(process.pid, number)
        time.sleep(APART_S)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, ""), err
    assert case.staging.exists() == is_kept, err
    if is_kept:
        assert run(*case.command("--backend", "file", "--resume")).returncode == 0
        assert contents(case.destination) == case.result
