"""What `reshard` is asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, field
from pathlib import Path
from typing import Literal, get_args

from eplb_cli.errors import UsageError
from eplb_cli.hosts.hosts import ALONE, Hosts
from eplb_cli.inputs.given import Given, follow_plan, read_given
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.plan.choice import RankScalars, Relabel, Senders
from eplb_cli.values import dataclass

Backend = Literal["auto", "nccl", "gloo", "file"]
"""What moves bytes."""

DEFAULT_TIMEOUT_S = 600.0

LEAST_BUFFER_NBYTES = 1 << 20
"""Below this the exchange takes many times as long: it is cut into chunks that are a quarter of it."""

LEAST_TIMEOUT_S = 1.0
MAX_THREADS = 1024
MAX_WORKERS = 1024
MAX_HOSTS = 1024


@dataclass(frozen=True)
class AnyRequest(ABC):
    """What every request says, however it names its placements; `Request` explains the fields."""

    source: Path
    destination: Path
    _: KW_ONLY
    layout: str = "auto"
    backend: str = "auto"
    num_workers: int | None = None
    buffer_nbytes: int | None = None
    threads: int | None = None
    resume: bool = False
    copy: bool = False
    keep: bool = True
    verify: bool = True
    digests: bool = True
    durable: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S
    num_hosts: int = 1
    host: int | None = None
    rendezvous: str | None = None

    @abstractmethod
    def read(self, hosts: Hosts = ALONE) -> Given:
        """Read the shards that these hosts see, OLD and NEW. Raises EplbError where they cannot be used."""


@dataclass(frozen=True)
class Request(AnyRequest):
    """Rearrange the shards in `source`, which lie under OLD, for the placement NEW, into `destination`.

    Attributes:
        source: SRC, the directory of shards; only read.
        destination: DST, which is not there yet, or an empty directory.
        new: NEW: the name of a file, or "linear" or "round_robin".
        old: OLD, likewise; None where the `eplb.json` in SRC says it.
        senders: who sends an expert that several ranks hold: "balanced", so that the busiest sends least,
            or "vllm", as vLLM chooses.
        ranks_per_node: ranks of a node, so that no more than must be crosses nodes; None for one node.
        rank_scalars: what to do with one number a rank that a rank computed from its own experts: "max", so
            that every rank gets the largest, which is right for a maximum; None to refuse it where experts
            of its layer change rank.
        relabel: what of NEW changes places before, so that less moves: "none", "rows" of a rank, or whole
            "ranks" as well, layer by layer. DST is under the NEW that is in the report then, in
            `relabelled.new`, and an engine needs that one.
        lost_ranks: the ranks of OLD whose files are gone from `source`; those that are left close up.
        missing_from: the directory that `shard` wrote with `only`: the experts that lost ranks alone had.
        placements: what OLD and NEW leave out.
        layout: how tensors are named: the name of a layout, the name of a TOML file that describes one, or
            "auto", which is that of `eplb.json` or else found from the names.
        backend: what moves bytes: "nccl" or "gloo" between the workers of a torchrun job, "file" in this
            process, or "auto", which is nccl with a CUDA device for each worker, else gloo; file where torch
            is not installed.
        num_workers: workers of the torchrun job; None for one per CUDA device with nccl, and with gloo for
            one per rank, but no more than cores.
        buffer_nbytes: bytes of all send and receive buffers of one worker, 1 MiB at least; None for what the
            machine's memory and the rows suggest, 64 MiB to 1 GiB.
        threads: threads of one worker for its files, 1,024 at most; None for its share of as many as pay, by
            cores and files, for writing and for reading back; two at least.
        resume: go on with what a run that was ended has left.
        copy: write DST also where OLD and NEW are the same, and nothing is to be done.
        keep: leave what is done for `resume` where a run is interrupted, or ends with an error that may pass.
        verify: read the result back and prove it; without it, or without digests, nothing is proved.
        digests: take a digest of every row, for the proof now and for `verify` later.
        durable: wait until the disk has every byte.
        timeout_s: seconds without any progress of the workers after which the run is ended, 1 at least. What
            ends the command line where its own disk does not answer, a program does not have.
        num_hosts: hosts that take part, each with a request of its own; each of them reads the shards that it
            sees, and writes those of the new ranks that it hosts.
        host: which of them this is, from 0; host 0 is at `rendezvous`.
        rendezvous: HOST:PORT, where host 0 listens for the others; with the backend "file" there is none:
            the hosts speak through the storage of `destination`, which they share.

    Examples:
        >>> request = eplb_cli.Request(Path("src"), Path("dst2"), new="new.json", old="old.json", threads=4)
    """

    new: str
    old: str | None = None
    _: KW_ONLY
    senders: Senders = "balanced"
    ranks_per_node: int | None = None
    rank_scalars: RankScalars | None = None
    relabel: Relabel = "none"
    lost_ranks: tuple[int, ...] = ()
    missing_from: Path | None = None
    placements: PlacementOptions = field(default_factory=PlacementOptions)

    def read(self, hosts: Hosts = ALONE) -> Given:
        """Read the shards that these hosts see, OLD and NEW. Raises EplbError where they cannot be used."""
        names = (self.old, self.new)
        options = self.placements
        if self.lost_ranks:
            return self._read_left().with_relabelled(self.relabel)
        if self.missing_from is not None:
            raise UsageError("EP001", "--missing-from is of ranks that are lost", "name them: --lost-ranks")
        given = read_given(
            self.source,
            self.layout,
            names,
            options,
            self.senders,
            self.ranks_per_node,
            self.rank_scalars,
            hosts,
        )
        return given.with_relabelled(self.relabel)

    def _read_left(self) -> Given:
        if self.rank_scalars is not None:
            problem = "--rank-scalars needs the numbers of all ranks, and some are lost"
            raise UsageError("EP001", problem, "shard the Hugging Face checkpoint anew")
        from eplb_cli.inputs.left import read_left

        return read_left(
            self.source,
            self.layout,
            (self.old, self.new),
            self.placements,
            self.lost_ranks,
            self.missing_from,
            (self.senders, self.ranks_per_node),
        )


@dataclass(frozen=True)
class PlanRequest(AnyRequest):
    """Do what `eplb plan --out` has saved.

    Attributes:
        plan: the file, which has OLD, NEW, the senders and the ranks of a node; the other fields are those
            of `Request`.
    """

    plan: Path

    def read(self, hosts: Hosts = ALONE) -> Given:
        """Read the plan and the shards. Raises EplbError where they cannot be used, or have changed."""
        return follow_plan(self.source, self.layout, self.plan, hosts)


def require_usable(request: AnyRequest) -> None:
    """Refuse what no run can be asked for, before anything is read.

    Raises:
        UsageError: EP001, a number is out of its range, or there is no such backend.
    """
    if request.backend not in get_args(Backend):
        listed = ", ".join(get_args(Backend))
        raise UsageError("EP001", f"there is no backend {request.backend!r}", f"backends: {listed}")
    buffer_nbytes = request.buffer_nbytes
    if buffer_nbytes is not None and not buffer_nbytes >= LEAST_BUFFER_NBYTES:
        problem = f"--buffer-size is {buffer_nbytes:,} bytes; the least is {LEAST_BUFFER_NBYTES:,} (1MiB)"
        raise UsageError("EP001", problem, "leave it out: the default is from the machine and the rows")
    for option, count, most in (
        ("--nproc-per-node", request.num_workers, MAX_WORKERS),
        ("--threads", request.threads, MAX_THREADS),
    ):
        if count is not None and not 1 <= count <= most:
            raise UsageError("EP001", f"{option} is {count:,}, not from 1 to {most:,}", "leave it out")
    if not LEAST_TIMEOUT_S <= request.timeout_s < math.inf:  # NaN is in no range
        problem = f"--timeout is {request.timeout_s:g}: it is a number of seconds, 1 at least"
        raise UsageError("EP001", problem, "a day is 86400")
    _require_hosts(request)


def _require_hosts(request: AnyRequest) -> None:
    """EP001 where what is said of the hosts does not go together."""
    count, host = request.num_hosts, request.host
    if not 1 <= count <= MAX_HOSTS:
        raise UsageError("EP001", f"--nnodes is {count:,}, not from 1 to {MAX_HOSTS:,}", "one is the default")
    if count == 1:
        if host or (request.rendezvous is not None and host is None):
            raise UsageError(
                "EP001", "--node-rank and --rdzv-endpoint are of several hosts", "add --nnodes N"
            )
        return
    if host is None or not 0 <= host < count:
        said = "is missing" if host is None else f"is {host:,}"
        problem = f"--node-rank {said}: with --nnodes {count:,} it is from 0 to {count - 1:,}"
        raise UsageError("EP001", problem, "each host has its own, and host 0 is at --rdzv-endpoint")
    if (request.rendezvous is None) != (request.backend == "file"):
        if request.rendezvous is None:
            problem = "with --nnodes the hosts have to find each other"
            hint = "add --rdzv-endpoint HOST:PORT, an address of host 0; --backend file needs none"
            raise UsageError("EP001", problem, hint)
        problem = "with --backend file hosts meet in the storage of DST, and nobody listens"
        raise UsageError("EP001", problem, "leave out --rdzv-endpoint, or --backend file")
    if isinstance(request, Request) and (request.lost_ranks or request.missing_from is not None):
        problem = "--lost-ranks is of one host"
        raise UsageError("EP001", problem, "reshard on shared storage, by one host")
