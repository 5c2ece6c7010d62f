"""The bars of `scripts/bench reshard`, in groups whose runs take turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eplb_cli.machine import count_devices
from scripts.benchmarks import sides
from scripts.benchmarks.images import mounted_image
from scripts.benchmarks.table import Line
from scripts.benchmarks.timing import EPLB, Sample, UnavailableError, interleave, run
from scripts.benchmarks.trees import SEED, Shape, shuffled, write_placement

NCCL_WORKERS = 2


@dataclass(frozen=True)
class Bench:
    """What all groups need.

    Attributes:
        shapes: of the data of the group `file`; the other groups take the largest aligned one.
        out: where every run writes.
    """

    trees: sides.Trees
    out: Path
    shapes: Sequence[Shape]
    largest: Shape
    runs: int
    peer: Path | None


def _file(bench: Bench) -> Iterator[Line]:
    """Without proof, with it, and with the disk: each against what `cp` needs for the same."""
    for shape in bench.shapes:
        tree = bench.trees.get(shape)
        file = ("--backend", "file")
        samples = interleave(
            {
                "cp -r": sides.copy(tree, bench.out),
                "file --no-digest --no-fsync": sides.eplb(
                    tree, bench.out, *file, "--no-digest", "--no-fsync"
                ),
                "file --no-fsync": sides.eplb(tree, bench.out, *file, "--no-fsync"),
                "file": sides.eplb(tree, bench.out, *file),
                "cp -r + sync": sides.copy(tree, bench.out, sync=True),
            },
            bench.runs,
        )
        bars = (
            ("file --no-digest --no-fsync", "cp -r", 0.8),
            ("file --no-fsync", "cp -r", 1.0),
            ("file", "cp -r + sync", 1.1),
        )
        for what, against, limit in bars:
            yield _compare(samples, what, against, "whole", limit, shape.name)
            yield _compare(samples, what, against, "cpu", None, shape.name)


def _compare(
    samples: dict[str, list[Sample]], what: str, against: str, metric: str, limit: float | None, note: str
) -> Line:
    values, others = ([sample[metric] for sample in samples[side]] for side in (what, against))
    name = what if metric == "whole" else f"{what}, {metric}"
    return Line(f"{name} ({note})", against, values, others, limit=limit)


def _xfs(bench: Bench) -> Iterator[Line]:
    """Seconds per GB where blocks can be shared: the difference of two sizes."""
    big = bench.largest
    small = replace(big, num_layers=max(1, big.num_layers // 3))
    nbytes = int((4 * big.gigabytes + 2 * small.gigabytes + 2) * 1e9)
    with mounted_image("xfs", bench.trees.root / "xfs.img", nbytes) as mounted:
        out = mounted / "out"
        runs = {}
        for size, shape in (("small", small), ("big", big)):
            tree = _written_by_eplb(bench, shape, mounted / size)
            runs[f"cp {size}"] = sides.copy(tree, out, never_reflink=True)
            runs[f"file {size}"] = sides.eplb(tree, out, "--backend", "file", old=False)
        samples = interleave(runs, bench.runs)
    gigabytes = big.gigabytes - small.gigabytes
    yield _slope(samples, f"({small.gigabytes:.2f} and {big.gigabytes:.2f} GB)", gigabytes)
    for size, shape in (("small", small), ("big", big)):
        yield _compare(samples, f"file {size}", f"cp {size}", "whole", None, f"XFS, {shape.name}")


def _slope(samples: dict[str, list[Sample]], note: str, gigabytes: float) -> Line:
    def per_gigabyte(side: str) -> list[float]:
        pairs = zip(samples[f"{side} small"], samples[f"{side} big"], strict=True)
        return [(big["whole"] - small["whole"]) / gigabytes for small, big in pairs]

    values, others = per_gigabyte("file"), per_gigabyte("cp")
    return Line(f"file, XFS {note}", "cp -r --reflink=never", values, others, "s/GB", limit=0.02, digits=4)


def _written_by_eplb(bench: Bench, shape: Shape, target: Path) -> sides.Tree:
    """A tree that eplb wrote, with its manifest, and another placement for it to go on to."""
    source = bench.trees.get(shape)
    placements = ["--old", str(source.old), "--new", str(source.new)]
    target.mkdir()
    command = [EPLB, "reshard", str(source.path), str(target / "shards"), *placements]
    run([*command, "--backend", "file"])
    write_placement(target / "new.json", shuffled(shape, SEED + 1))
    os.sync()
    return sides.Tree(target / "shards", source.new, target / "new.json", shape)


def _peer(bench: Bench) -> Iterator[Line]:
    """Gloo workers against loading all, the reference's exchange, and saving all."""
    if bench.peer is None:
        raise UnavailableError("the reference implementation is named with --peer")
    if not bench.peer.is_file():
        raise UnavailableError(f"{bench.peer} is no file")
    tree = bench.trees.get(bench.largest)
    against = f"reference, {tree.shape.num_ranks} workers"
    gloo = {
        f"gloo --no-fsync, {workers} workers": _gloo(tree, bench, workers, "--no-fsync") for workers in (2, 4)
    }
    samples = interleave(
        {against: sides.reference(tree, bench.out, bench.peer.absolute()), **gloo}, bench.runs
    )
    for what in gloo:
        for metric, limit in (("span", 0.33), ("whole", 0.5)):
            yield _compare(samples, what, against, metric, limit, tree.shape.name)


def _gloo(tree: sides.Tree, bench: Bench, workers: int, *flags: str) -> sides.Side:
    return sides.eplb(tree, bench.out, "--backend", "gloo", "--nproc-per-node", str(workers), *flags)


def _proof(bench: Bench) -> Iterator[Line]:
    """What the proof costs where the bytes travel."""
    tree = bench.trees.get(bench.largest)
    runs = {}
    for workers in (2, 4):
        runs[f"gloo --no-fsync, {workers} workers"] = _gloo(tree, bench, workers, "--no-fsync")
        without = _gloo(tree, bench, workers, "--no-fsync", "--no-digest")
        runs[f"gloo --no-fsync --no-digest, {workers} workers"] = without
    samples = interleave(runs, bench.runs)
    names = list(runs)
    for what, against in zip(names[::2], names[1::2], strict=True):
        for metric in ("whole", "span"):
            yield _compare(samples, what, against, metric, 1.1, tree.shape.name)


def _nccl(bench: Bench) -> Iterator[Line]:
    """Two devices against one process, both without fsync; --workdir may be in memory."""
    if count_devices() < NCCL_WORKERS:
        raise UnavailableError(f"{NCCL_WORKERS} CUDA devices are needed")
    tree = bench.trees.get(bench.largest)
    workers = ("--nproc-per-node", str(NCCL_WORKERS))
    samples = interleave(
        {
            "file --no-fsync": sides.eplb(tree, bench.out, "--backend", "file", "--no-fsync"),
            "nccl --no-fsync": sides.eplb(tree, bench.out, "--backend", "nccl", *workers, "--no-fsync"),
        },
        bench.runs,
    )
    yield _compare(samples, "nccl --no-fsync", "file --no-fsync", "transfer stage", 2.0, tree.shape.name)
    exposed = [1 - sample["hidden"] for sample in samples["nccl --no-fsync"]]
    whole = [1.0] * len(exposed)
    yield Line("share of the exchange that is not hidden, nccl", "all of it", exposed, whole, "", limit=0.1)


def _memory(bench: Bench) -> Iterator[Line]:
    """The peak of the largest worker, when there are twice the layers."""
    half = replace(bench.largest, num_layers=bench.largest.num_layers // 2)
    double = replace(half, num_layers=2 * half.num_layers)
    runs = {}
    for shape in (half, double):
        tree = bench.trees.get(shape)
        runs[f"file, {shape.num_layers} layers"] = sides.eplb(
            tree, bench.out, "--backend", "file", "--no-fsync"
        )
        runs[f"gloo, 2 workers, {shape.num_layers} layers"] = _gloo(tree, bench, 2, "--no-fsync")
    samples = interleave(runs, bench.runs)
    megabytes = {side: [sample["peak"] / 1e6 for sample in taken] for side, taken in samples.items()}
    names = list(runs)
    for less, more in zip(names[:2], names[2:], strict=True):
        note = f"peak memory a worker, {more}"
        yield Line(note, less, megabytes[more], megabytes[less], "MB", limit=1.05, digits=0)


GROUPS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "file": _file,
    "xfs": _xfs,
    "peer": _peer,
    "proof": _proof,
    "nccl": _nccl,
    "memory": _memory,
}
