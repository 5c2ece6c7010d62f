"""A tree against the shards that it comes from, by one reshard or by a chain of them.

The manifest of a tree has the plan of the last step. Where SRC lies under that step's OLD, every place is
compared with the one that the plan takes it from. What went through other trees on its way is compared by
expert: each row with those of the same layer, tensor and expert in SRC. Where nothing says which expert a row
of SRC is, it is the contents of each layer's rows that have to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash

from eplb_cli.arrays import Digests
from eplb_cli.audit.differences import raise_all
from eplb_cli.audit.own_digests import DAMAGED, Tree, digest_tree
from eplb_cli.audit.unlabelled import content_differences
from eplb_cli.checkpoint.expert_maps import placement_inside
from eplb_cli.checkpoint.places import Places, other_numbers
from eplb_cli.checkpoint.recorded import require_as_in_manifest
from eplb_cli.checkpoint.shards import Shards, open_shards
from eplb_cli.errors import BytesError, Where
from eplb_cli.output.prepared import Prepared, prepare
from eplb_cli.output.prove import alike_warnings, differing_replicas, prove, replica_warnings, row_view
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.report.verification import Compared
from eplb_cli.values import dataclass


def prove_against(tree: Tree, against: Path, advance: Callable[[int], None]) -> tuple[list[str], Compared]:
    """Compare a tree with shards, under the first placement of theirs under which nothing differs.

    Returns:
        What is odd about the shards, and how the two were compared.

    Raises:
        BytesError: EP501 to EP505, all that differs, under the placement under which the least does; EP506,
            SRC is not as its manifest says.
        EplbError: the two cannot be compared.
    """
    shards = open_shards(against, tree.checkpoint.shards.layout)
    step = tree.manifest.read_source_placement(tree.checkpoint.shards.path)
    placements = _placements_of(shards, tree.checkpoint.placement, step)
    if not placements:
        return _prove_content(tree, shards, step, advance), "content"
    found: list[list[BytesError]] = []
    for trial in _trials(tree, shards, placements, step, advance):
        found.append(list(trial.differences()))
        if not found[-1]:
            break
    least: list[BytesError] = min(found, key=len)
    raise_all(least)
    return trial.prove(), trial.compared


def _trials(
    tree: Tree,
    shards: Shards,
    placements: Sequence[Placement],
    step: Placement,
    advance: Callable[[int], None],
) -> Iterator[_Trial]:
    """A trial for each placement; SRC is read once, where both say that the same bytes are its rows."""
    read: tuple[Places, Digests] | None = None
    for placement in placements:
        prepared = _prepare(tree, shards, placement)
        if read is None or not _is_same(read[0], prepared.old_places):
            read = prepared.old_places, digest_tree(prepared.checkpoint, advance)
        require_as_in_manifest(prepared.checkpoint, read[1])
        yield _Trial(tree, prepared, read[1], "plan" if placement.digest == step.digest else "expert")


def _placements_of(shards: Shards, placement: Placement, step: Placement) -> list[Placement]:
    """What SRC may lie under: what it says itself, or else the OLD of the last step, or the placement of DST.

    The latter is that of a chain which went back to where it began. None of them fits where R or S differ.
    """
    manifest = shards.manifest
    inside = None if manifest else placement_inside(shards, placement.num_logical_experts)
    known = manifest.read_placement(shards.path) if manifest else inside
    if known is not None:
        return [step if _has_all_of(step, known) else known]
    return [each for each in (step, placement) if _may_be_of(shards, each)]


def _may_be_of(shards: Shards, placement: Placement) -> bool:
    """Whether shards may lie under a placement: by the experts that keys name, or else by numbers of rows."""
    if not shards.layout.names_experts:
        return np.array_equal(placement.slots_per_rank, shards.slots_per_rank)
    layers = [placement.layer_number(layer) for layer in range(placement.num_layers)]
    held = [
        [sorted({*row[first:last].tolist()} - {EMPTY}) for first, last in pairwise(placement.first_slot)]
        for row in placement.physical_to_logical
    ]
    return placement.num_ranks == shards.num_ranks and held == list(map(shards.named_experts, layers))


def _has_all_of(step: Placement, known: Placement) -> bool:
    """Whether the OLD of a step is what SRC says, perhaps with more layers, which had to be laid out."""
    wanted = _rows_by_layer(known)
    rows = {number: row for number, row in _rows_by_layer(step).items() if number in wanted}
    return np.array_equal(step.first_slot, known.first_slot) and rows == wanted


def _rows_by_layer(placement: Placement) -> dict[int, list[int]]:
    """(P,) experts by the model's own number of the layer."""
    table = placement.physical_to_logical.tolist()
    return {placement.layer_number(layer): row for layer, row in enumerate(table)}


def _prepare(tree: Tree, shards: Shards, placement: Placement) -> Prepared:
    """The plan that would make the tree of SRC in one step."""
    path, manifest = tree.checkpoint.shards.path, tree.manifest
    nodes = manifest.read_nodes(path)
    return prepare(
        shards,
        placement,
        tree.checkpoint.placement,
        manifest.read_senders(path),
        manifest.ranks_per_node,
        rank_scalars=manifest.read_rank_scalars(path),
        nodes=nodes if nodes is not None and len(nodes.of_old) == placement.num_ranks else None,
    )


def _prove_content(tree: Tree, shards: Shards, step: Placement, advance: Callable[[int], None]) -> list[str]:
    """Compare contents alone. Raises BytesError; where SRC lacks a rank, what the last step's plan says."""
    found, is_part = content_differences(tree, shards, advance)
    if found and is_part:
        _prepare(tree, shards, step)
    raise_all(found)
    return []


def _is_same(left: Places, right: Places) -> bool:
    """Whether two placements have the same bytes of SRC in the same order."""
    return all(
        np.array_equal(getattr(left, column), getattr(right, column))
        for column in ("file", "offset", "nbytes")
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    """A tree, and the plan that would make it of SRC under one placement.

    Attributes:
        source: (X, 16) digests of the places of SRC.
    """

    tree: Tree
    prepared: Prepared
    source: Digests
    compared: Compared

    @property
    def hint(self) -> str:
        """What to ask where something differs."""
        path = self.prepared.checkpoint.shards.path
        return f"is {path} what it was made from? if so, one of the two was changed or damaged since"

    def differences(self) -> Iterator[BytesError]:
        """EP505 for other tensors than SRC has; EP504 for another tensor, EP501 for a row that differs."""
        checkpoint, source = self.tree.checkpoint, self.prepared.checkpoint
        if self.tree.templates != [tensor.template for tensor in source.expert_tensors]:
            problem = f"{checkpoint.shards.path} has other expert tensors than its source"
            yield BytesError("EP505", problem, self.hint, Where(str(checkpoint.shards.path)))
            return
        yield from self._rows_by_plan() if self.compared == "plan" else self._rows_by_expert()
        yield from self._others()
        yield from self._made()

    def prove(self) -> list[str]:
        """What else can be said once nothing differs: the rest of the proof, and what is odd about SRC."""
        source = self.prepared.checkpoint
        if self.compared == "plan":
            numbers = self._other_numbers()
            others = [
                self.tree.num_rows + numbers[copy.dst_rank, copy.key] for copy in self.prepared.output.others
            ]
            digests = np.concatenate([self.tree.digests[: self.tree.num_rows], self.tree.digests[others]])
            return prove(self.prepared, self.source, digests).warnings
        rows = row_view(self.source, source.row_nbytes.shape, source.placement.num_slots)
        odd = differing_replicas(source.placement, rows, source.row_nbytes > 0)
        return [*replica_warnings(source, odd), *alike_warnings(source, rows)]

    def _rows_by_plan(self) -> Iterator[BytesError]:
        pieces, num_rows = self.prepared.pieces, self.tree.num_rows
        is_row = pieces.destination < num_rows
        destination, source = pieces.destination[is_row], pieces.source[is_row]
        wrong = destination[(self.tree.digests[destination] != self.source[source]).any(axis=1)]
        for place in np.sort(wrong):
            yield self.tree.row_error(int(place), "EP501", "differs from its source", self.hint)

    def _rows_by_expert(self) -> Iterator[BytesError]:
        source = self.prepared.checkpoint
        old_rows = row_view(self.source, source.row_nbytes.shape, source.placement.num_slots)
        layers = [source.placement.layer_number(layer) for layer in range(source.placement.num_layers)]
        new = self.tree.checkpoint.placement
        for layer in range(new.num_layers):
            of_source = layers.index(new.layer_number(layer))
            for tensor in np.flatnonzero(self.tree.checkpoint.row_nbytes[layer]).tolist():
                known = {*_by_expert(source.placement, of_source, old_rows[of_source, tensor])}
                slots = np.flatnonzero(new.physical_to_logical[layer] != EMPTY).tolist()
                rows = _by_expert(new, layer, self.tree.rows[layer, tensor])
                for slot, (expert, digest) in zip(slots, rows, strict=True):
                    if (expert, digest) not in known:
                        place = int(np.ravel_multi_index((layer, tensor, slot), self.tree.shape))
                        problem = f"differs from expert {expert} in its source"
                        yield self.tree.row_error(place, "EP501", problem, self.hint)

    def _other_numbers(self) -> dict[tuple[int, str], int]:
        return other_numbers(self.tree.checkpoint.others)

    def _others(self) -> Iterator[BytesError]:
        """EP504 for each other tensor of a new rank that is not that of the rank it comes from."""
        ours, theirs = self._other_numbers(), other_numbers(self.prepared.checkpoint.others)
        num_rows = self.prepared.checkpoint.extents.file.size
        for copy in self.prepared.output.others:
            if (copy.dst_rank, copy.key) not in ours:
                path = self.tree.checkpoint.shards.path
                where = Where(str(path), rank=copy.dst_rank, tensor=copy.key)
                yield BytesError("EP504", f"{path}: rank {copy.dst_rank} lacks {copy.key!r}", DAMAGED, where)
                continue
            number = ours[copy.dst_rank, copy.key]
            source = self.source[num_rows + theirs[copy.src_rank, copy.key]]
            if (self.tree.digests[self.tree.num_rows + number] != source).any():
                problem = "differs from its source"
                yield self.tree.other_error(copy.dst_rank, copy.key, problem, self.hint)

    def _made(self) -> Iterator[BytesError]:
        """EP504 where a tensor that follows from the placement alone is not that."""
        numbers = self._other_numbers()
        for made in self.prepared.output.made:
            number = numbers.get((made.dst_rank, made.key))
            wanted = xxhash.xxh3_128_digest(made.content)
            if number is None or self.tree.digests[self.tree.num_rows + number].tobytes() != wanted:
                problem = f"rank {made.dst_rank}: {made.key!r} is not what the placement says"
                where = Where(rank=made.dst_rank, tensor=made.key)
                yield BytesError("EP504", problem, DAMAGED, where)


def _by_expert(placement: Placement, layer: int, digests: Digests) -> list[tuple[int, bytes]]:
    """The expert and the digest of each filled slot; digests (P, 16) are those of one layer and tensor."""
    row = placement.physical_to_logical[layer]
    filled = np.flatnonzero(row != EMPTY)
    return [(int(row[slot]), digests[slot].tobytes()) for slot in filled]
