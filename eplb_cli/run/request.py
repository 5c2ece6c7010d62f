"""What `reshard` is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from eplb_cli.inputs.given import Given, follow_plan, read_given
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.plan.choice import Senders

DEFAULT_TIMEOUT_S = 600.0


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
    verify: bool = True
    digests: bool = True
    durable: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S

    @abstractmethod
    def read(self) -> Given:
        """Read the shards, OLD and NEW. Raises EplbError where they cannot be used."""


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
        placements: what OLD and NEW leave out.
        layout: how tensors are named: the name of a layout, the name of a TOML file that describes one, or
            "auto", which is that of `eplb.json` or else found from the names.
        backend: what moves bytes: "nccl" or "gloo" between the workers of a torchrun job, "file" in this
            process, or "auto", which is nccl with a CUDA device for each worker, else gloo.
        num_workers: workers of the torchrun job; None for one per CUDA device with nccl, and with gloo for
            one per rank, but no more than cores.
        buffer_nbytes: bytes of all send and receive buffers of one worker; None for what the machine's
            memory and the rows suggest, 64 MiB to 1 GiB.
        threads: threads of one worker for its files; None for its share of the cores, two at least.
        resume: go on with what a run that was ended has left.
        verify: read the result back and prove it; without it, or without digests, nothing is proved.
        digests: take a digest of every row, for the proof now and for `verify` later.
        durable: wait until the disk has every byte.
        timeout_s: seconds without any progress after which the run is ended.

    Examples:
        >>> request = eplb_cli.Request(Path("src"), Path("dst2"), new="new.json", old="old.json", threads=4)
    """

    new: str
    old: str | None = None
    _: KW_ONLY
    senders: Senders = "balanced"
    ranks_per_node: int | None = None
    placements: PlacementOptions = field(default_factory=PlacementOptions)

    def read(self) -> Given:
        """Read the shards, OLD and NEW. Raises EplbError where they cannot be used."""
        names = (self.old, self.new)
        return read_given(self.source, self.layout, names, self.placements, self.senders, self.ranks_per_node)


@dataclass(frozen=True)
class PlanRequest(AnyRequest):
    """Do what `eplb plan --out` has saved.

    Attributes:
        plan: the file, which has OLD, NEW, the senders and the ranks of a node; the other fields are those
            of `Request`.
    """

    plan: Path

    def read(self) -> Given:
        """Read the plan and the shards. Raises EplbError where they cannot be used, or have changed."""
        return follow_plan(self.source, self.layout, self.plan)
