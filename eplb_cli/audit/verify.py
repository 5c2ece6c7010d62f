"""The proof again, later, from the files alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
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
from eplb_cli.checkpoint.left import open_ranks
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest
from eplb_cli.checkpoint.part import files_of
from eplb_cli.checkpoint.staged import refuse_staging
from eplb_cli.errors import CheckpointError, EplbError, UsageError
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.placements.spans import spans
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.verification import Compared, Verification


def verify(
    path: str | PathLike[str],
    against: str | PathLike[str] | None = None,
    *,
    ranks: Iterable[int] | None = None,
    progress: ProgressBar = silent,
) -> Verification:
    """Prove a tree against its own digests, and against what it was made from.

    Args:
        path: a directory of shards that eplb wrote.
        against: the shards it was made from, or a Hugging Face checkpoint whose experts it holds.
        ranks: prove what the tree has of these ranks alone, as where several hosts wrote it; the files of
            others may be there or not, and are not looked at.
        progress: what shows the bytes read.

    Returns:
        What was proved; whatever is not as it has to be is an error.

    Raises:
        UsageError: EP001, the tree has no such rank, or `ranks` and `against` are both given.
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
    if ranks is not None and against is not None:
        problem = "--against compares a whole tree, and --ranks names some of its ranks"
        raise UsageError("EP001", problem, "leave one out; or copy the files of all ranks into one directory")
    for directory in filter(None, (path, against)):
        refuse_staging(directory)
    manifest, chosen = manifest_of(path), None if ranks is None else {*ranks}
    if not manifest.digests and against is None:
        how = "name its source" if chosen is None else "copy the files of all ranks into one directory"
        hint = f"{how}: `eplb verify DST --against SRC`"
        raise CheckpointError("EP214", f"{path} was written without digests", hint)
    trees = [] if against is None else [against]
    with reading(progress, "verify", *trees, nbytes=_nbytes_of(path, manifest, chosen)) as advance:
        tree = prove_ranks(path, manifest, chosen, advance)
        warnings, compared = _compare(tree, against, advance)
    checkpoint = tree.checkpoint
    return Verification(
        path=path,
        against=against,
        rows_proved=int((checkpoint.placement.physical_to_logical != EMPTY).sum()),
        others_proved=sum(len(tensors) for tensors in checkpoint.others),
        num_files=len(checkpoint.shards.files),
        nbytes=checkpoint.shards.nbytes,
        seconds=time.perf_counter() - started,
        warnings=tuple(warnings),
        compared=compared,
        ranks=tuple(tree.ranks),
        num_ranks=tree.whole.num_ranks,
    )


def _nbytes_of(path: Path, manifest: Manifest, ranks: Collection[int] | None) -> int:
    """Bytes of the files of some ranks, of all for None, as the manifest has them."""
    rank_of = files_of(manifest.files, layout_from_json(manifest.layout, path / MANIFEST_NAME))
    return sum(manifest.files[name]["nbytes"] for name, rank in rank_of.items() if not ranks or rank in ranks)


def prove_ranks(
    path: Path, manifest: Manifest, ranks: Collection[int] | None, advance: Callable[[int], None]
) -> Tree:
    """What a tree has of some ranks, read as a whole, and as its manifest says.

    The files of these ranks and all beside the shards are looked at, and no file of another rank. The tree
    may be in staging still.

    Args:
        ranks: their numbers; None for all.

    Raises:
        UsageError: EP001, the tree has no such rank.
        BytesError: EP501, EP502, EP504 or EP505, all that is not as it was written. Where a shard, its
            digests or config.json are not, rows are not read: nothing says where they are, or what they were.
    """
    whole = manifest.read_placement(path)
    chosen = _chosen(path, whole, ranks)
    beside = list(file_differences(path, manifest.carried))
    files = [*shard_differences(path, manifest, ranks), *file_differences(path, manifest.digests)]
    note = "what is in the rows was not looked at"
    raise_all([*files, *beside] if files else [], note)
    try:
        checkpoint = open_ranks(path, manifest, whole, chosen)
        tree = Tree(checkpoint, digest_tree(checkpoint, advance), manifest)
    except EplbError:
        raise_all(beside, note)  # a config.json that was changed may be why
        raise
    raise_all([*beside, *plan_differences(tree), *own_differences(tree)])
    return tree


def _chosen(path: Path, whole: Placement, ranks: Collection[int] | None) -> list[int]:
    """The ranks to look at, ascending. Raises EP001 for none, and for one that the placement has not."""
    every = range(whole.num_ranks)
    chosen = [*every] if ranks is None else sorted(ranks)
    unknown = [rank for rank in chosen if rank not in every]
    if unknown or not chosen:
        problem = f"there is no rank {unknown[0]:,} in {path}" if unknown else "no rank is named"
        raise UsageError("EP001", problem, f"{path} has ranks {spans(every)}")
    return chosen


def _compare(
    tree: Tree, against: Path | None, advance: Callable[[int], None]
) -> tuple[list[str], Compared | None]:
    """Compare a tree with what it was made from, if that is named; warnings, and how they were compared."""
    warnings = own_warnings(tree) if tree.manifest.digests else []
    if against is None:
        return warnings, None
    if is_huggingface(against, tree.checkpoint.shards.layout):
        return [*warnings, *prove_placement(tree.checkpoint, against, advance)], None
    return prove_against(tree, against, advance)
