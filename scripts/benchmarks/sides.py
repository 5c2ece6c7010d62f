"""The sides of `scripts/bench reshard`: what takes turns, and what one run of each gives."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.timing import EPLB, PYTHON, Sample, UnavailableError, run
from scripts.benchmarks.trees import Shape, linear, shuffled, write_placement, write_tree

Side = Callable[[], Sample]

SPAN_STAGES = ("transfer", "sync", "verify", "prove", "commit")
"""From the first byte read to the commit, in the words of the report; `sync` is 0 with --no-fsync."""


@dataclass(frozen=True)
class Tree:
    """A generated checkpoint and its two placement files."""

    path: Path
    old: Path
    new: Path
    shape: Shape


@dataclass(frozen=True)
class Trees:
    """All that is generated, below one directory; each tree is written when it is first asked for."""

    root: Path

    def get(self, shape: Shape) -> Tree:
        """A checkpoint of this shape."""
        number = "aligned" if shape.aligned else "unaligned"
        base = self.root / f"{shape.num_layers}x{shape.width}-{number}"
        tree = Tree(base / "shards", base / "old.json", base / "new.json", shape)
        if not base.exists():
            self._require_space(shape)
            write_tree(tree.path, shape)
            write_placement(tree.old, linear(shape))
            write_placement(tree.new, shuffled(shape))
        return tree

    def _require_space(self, shape: Shape) -> None:
        """For the tree, and for one output beside it."""
        free, needed = shutil.disk_usage(self.root).free / 1e9, 2.1 * shape.gigabytes
        if free < needed:
            raise UnavailableError(f"{free:.0f} GB are free where {needed:.0f} GB are needed")


def copy(tree: Tree, out: Path, *, sync: bool = False, never_reflink: bool = False) -> Side:
    """`cp -r` of the tree, with a `sync` behind it where asked for."""
    command = ["cp", "-r", *(["--reflink=never"] if never_reflink else []), str(tree.path), str(out)]
    if sync:
        command = ["sh", "-c", '"$@" && sync', "sh", *command]

    def once() -> Sample:
        with _alike(tree, out):
            finished = run(command)
        return {"whole": finished.seconds, "cpu": finished.cpu_s}

    return once


def eplb(tree: Tree, out: Path, *flags: str, old: bool = True) -> Side:
    """`eplb reshard` of the tree; without `old` its manifest must say it."""
    placements = ["--new", str(tree.new), *(["--old", str(tree.old)] if old else [])]
    command = [EPLB, "reshard", str(tree.path), str(out), *placements, *flags, "--format", "json"]

    def once() -> Sample:
        with _alike(tree, out):
            finished = run(command)
        report = json.loads(finished.stdout)
        seconds = report["seconds"]
        return {
            "whole": finished.seconds,
            "cpu": finished.cpu_s,
            "span": sum(seconds.get(stage, 0.0) for stage in SPAN_STAGES),
            **{f"{stage} stage": value for stage, value in seconds.items() if stage != "total"},
            "peak": max(report["peak_anonymous_bytes"]),
            "hidden": report["exchange_hidden"] or 0.0,
        }

    return once


def reference(tree: Tree, out: Path, peer: Path) -> Side:
    """Load all, exchange with the reference implementation, save: one process a rank."""
    spans = out.with_name("spans")
    program = Path(__file__).with_name("peer.py")
    launcher = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    paths = map(str, (program, tree.path, out, tree.old, tree.new, peer, spans))
    command = [*launcher, f"--nproc-per-node={tree.shape.num_ranks}", *paths]

    def once() -> Sample:
        with _alike(tree, out), _directory(spans):
            out.mkdir()
            finished = run(command, {"OMP_NUM_THREADS": "1", **os.environ})
            times = [json.loads(path.read_text("utf-8")) for path in spans.iterdir()]
        span = max(end for _, end in times) - min(begin for begin, _ in times)
        return {"whole": finished.seconds, "cpu": finished.cpu_s, "span": span}

    return once


@contextlib.contextmanager
def _alike(tree: Tree, out: Path) -> Iterator[None]:
    """The same start for every run: a quiet disk, a warm cache, and enough memory just freed.

    Memory that a virtual machine has given back to its host is several times slower to fill than memory
    that was in use a moment ago, so that without this a run pays for what ran before it.
    """
    os.sync()
    run(["cp", "-r", "--reflink=never", str(tree.path), str(out)])
    shutil.rmtree(out)
    yield
    shutil.rmtree(out)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    path.mkdir()
    yield
    shutil.rmtree(path)
