"""The main flow: plan, move, prove, publish."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli import __version__, files
from eplb_cli.checkpoint import Shards, open_shards
from eplb_cli.errors import BytesError, UsageError
from eplb_cli.inputs import PlacementOptions, read_new, read_old
from eplb_cli.job import Job, digest_path
from eplb_cli.launch import launch
from eplb_cli.manifest import MANIFEST_NAME, Manifest, digest_file, file_entry, npy_bytes, read_digests
from eplb_cli.placement import EMPTY
from eplb_cli.placement_file import placement_to_json
from eplb_cli.plan import Senders
from eplb_cli.prepare import Prepared, prepare
from eplb_cli.prove import Proof, prove, require_unsharded, row_view
from eplb_cli.report import Report, RunReport
from eplb_cli.serving import serving_notes
from eplb_cli.shards import Staging, check_destination, check_space, create_files, publish, staging
from eplb_cli.tally import plan_report
from eplb_cli.transfer import TransferOptions, TransferResult, transfer

Digests = NDArray[np.uint8]
ProgressBar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Given a number of bytes and a description: a context that yields what shows the bytes done."""

DEFAULT_BUFFER_NBYTES = 256 << 20
DEFAULT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see the design for each option."""

    source: Path
    destination: Path
    new: str
    old: str | None = None
    layout: str = "auto"
    backend: str = "auto"
    num_workers: int | None = None
    senders: Senders = "balanced"
    ranks_per_node: int | None = None
    buffer_nbytes: int = DEFAULT_BUFFER_NBYTES
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


def plan_request(request: Request, *, full: bool = False) -> Planned:
    """Read all inputs and plan, without touching the disk otherwise.

    Raises:
        EplbError: the inputs cannot be used, or DST is not free.
    """
    check_destination(request.source, request.destination)
    shards = open_shards(request.source, request.layout)
    old, old_warnings = read_old(shards, request.old, request.new, request.placements)
    new, new_warnings = read_new(request.new, old, request.placements)
    prepared = prepare(shards, old, new, request.senders, request.ranks_per_node)
    report = plan_report(
        prepared.plan,
        prepared.checkpoint.expert_nbytes,
        other_nbytes=prepared.output.other_nbytes,
        output_nbytes=prepared.output.nbytes,
        full=full,
        warnings=[
            *(finding.message for finding in [*old_warnings, *new_warnings]),
            *prepared.checkpoint.warnings,
        ],
    )
    backend, num_workers = choose_backend(request, prepared.plan.num_ranks)
    return Planned(request, prepared, report, backend, num_workers)


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
    return backend, wanted or min(num_ranks, len(os.sched_getaffinity(0)))


def count_devices() -> int:
    """CUDA devices of this machine, told without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [device.strip() for device in visible.split(",")]
        return len(list(takewhile(lambda device: device and not device.startswith("-"), named)))
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])


def reshard(request: Request, progress: ProgressBar) -> Report:
    """Rearrange SRC into DST and prove it.

    Raises:
        EplbError: whatever went wrong; there is no DST then, and SRC is as it was.
    """
    clock = _Clock()
    planned = plan_request(request)
    prepared, shards = planned.prepared, planned.prepared.checkpoint.shards
    check_space(request.destination, prepared.output.nbytes)
    clock.lap("plan")
    with staging(request.destination) as stage:
        create_files(stage, prepared.output)
        carried = _carry(shards, stage, durable=request.durable)
        clock.lap("create")
        moved = _move(planned, stage, progress)
        clock.lap("move")
        proof = _check(planned, moved)
        clock.lap("prove")
        _write_manifest(planned, stage, moved, carried)
        _reopen(planned, stage)
        publish(stage, durable=request.durable)
        clock.lap("commit")
    return _run_report(planned, moved, proof, clock.seconds)


class _Clock:
    """Wall-clock seconds of each stage of a run."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self._seconds[stage], self._last = now - self._last, now

    @property
    def seconds(self) -> dict[str, float]:
        return {**self._seconds, "total": self._last - self._started}


@dataclass(frozen=True, eq=False)
class Moved:
    """What the workers did, together: digests by place, and each worker's own numbers."""

    old_digests: Digests
    new_digests: Digests
    seconds: dict[str, float]
    wire_nbytes: int
    peak_rss_nbytes: list[int]


def _move(planned: Planned, stage: Staging, progress: ProgressBar) -> Moved:
    """Move the bytes with whichever backend was chosen."""
    request, prepared = planned.request, planned.prepared
    changes_ranks = prepared.plan.old.num_ranks != prepared.plan.new.num_ranks
    options = TransferOptions(
        planned.num_workers,
        request.buffer_nbytes,
        digests=request.digests or changes_ranks,
        verify=request.verify and request.digests,
        durable=request.durable,
    )
    passes = 2 if options.digests and options.verify else 1
    with progress(int(prepared.new_places.nbytes.sum()) * passes, planned.backend) as show:
        if planned.backend == "file":
            return _moved([_move_here(prepared, stage, options, show)])
        return _move_in_workers(planned, stage, options, show)


def _move_here(
    prepared: Prepared, stage: Staging, options: TransferOptions, show: Callable[[int], None]
) -> TransferResult:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        show(done)

    return transfer(prepared, stage.path, options, 0, None, advance)


def _move_in_workers(
    planned: Planned, stage: Staging, options: TransferOptions, show: Callable[[int], None]
) -> Moved:
    request, prepared = planned.request, planned.prepared
    job = Job(
        source=str(request.source.absolute()),
        staging=str(stage.path),
        old=placement_to_json(prepared.plan.old),
        new=placement_to_json(prepared.plan.new),
        layout=prepared.checkpoint.shards.layout.as_json(),
        senders=request.senders,
        ranks_per_node=request.ranks_per_node,
        backend=planned.backend,
        digest=prepared.digest,
        transfer=options,
        launcher_pid=os.getpid(),
    )
    outcomes = launch(job, request.timeout_s, show)
    results = []
    for worker, outcome in sorted(outcomes.items()):
        old_digests, new_digests = (np.load(digest_path(stage.work, side, worker)) for side in ("old", "new"))
        results.append(
            TransferResult(
                old_digests,
                new_digests,
                outcome.seconds,
                outcome.nbytes,
                outcome.wire_nbytes,
                outcome.peak_rss_nbytes,
            )
        )
    return _moved(results)


def _moved(results: list[TransferResult]) -> Moved:
    """Put the workers' results together: each digest comes from one worker and is zero in the others."""
    stages = results[0].seconds
    return Moved(
        np.bitwise_or.reduce([result.old_digests for result in results]),
        np.bitwise_or.reduce([result.new_digests for result in results]),
        {stage: max(result.seconds[stage] for result in results) for stage in stages},
        sum(result.wire_nbytes for result in results),
        [result.peak_rss_nbytes for result in results],
    )


def _check(planned: Planned, moved: Moved) -> Proof | None:
    """Everything that the digests can prove; None without them."""
    request, prepared = planned.request, planned.prepared
    require_unsharded(prepared.checkpoint, prepared.plan.new, moved.old_digests)
    if not request.digests:
        return None
    _require_as_in_manifest(prepared, moved.old_digests)
    if not request.verify:
        return None
    return prove(
        prepared.checkpoint,
        prepared.plan.new,
        prepared.pieces,
        prepared.new_places,
        moved.old_digests,
        moved.new_digests,
        lambda place: place_name(prepared, place),
    )


def place_name(prepared: Prepared, place: int) -> str:
    """A new place in words: file, layer, slot and tensor."""
    new, checkpoint = prepared.plan.new, prepared.checkpoint
    num_rows = checkpoint.row_nbytes.size * new.num_slots
    if place >= num_rows:
        copy = prepared.output.others[place - num_rows]
        return f"{prepared.output.files[copy.dst_file].name}: {copy.key!r}"
    cell, slot = divmod(place, new.num_slots)
    layer, tensor = divmod(cell, checkpoint.row_nbytes.shape[1])
    file = prepared.output.files[int(prepared.new_places.file[place])].name
    return (
        f"{file}: layer {new.layer_name(layer)}, slot {slot} (rank {new.rank_of_slot[slot]}, "
        f"row {new.row_of_slot[slot]}) of {checkpoint.expert_tensors[tensor].template!r}"
    )


def _require_as_in_manifest(prepared: Prepared, old_digests: Digests) -> None:
    """EP506 where a row of SRC is not what its own manifest says; it says nothing of empty rows."""
    shards, old = prepared.checkpoint.shards, prepared.plan.old
    if shards.manifest is None:
        return
    num_layers, num_tensors = prepared.checkpoint.row_nbytes.shape
    found = row_view(old_digests, (num_layers, num_tensors), old.num_slots)
    for rank in range(old.num_ranks):
        first, last = int(old.first_slot[rank]), int(old.first_slot[rank + 1])
        known = read_digests(shards.path, rank, (num_layers, num_tensors, last - first))
        if known is None:
            continue
        filled = old.physical_to_logical[:, None, first:last] != EMPTY
        wrong = np.argwhere((known != found[:, :, first:last]).any(axis=-1) & filled)
        if len(wrong):
            layer, tensor, row = (int(number) for number in wrong[0])
            raise BytesError(
                "EP506",
                f"{shards.path}: layer {old.layer_name(layer)}, slot {first + row} (rank {rank}, row {row}) "
                f"of {prepared.checkpoint.expert_tensors[tensor].template!r} is not what eplb.json says",
                "SRC was changed or is damaged: `eplb verify SRC` names the first place",
            )


def _carry(shards: Shards, stage: Staging, *, durable: bool) -> dict[str, dict[str, object]]:
    """Copy the files that are no shards; their sizes and digests."""
    import xxhash

    carried: dict[str, dict[str, object]] = {}
    for name in shards.carried:
        source = files.open_source(shards.path / name)
        try:
            nbytes = os.fstat(source).st_size
            destination = files.create(stage.path / name, nbytes)
            state = xxhash.xxh3_128()
            block = memoryview(bytearray(files.COPY_BLOCK_NBYTES))
            try:
                for begin in range(0, nbytes, len(block)):
                    view = block[: min(len(block), nbytes - begin)]
                    files.read_into(source, view, begin, shards.path / name)
                    files.write_from(destination, view, begin, stage.path / name)
                    state.update(view)
                if durable:
                    files.sync(destination, stage.path / name)
            finally:
                os.close(destination)
        finally:
            os.close(source)
        carried[name] = {"nbytes": nbytes, "digest": state.hexdigest()}
    return carried


def _write_manifest(
    planned: Planned, stage: Staging, moved: Moved, carried: Mapping[str, Mapping[str, object]]
) -> None:
    """Row digests beside the shards, and `eplb.json` last."""
    request, prepared = planned.request, planned.prepared
    new, checkpoint = prepared.plan.new, prepared.checkpoint
    destination_digests = np.zeros_like(moved.new_digests)
    destination_digests[prepared.pieces.destination] = moved.old_digests[prepared.pieces.source]
    digests: dict[str, dict[str, object]] = {}
    if request.digests:
        rows = row_view(destination_digests, checkpoint.row_nbytes.shape, new.num_slots)
        for rank in range(new.num_ranks):
            content = npy_bytes(rows[:, :, new.first_slot[rank] : new.first_slot[rank + 1]])
            files.write_file(stage.path / digest_file(rank), content, durable=request.durable)
            digests[digest_file(rank)] = file_entry(content)
    num_rows = checkpoint.row_nbytes.size * new.num_slots
    others: dict[int, dict[str, str]] = {}
    for number, copy in enumerate(prepared.output.others):
        digest = destination_digests[num_rows + number].tobytes().hex()
        others.setdefault(copy.dst_file, {})[copy.key] = digest if request.digests else ""
    manifest = Manifest(
        tool=f"eplb {__version__}",
        placement=placement_to_json(new),
        source_placement=placement_to_json(prepared.plan.old),
        senders=request.senders,
        ranks_per_node=request.ranks_per_node,
        layout=checkpoint.shards.layout.as_json(),
        plan_digest=prepared.plan.digest,
        expert_tensors=[tensor.template for tensor in checkpoint.expert_tensors],
        files={
            file.name: {
                "nbytes": file.nbytes,
                "header_digest": file.header_digest,
                "others": others.get(number, {}),
            }
            for number, file in enumerate(prepared.output.files)
        },
        carried=carried,
        digests=digests,
        options={
            "digests": request.digests,
            "verified": request.verify and request.digests,
            "fsync": request.durable,
        },
        serving=serving_notes(new, checkpoint.shards.layout.name),
    )
    files.write_file(stage.path / MANIFEST_NAME, manifest.to_bytes(), durable=request.durable)


def _reopen(planned: Planned, stage: Staging) -> None:
    """Open every file with the safetensors library, as an engine will."""
    from safetensors import SafetensorError, safe_open

    for file in planned.prepared.output.files:
        try:
            with safe_open(stage.path / file.name, framework="numpy") as opened:
                keys = set(opened.keys())
        except SafetensorError as error:
            raise BytesError("EP505", f"{file.name} cannot be opened: {error}") from error
        if not keys >= file.others.keys():
            raise BytesError("EP505", f"{file.name} lacks a tensor that was written to it")


def _run_report(planned: Planned, moved: Moved, proof: Proof | None, seconds: dict[str, float]) -> Report:
    request, prepared = planned.request, planned.prepared
    rows_total = sum(
        getattr(planned.report.totals, f"{kind}_rows")
        for kind in ("unchanged", "local", "remote", "duplicate")
    )
    notes = []
    if planned.backend != "file":
        notes.append("one process can open SRC and DST here: --backend file needs no exchange")
    run = RunReport(
        backend=planned.backend,
        num_workers=planned.num_workers,
        wire_bytes=moved.wire_nbytes,
        seconds={**moved.seconds, **seconds},
        stage_bytes={
            stage: int(prepared.new_places.nbytes.sum())
            for stage in ("transfer", "verify")
            if moved.seconds[stage]
        },
        peak_rss_bytes=moved.peak_rss_nbytes,
        verified=proof is not None,
        output=str(request.destination),
        rows_proved=0 if proof is None else proof.rows_proved,
        rows_total=rows_total,
        serving=serving_notes(prepared.plan.new, prepared.checkpoint.shards.layout.name),
        notes=notes,
    )
    warnings = [*planned.report.warnings, *([] if proof is None else proof.warnings)]
    return replace(planned.report, warnings=warnings, run=run)
