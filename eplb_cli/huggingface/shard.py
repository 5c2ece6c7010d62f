"""`eplb shard`: a Hugging Face checkpoint in, the shards of an engine out, under any placement.

Every byte of the checkpoint is read once, hashed, and written to every rank that needs it; what all ranks
have alike is one file under many names. Then everything is read back, by the parts it came in and by the
tensors it is now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Digests, without
from eplb_cli.checkpoint.beside import file_entry
from eplb_cli.checkpoint.places import Places
from eplb_cli.errors import BytesError
from eplb_cli.huggingface.beside import Beside, is_of_mtp, with_beside, without_mtp
from eplb_cli.huggingface.choice import Mtp, require_mtp
from eplb_cli.huggingface.engine import Names, find_names
from eplb_cli.huggingface.joined import Joined, join, parts_of_output, tensor_places
from eplb_cli.huggingface.one_rank import as_one_rank, layout_of_keys
from eplb_cli.huggingface.only import NOTE, only_lost
from eplb_cli.huggingface.parts import begin_parts, left_nbytes, move_parts, placement_for, plan_moves
from eplb_cli.huggingface.record import origin_bytes
from eplb_cli.huggingface.source import (
    ORIGIN_NAME,
    HuggingFace,
    config_of,
    open_huggingface,
    refuse_own_names,
)
from eplb_cli.inputs.options import NO_OPTIONS, PlacementOptions
from eplb_cli.machine import reading_threads
from eplb_cli.output.commit import carry_files, check_carried, fill_unlinked, write_manifest
from eplb_cli.output.destination import check_destination
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.prove import prove
from eplb_cli.output.serving import Served, Serving
from eplb_cli.output.staging import Staging, staging
from eplb_cli.output.tree import plan_output
from eplb_cli.placements.findings import Finding, check_pair, raise_first
from eplb_cli.placements.placement import EMPTY
from eplb_cli.progress import ProgressBar, silent, telling
from eplb_cli.report.written import Written
from eplb_cli.transfer.digest_table import DigestTable
from eplb_cli.transfer.reading import Wanted, block_nbytes, digest_places, in_order, start_reading
from eplb_cli.transfer.resume import taken_over, try_destination
from eplb_cli.transfer.threads import Threads
from eplb_cli.transfer.trees import Tree
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that is known before a byte moves: the plan by parts, and the same by the engine's tensors."""

    tree: HuggingFace
    names: Names
    beside: Beside
    joined: Joined
    parts: Prepared
    tensors: Prepared
    tensor_places: NDArray[np.int64]
    warnings: list[Finding]
    is_whole: bool

    @cached_property
    def served(self) -> Served:
        """The shards as the engine gets them: they are for no other."""
        names, checkpoint, new = self.names, self.joined.checkpoint, self.parts.plan.new
        config = checkpoint.config
        has_mtp = any(is_of_mtp(checkpoint, key) for key in checkpoint.keys)
        num_groups = None if config is None else config.num_expert_groups
        return Served(
            new, names.layout.name, names.engine, names.family, num_groups, is_whole=True, has_mtp=has_mtp
        )


def shard(  # noqa: PLR0913 - all that the command line says
    source: str | PathLike[str],
    destination: str | PathLike[str],
    placement: str | PathLike[str],
    engine: str,
    options: PlacementOptions = NO_OPTIONS,
    *,
    mtp: Mtp = "linear",
    layout: str = "auto",
    only: Sequence[int] = (),
    durable: bool = True,
    resume: bool = False,
    keep: bool = True,
    dry_run: bool = False,
    progress: ProgressBar = silent,
) -> Written:
    """Write a Hugging Face checkpoint as an engine's shards, under any placement, and prove them.

    Args:
        source: the checkpoint; only read.
        destination: a new directory, or an empty one.
        placement: a file in any dialect, or one of the named maps "linear" and "round_robin".
        engine: "sglang", "vllm", or "huggingface", which keeps all names.
        options: what the placement leaves out.
        mtp: what becomes of MTP layers that the placement does not name: "linear" places their experts in
            order, as engines do, "skip" leaves all tensors of MTP out.
        layout: how its tensors are named: "auto" finds experts by the shape of names; or the name of a
            layout, or a TOML file that describes one.
        only: of the ranks of `placement` those that are lost: write one rank, with nothing but the experts
            that no other rank has, for `Request.missing_from`.
        durable: wait until the disk has every byte.
        resume: go on with what a run that was ended has left.
        keep: leave what is done for `resume` where a run is interrupted, or ends with an error that may pass.
        dry_run: check and plan everything, and write nothing.
        progress: what shows the bytes done.

    Raises:
        UsageError: EP001, there is no such `mtp`; no rank of `only`, or every expert is on another one too.
        CheckpointError: the checkpoint cannot be read, or the engine has no names for it (EP224).
        PlacementError: the placement cannot be read, or is of other experts or layers.
        OutputError: `destination` exists, or cannot be written.
        BytesError: what was written is not what was read; there is no output then.

    Examples:
        >>> ranks = eplb_cli.PlacementOptions(num_ranks=2)
        >>> eplb_cli.shard("hf", "sharded", "linear", "sglang", ranks).num_ranks
        2
    """
    source, destination = Path(source), Path(destination)
    started = time.perf_counter()
    require_mtp(mtp)
    check_destination(source, destination)
    plan = _plan(source, os.fspath(placement), engine, options, mtp, layout, only)
    check_carried(plan.tree.carried)
    if dry_run:
        try_destination(plan.parts, destination, resume=resume)
        return _written(plan, destination, engine, time.perf_counter() - started)
    with staging(destination, durable=durable, resume=resume, keep=keep) as stage:
        known = begin_parts(plan.parts, stage, progress)
        carried = carry_files(plan.tree.carried, stage)
        nbytes = left_nbytes(plan.parts, known) + int(plan.parts.new_places.nbytes.sum())
        constants = _write_constants(plan, stage)
        with progress(nbytes, "shard") as show, telling(show) as advance:
            old_digests = move_parts(plan.parts, stage, known, advance, verify=False)[0]
            fill_unlinked(stage)
            by_part, by_tensor = _read_back(plan, stage, advance)
        for place, digest in constants.items():
            if by_tensor[place].tobytes() != digest:
                raise BytesError("EP504", f"{plan.tensors.place_name(place)} is not what was written")
        proof = prove(plan.parts, old_digests, by_part)
        if plan.is_whole:
            record = origin_bytes(plan.tree, plan.names, plan.beside.skipped, old_digests)
            stage.write(ORIGIN_NAME, record)
            carried[ORIGIN_NAME] = file_entry(record)
        write_manifest(plan.tensors, stage, by_tensor, carried, verified=True, served=plan.served)
    written = _written(plan, destination, engine, time.perf_counter() - started)
    return written.proved(proof.rows_proved, proof.warnings, taken_over(plan.parts, stage, known))


def _written(plan: _Plan, destination: Path, engine: str, seconds: float) -> Written:
    """What is made, before anything of it is proved."""
    new = plan.parts.plan.new
    serving = plan.served.serving if plan.is_whole else Serving((NOTE,))
    return Written(
        destination,
        engine,
        new.num_ranks,
        new.num_layers,
        new.num_logical_experts,
        None,
        plan.tensors.output.own_nbytes,
        seconds,
        list(serving.notes),
        [*(finding.message for finding in plan.warnings), *serving.misread],
        plan.beside.notes,
        list(serving.misread),
    )


def _plan(
    source: Path,
    placement: str,
    engine_name: str,
    options: PlacementOptions,
    mtp: Mtp,
    layout: str,
    only: Sequence[int],
) -> _Plan:
    tree = open_huggingface(source)
    refuse_own_names(tree)
    config = config_of(source)
    checkpoint = as_one_rank(tree, config, layout_of_keys(layout))
    checkpoint, skipped = without_mtp(checkpoint) if mtp == "skip" else (checkpoint, ())
    names = find_names(engine_name, config.model_type, checkpoint)
    joined = join(checkpoint, names)
    num_experts = joined.engine.placement.num_logical_experts
    main, warnings = placement_for(checkpoint, num_experts, placement, options)
    new, linear = with_beside(main, checkpoint.layers, source)
    raise_first(check_pair(joined.engine.placement, new))
    if only:
        joined, new = only_lost(joined, new, only)
    beside = Beside(linear, skipped)
    engine = replace(joined.engine, decisions=beside.decisions)
    plan = plan_moves(engine.placement, new)
    in_tensors = plan_output(engine, new, frozenset(engine.others[0]))
    in_parts, other_tensors = parts_of_output(joined, in_tensors)
    tensors = Prepared(engine, plan, in_tensors)
    num_rows = engine.row_nbytes.size * new.num_slots
    places = tensor_places(joined, new.num_slots, num_rows, other_tensors)
    parts = Prepared(joined.parts, plan, in_parts)
    return _Plan(tree, names, beside, joined, parts, tensors, places, warnings, not only)


def _write_constants(plan: _Plan, stage: Staging) -> dict[int, bytes]:
    """Write what only the engine has; the digest of each, by its new place."""
    output = plan.tensors.output
    num_rows = output.extents.file.size
    digests = {}
    for number, copy in enumerate(output.others):
        content = plan.joined.constants.get(copy.key)
        if content is None:
            continue
        path = stage.path / output.files[copy.dst_file].name
        with files.opened_output(path) as descriptor:
            files.write_from(descriptor, memoryview(content), copy.dst_offset, path)
        digests[num_rows + number] = xxhash.xxh3_128_digest(content)
    return digests


def _read_back(plan: _Plan, stage: Staging, advance: Callable[[int], None]) -> tuple[Digests, Digests]:
    """Digests of what was written, by part and by tensor; zero for tensors of empty slots."""
    output = plan.tensors.output
    whole = plan.tensors.new_places
    with Tree([stage.path / file.name for file in output.files]) as tree:
        by_part, by_tensor = digest_both(
            plan.parts.new_places, plan.tensor_places, len(whole.rank), tree, advance
        )
        constants = without(np.flatnonzero(whole.nbytes), plan.tensor_places)
        with Threads(1) as pool:
            by_tensor |= digest_places(whole, constants, tree, pool, advance)
    table = plan.parts.plan.new.physical_to_logical
    empty = np.broadcast_to(table[:, None, :] == EMPTY, output.extents.file.shape)
    by_tensor[: empty.size][empty.ravel()] = 0
    return by_part, by_tensor


def digest_both(
    parts: Places, whole: NDArray[np.int64], num_wholes: int, tree: Tree, advance: Callable[[int], None]
) -> tuple[Digests, Digests]:
    """Read places once and hash each of them, and the places that they are parts of.

    Args:
        whole: (X,) the number of the whole that a part is in; its parts lie one behind the other.
    """
    by_part = DigestTable.empty(len(parts.rank), tree.meter)
    by_whole = DigestTable.empty(num_wholes, tree.meter)
    wanted = in_order(parts, np.flatnonzero(parts.nbytes))
    begins = np.diff(whole[wanted], prepend=-1) != 0
    ends = np.r_[begins[1:], True]
    is_first, is_last, is_alone = begins.tolist(), ends.tolist(), (begins & ends).tolist()
    numbers, wholes, sizes = wanted.tolist(), whole[wanted].tolist(), parts.nbytes[wanted].tolist()

    def take(index: int, begin: int, view: memoryview) -> None:
        first, last = begin == 0, begin + len(view) == sizes[index]
        by_part.feed(numbers[index], view, first=first, last=last)
        if not is_alone[index]:
            by_whole.feed(wholes[index], view, first=first and is_first[index], last=last and is_last[index])
        if last:
            advance(sizes[index])

    with Threads(reading_threads(1)) as pool:
        order = Wanted(parts, wanted, block_nbytes(pool.count), begins)
        start_reading(order, tree, pool.share, take).wait()
    alone = wanted[begins & ends]
    by_whole.values[whole[alone]] = by_part.values[alone]
    return by_part.values, by_whole.values
