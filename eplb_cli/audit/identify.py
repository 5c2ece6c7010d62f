"""Which expert each row of some shards is, told by its bytes: those of a Hugging Face checkpoint.

A live balancer never saved its map, and a map that was saved may be the wrong one. As long as rows are what
the checkpoint says, joined but not repacked by a kernel, their digests say which expert they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Digests, Int
from eplb_cli.audit.differences import raise_all
from eplb_cli.audit.reading import reading
from eplb_cli.audit.unknown import unknown_placement
from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.places import Places
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.digests import zero_digests
from eplb_cli.errors import BytesError, CheckpointError, Where
from eplb_cli.files import write_whole
from eplb_cli.formats.index_file import INDEX_SUFFIX
from eplb_cli.huggingface.engine import find_names
from eplb_cli.huggingface.engines import AS_THEY_ARE
from eplb_cli.huggingface.joined import find_parts
from eplb_cli.huggingface.one_rank import as_one_rank, by_expert
from eplb_cli.huggingface.source import config_of, open_huggingface
from eplb_cli.machine import reading_threads
from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.identification import Identification
from eplb_cli.transfer.reading import digest_places
from eplb_cli.transfer.threads import Threads
from eplb_cli.transfer.trees import Known, source_tree

_JOINED = {"w13_": (("gate_proj.", "up_proj."), ("w1.", "w3.")), "w2_": (("down_proj.",), ("w2.",))}
"""What the tensors of stacked shards are joined of, by how their names begin; the ends are the same."""

_DEEPSEEK = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_MAX_WARNINGS = 5


def identify(
    path: str | PathLike[str],
    against: str | PathLike[str],
    *,
    layout: str = "auto",
    output: str | PathLike[str] | None = None,
    progress: ProgressBar = silent,
) -> Identification:
    """Tell which expert each row of some shards is, by the bytes of a Hugging Face checkpoint.

    Args:
        path: shards; what eplb.json says of their placement is not looked at.
        against: the checkpoint they were made of.
        layout: how tensors are named: "auto", the name of a layout, or a TOML file that describes one.
        output: a new file for the placement, in the form eplb-placement/1.
        progress: what shows the bytes read.

    Raises:
        CheckpointError: EP227, a row is no expert of the checkpoint; or one of the two cannot be read.
        OutputError: EP601, `output` exists; EP603 or EP604, it cannot be written.
    """
    path, against = Path(path), Path(against)
    if output is not None:
        files.require_replaceable(Path(output), replace=False)
    with reading(progress, "identify", path, against) as advance:
        shards = open_shards(path, layout)
        found = identify_rows(bind(shards, unknown_placement(shards)), against, advance)
    if output is None:
        return found
    write_whole(Path(output), format_placement(found.placement).encode())
    return replace(found, output=Path(output))


def is_huggingface(path: Path, layout: Layout) -> bool:
    """Whether a directory looks like a Hugging Face checkpoint, and not like shards of a layout."""
    with files.reading(path):
        names = [file.name for file in path.iterdir()]
    if any(layout.match_file(name) for name in names):
        return False
    return any(name.endswith(INDEX_SUFFIX) for name in names) or "model.safetensors" in names


def identify_rows(shards: ShardedCheckpoint, against: Path, advance: Callable[[int], None]) -> Identification:
    """Find the placement of shards.

    Args:
        shards: under any placement of the same ranks and slots; what it says of experts is not looked at.
        against: a Hugging Face checkpoint.
        advance: is told of bytes as they are read.

    Raises:
        CheckpointError: EP227, a row is no expert of the checkpoint; or `against` cannot be read.
    """
    tree, config = open_huggingface(against), config_of(against)
    keys = by_expert(shards.shards.layout)
    is_known = any(map(keys.match_key, tree.tensors))
    checkpoint = as_one_rank(tree, config, keys if is_known else None)
    experts = find_parts(checkpoint, find_names(AS_THEY_ARE, config.model_type, checkpoint))
    cells = _cells(shards, experts)
    rows = _digest(_places(shards, cells), shards.shards.files, advance)
    wanted = _digest(_places_of_experts(experts, cells), tree.files, advance)
    table, warnings = _match(shards, _by_layer(rows, cells, shards), _by_layer(wanted, cells, experts), cells)
    old = shards.placement
    found = Placement(table, old.first_slot, experts.placement.num_logical_experts, old.layer_ids)
    return Identification(shards.shards.path, against, found, tuple(warnings))


class _Cell(NamedTuple):
    """A part of an expert in a layer.

    Attributes:
        layer, tensor: of the shards. row, part: the same in the checkpoint.
        begin, nbytes: of the part in a row of the tensor.
    """

    layer: int
    tensor: int
    row: int
    part: int
    begin: int
    nbytes: int


def prove_placement(
    shards: ShardedCheckpoint, against: Path, advance: Callable[[int], None]
) -> tuple[str, ...]:
    """Compare the placement of shards with what their rows are; warnings.

    Raises:
        BytesError: EP501, rows are other experts than the placement says; all of them.
    """
    found = identify_rows(shards, against, advance)
    raise_all(_other_experts(shards.placement, found.placement, against))
    return found.warnings


def _other_experts(said: Placement, found: Placement, against: Path) -> Iterator[BytesError]:
    """EP501 for each slot in which another expert was found than is said."""
    hint = "was it made with the wrong OLD? `eplb inspect SRC --identify HF_DIR` says what SRC holds"
    for layer, slot in np.argwhere(found.physical_to_logical != said.physical_to_logical).tolist():
        has, wants = (int(each.physical_to_logical[layer, slot]) for each in (found, said))
        rank, number = int(said.rank_of_slot[slot]), said.layer_number(layer)
        problem = (
            f"layer {number}, slot {slot} (rank {rank}): the placement says expert {wants}, and the bytes "
            f"are those of {'none' if has == EMPTY else f'expert {has}'} in {against}"
        )
        yield BytesError("EP501", problem, hint, Where(layer=number, slot=slot, rank=rank))


def _cells(shards: ShardedCheckpoint, experts: ShardedCheckpoint) -> list[_Cell]:
    """The parts of all layers and tensors of the shards, in their order. Raises EP227."""
    known = [] if experts.placement.layer_ids is None else experts.placement.layer_ids.tolist()
    cells: list[_Cell] = []
    for layer in range(shards.placement.num_layers):
        number = shards.placement.layer_number(layer)
        if number not in known:
            raise _unmatched(f"layer {number} has no experts in {experts.shards.path}")
        row = known.index(number)
        parts = {
            tensor.tensor: part
            for part, tensor in enumerate(experts.expert_tensors)
            if experts.dtype[row, part] is not None
        }
        for tensor in np.flatnonzero(shards.row_nbytes[layer]).tolist():
            cells += _parts_of(shards, experts, (layer, tensor), (row, parts))
    return cells


def _parts_of(
    shards: ShardedCheckpoint,
    experts: ShardedCheckpoint,
    cell: tuple[int, int],
    at: tuple[int, Mapping[str, int]],
) -> Iterator[_Cell]:
    """The parts of the checkpoint that a row of a tensor of the shards is joined of. Raises EP227.

    Args:
        at: the layer in the checkpoint, and the parts it has there by the names of tensors.
    """
    (layer, tensor), (row, parts) = cell, at
    name = shards.expert_tensors[tensor]
    choices = [names for names in _candidates(name.tensor) if all(part in parts for part in names)]
    if not choices:
        raise _unmatched(f"no tensors of {experts.shards.path} make {name.template!r}")
    sizes = [int(experts.row_nbytes[row, parts[part]]) for part in choices[0]]
    if sum(sizes) != shards.row_nbytes[layer, tensor]:
        raise _unmatched(
            f"layer {shards.placement.layer_number(layer)}: a row of {name.template!r} has "
            f"{shards.row_nbytes[layer, tensor]:,} bytes, and an expert {sum(sizes):,}"
        )
    begin = 0
    for part, nbytes in zip(choices[0], sizes, strict=True):
        yield _Cell(layer, tensor, row, parts[part], begin, nbytes)
        begin += nbytes


def _candidates(name: str) -> list[tuple[str, ...]]:
    """The tensors that one of some shards may be, or may be joined of."""
    joined = [
        tuple(part + name.removeprefix(begin) for part in choice)
        for begin, choices in _JOINED.items()
        if name.startswith(begin)
        for choice in choices
    ]
    first, _, rest = name.partition(".")
    as_deepseek = f"{_DEEPSEEK.get(first, first)}.{ {'scale': 'weight_scale_inv'}.get(rest, rest) }"
    return [(name,), *joined, (as_deepseek,)]


def _places(shards: ShardedCheckpoint, cells: Sequence[_Cell]) -> Places:
    """(X, P) where the parts of each row lie in the shards."""
    at = np.array([(cell.layer, cell.tensor) for cell in cells]).T
    begin, nbytes = (np.array(column)[:, None] for column in zip(*(cell[4:] for cell in cells), strict=True))
    file, offset = shards.extents.file[*at], shards.extents.offset[*at] + begin
    return _columns(file, offset, np.where(file >= 0, nbytes, 0))


def _places_of_experts(experts: ShardedCheckpoint, cells: Sequence[_Cell]) -> Places:
    """(X, E) where the parts of each expert lie in the checkpoint."""
    at = np.array([(cell.row, cell.part) for cell in cells]).T
    file = experts.extents.file[*at]
    nbytes = np.array([[cell.nbytes] for cell in cells])
    return _columns(file, experts.extents.offset[*at], np.broadcast_to(nbytes, file.shape))


def _columns(file: NDArray[np.int32], offset: Int, nbytes: Int) -> Places:
    columns = [column.ravel().astype(np.int64) for column in (file, offset, nbytes)]
    return Places(np.zeros(file.size, np.int64), *columns)


def _by_layer(digests: Digests, cells: Sequence[_Cell], checkpoint: ShardedCheckpoint) -> list[Digests]:
    """For each layer (K, P, 16), the digests of its parts."""
    by_cell = digests.reshape(len(cells), checkpoint.placement.num_slots, -1)
    layers = np.array([cell.layer for cell in cells])
    return [by_cell[layers == layer] for layer in range(layers.max() + 1)]


def _digest(places: Places, sources: Sequence[Known], advance: Callable[[int], None]) -> Digests:
    files.allow_open_files(len(sources))
    with source_tree(sources) as tree, Threads(reading_threads(1)) as pool:
        return digest_places(places, np.flatnonzero(places.nbytes), tree, pool, advance)


def _match(
    shards: ShardedCheckpoint, rows: Sequence[Digests], wanted: Sequence[Digests], cells: Sequence[_Cell]
) -> tuple[Int, list[str]]:
    """(L, P) the expert whose parts have the digests of a row's; empty where all of them are zeros."""
    placement = shards.placement
    table = np.full((len(rows), placement.num_slots), EMPTY)
    warnings = []
    zeros = zero_digests(sorted({cell.nbytes for cell in cells}))
    for layer, (of_rows, of_experts) in enumerate(zip(rows, wanted, strict=True)):
        name = placement.layer_number(layer)
        experts: dict[bytes, int] = {}
        for expert in range(of_experts.shape[1]):
            first = experts.setdefault(of_experts[:, expert].tobytes(), expert)
            if first != expert:
                warnings.append(f"layer {name}: experts {first} and {expert} have the same bytes")
        empty = b"".join(zeros[cell.nbytes] for cell in cells if cell.layer == layer)
        lacking = bytes(len(empty))
        for slot in range(placement.num_slots):
            row = of_rows[:, slot].tobytes()
            if row in experts:
                table[layer, slot] = experts[row]
            elif row not in (empty, lacking):
                raise _unmatched(
                    f"layer {name}, slot {slot} (rank {placement.rank_of_slot[slot]}): the row is none of "
                    "the checkpoint's experts"
                )
    return table, warnings[:_MAX_WARNINGS]


def _unmatched(problem: str) -> CheckpointError:
    return CheckpointError("EP227", problem)
