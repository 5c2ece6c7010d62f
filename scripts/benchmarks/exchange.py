"""`scripts/bench exchange`: live tensors, against the raw rate of the link and against the reference.

One process a rank, nccl where there are devices. Every timed run is checked: all elements of all tensors.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch  # noqa: TID251 - the exchange is measured where it runs
import torch.distributed as dist  # noqa: TID251 - as above
from torch.multiprocessing.spawn import spawn  # noqa: TID251 - as above

from eplb_cli import live as rearrange
from eplb_cli.live.agreement import plan_of
from eplb_cli.live.connection import connection_of
from eplb_cli.plan.moves import REMOTE
from scripts.benchmarks.left_out import Steps, leave_out
from scripts.benchmarks.peer import load_reference

GIB = 1 << 30
RAW_PAIR_NBYTES = 1 << 30
RAW_ALL_PAIRS_NBYTES = 128 << 20


@dataclass(frozen=True)
class Case:
    """A model's expert tensors: shapes of one row and dtypes; `distinct` of all slots hold other experts."""

    name: str
    layers: int
    slots: int
    distinct: float
    rows: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    to_reach: tuple[float, float, float]
    """Share of the raw rate, planned before and planning included; and times the reference."""


FP8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
CASES = {
    "qwen3": Case(
        "Qwen3-30B-A3B", 48, 72, 128 / 144, (((1536, 2048), BF16), ((2048, 768), BF16)), (1.00, 0.85, 9)
    ),
    "deepseek": Case(
        "DeepSeek-V3 shapes",
        8,
        36,
        64 / 72,
        (((4096, 7168), FP8), ((7168, 2048), FP8), ((32, 56), F32), ((56, 16), F32)),
        (0.92, 0.80, 2.5),
    ),
    "small": Case(
        "many small",
        16,
        264,
        512 / 528,
        (((1024, 1024), FP8), ((1024, 512), FP8), ((8, 8), F32), ((8, 4), F32)),
        (0.94, 0.60, 50),
    ),
}


def main(arguments: list[str]) -> int:
    """Start one process a rank and let rank 0 print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench exchange", description=__doc__)
    devices = torch.cuda.device_count()
    parser.add_argument("--ranks", type=int, default=max(devices, 2), help="several may share a device")
    parser.add_argument("--cases", default=",".join(CASES), help="of " + ", ".join(CASES))
    parser.add_argument("--layers", type=int, help="at most so many layers a case")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--peer", type=Path, help="the reference's rebalance_execute.py")
    parser.add_argument("--buffer-mib", type=int, default=2048)
    parser.add_argument("--bounds", action="store_true", help="also without scatters and local copies")
    parser.add_argument("--shrink", type=int, default=1, help="divide every row's first dimension")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        spawn(_rank, (options, shlex.join(arguments), f"{directory}/store"), nprocs=options.ranks)  # type: ignore[no-untyped-call]
    return 0


def _rank(rank: int, options: argparse.Namespace, command: str, store: str) -> None:
    devices = torch.cuda.device_count()
    on_devices = devices > 0
    device = torch.device("cuda", rank % devices) if on_devices else torch.device("cpu")
    if on_devices:
        torch.cuda.set_device(device)
        if devices < options.ranks:
            os.environ["NCCL_HOSTID"] = str(rank)  # nccl refuses two ranks of one host on a device
    dist.init_process_group(
        "nccl" if on_devices else "gloo",
        store=dist.FileStore(store, options.ranks),  # type: ignore[attr-defined]
        rank=rank,
        world_size=options.ranks,
    )
    bench = Bench(options, device)
    if rank == 0:
        kind = torch.cuda.get_device_name(device) if on_devices else f"CPU, {os.cpu_count()} cores"
        print(f"command: scripts/bench exchange {command}")
        print(f"machine: {options.ranks} ranks on {devices} x {kind}, torch {torch.__version__}")
    raw = bench.raw_rate()
    bench.say(f"raw: {raw / 1e9:.1f} GB/s a direction and rank")
    for name in options.cases.split(","):
        bench.run_case(CASES[name], raw)
    dist.barrier()
    dist.destroy_process_group()


class Bench:
    """One rank's part of the benchmark."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.group = dist.distributed_c10d._get_default_group()  # noqa: SLF001 - WORLD may be None to mypy
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        synchronize = torch.cuda.synchronize
        self.reference: ModuleType | None = None if options.peer is None else load_reference(options.peer)
        if device.type == "cuda":
            torch.cuda.synchronize = synchronize

    def say(self, text: str) -> None:
        """Print, once."""
        if self.rank == 0:
            print(text, flush=True)

    def timed(self, call: Callable[[], Any]) -> float:
        """Seconds of the slowest rank, from a common start until its device is idle."""
        self.settle()
        dist.barrier()
        self.settle()
        started = time.perf_counter()
        call()
        self.settle()
        seconds = torch.tensor([time.perf_counter() - started], dtype=torch.float64, device=self.device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return float(seconds[0])

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def raw_rate(self) -> float:
        """Bytes a second that one rank sends: 1 GiB to its one peer, or 128 MiB to each of several."""
        pairs = self.num_ranks == 2  # noqa: PLR2004
        nbytes = (RAW_PAIR_NBYTES if pairs else RAW_ALL_PAIRS_NBYTES) // self.options.shrink
        peers = [peer for peer in range(self.num_ranks) if peer != self.rank]
        send, receive = (
            torch.ones(nbytes * len(peers), dtype=torch.uint8, device=self.device) for _ in range(2)
        )

        def exchange() -> None:
            operations = []
            for number, peer in enumerate(peers):
                part = slice(number * nbytes, (number + 1) * nbytes)
                operations += [
                    dist.P2POp(dist.isend, send[part], peer),
                    dist.P2POp(dist.irecv, receive[part], peer),
                ]
            for work in dist.batch_isend_irecv(operations):
                work.wait()

        seconds = [self.timed(exchange) for _ in range(8)][3:]
        return float(nbytes * len(peers) / median(seconds))

    def run_case(self, case: Case, raw: float) -> None:
        """Time every way of doing one case, check each run, and print the lines."""
        work = Work(case, self.options, self.rank, self.num_ranks, self.device)
        self.say(f"\n{case.name}: {work.describe()}")
        ways: dict[str, Callable[[], None]] = {}
        if self.reference is not None:
            ways["reference"] = partial(
                self.reference.rearrange_expert_weights_inplace, work.old, work.new, work.weights, self.group
            )
        buffer_size = self.options.buffer_mib << 20
        for senders in ("vllm", "balanced"):
            ways[f"eplb, {senders}"] = partial(
                rearrange.rearrange_expert_weights_inplace,
                work.old,
                work.new,
                work.weights,
                self.group,
                senders=senders,
                buffer_size=buffer_size,
            )
        rates: dict[str, float] = {}
        for way, call in ways.items():
            rates[way] = self._measure(way, call, work, raw)
        work.fill(work.old)
        planned = rearrange.Rearrangement(
            work.old, work.new, work.weights, self.group, buffer_size=buffer_size
        )
        rates["eplb, planned before"] = self._measure("eplb, planned before", planned.run, work, raw)
        self.say(f"  transport: {planned.transport}")
        left_out: list[list[Steps]] = [[], ["scatters"], ["copies", "scatters"]]
        for steps in left_out if self.options.bounds else []:
            leave_out(planned, steps)
            way = f"without {' and '.join(steps) or 'nothing'}"
            self._measure(way, planned.run, work, raw, is_right=not steps)
        del planned
        self._judge(case, rates, raw)
        del work
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _measure(
        self, way: str, call: Callable[[], None], work: Work, raw: float, *, is_right: bool = True
    ) -> float:
        seconds, messages = [], 0
        extra = 0
        for _ in range(self.options.runs + 1):
            work.fill(work.old)
            with counting() as counted:
                before = self._memory(reset=True)
                seconds.append(self.timed(call))
                extra = max(extra, self._memory() - before)
            messages = counted[0]
            if is_right:
                work.check(work.new)
        rate = work.moved / self.num_ranks / median(seconds[1:])
        spread = " ".join(f"{1e3 * one:.1f}" for one in sorted(seconds[1:]))
        self.say(
            f"  {way:22} {1e3 * median(seconds[1:]):8.1f} ms  {rate / 1e9:6.1f} GB/s  "
            f"{rate / raw:5.2f} of raw  {messages:6d} operations on rank 0  "
            f"{extra / GIB:5.2f} GiB extra   [{spread}] ms"
        )
        return rate

    def _memory(self, *, reset: bool = False) -> int:
        """Bytes of torch now, or since then at most; with the buffers that `eplb` keeps with the group."""
        if self.device.type != "cuda":
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        kept = connection_of(self.group)
        return torch.cuda.max_memory_allocated() + (0 if kept is None else kept.nbytes)

    def _judge(self, case: Case, rates: dict[str, float], raw: float) -> None:
        before, included, times = case.to_reach
        bars = [
            ("share of raw, planned before", rates["eplb, planned before"] / raw, before),
            ("share of raw, planning included", rates["eplb, vllm"] / raw, included),
        ]
        if reference := rates.get("reference"):
            bars.append(("times the reference, planning included", rates["eplb, vllm"] / reference, times))
        for what, got, bar in bars:
            self.say(f"  {what}: {got:.2f}, to reach {bar}: {'reached' if got >= bar else 'MISSED'}")


class Work:
    """Weights of one rank that are a function of (layer, expert, tensor, word), and two placements."""

    def __init__(
        self, case: Case, options: argparse.Namespace, rank: int, num_ranks: int, device: torch.device
    ) -> None:
        self.rank, self.device, self.slots = rank, device, case.slots
        self.num_layers = min(case.layers, options.layers or case.layers)
        self.shapes = [
            ((max(shape[0] // options.shrink, 1), *shape[1:]), dtype) for shape, dtype in case.rows
        ]
        num_slots = case.slots * num_ranks
        num_experts = round(num_slots * case.distinct)
        rng = np.random.default_rng(0)
        self.old, self.new = (
            torch.from_numpy(
                np.stack([random_row(rng, num_experts, num_slots) for _ in range(self.num_layers)])
            )
            for _ in range(2)
        )
        self.weights = [
            [torch.empty((case.slots, *shape), dtype=dtype, device=device) for shape, dtype in self.shapes]
            for _ in range(self.num_layers)
        ]
        plan = plan_of(self.old.numpy(), self.new.numpy(), self.weights, num_ranks)
        self.row_nbytes = sum(tensor[0].numel() * tensor.element_size() for tensor in self.weights[0])
        self.moved = int((plan.moves.kind == REMOTE).sum()) * self.row_nbytes

    def describe(self) -> str:
        """Sizes, in words."""
        return (
            f"{self.num_layers} layers, {self.old.shape[1]} slots, {len(self.shapes)} tensors, "
            f"{self.row_nbytes / 1e6:.2f} MB an expert, {self.moved / 1e9:.2f} GB between ranks"
        )

    def rows(self, table: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each tensor as 32-bit words, and what it holds under a placement."""
        mine = table[:, self.rank * self.slots : (self.rank + 1) * self.slots].to(self.device)
        for layer, tensors in enumerate(self.weights):
            for number, tensor in enumerate(tensors):
                words = tensor.view(torch.uint8).view(self.slots, -1).view(torch.int32)
                salt = (mine[layer] * 1009 + layer * 31 + number) * 2654435761
                column = torch.arange(words.shape[1], device=self.device, dtype=torch.int32) * 40503
                yield words, column[None, :] ^ salt.to(torch.int32)[:, None]

    def fill(self, table: torch.Tensor) -> None:
        """Put the weights where a placement has them."""
        for words, expected in self.rows(table):
            words.copy_(expected)

    def check(self, table: torch.Tensor) -> None:
        """Compare all elements of all tensors."""
        for number, (words, expected) in enumerate(self.rows(table)):
            if not torch.equal(words, expected):
                raise AssertionError(f"rank {self.rank}: tensor {number} is wrong")


def random_row(
    rng: np.random.Generator, num_experts: int, num_slots: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A layer of a placement: every expert once, some of them again, anywhere."""
    row = np.concatenate([np.arange(num_experts), rng.integers(0, num_experts, num_slots - num_experts)])
    return rng.permutation(row)


class counting:  # noqa: N801 - reads as a word
    """Counts the operations given to `batch_isend_irecv`, by `eplb` or by the reference."""

    def __enter__(self) -> list[int]:
        self.original, count = dist.batch_isend_irecv, [0]

        def counted(operations: list[dist.P2POp]) -> list[dist.Work]:
            count[0] += len(operations)
            return self.original(operations)

        self._put(counted)
        return count

    def __exit__(self, *_: object) -> None:
        self._put(self.original)

    def _put(self, function: Callable[[list[dist.P2POp]], list[dist.Work]]) -> None:
        for user in (dist, sys.modules.get("reference")):
            if user is not None:
                user.__dict__["batch_isend_irecv"] = function
