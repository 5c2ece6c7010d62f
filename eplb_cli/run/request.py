"""What `reshard` is asked for, and the plan for it: all that is known before a byte moves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from eplb_cli.checkpoint.recorded import require_headers_as_in_manifest
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.errors import UsageError
from eplb_cli.inputs.old_and_new import read_new, read_old
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.inputs.saved_plan import read_plan, require_same_moves, require_unchanged
from eplb_cli.machine import count_cores, count_devices
from eplb_cli.output.destination import check_destination
from eplb_cli.output.prepared import Prepared, prepare
from eplb_cli.output.tree import plan_output
from eplb_cli.plan.moves import Senders
from eplb_cli.report.report import Report
from eplb_cli.run.planning import prepared_report

DEFAULT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Request:
    """What the command line asks for, see the design for each option; `plan` instead of `new` and `old`."""

    source: Path
    destination: Path
    new: str | None
    old: str | None = None
    plan: Path | None = None
    layout: str = "auto"
    backend: str = "auto"
    num_workers: int | None = None
    senders: Senders = "balanced"
    ranks_per_node: int | None = None
    buffer_nbytes: int | None = None
    threads: int | None = None
    resume: bool = False
    verify: bool = True
    digests: bool = True
    durable: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S
    placements: PlacementOptions = field(default_factory=PlacementOptions)


@dataclass(frozen=True, eq=False)
class Planned:
    """A request whose inputs have been read and found good."""

    request: Request
    prepared: Prepared
    report: Report
    backend: str
    num_workers: int
    shared: frozenset[str] = frozenset()

    def sharing(self, shared: frozenset[str]) -> Planned:
        """The same, with an output in which other tensors that all ranks have alike are written once."""
        prepared, new = self.prepared, self.prepared.plan.new
        output = plan_output(prepared.checkpoint, new, shared)
        totals = replace(self.report.totals, output_bytes=output.nbytes)
        return replace(
            self,
            prepared=Prepared(prepared.checkpoint, prepared.plan, output),
            report=replace(self.report, totals=totals),
            shared=shared,
        )


def plan_request(request: Request, *, full: bool = False) -> Planned:
    """Read all inputs and plan, without touching the disk otherwise.

    Raises:
        EplbError: the inputs cannot be used, or DST is not free.
    """
    check_destination(request.source, request.destination)
    if request.plan is None:
        shards = open_shards(request.source, request.layout)
        require_headers_as_in_manifest(shards)
        options = request.placements.beside(shards)
        old, old_warnings = read_old(shards, request.old, request.new or "", options)
        new, new_warnings = read_new(request.new or "", old, options)
        prepared = prepare(shards, old, new, request.senders, request.ranks_per_node)
        findings = [*old_warnings, *new_warnings]
    else:
        request, prepared = _follow(request, request.plan)
        findings = []
    report = prepared_report(prepared, findings, full=full)
    backend, num_workers = choose_backend(request, prepared.plan.num_ranks)
    return Planned(request, prepared, report, backend, num_workers)


def _follow(request: Request, path: Path) -> tuple[Request, Prepared]:
    """What a saved plan says, with the options it was made with.

    Raises:
        PlanError: EP303, it is no plan; EP304, what it was made for has changed.
    """
    saved = read_plan(path)
    layout = saved.read_layout(path) if request.layout == "auto" else None
    shards = open_shards(request.source, layout or request.layout)
    require_headers_as_in_manifest(shards)
    require_unchanged(saved, path, shards)
    senders: Senders = "vllm" if saved.senders == "vllm" else "balanced"
    request = replace(request, senders=senders, ranks_per_node=saved.ranks_per_node)
    prepared = prepare(
        shards, saved.read_old(path), saved.read_new(path), request.senders, request.ranks_per_node
    )
    require_same_moves(saved, path, prepared.plan)
    return request, prepared


def choose_backend(request: Request, num_ranks: int) -> tuple[str, int]:
    """The backend and number of workers, found from the machine where they are left open.

    Raises:
        UsageError: EP001, workers for `file`, which has none, or more of them for `nccl` than devices.
    """
    devices = count_devices()
    wanted = request.num_workers
    backend = request.backend
    if backend == "file":
        if wanted not in (None, 1):
            raise UsageError("EP001", "--backend file has one process", "leave out --nproc-per-node")
        return backend, 1
    if backend == "auto":
        backend = "nccl" if devices and (wanted or devices) <= devices else "gloo"
    if backend == "nccl":
        if not 0 < (wanted or 1) <= devices:
            problem = f"--backend nccl needs a CUDA device for each worker; {devices} are visible"
            raise UsageError("EP001", problem, "--backend gloo and --backend file need none")
        return backend, wanted or devices
    return backend, wanted or min(num_ranks, count_cores())
