"""Another checkpoint in the place of SRC, with equal names, sizes, times and headers: it is what is moved."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_cli.formats.safetensors_header import read_header
from tests.support.faults import Ended, Fault, run_here
from tests.support.forked import run_forked
from tests.support.runs import contents
from tests.support.scratch import scratch
from tests.support.small import SmallCase, small_case

GLOO = ("--backend", "gloo", "--nproc-per-node", 2, "--buffer-size", 64)
FILE = ("--backend", "file")
SEED = 20261126


@pytest.fixture
def case(monkeypatch):
    """A small checkpoint, in memory, of which even small tensors are worth a file that ranks share."""
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)
    with scratch() as path:
        (path / "said").mkdir()
        (path / "work").mkdir()
        yield small_case(path / "work")


def every_byte(data: bytes) -> bytes:
    """Bytes of which none is as before."""
    return bytes(byte ^ 0x5A for byte in data)


def one_in_eight(data: bytes) -> bytes:
    """Bytes of which the first of every eight is another."""
    return bytes(byte ^ 1 if number % 8 == 0 else byte for number, byte in enumerate(data))


def one_row(data: bytes) -> bytes:
    """Bytes of which only the first is another."""
    return bytes([data[0] ^ 1]) + data[1:]


CHANGES = [every_byte, one_in_eight, one_row]


def replace_source(case: SmallCase, change: Callable[[bytes], bytes]) -> None:
    """Put another checkpoint in the place of SRC: only the data of its tensors tells them apart."""
    for path in case.source.glob("*.safetensors"):
        status, start = path.stat(), read_header(path)[0].data_start
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:start] + change(content[start:]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def run(case: SmallCase, *options: object, fault: Fault | None = None) -> Ended:
    """A run in which a journal has a line every millisecond, whatever its backend."""
    faults = {} if fault is None else {"launcher": fault}
    return run_forked(case.home.parent / "said", case.command(*options), faults, 0.001)


def stop_late(case: SmallCase, *options: object) -> None:
    """A run that is ended when all rows are written and journals say so: its last file is one too many."""
    ended = run(case, *options, fault=Late())
    assert (ended.code, case.staging.exists()) == (6, True), ended


class Late(Fault):
    """Fails where the manifest is written."""

    def __init__(self) -> None:
        super().__init__(-1, "ENOSPC")

    def __call__(self, operation, call, *args):
        """Stands for `files.make_call`."""
        if operation == "open" and Path(args[0]).name == "eplb.json":
            raise OSError(28, "full")
        return call(*args)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("first", "then"), [(FILE, FILE), (GLOO, GLOO), (FILE, GLOO)])
def test_a_resume_of_another_source_gives_that_one(case: SmallCase, first, then, change):
    """A run of A that was ended late, resumed from B, gives exactly what a run of B gives."""
    stop_late(case, *first)
    replace_source(case, change)
    ended = run(case, *then, "--resume")
    assert ended.code == 0, ended
    resumed = contents(case.destination)
    shutil.rmtree(case.destination)
    assert run(case, *FILE).code == 0
    assert rows(resumed) == rows(contents(case.destination))


def rows(tree: dict[str, bytes]) -> dict[str, bytes]:
    """What a tree holds, but for its manifest, which has the options of its run."""
    return {name: content for name, content in tree.items() if name != "eplb.json"}


def test_killed_half_way(case: SmallCase, count):
    """A run of A is killed at any call, and resumed from B: it gives B, or starts over with it."""
    chance = random.Random(SEED)
    original = contents(case.source)
    replace_source(case, one_in_eight)
    assert run_here(*case.command(*FILE)).code == 0
    wanted = contents(case.destination)
    other = contents(case.source)
    kept = case.home / "other"
    shutil.copytree(case.source, kept)
    case.remove_destination()
    resumed = 0
    for number in chance.sample(range(60, len(case.calls)), 25):
        put(case, original)
        ended = run(case, *FILE, fault=Fault(number, "kill"))
        if case.destination.exists():
            case.remove_destination()
            continue
        put(case, other)
        resumed += any((case.staging / ".eplb").glob("journal-*"))
        ended = run(case, *FILE, "--resume")
        assert ended.code == 0, (number, ended)
        assert contents(case.destination) == wanted, number
        case.remove_destination()
    assert resumed > 5
    count("resumed from another SRC", resumed)


def put(case: SmallCase, tree: dict[str, bytes]) -> None:
    """Make SRC hold these files, all of one time."""
    for name, content in tree.items():
        (case.source / name).write_bytes(content)
        os.utime(case.source / name, ns=(1, 1))


def test_a_plan_for_another_source_is_refused(case: SmallCase):
    """EP304, with the file; a copy of the source it was made for, of another time, is as good as that."""
    plan = case.home / "plan.json"
    made = run_here("plan", case.home / "old.json", case.new, "--checkpoint", case.source, "--out", plan)
    assert made.code == 0, made
    for path in case.source.iterdir():
        os.utime(path, ns=(1, 1))
    follow = ("reshard", case.source, case.destination, "--plan", plan, *FILE)
    assert run_here(*follow, "--dry-run").code == 0
    replace_source(case, one_in_eight)
    for options in ((), ("--dry-run",)):
        ended = run_here(*follow, *options)
        assert ended.code == 3, ended
        assert "error[EP304]" in ended.err
        assert "model-rank-0-part-0.safetensors has other bytes" in ended.err
    assert not case.destination.exists()


def test_a_plan_without_a_sample_is_followed(case: SmallCase):
    """Plans of an older eplb have none; what SRC holds now is moved and proved."""
    from eplb_cli.inputs.saved_plan import SavedPlan, read_plan

    plan = case.home / "plan.json"
    arguments = ("plan", case.home / "old.json", case.new, "--checkpoint", case.source, "--out", plan)
    assert run_here(*arguments).code == 0
    content = json.loads(plan.read_text())
    assert set(content["samples"]) == {path.name for path in case.source.glob("*.safetensors")}
    old = {name: value for name, value in vars(read_plan(plan)).items() if name != "samples"}
    plan.write_bytes(without_samples(SavedPlan(**old).to_bytes()))
    replace_source(case, every_byte)
    ended = run_here("reshard", case.source, case.destination, "--plan", plan, *FILE)
    assert ended.code == 0, ended
    by_plan = contents(case.destination)
    case.remove_destination()
    assert run_here(*case.command(*FILE)).code == 0
    assert contents(case.destination) == by_plan


def without_samples(plan: bytes) -> bytes:
    """The plan as an older eplb wrote it: without the key, and with a digest of the rest."""
    from eplb_cli.inputs.saved_plan import _digest, _text

    content = {key: value for key, value in json.loads(plan).items() if key not in {"samples", "digest"}}
    return _text({**content, "digest": _digest(content)})
