"""Defaults that follow from the machine, and from the rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from eplb_cli import machine
from eplb_cli.machine import (
    PeakMemory,
    default_buffer_nbytes,
    has_package,
    is_in_memory,
    reading_threads,
    writing_threads,
)
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.pieces import row_pieces
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.transfer.traffic import LEAST_STRIPE_NBYTES, largest_chunk_nbytes, plan_traffic
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


@pytest.mark.parametrize(
    ("cores", "workers", "files", "writing", "reading"),
    [
        (1, 1, 4, 2, 2),  # one waits for the disk while the other computes
        (4, 1, 4, 4, 4),
        (32, 1, 4, 8, 16),  # more do not pay
        (192, 1, 64, 16, 16),
        (32, 1, 1, 2, 16),  # a file is written by one at a time
        (32, 1, 0, 2, 16),
        (32, 4, 8, 4, 4),  # what pays is shared by all workers
        (192, 64, 64, 2, 2),
    ],
)
def test_threads(monkeypatch, cores, workers, files, writing, reading):
    """A worker has its share of the threads that pay on a machine."""
    monkeypatch.setattr(machine, "count_cores", lambda: cores)
    assert (writing_threads(workers, files), reading_threads(workers)) == (writing, reading)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 32),
        ("0::/", {"cpu.max": "max 100000\n"}, 32),
        ("0::/", {"cpu.max": "250000 100000\n"}, 3),  # a part of a core is one for a part of the time
        ("0::/", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/", {"cpu.max": "6400000 100000\n"}, 32),  # more than the machine has
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),  # of a group above
        ("0::/a/b", {"cpu.max": "400000 100000\n"}, 4),  # the path is that of another name space
        ("4:cpu:/c", {"cpu/c/cpu.cfs_quota_us": "200000", "cpu/c/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 32),
        ("0::/", {"cpu.max": "nonsense"}, 32),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_control_group(monkeypatch, tmp_path, groups, files, expected):
    """Whichever group of either version allows least, and the machine where none does."""
    (tmp_path / "groups").write_text(f"{groups}\n")
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    assert machine.count_cores() == expected


@pytest.mark.parametrize(
    ("kind", "expected"), [("tmpfs", True), ("ramfs", True), ("ext4", False), ("", False)]
)
def test_file_systems_in_memory(monkeypatch, tmp_path, kind, expected):
    """By the device of the directory, whatever else is mounted; unknown where it is not in the list."""
    mounts, number = tmp_path / "mountinfo", tmp_path.stat().st_dev
    other = "20 1 0:999999 / /elsewhere rw shared:1 - tmpfs tmpfs rw\n"
    own = f"21 1 {os.major(number)}:{os.minor(number)} / /here rw - {kind} device rw\n" if kind else "21 1\n"
    mounts.write_text(other + own)
    monkeypatch.setattr(machine, "_MOUNTS", mounts)
    assert is_in_memory(tmp_path) == expected


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
        hosting = Hosting.one_host(4, 4, 2)
        size = 4 * largest_chunk_nbytes(pieces, hosting)
        stripes = np.bincount(plan_traffic(pieces, hosting, size).units.cell)
        assert stripes.tolist() == [-(-row_nbytes // LEAST_STRIPE_NBYTES)] * 2
        less = np.bincount(plan_traffic(pieces, hosting, size * 9 // 10).units.cell)
        assert (less > stripes).all()


def test_a_directory_is_no_package(monkeypatch, tmp_path):
    """One that is called as a package would be importable, and holds nothing of it."""
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_package("no_such_package")
    assert has_package("numpy")
