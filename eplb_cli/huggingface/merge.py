"""`eplb merge`: what `shard` wrote, resharded or not, back to the Hugging Face checkpoint it came from."""

from __future__ import annotations

import time
from collections import defaultdict
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.errors import CheckpointError
from eplb_cli.huggingface.engines import AS_THEY_ARE
from eplb_cli.huggingface.joined import Joined, parts_of_shards
from eplb_cli.huggingface.parts import begin_parts, left_nbytes, move_parts, plan_moves
from eplb_cli.huggingface.record import Origin, open_sharded, unlike_origin
from eplb_cli.output.commit import carry_files, check_carried
from eplb_cli.output.destination import check_destination
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.prove import prove
from eplb_cli.output.staging import staging
from eplb_cli.output.tree import OtherCopy, OutputFile, OutputTree
from eplb_cli.placements.findings import check_pair, raise_first
from eplb_cli.progress import ProgressBar, silent, telling
from eplb_cli.report.written import Written
from eplb_cli.transfer.resume import taken_over, try_destination


def merge(
    source: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    durable: bool = True,
    resume: bool = False,
    keep: bool = True,
    dry_run: bool = False,
    progress: ProgressBar = silent,
) -> Written:
    """Write the Hugging Face checkpoint that shards were made of: the same files, byte for byte.

    Args:
        source: what `shard` wrote, resharded or not; only read.
        destination: a new directory, or an empty one.
        durable: wait until the disk has every byte.
        resume: go on with what a run that was ended has left.
        keep: leave what is done for `resume` where a run is interrupted, or ends with an error that may pass.
        dry_run: check and plan everything, and write nothing.
        progress: what shows the bytes done.

    Raises:
        CheckpointError: EP225, `source` was not made by `shard`; or it cannot be read.
        OutputError: `destination` exists, or cannot be written.
        BytesError: what was written is not what `shard` had read; there is no output then.

    Examples:
        >>> eplb_cli.merge("shards", "merged").engine
        'huggingface'
    """
    source, destination = Path(source), Path(destination)
    started = time.perf_counter()
    check_destination(source, destination)
    origin, prepared = _prepare(source)
    check_carried(origin.tree.carried)
    if dry_run:
        try_destination(prepared, destination, resume=resume)
        return _written(prepared, destination, time.perf_counter() - started)
    with staging(destination, durable=durable, resume=resume, keep=keep) as stage:
        known = begin_parts(prepared, stage, progress)
        carry_files(origin.tree.carried, stage)
        with progress(2 * left_nbytes(prepared, known), "merge") as show, telling(show) as advance:
            old_digests, new_digests = move_parts(prepared, stage, known, advance, verify=True)
        proof = prove(prepared, old_digests, new_digests)
        _compare(prepared, origin, new_digests)
        if origin.tree.index_name is not None:
            stage.write(origin.tree.index_name, origin.tree.index)
    written = _written(prepared, destination, time.perf_counter() - started)
    return written.proved(proof.rows_proved, proof.warnings, taken_over(prepared, stage, known))


def _written(prepared: Prepared, destination: Path, seconds: float) -> Written:
    """What is made, before anything of it is proved."""
    new = prepared.plan.new
    return Written(
        destination,
        AS_THEY_ARE,
        prepared.plan.old.num_ranks,
        new.num_layers,
        new.num_logical_experts,
        None,
        prepared.output.nbytes,
        seconds,
        [],
        [],
    )


def _prepare(source: Path) -> tuple[Origin, Prepared]:
    origin, engine, joined = open_sharded(source)
    parts, new = parts_of_shards(joined, engine), joined.parts.placement
    raise_first(check_pair(engine.placement, new))
    return origin, Prepared(parts, plan_moves(engine.placement, new), _output(joined, parts, origin))


def _output(joined: Joined, parts: ShardedCheckpoint, origin: Origin) -> OutputTree:
    """The Hugging Face files as they were; other tensors by key, as the record has their digests."""
    others, by_file = [], defaultdict[int, dict[str, tuple[int, int]]](dict)
    for key, at in sorted(joined.parts.others[0].items()):
        others.append(OtherCopy(key, 0, parts.others[0][key], 0, at.file, at.offset))
        by_file[at.file][key] = (at.offset, at.entry.nbytes)
    outputs = [
        OutputFile(file.name, 0, file.start, file.nbytes, by_file[number])
        for number, file in enumerate(origin.tree.files)
    ]
    return OutputTree(tuple(outputs), joined.parts.extents, tuple(others))


def _compare(prepared: Prepared, origin: Origin, new_digests: NDArray[np.uint8]) -> None:
    """EP506 where a row or another tensor is not what `shard` had read."""
    if new_digests.shape != origin.digests.shape:
        raise CheckpointError("EP225", "the record of the Hugging Face checkpoint has other tensors than it")
    wrong = np.flatnonzero((new_digests != origin.digests).any(axis=1))
    if len(wrong):
        name = prepared.place_name(int(wrong[0]))
        raise unlike_origin(name, f"; {len(wrong):,} pieces differ in all")
