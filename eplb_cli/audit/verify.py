"""The proof again, later, from the files alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import xxhash

from eplb_cli.arrays import Digests
from eplb_cli.audit.identify import is_huggingface, prove_placement
from eplb_cli.audit.own_digests import (
    DAMAGED,
    check_files,
    check_own_digests,
    digest_tree,
    manifest_of,
    row_name,
)
from eplb_cli.audit.own_plan import check_plan
from eplb_cli.audit.reading import reading
from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.layout_file import layout_from_json
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest
from eplb_cli.checkpoint.places import other_numbers
from eplb_cli.checkpoint.recorded import require_as_in_manifest
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.output.prepared import Prepared, prepare
from eplb_cli.output.prove import prove
from eplb_cli.placements.placement import EMPTY
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.verification import Verification


def verify(
    path: str | PathLike[str],
    against: str | PathLike[str] | None = None,
    *,
    progress: ProgressBar = silent,
) -> Verification:
    """Prove a tree against its own digests, and against what it was made from.

    Args:
        path: a directory of shards that eplb wrote.
        against: the shards it was made from, or a Hugging Face checkpoint whose experts it holds.
        progress: what shows the bytes read.

    Returns:
        What was proved; whatever is not as it has to be is an error.

    Raises:
        CheckpointError: EP201, there is no directory; EP214, no manifest, or nothing to verify against.
        BytesError: EP501 to EP505, the first thing that differs; EP506, SRC is not as its manifest says.

    Examples:
        >>> eplb_cli.verify("dst", against="src").rows_proved
        60
    """
    path, against = Path(path), None if against is None else Path(against)
    started = time.perf_counter()
    with reading(progress, "verify", path, *([] if against is None else [against])) as advance:
        manifest = manifest_of(path)
        if not manifest.digests and against is None:
            hint = "name its source: `eplb verify DST --against SRC`"
            raise CheckpointError("EP214", f"{path} was written without digests", hint)
        layout = layout_from_json(manifest.layout, path / MANIFEST_NAME)
        check_files(path, manifest)
        checkpoint = bind(open_shards(path, layout), manifest.read_placement(path))
        check_plan(checkpoint, manifest)
        digests = digest_tree(checkpoint, advance)
        warnings = check_own_digests(checkpoint, digests)
        if against is not None and is_huggingface(against, layout):
            warnings = [*warnings, *prove_placement(checkpoint, against, advance)]
        elif against is not None:
            warnings = _prove_against(checkpoint, manifest, layout, against, digests, advance)
    return Verification(
        path=path,
        against=against,
        rows_proved=int((checkpoint.placement.physical_to_logical != EMPTY).sum()),
        others_proved=sum(len(tensors) for tensors in checkpoint.others),
        num_files=len(manifest.files),
        nbytes=checkpoint.shards.nbytes,
        seconds=time.perf_counter() - started,
        warnings=tuple(warnings),
    )


def _prove_against(
    checkpoint: ShardedCheckpoint,
    manifest: Manifest,
    layout: Layout,
    against: Path,
    digests: Digests,
    advance: Callable[[int], None],
) -> list[str]:
    """Derive the plan anew from SRC and both placements, and prove what it says of every place."""
    source = manifest.read_source_placement(checkpoint.shards.path)
    senders, nodes = manifest.read_senders(checkpoint.shards.path), manifest.ranks_per_node
    rule = manifest.read_rank_scalars(checkpoint.shards.path)
    shards = open_shards(against, layout)
    prepared = prepare(shards, source, checkpoint.placement, senders, nodes, rank_scalars=rule)
    _require_made(prepared, checkpoint, digests)
    old_digests = digest_tree(prepared.checkpoint, advance)
    require_as_in_manifest(prepared.checkpoint, old_digests)
    new_digests = _as_new_places(prepared, checkpoint, digests)

    def name_of(place: int) -> str:
        return place_in_words(checkpoint, prepared, place)

    try:
        proof = prove(prepared, old_digests, new_digests, name_of)
    except BytesError as error:
        hint = f"is {against} what it was made from? if so, one of the two was changed or damaged since"
        raise BytesError(error.code, error.message, hint) from error
    return proof.warnings


def _require_made(prepared: Prepared, checkpoint: ShardedCheckpoint, digests: Digests) -> None:
    """EP504 where a tensor that follows from the placement alone is not that."""
    numbers, num_rows = other_numbers(checkpoint.others), checkpoint.extents.file.size
    for made in prepared.output.made:
        number = numbers.get((made.dst_rank, made.key))
        wanted = xxhash.xxh3_128_digest(made.content)
        if number is None or digests[num_rows + number].tobytes() != wanted:
            problem = f"rank {made.dst_rank}: {made.key!r} is not what the placement says"
            raise BytesError("EP504", problem, DAMAGED)


def place_in_words(checkpoint: ShardedCheckpoint, prepared: Prepared, place: int) -> str:
    """A place of the verified tree: file, layer, slot and tensor."""
    shape = checkpoint.extents.file.shape
    if place >= checkpoint.extents.file.size:
        copy = prepared.output.others[place - checkpoint.extents.file.size]
        return f"rank {copy.dst_rank}: {copy.key!r}"
    return row_name(checkpoint, np.array(np.unravel_index(place, shape)))


def _as_new_places(prepared: Prepared, checkpoint: ShardedCheckpoint, digests: Digests) -> Digests:
    """Digests of a tree, by the places that the plan gives it: its rows have the same order already."""
    templates = [tensor.template for tensor in checkpoint.expert_tensors]
    if templates != [tensor.template for tensor in prepared.checkpoint.expert_tensors]:
        raise BytesError("EP505", f"{checkpoint.shards.path} has other expert tensors than its source")
    num_rows = checkpoint.extents.file.size
    numbers: Mapping[tuple[int, str], int] = other_numbers(checkpoint.others)
    missing = [copy for copy in prepared.output.others if (copy.dst_rank, copy.key) not in numbers]
    if missing:
        raise BytesError("EP504", f"rank {missing[0].dst_rank} lacks {missing[0].key!r}", DAMAGED)
    others = [num_rows + numbers[copy.dst_rank, copy.key] for copy in prepared.output.others]
    return np.concatenate([digests[:num_rows], digests[np.array(others, np.int64)]])
