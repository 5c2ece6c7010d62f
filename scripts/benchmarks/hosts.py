"""`scripts/bench hosts`: how a run of several hosts grows with its ranks; hosts are processes on loopback.

Every host has a directory of its own with the shards of its ranks, and one worker. Rows are small, so that
what grows with ranks is seen and not the bytes. What each process has open and in memory is looked at every
50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.formats.safetensors_header import build_header
from eplb_cli.placements.placement import Placement
from scripts.benchmarks.machine import heading
from scripts.benchmarks.timing import EPLB, BenchError
from scripts.benchmarks.trees import SEED, shard_name, write_placement

NUM_LAYERS = 4
SLOTS_PER_RANK = 2
NUM_OTHERS = 12
"""Other tensors of each layer."""

ROW_SHAPES = {"w13_weight": (8, 64), "w2_weight": (64, 4)}
SAMPLE_S = 0.05
TIMEOUT_S = 550


@dataclass
class Seen:
    """The most that any process of one kind had: bytes in memory, files open, and sockets among them."""

    rss_nbytes: int = 0
    files: int = 0
    sockets: int = 0


@dataclass
class Run:
    """One run: the report of host 0, and what was seen of processes by kind."""

    ranks: int
    seconds: float
    report: dict[str, Any]
    loopback_nbytes: int
    seen: dict[str, Seen] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Measure each number of ranks, and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench hosts", description=__doc__)
    parser.add_argument("--ranks", type=_numbers, default=[16, 64, 256, 1024], metavar="R,...")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument(
        "--dir", type=Path, help="where the shards are written; default: a temporary directory"
    )
    parser.add_argument("--gb", type=float, help="instead, bytes between two hosts: of so many GB of rows")
    parser.add_argument("--runs", type=int, default=3, help="with --gb: rounds, after a warm-up")
    options = parser.parse_args(arguments)
    runs = []
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        print(heading("hosts", arguments, Path(scratch)), flush=True)
        if options.gb:
            from scripts.benchmarks.hosts_bytes import measure

            print(measure(Path(scratch), options.gb, options.runs))
            return 0
        for ranks in options.ranks:
            home = Path(scratch) / str(ranks)
            _write(home, ranks, options.hosts)
            runs.append(_run(home, ranks, options.hosts))
            shutil.rmtree(home)
            print(_lines(runs[-1:]), flush=True)
    print("\n" + _lines(runs))
    return 0


def _numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def _write(home: Path, ranks: int, hosts: int) -> None:
    """Shards of all ranks, those of each host in its own directory, and both placements."""
    num_slots = SLOTS_PER_RANK * ranks
    random = np.random.default_rng(SEED)
    old = np.tile(np.arange(num_slots) % ranks, (NUM_LAYERS, 1))
    new = np.array([random.permutation(row) for row in old])
    first = np.arange(ranks + 1) * SLOTS_PER_RANK
    home.mkdir(parents=True)
    for name, table in (("old", old), ("new", new)):
        write_placement(home / f"{name}.json", Placement(table, first, ranks, np.arange(NUM_LAYERS)))
    for rank in range(ranks):
        directory = home / f"host-{rank * hosts // ranks}" / "src"
        directory.mkdir(parents=True, exist_ok=True)
        _write_shard(directory / shard_name(rank), old[:, first[rank] : first[rank + 1]])


def _write_shard(path: Path, experts: np.ndarray) -> None:
    tensors: list[tuple[str, tuple[int, ...], int | None]] = []
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}"
        tensors += [
            (f"{prefix}.mlp.experts.{name}", (SLOTS_PER_RANK, *shape), layer)
            for name, shape in ROW_SHAPES.items()
        ]
        tensors += [(f"{prefix}.other_{number}.weight", (256,), None) for number in range(NUM_OTHERS)]
    sized = [(name, "BF16", shape, 2 * int(np.prod(shape))) for name, shape, _ in tensors]
    header, offsets = build_header(sized, {})
    content = bytearray(header + bytes(sum(nbytes for *_, nbytes in sized)))
    for (name, _, experts_of), (*_, nbytes) in zip(tensors, sized, strict=True):
        if experts_of is not None:
            rows = np.zeros((SLOTS_PER_RANK, nbytes // SLOTS_PER_RANK // 4), "<u4")
            rows[:] = (experts[experts_of] * 1000 + len(name))[:, None]
            content[offsets[name] : offsets[name] + nbytes] = rows.tobytes()
    path.write_bytes(content)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def hosts_at_once(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    watch: Callable[[list[int]], None] = lambda _: None,
) -> list[str]:
    """What each of some commands prints that run at the same time. Raises BenchError where one fails."""
    processes = [
        subprocess.Popen(  # noqa: S603 - commands of this package
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    watch([process.pid for process in processes])
    try:
        told = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, stderr) in zip(processes, told, strict=True):
        if process.returncode:
            raise BenchError(f"a host exits {process.returncode}: {stderr[-2000:]}")
    return [stdout for stdout, _ in told]


def _run(home: Path, ranks: int, hosts: int) -> Run:
    before, port, seen = _loopback_nbytes(), free_port(), defaultdict[str, Seen](Seen)
    ended, started = threading.Event(), time.perf_counter()

    def watch(pids: list[int]) -> None:
        threading.Thread(target=_sample, args=(pids, seen, ended), daemon=True).start()

    try:
        commands = [_command(home, node, hosts, port) for node in range(hosts)]
        told = hosts_at_once(commands, [{}] * hosts, watch)
    finally:
        ended.set()
    seconds = time.perf_counter() - started
    return Run(ranks, seconds, json.loads(told[0]), _loopback_nbytes() - before, dict(seen))


def _command(home: Path, node: int, hosts: int, port: int) -> list[str]:
    own = home / f"host-{node}"
    return [
        *(EPLB, "reshard", str(own / "src"), str(own / "dst"), "--old", str(home / "old.json")),
        *("--new", str(home / "new.json"), "--backend", "gloo", "--no-fsync", "--format", "json"),
        *("--nproc-per-node", "1", "--nnodes", str(hosts), "--node-rank", str(node)),
        *("--rdzv-endpoint", f"127.0.0.1:{port}"),
    ]


def _loopback_nbytes() -> int:
    line = next(
        line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    )
    return int(line.partition(":")[2].split()[8])


def _sample(roots: list[int], seen: dict[str, Seen], ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_S):
        for pid in _with_children(roots):
            with contextlib.suppress(OSError, IndexError, ValueError):
                proc = Path(f"/proc/{pid}")
                words = (proc / "cmdline").read_bytes().decode(errors="replace")
                kind = (
                    "worker"
                    if "run.worker" in words and "run.torchrun" not in words
                    else ("torchrun" if "run.torchrun" in words else "leader")
                )
                links = [str(entry.readlink()) for entry in (proc / "fd").iterdir()]
                pages = int((proc / "statm").read_text().split()[1])
                one = seen[kind]
                one.rss_nbytes = max(one.rss_nbytes, pages * os.sysconf("SC_PAGE_SIZE"))
                one.files = max(one.files, len(links))
                one.sockets = max(one.sockets, sum(link.startswith("socket:") for link in links))


def _with_children(roots: list[int]) -> list[int]:
    found, left = [], list(roots)
    while left:
        pid = left.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                left += map(int, (task / "children").read_text().split())
    return found


_COLUMNS = (
    *("ranks", "total", "plan", "create", "start", "move", "prove", "commit", "leader", "worker"),
    *("files", "sockets", "between hosts", "loopback"),
)
_WIDTHS = (6, 8, 8, 8, 8, 8, 8, 8, 8, 8, 6, 8, 14, 12)


def _lines(runs: list[Run]) -> str:
    rows = [_COLUMNS, *map(_cells, runs)]
    return "\n".join(
        " ".join(cell.rjust(width) for cell, width in zip(row, _WIDTHS, strict=True)) for row in rows
    )


def _cells(run: Run) -> tuple[str, ...]:
    seconds = run.report["seconds"]
    leader, worker = run.seen.get("leader", Seen()), run.seen.get("worker", Seen())
    moved = sum(seconds[name] for name in ("transfer", "verify", "sync"))
    times = [run.seconds, seconds["plan"], seconds["create"], seconds["start"], moved, seconds["prove"]]
    return (
        f"{run.ranks:,}",
        *(f"{time:.2f} s" for time in [*times, seconds["commit"]]),
        *(f"{one.rss_nbytes / 1e6:.0f} MB" for one in (leader, worker)),
        f"{worker.files:,}",
        f"{worker.sockets:,}",
        *(f"{nbytes / 1e6:.1f} MB" for nbytes in (run.report["cross_host_bytes"], run.loopback_nbytes)),
    )
