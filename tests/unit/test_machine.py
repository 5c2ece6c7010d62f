"""Defaults that follow from the machine, and from the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eplb_cli import machine
from eplb_cli.machine import PeakMemory, default_buffer_nbytes, default_threads, has_package
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.pieces import row_pieces
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.transfer.traffic import LEAST_STRIPE_NBYTES, TransferOptions, largest_chunk_nbytes, plan_traffic
from tests.support.runs import wait_until

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("chunk", "workers", "available", "expected"),
    [
        (0, 1, 64 * GIB, 64 * MIB),  # small rows: the least that is sensible
        (100 * MIB, 2, 64 * GIB, 400 * MIB),  # four chunks
        (500 * MIB, 2, 64 * GIB, GIB),  # never more than 1 GiB
        (500 * MIB, 8, 16 * GIB, 256 * MIB),  # all workers together take an eighth
        (500 * MIB, 64, GIB, 64 * MIB),  # and not less than the least
    ],
)
def test_buffers(monkeypatch, chunk, workers, available, expected):
    monkeypatch.setattr(machine, "available_memory_nbytes", lambda: available)
    assert default_buffer_nbytes(chunk, workers) == expected


def test_threads(monkeypatch):
    """A worker has its share of the cores."""
    monkeypatch.setattr(machine, "count_cores", lambda: 32)
    assert [default_threads(workers) for workers in (1, 4, 16, 64)] == [32, 8, 2, 2]


def test_memory_is_that_of_the_control_group(monkeypatch, tmp_path):
    """Where it allows less than the machine has; without a limit the machine counts."""
    of_machine = machine.available_memory_nbytes()
    assert of_machine > 0
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory_nbytes() > 0
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert machine.available_memory_nbytes() == 2000


def test_anonymous_memory_is_seen(monkeypatch):
    """The most that was there at any time, also when it is gone."""
    looked: list[tuple[str, str]] = []

    def sample(path, name):
        looked.append((str(path), name))
        return {1: 10, 2: 70}.get(len(looked), 30)

    monkeypatch.setattr(machine, "_kilobytes", sample)
    with PeakMemory().watched() as peak:
        wait_until(lambda: len(looked) >= 3)
    assert peak.nbytes == 70
    assert set(looked) == {("/proc/self/status", "RssAnon")}


def test_anonymous_memory_is_that_of_this_process():
    """64 MiB that were touched are in what the kernel says."""
    before = machine._kilobytes(Path("/proc/self/status"), "RssAnon")
    block = bytearray(64 * MIB)
    block[:: 1 << 12] = b"x" * (len(block) >> 12)
    assert machine._kilobytes(Path("/proc/self/status"), "RssAnon") >= before + 60 * MIB


def test_chunks_of_the_default_size_hold_whole_stripes():
    """Rows are not cut into stripes below 1 MiB, nor rows that are smaller than that at all."""
    sides = [Placement(np.array([row]), np.arange(5) * 2, 8) for row in (range(8), range(7, -1, -1))]
    plan = plan_reshard(sides[0], sides[1])
    for row_nbytes in (1000, 3 * MIB):
        pieces = row_pieces(plan, np.full((1, 2), row_nbytes))
        size = 4 * largest_chunk_nbytes(pieces, 2)
        stripes = np.bincount(plan_traffic(pieces, TransferOptions(2, size, 1)).units.cell)
        assert stripes.tolist() == [-(-row_nbytes // LEAST_STRIPE_NBYTES)] * 2
        less = np.bincount(plan_traffic(pieces, TransferOptions(2, size * 9 // 10, 1)).units.cell)
        assert (less > stripes).all()


def test_a_directory_is_no_package(monkeypatch, tmp_path):
    """One that is called as a package would be importable, and holds nothing of it."""
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_package("no_such_package")
    assert has_package("numpy")
