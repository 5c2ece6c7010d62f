"""Rows that stay on their worker: shared where the file system can, copied otherwise."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from eplb_cli import files
from eplb_cli.audit.verify import verify
from eplb_cli.checkpoint.places import Places
from eplb_cli.errors import BytesError
from eplb_cli.run.request import Request
from eplb_cli.run.reshard import reshard
from eplb_cli.transfer.staying import join_runs

DATA = Path(__file__).parents[1] / "data" / "eplb-replicas"


def show_nothing(total, description):
    """A progress bar that shows nothing."""
    del total, description
    return contextlib.nullcontext(lambda _: None)


def run(source, destination, new, old=None):
    """Reshard with the backend `file`."""
    request = Request(Path(source), Path(destination), str(new), old, backend="file", durable=False)
    return reshard(request, show_nothing)


class Clones:
    """Stands for a file system that shares blocks; it copies, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, int]] = []

    def __call__(self, source, destination, nbytes, src_offset, dst_offset, path):
        """Share one range."""
        del path
        assert (nbytes | src_offset | dst_offset) % 4096 == 0
        self.ranges.append((nbytes, src_offset, dst_offset))
        os.pwrite(destination, os.pread(source, nbytes, src_offset), dst_offset)
        return True


@pytest.fixture
def aligned(tmp_path):
    """A tree that eplb wrote, with its manifest: rows lie on pages."""
    run(DATA / "src", tmp_path / "aligned", DATA / "new.json", str(DATA / "old.json"))
    return tmp_path / "aligned"


def test_shared_rows_are_neither_read_nor_written(aligned, tmp_path, monkeypatch):
    """Their digests are those of the manifest, and the result verifies as any other does."""
    clones, read = Clones(), []
    monkeypatch.setattr(files, "clone_range", clones)
    original = files.read_into

    def read_into(descriptor, buffer, offset, path):
        read.append(len(buffer))
        original(descriptor, buffer, offset, path)

    monkeypatch.setattr(files, "read_into", read_into)
    report = run(aligned, tmp_path / "back", DATA / "old.json")
    shared = sum(nbytes for nbytes, _, _ in clones.ranges)
    rows = 60 * (16384 + 8192)
    assert shared >= rows
    assert sum(read) < rows
    assert report.run is not None
    assert report.run.verified
    monkeypatch.undo()
    assert verify(tmp_path / "back", aligned).rows_proved


def test_the_first_refusal_ends_it(aligned, tmp_path, monkeypatch):
    """A file system that cannot share blocks is asked once, and rows are copied."""
    asked = []
    monkeypatch.setattr(files, "clone_range", lambda *arguments: asked.append(arguments))
    run(aligned, tmp_path / "back", DATA / "old.json")
    assert len(asked) == 1
    monkeypatch.undo()
    assert verify(tmp_path / "back", aligned).rows_proved


def test_a_changed_shared_row_is_found_later(aligned, tmp_path, monkeypatch):
    """A digest that was carried over is compared by `verify`, which reads all rows."""
    monkeypatch.setattr(files, "clone_range", Clones())
    run(aligned, tmp_path / "back", DATA / "old.json")
    monkeypatch.undo()
    shard = tmp_path / "back" / "model-rank-1-part-0.safetensors"
    content = bytearray(shard.read_bytes())
    content[20_000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BytesError, match="slot"):
        verify(tmp_path / "back")


def test_neighbours_become_one_run():
    """Pieces that follow each other at both ends, and only those."""
    zero = np.zeros(4, np.int64)
    old = Places(zero, zero, np.array([0, 10, 20, 40]), np.full(4, 10))
    new = Places(zero, zero, np.array([100, 110, 130, 140]), np.full(4, 10))
    runs = join_runs(old, new, np.arange(4), np.arange(4))
    assert runs.first.tolist() == [0, 2, 3]
    assert runs.nbytes.tolist() == [20, 10, 10]
