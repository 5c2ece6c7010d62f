"""The proof again, later, from the files alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from eplb_cli.audit.against import prove_against
from eplb_cli.audit.differences import raise_all
from eplb_cli.audit.identify import is_huggingface, prove_placement
from eplb_cli.audit.own_digests import (
    Tree,
    digest_tree,
    file_differences,
    manifest_of,
    own_differences,
    own_warnings,
    shard_differences,
)
from eplb_cli.audit.own_plan import plan_differences
from eplb_cli.audit.reading import reading
from eplb_cli.checkpoint.layout_file import layout_from_json
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest
from eplb_cli.checkpoint.sharded import bind
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.checkpoint.staged import refuse_staging
from eplb_cli.errors import CheckpointError, EplbError
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
        CheckpointError: EP201, there is no directory; EP214, no manifest, or nothing to verify against;
            EP233, a run has not finished one of the two.
        BytesError: EP501 to EP505, the first thing that differs, with what else does in `further`; EP506, SRC
            is not as its manifest says.

    Examples:
        >>> eplb_cli.verify("dst", against="src").rows_proved
        60
    """
    path, against = Path(path), None if against is None else Path(against)
    started = time.perf_counter()
    for directory in filter(None, (path, against)):
        refuse_staging(directory)
    with reading(progress, "verify", path, *([] if against is None else [against])) as advance:
        manifest = manifest_of(path)
        if not manifest.digests and against is None:
            hint = "name its source: `eplb verify DST --against SRC`"
            raise CheckpointError("EP214", f"{path} was written without digests", hint)
        tree = _sound_tree(path, manifest, advance)
        checkpoint, compared = tree.checkpoint, None
        warnings = own_warnings(tree) if manifest.digests else []
        if against is not None and is_huggingface(against, checkpoint.shards.layout):
            warnings = [*warnings, *prove_placement(checkpoint, against, advance)]
        elif against is not None:
            warnings, compared = prove_against(tree, against, advance)
    return Verification(
        path=path,
        against=against,
        rows_proved=int((checkpoint.placement.physical_to_logical != EMPTY).sum()),
        others_proved=sum(len(tensors) for tensors in checkpoint.others),
        num_files=len(manifest.files),
        nbytes=checkpoint.shards.nbytes,
        seconds=time.perf_counter() - started,
        warnings=tuple(warnings),
        compared=compared,
    )


def _sound_tree(path: Path, manifest: Manifest, advance: Callable[[int], None]) -> Tree:
    """A tree that is what its manifest says, read as a whole.

    Raises:
        BytesError: EP501, EP502, EP504 or EP505, all that is not as it was written. Where a shard, its
            digests or config.json are not, rows are not read: nothing says where they are, or what they were.
    """
    beside = list(file_differences(path, manifest.carried))
    files = [*shard_differences(path, manifest), *file_differences(path, manifest.digests)]
    note = "what is in the rows was not looked at"
    raise_all([*files, *beside] if files else [], note)
    try:
        shards = open_shards(path, layout_from_json(manifest.layout, path / MANIFEST_NAME))
        checkpoint = bind(shards, manifest.read_placement(path))
        tree = Tree(checkpoint, digest_tree(checkpoint, advance), manifest)
    except EplbError:
        raise_all(beside, note)  # a config.json that was changed may be why
        raise
    raise_all([*beside, *plan_differences(checkpoint, manifest), *own_differences(tree)])
    return tree
