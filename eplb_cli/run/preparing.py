"""All that is done before the first byte moves: what is refused here, a plan and a dry run refuse as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eplb_cli import files
from eplb_cli.checkpoint.recorded import require_digests
from eplb_cli.checkpoint.slices import require_replicas
from eplb_cli.errors import CheckpointError, UsageError
from eplb_cli.hosts.hosts import ALONE, Hosts
from eplb_cli.inputs.given import Given
from eplb_cli.machine import (
    count_cores,
    count_devices,
    has_package,
    missing_package,
    reading_threads,
    workers_of_a_host,
)
from eplb_cli.output.destination import check_destination
from eplb_cli.output.prepared import Prepared, bind_and_plan
from eplb_cli.output.tree import check_output, plan_output
from eplb_cli.plan.choice import RankScalars
from eplb_cli.plan.hosting import Hosting
from eplb_cli.progress import ProgressBar, silent, tell
from eplb_cli.report.report import Report
from eplb_cli.report.tally import plan_report
from eplb_cli.run.clock import Clock
from eplb_cli.run.crew import ONE_HOST, Crew
from eplb_cli.run.meeting import require_same
from eplb_cli.run.request import AnyRequest
from eplb_cli.run.shared_others import Alike, find_alike
from eplb_cli.transfer.copies import copies_digests, require_alike
from eplb_cli.values import dataclass

MAX_IDLE_WORKERS = 8
"""Workers that may be asked for whatever the number of ranks; each of them takes what torch takes."""


@dataclass(frozen=True, eq=False)
class Planned:
    """A request whose inputs have been read and found good.

    Attributes:
        alike: other tensors that are written once.
        crew: who carries it out.
        seconds: wall-clock, by stage.
        rank_scalars: what is done with numbers of ranks.
    """

    request: AnyRequest
    prepared: Prepared
    alike: Alike
    report: Report
    backend: str
    crew: Crew
    seconds: dict[str, float]
    rank_scalars: RankScalars | None

    @property
    def workers(self) -> range:
        """The numbers of this host's workers."""
        here = np.flatnonzero(self.prepared.hosting.node == self.crew.hosts.node)
        return range(int(here[0]), int(here[-1]) + 1)


def plan_request(
    request: AnyRequest,
    progress: ProgressBar = silent,
    *,
    compare: bool = True,
    full: bool = False,
    crew: Crew = ONE_HOST,
    is_there: bool = False,
) -> Planned:
    """Read all inputs and plan, on all hosts alike; nothing is written.

    Args:
        compare, progress: see `prepare_given`.
        crew: who will carry it out.
        is_there: DST is there on some hosts, and the others have only to rename.
        full: the report lists all ranks.

    Raises:
        EplbError: the inputs cannot be used, or DST is not free.
    """
    clock = Clock()
    if not is_there:
        check_destination(request.source, request.destination)
    given = request.read(crew.hosts)
    _require_same_inputs(given, crew.hosts, progress)
    if given.shards.missing_from is not None:
        check_destination(given.shards.missing_from, request.destination)
    backend, workers = choose_workers(request, given.num_ranks, crew)
    tell("backend", f"{backend}, workers: {sum(workers):,} (asked for: {request.backend}, {_machine()})")
    threads = request.threads or reading_threads(1)
    copy = request.copy or bool(given.shards.lost)  # files of ranks that close up get other names
    hosting = _hosting(given, backend, workers)
    prepared, alike = prepare_given(
        given, threads, progress, clock, compare=compare, copy=copy, hosting=hosting, hosts=crew.hosts
    )
    require_same(crew.hosts, {"plans": prepared.digest}, "has SRC changed, or is a --layout not the same?")
    if request.digests:
        require_digests(prepared.checkpoint)
    report = prepared_report(given, prepared, full=full)
    if copy:
        report = replace(report, nothing_to_do=False)
    clock.lap("plan")
    return Planned(request, prepared, alike, report, backend, crew, clock.seconds, given.rank_scalars)


def _require_same_inputs(given: Given, hosts: Hosts, progress: ProgressBar) -> None:
    """Refuse hosts that were given different placements, or that have different copies of a shard.

    Raises:
        PlanError: EP302, whatever the form of their files.
        CheckpointError: EP237.
    """
    said = {"OLD": given.old.digest, "NEW": given.new.digest}
    require_same(hosts, said, "copy the file of one host to the others")
    pooled = given.shards.pool
    if pooled is not None and pooled.doubtful:
        require_alike(pooled, hosts.gather(copies_digests(pooled, progress), "copies of shards"))


def _hosting(given: Given, backend: str, workers: Sequence[int]) -> Hosting:
    """Who hosts which rank.

    Raises:
        CheckpointError: EP202, there is no exchange, and a host does not see all shards.
    """
    num_old, num_new, shards = given.old.num_ranks, given.new.num_ranks, given.shards
    if len(workers) == 1:
        return Hosting.one_host(num_old, num_new, workers[0])
    sees = np.ones((len(workers), num_old), np.bool_)
    for file, nodes in zip(shards.files, shards.nodes, strict=True):
        sees[[node for node in range(len(workers)) if node not in nodes], file.name.rank] = False
    for rank in np.flatnonzero(~sees.any(axis=0)).tolist():
        problem = f"no host has all files of rank {rank}"
        raise CheckpointError("EP202", problem, "bring the parts of a rank together on one host")
    if backend == "file" and not sees.all():
        node, rank = np.argwhere(~sees)[0].tolist()
        problem = f"host {node} does not see the files of rank {rank}, and --backend file has no exchange"
        raise CheckpointError("EP202", problem, "--backend gloo with --rdzv-endpoint needs no shared storage")
    return Hosting.over_hosts(sees, num_new, workers, reads_all=bool(sees.all()))


def prepare_given(  # noqa: PLR0913 - what few callers have comes last
    given: Given,
    threads: int,
    progress: ProgressBar,
    clock: Clock,
    *,
    compare: bool,
    copy: bool = False,
    hosting: Hosting | None = None,
    hosts: Hosts = ALONE,
) -> tuple[Prepared, Alike]:
    """Plan down to the last byte.

    Args:
        threads: that read files.
        progress: shows the bytes of other tensors that are read.
        compare: find the other tensors that all ranks have alike, and that can be written once. Where R
            changes they are compared in any case, because those that are sharded are refused.
        copy: carry out also a plan that changes nothing; without it there is nothing to compare then.
        hosting: who hosts which rank; None for one worker. Several hosts are the nodes of the plan, unless
            `given` says other nodes, or the plan itself.
        hosts: that plan at the same time, each of which reads what it sees.

    Raises:
        PlacementError, CheckpointError, PlanError: the inputs cannot be used together.
        WorkerError: EP405, the system does not allow so many open files.
    """
    says_nodes = given.ranks_per_node is not None or given.saved is not None
    checkpoint, plan = bind_and_plan(
        given.shards,
        given.old,
        given.new,
        given.senders,
        given.ranks_per_node,
        given.rank_scalars,
        None if hosting is None or says_nodes else hosting.nodes,
    )
    require_replicas(checkpoint, hosts.union)
    given.require_plan(plan)
    check_output(checkpoint, plan.new)
    num_files = len(given.shards.files)
    files.allow_open_files(num_files + plan.new.num_ranks)  # at the very least: a rank has a file
    clock.lap("plan")
    is_written = copy or not plan.changes_nothing
    if (compare and is_written) or plan.old.num_ranks != plan.new.num_ranks:
        alike = find_alike(checkpoint, plan.new, threads, progress, hosts)
    else:
        alike = Alike.unknown(checkpoint)
    prepared = Prepared(checkpoint, plan, plan_output(checkpoint, plan.new, alike.keys, hosting), hosting)
    files.allow_open_files(num_files + len(prepared.output.files))
    clock.lap("compare")
    return prepared, alike


def prepared_report(given: Given, prepared: Prepared, *, full: bool) -> Report:
    """What `plan --checkpoint`, `reshard --dry-run` and `reshard` say of a plan."""
    checkpoint, output = prepared.checkpoint, prepared.output
    sharded = checkpoint.sharded_others
    count = f"{len(sharded):,} other tensors look" if len(sharded) > 1 else "an other tensor looks"
    notes = [f"{count} sharded over the ranks: {sharded[0]!r}"] if sharded else []
    report = plan_report(
        prepared.plan,
        checkpoint.expert_nbytes,
        other_nbytes=output.other_nbytes,
        output_nbytes=output.nbytes,
        full=full,
        warnings=[*(finding.message for finding in given.warnings), *checkpoint.warnings, *notes],
    )
    if given.relabelled is None:
        return report
    from eplb_cli.report.relabelling import relabelling

    how, asked = given.relabelled
    return replace(report, relabelled=relabelling(prepared.plan, asked, given.new, how))


def choose_workers(request: AnyRequest, num_ranks: int, crew: Crew) -> tuple[str, list[int]]:
    """The backend, and the workers of each host. Raises as `choose_backend`."""
    hosts, started = crew.hosts, crew.present
    if hosts.count == 1 and started is None:
        backend, num_workers = choose_backend(request, num_ranks)
        return backend, [num_workers]
    if started is not None and request.num_workers is not None:
        problem = "--nproc-per-node is what the launcher has started"
        raise UsageError("EP001", problem, "leave it out when the job is saved")
    if started is not None and request.backend == "file":  # as a variable here may say, and not the job
        problem = "--backend file has one process, and the launcher has started workers"
        raise UsageError("EP001", problem, "leave out --backend, and EPLB_BACKEND, or the launcher")
    devices = [int(said) for said in hosts.gather(b"%d" % count_devices(), "devices")]
    backend = request.backend
    if backend == "auto":
        backend = "nccl" if all(devices) else "gloo"
    own = request.num_workers or (devices[hosts.node] if backend == "nccl" else workers_of_a_host())
    if started is None:
        backend, own = choose_backend(replace(request, backend=backend, num_workers=own), num_ranks)
        return backend, [int(said) for said in hosts.gather(b"%d" % own, "workers of each host")]
    return backend, list(started.workers)


def choose_backend(request: AnyRequest, num_ranks: int) -> tuple[str, int]:
    """The backend and number of workers, found from the machine where they are left open.

    Raises:
        UsageError: EP001, workers for `file`, which has none, more of them for `nccl` than devices, or many
            more than there are ranks; EP002, workers where torch is not installed.
    """
    devices = count_devices()
    wanted = request.num_workers
    backend = request.backend
    most = max(num_ranks, MAX_IDLE_WORKERS)
    if wanted is not None and wanted > most:
        problem = f"--nproc-per-node is {wanted:,}, for {num_ranks:,} ranks"
        raise UsageError("EP001", problem, f"a worker without a rank has nothing to do: {most:,} are enough")
    if backend == "file":
        if wanted not in (None, 1):
            raise UsageError("EP001", "--backend file has one process", "leave out --nproc-per-node")
        return backend, 1
    if not has_package("torch"):
        return _without_torch(backend, wanted)
    if backend == "auto":
        backend = "nccl" if devices and (wanted or devices) <= devices else "gloo"
    if backend == "nccl":
        if not 0 < (wanted or 1) <= devices:
            problem = f"--backend nccl needs a CUDA device for each worker; {devices} are visible"
            raise UsageError("EP001", problem, "--backend gloo and --backend file need none")
        return backend, wanted or devices
    return backend, wanted or min(num_ranks, count_cores())


def _machine() -> str:
    """What the backend depends on, in words."""
    torch = "installed" if has_package("torch") else "not installed"
    return f"CUDA devices: {count_devices():,}, torch {torch}"


def _without_torch(backend: str, wanted: int | None) -> tuple[str, int]:
    """What moves bytes where no worker can be started. Raises EP002 where workers were asked for."""
    if backend == "auto" and wanted in (None, 1):
        return "file", 1
    asked = f"--nproc-per-node {wanted}" if backend == "auto" else f"--backend {backend}"
    instead = "leave it out: --backend file writes the same bytes in one process"
    raise missing_package("torch", asked, instead)
