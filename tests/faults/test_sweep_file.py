"""Every call of `--backend file` fails once, in every way: SRC stays as it is, DST is whole or absent."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from eplb_cli.plan.plan import plan_reshard
from tests.support.faults import Fault, Kind, num_open, run_here
from tests.support.scratch import scratch
from tests.support.small import NEW, OLD, SmallCase, require_sound, require_whole, small_case


@pytest.fixture
def case(monkeypatch):
    """A small checkpoint, in memory, of which even small tensors are worth a file that ranks share."""
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)
    with scratch() as path:
        yield small_case(path)


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC", "EINTR", "short"])
@pytest.mark.parametrize("parity", [0, 1])
def test_every_call(case: SmallCase, kind: Kind, parity: int, count):
    """Until a run has no such call any more."""
    open_before = num_open()
    for number in itertools.count(parity, 2):
        fault = Fault(number, kind)
        ended = run_here(*case.command("--backend", "file"), fault=fault)
        if fault.hit is None:
            assert ended.code == 0
            break
        require_sound(case, fault, ended)
    assert number > 100
    assert num_open() <= open_before
    count("failing calls", number // 2)


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC"])
def test_every_call_of_a_resumed_run(case: SmallCase, kind: Kind, count):
    """A fault in a run that goes on from another one, which lost its last sync."""
    number = 0
    for number in itertools.count():
        leave_unfinished(case)
        fault = Fault(number, kind)
        ended = run_here(*case.command("--backend", "file", "--resume"), fault=fault)
        if fault.hit is None:
            assert ended.code == 0
            break
        require_sound(case, fault, ended, resumed=True)
    assert number > 100
    count("failing calls", number)


def leave_unfinished(case: SmallCase) -> None:
    """A staging directory with all rows in it, and journals that say so."""
    number = next(
        number for number, (operation, path) in enumerate(case.calls) if (operation, Path(path).name) == MARK
    )
    ended = run_here(*case.command("--backend", "file"), fault=Fault(number, "ENOSPC"))
    assert (ended.code, case.staging.exists()) == (6, True), ended


MARK = ("write", "eplb.json")


def test_a_resumed_run_does_only_what_is_left(case: SmallCase):
    """All rows are there and were read again, with their sources; then none is written.

    Read are the empty row of DST, and the rows of SRC that nothing is made from: they are hashed as well.
    """
    leave_unfinished(case)
    ended = run_here(*case.command("--backend", "file", "--resume", "--format", "json"))
    assert ended.code == 0, ended
    report = json.loads(ended.out)
    assert report["stage_bytes"]["write"] == 0
    assert report["totals"]["empty_bytes"] == ROW_NBYTES
    assert report["stage_bytes"]["read"] == (1 + num_unused_rows()) * ROW_NBYTES
    assert report["verified"] is True
    require_whole(case, "")


ROW_NBYTES = 12 + 4
"""Of an expert: a row of each of its tensors."""


def num_unused_rows() -> int:
    """Rows of SRC that nothing is made from: the empty one, and replicas beyond need."""
    moves = plan_reshard(OLD, NEW).moves
    return OLD.physical_to_logical.size - len(set(zip(moves.layer, moves.src_slot, strict=True)))


def test_rows_that_are_not_what_the_journal_says(case: SmallCase):
    """They are written again: a byte of a row in staging has changed meanwhile."""
    leave_unfinished(case)
    shard = case.staging / "model-rank-0-part-0.safetensors"
    content = bytearray(shard.read_bytes())
    content[4096] ^= 1
    shard.write_bytes(content)
    ended = run_here(*case.command("--backend", "file", "--resume", "--format", "json"))
    assert ended.code == 0, ended
    assert json.loads(ended.out)["stage_bytes"]["write"] == 12  # its w13
    require_whole(case, "")


def test_files_that_are_missing_or_cut_off(case: SmallCase):
    """They are made again, with all their rows."""
    leave_unfinished(case)
    (case.staging / "model-rank-0-part-0.safetensors").unlink()
    with (case.staging / "model-rank-1-part-0.safetensors").open("r+b") as file:
        file.truncate(4100)
    ended = run_here(*case.command("--backend", "file", "--resume"))
    assert ended.code == 0, ended
    require_whole(case, "")


def test_other_inputs_are_refused(case: SmallCase):
    """EP305 where NEW or SRC is not what the run was begun with; without --resume the run starts over."""
    leave_unfinished(case)
    changed = json.loads(case.new.read_text())
    changed["physical_to_logical_map"][0].reverse()
    other = case.home / "other.json"
    other.write_text(json.dumps(changed))
    ended = run_here(*case.command("--backend", "file", "--resume", new=other))
    assert ended.code == 3, ended
    assert "error[EP305]" in ended.err
    assert case.staging.exists()
    again = run_here(*case.command("--backend", "file"))
    assert again.code == 0, again
    require_whole(case, "")
