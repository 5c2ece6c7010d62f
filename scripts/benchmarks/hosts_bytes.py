"""`scripts/bench hosts --gb N`: bytes between two hosts, processes on loopback with a half of SRC each.

Sides take turns, and every one of them writes what the first has written, compared byte by byte once.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from eplb_cli.machine import count_devices
from scripts.benchmarks.hosts import free_port, hosts_at_once
from scripts.benchmarks.timing import EPLB, BenchError, Sample, interleave, run
from scripts.benchmarks.trees import (
    Shape,
    linear,
    shape_of,
    shard_name,
    shuffled,
    write_placement,
    write_tree,
)

NUM_RANKS = 8
NUM_HOSTS = 2
STAGES = ("transfer", "exchange", "verify", "start", "total")


def measure(scratch: Path, gigabytes: float, runs: int) -> str:
    """A line for each side, of medians."""
    shape = shape_of(gigabytes, NUM_RANKS)
    _write(scratch, shape)
    sides: dict[str, Callable[[], Sample]] = {"one process, file": lambda: _one(scratch, "--backend", "file")}
    for workers in (1, 2, 4):
        options = ("--backend", "gloo", "--nproc-per-node", str(workers))
        sides[f"two hosts, gloo, {workers} each"] = _two(scratch, options)
    sides["one host, gloo, 2"] = lambda: _one(scratch, "--backend", "gloo", "--nproc-per-node", "2")
    if count_devices() >= NUM_HOSTS:
        sides["two hosts, nccl, a GPU each"] = _two(scratch, ("--backend", "nccl"), devices=True)
        sides["one host, nccl, 2 GPUs"] = lambda: _one(scratch, "--backend", "nccl", "--nproc-per-node", "2")
    samples = interleave(sides, runs)
    head = f"{'':<30}{''.join(stage.rjust(11) for stage in STAGES)}{'hidden':>9}{'between hosts':>15}"
    return "\n".join([f"{shape.gigabytes:.1f} GB, {NUM_RANKS} ranks", head, *map(_line, samples.items())])


def _line(side: tuple[str, Sequence[Sample]]) -> str:
    name, samples = side
    times = "".join(f"{median(one[stage] for one in samples):>9.2f} s" for stage in STAGES)
    hidden, crossed = (median(one[key] for one in samples) for key in ("hidden", "crossed"))
    shown = f"{hidden:>9.0%}" if hidden >= 0 else " " * 9
    return f"{name:<30}{times}{shown}{crossed / 1e9:>12.2f} GB"


def _write(scratch: Path, shape: Shape) -> None:
    write_tree(scratch / "src", shape)
    write_placement(scratch / "old.json", linear(shape))
    write_placement(scratch / "new.json", shuffled(shape))
    for node in range(NUM_HOSTS):
        (scratch / f"host-{node}" / "src").mkdir(parents=True)
        shutil.copy(scratch / "src" / "config.json", scratch / f"host-{node}" / "src")
    for rank in range(NUM_RANKS):
        own = scratch / f"host-{rank * NUM_HOSTS // NUM_RANKS}" / "src" / shard_name(rank)
        os.link(scratch / "src" / shard_name(rank), own)


def _command(scratch: Path, home: Path, *options: str) -> list[str]:
    placements = ("--old", str(scratch / "old.json"), "--new", str(scratch / "new.json"))
    out = ("--no-fsync", "--format", "json")
    return [EPLB, "reshard", str(home / "src"), str(home / "dst"), *placements, *out, *options]


def _one(scratch: Path, *options: str) -> Sample:
    shutil.rmtree(scratch / "dst", ignore_errors=True)
    return _sample(run(_command(scratch, scratch, *options)).stdout)


def _two(scratch: Path, options: Sequence[str], *, devices: bool = False) -> Callable[[], Sample]:
    """Both hosts at once; the first time what they write is compared with what one process wrote."""
    compared: list[bool] = []

    def once() -> Sample:
        port, commands, environments = free_port(), [], []
        for node in range(NUM_HOSTS):
            home = scratch / f"host-{node}"
            shutil.rmtree(home / "dst", ignore_errors=True)
            meet = ("--nnodes", str(NUM_HOSTS), "--node-rank", str(node))
            at = ("--rdzv-endpoint", f"127.0.0.1:{port}")
            commands.append(_command(scratch, home, *options, *meet, *at))
            environments.append({"CUDA_VISIBLE_DEVICES": str(node)} if devices else {})
        told = hosts_at_once(commands, environments)
        if not compared:
            _compare(scratch)
            compared.append(True)
        return _sample(told[0])

    return once


def _compare(scratch: Path) -> None:
    for rank in range(NUM_RANKS):
        own = scratch / f"host-{rank * NUM_HOSTS // NUM_RANKS}" / "dst" / shard_name(rank)
        if not filecmp.cmp(scratch / "dst" / shard_name(rank), own, shallow=False):
            raise BenchError(f"{own} is not what one process writes")


def _sample(stdout: str) -> Sample:
    report = json.loads(stdout)
    hidden = report["exchange_hidden"]
    seconds = {stage: report["seconds"][stage] for stage in STAGES}
    return {
        **seconds,
        "hidden": -1.0 if hidden is None else hidden,
        "crossed": report.get("cross_host_bytes", 0),
    }
