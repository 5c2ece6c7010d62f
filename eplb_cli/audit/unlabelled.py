"""A tree against shards of which nothing says which expert each of their rows is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.audit.own_digests import Tree, digest_tree
from eplb_cli.audit.unknown import unknown_placement
from eplb_cli.checkpoint.places import other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import Shards
from eplb_cli.digests import zero_digests
from eplb_cli.errors import BytesError, Where
from eplb_cli.placements.placement import EMPTY


def content_differences(
    tree: Tree, shards: Shards, advance: Callable[[int], None]
) -> tuple[list[BytesError], bool]:
    """What differs between the rows of a tree and those of some shards, each layer's taken as a set.

    Returns:
        EP501 for each row that is in one of the two alone, EP504 for other tensors, EP505 where they have not
        the same tensors; and whether all that the shards have is in the tree, as where they lack a rank.
    """
    source = bind(shards, unknown_placement(shards))
    theirs = Tree(source, digest_tree(source, advance), tree.manifest)
    layers = [source.placement.layer_number(layer) for layer in range(source.placement.num_layers)]
    wanted = [tree.checkpoint.placement.layer_number(n) for n in range(tree.checkpoint.placement.num_layers)]
    if tree.templates != theirs.templates or not {*wanted} <= {*layers}:
        path = tree.checkpoint.shards.path
        problem = f"{path} has other expert tensors or layers than {shards.path}"
        return [BytesError("EP505", problem, where=Where(str(path)))], False
    lacking: list[BytesError] = []
    extra: list[BytesError] = []
    for layer, number in enumerate(wanted):
        ours, others = _contents(tree, layer), _contents(theirs, layers.index(number))
        lacking += [_row(tree, layer, slot, f"is none of {shards.path}") for slot in _alone(ours, others)]
        extra += [
            _row(theirs, layers.index(number), slot, f"is none of {tree.checkpoint.shards.path}")
            for slot in _alone(others, ours)
        ]
    return [*lacking, *extra, *_others(tree, theirs)], not extra


def _contents(tree: Tree, layer: int) -> dict[int, bytes]:
    """The digests of all tensors of each slot that is not empty, by slot."""
    checkpoint = tree.checkpoint
    tensors = np.flatnonzero(checkpoint.row_nbytes[layer])
    zeros = zero_digests(checkpoint.row_nbytes[layer, tensors].tolist())
    empty = b"".join(zeros[nbytes] for nbytes in checkpoint.row_nbytes[layer, tensors].tolist())
    filled = np.flatnonzero(checkpoint.placement.physical_to_logical[layer] != EMPTY).tolist()
    found = {slot: tree.rows[layer, tensors, slot].tobytes() for slot in filled}
    return {slot: content for slot, content in found.items() if content != empty}


def _alone(ours: dict[int, bytes], theirs: dict[int, bytes]) -> list[int]:
    """The slots of one side whose content is in no slot of the other."""
    known = set(theirs.values())
    return [slot for slot, content in ours.items() if content not in known]


def _row(tree: Tree, layer: int, slot: int, problem: str) -> BytesError:
    tensor = int(np.flatnonzero(tree.checkpoint.row_nbytes[layer])[0])
    place = int(np.ravel_multi_index((layer, tensor, slot), tree.shape))
    hint = "does it come from these shards? if so, one of the two was changed or damaged since"
    return tree.row_error(place, "EP501", problem, hint)


def _others(tree: Tree, theirs: Tree) -> Iterator[BytesError]:
    """EP504 for each other tensor that no rank of the shards has like that, but for maps of experts."""
    known = {(key, digest) for _, key, digest in _each_other(theirs.checkpoint, theirs.digests)}
    for rank, key, digest in _each_other(tree.checkpoint, tree.digests):
        if key not in tree.checkpoint.maps and (key, digest) not in known:
            yield tree.other_error(rank, key, f"is like that of no rank of {theirs.checkpoint.shards.path}")


def _each_other(checkpoint: ShardedCheckpoint, digests: Digests) -> Iterator[tuple[int, str, bytes]]:
    num_rows = checkpoint.extents.file.size
    for (rank, key), number in other_numbers(checkpoint.others).items():
        yield rank, key, digests[num_rows + number].tobytes()
