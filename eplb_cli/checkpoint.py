"""Where every row of every expert lies in a tree of per-rank shards.

`open_shards` reads file names and headers; `bind` lays a placement over them, which turns names
into one array of offsets per (layer, tensor, slot).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli.classify import check_scales, lacking_others, looks_sharded, split_tensors
from eplb_cli.errors import CheckpointError
from eplb_cli.files import not_regular, reading
from eplb_cli.header import DTYPE_BITS, Header, TensorEntry, read_header
from eplb_cli.layout import Layout, ShardName, find_layout, has_parts, layout_from_json
from eplb_cli.manifest import MANIFEST_NAME, Manifest, is_digest_file, read_manifest
from eplb_cli.placement import EMPTY, MAX_ENTRIES, Placement

_MAX_ROWS = 1 << 27
"""(L, K, P) of no checkpoint; where rows lie takes 12 bytes each."""


class ShardFile(NamedTuple):
    """One part of one rank's shard, with the identity it had when its header was read."""

    path: Path
    name: ShardName
    header: Header
    nbytes: int
    mtime_ns: int


class TensorAt(NamedTuple):
    """A tensor and where its bytes are: a file's number, and the offset in that file."""

    file: int
    offset: int
    entry: TensorEntry


@dataclass(frozen=True)
class Shards:
    """The files of a checkpoint, before a placement says what their rows are.

    Attributes:
        files: all parts of all ranks, by rank, series and part.
        tensors: per rank, all its tensors by key.
        carried: names of the files that are no shards and travel along.
        manifest: what `eplb` wrote beside the shards, if it did.
    """

    path: Path
    layout: Layout
    files: tuple[ShardFile, ...]
    tensors: tuple[Mapping[str, TensorAt], ...]
    carried: tuple[str, ...]
    manifest: Manifest | None

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all shard files."""
        return sum(file.nbytes for file in self.files)

    @cached_property
    def moe_layers(self) -> list[int]:
        """The model's own numbers of the layers that have expert tensors, ascending."""
        return sorted(self._rows_by_layer)

    @cached_property
    def slots_per_rank(self) -> NDArray[np.int64]:
        """(R,) rows of each rank, as its first MoE layer has them."""
        first = self._rows_by_layer[self.moe_layers[0]]
        return np.array([first.get(rank, 0) for rank in range(self.num_ranks)], np.int64)

    @cached_property
    def _rows_by_layer(self) -> dict[int, dict[int, int]]:
        rows: dict[int, dict[int, int]] = defaultdict(dict)
        for rank, tensors in enumerate(self.tensors):
            numbers: dict[int, set[int]] = defaultdict(set)
            for key, tensor in tensors.items():
                found = self.layout.match_key(key)
                if found is None or found.tensor in self.layout.input_scales:
                    continue
                if found.number is not None:
                    numbers[found.layer].add(found.number)
                elif tensor.entry.shape:
                    rows[found.layer].setdefault(rank, tensor.entry.shape[0])
            for layer, found_numbers in numbers.items():
                rows[layer][rank] = len(found_numbers)
        return rows


def open_shards(path: Path, layout: str | Layout = "auto") -> Shards:
    """Read the names and headers of a checkpoint's shards.

    A tree that eplb wrote says its layout itself; "auto" takes that.

    Raises:
        CheckpointError: EP201 to EP206, the directory, a file or the layout cannot be used; EP208, no
            placement has so many rows; EP214, the manifest is damaged.
    """
    names = _list_directory(path)
    shard_names = [name for name in names if name.endswith(".safetensors")]
    if not shard_names:
        raise CheckpointError("EP201", f"{path} holds no .safetensors file", "is it the directory of shards?")
    headers = {name: read_header(path / name) for name in shard_names}
    keys = dict.fromkeys(key for header, _ in headers.values() for key in header.tensors)
    manifest = read_manifest(path)
    if manifest is not None and layout == "auto":
        layout = layout_from_json(manifest.layout, path / MANIFEST_NAME)
    layout = layout if isinstance(layout, Layout) else find_layout(layout, shard_names, keys)
    shards = []
    for name in shard_names:
        shard_name = layout.match_file(name)
        if shard_name is None:
            hint = f"layout {layout.name} has {' and '.join(layout.files)}"
            raise CheckpointError("EP206", f"{path / name} is not named like a shard", hint)
        header, status = headers[name]
        shards.append(ShardFile(path / name, shard_name, header, status.st_size, status.st_mtime_ns))
    shards.sort(key=lambda shard: (shard.name.rank, shard.name.series, shard.name.part))
    carried = [name for name in names if not name.endswith(".safetensors") and not _is_ours(name)]
    found = Shards(path, layout, tuple(shards), _by_rank(path, shards), tuple(sorted(carried)), manifest)
    if not found.moe_layers:
        raise CheckpointError("EP206", f"{path} has no tensor that layout {layout.name} knows as an expert's")
    if (most := int(found.slots_per_rank.max())) > MAX_ENTRIES:
        raise CheckpointError(
            "EP208", f"{path} has a rank of {most:,} rows; more than {MAX_ENTRIES:,} are too many"
        )
    return found


def _list_directory(path: Path) -> list[str]:
    """Names in `path`, refusing what is no regular file; directories and hidden files stay behind."""
    with reading(path), os.scandir(path) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    names = []
    for entry in listed:
        if entry.is_symlink():
            raise not_regular(path / entry.name, "a symbolic link")
        if entry.is_file():
            names.append(entry.name)
        elif entry.name.endswith(".safetensors") or not entry.is_dir():
            raise not_regular(path / entry.name, "not a regular file")
    return [name for name in names if not name.startswith(".")]


def _is_ours(name: str) -> bool:
    return name == MANIFEST_NAME or is_digest_file(name) or name.endswith(".safetensors.index.json")


def _by_rank(path: Path, shards: list[ShardFile]) -> tuple[Mapping[str, TensorAt], ...]:
    ranks = sorted({shard.name.rank for shard in shards})
    if ranks != list(range(len(ranks))):
        missing = next(rank for rank in range(len(ranks)) if rank not in ranks)
        raise CheckpointError(
            "EP202", f"{path} has files of rank {ranks[-1]} and none of rank {missing}", "copy all ranks"
        )
    for shard in shards:
        if shard.name.world not in (None, len(ranks)):
            raise CheckpointError(
                "EP202",
                f"{shard.path} is one of {shard.name.world} ranks, and there are files of {len(ranks)}",
            )
    _check_parts(shards)
    tensors: tuple[dict[str, TensorAt], ...] = tuple({} for _ in ranks)
    for number, shard in enumerate(shards):
        of_rank = tensors[shard.name.rank]
        for key, entry in shard.header.tensors.items():
            if key in of_rank:
                other = shards[of_rank[key].file].path
                raise CheckpointError(
                    "EP205",
                    f"{key!r} is in {other} and in {shard.path}",
                    "is one of them left over from before?",
                )
            of_rank[key] = TensorAt(number, shard.header.data_start + entry.begin, entry)
    return tensors


def _check_parts(shards: list[ShardFile]) -> None:
    parts: dict[tuple[str, int], list[int]] = defaultdict(list)
    for shard in shards:
        parts[shard.name.series, shard.name.rank].append(shard.name.part)
    for (series, rank), found in parts.items():
        if found != list(range(len(found))):
            missing = next((part for part in range(len(found)) if part not in found), found[0])
            problem = "has two files of" if missing in found else "lacks"
            raise CheckpointError(
                "EP202", f"rank {rank} {problem} part {missing} of {series}", "copy all parts"
            )


@dataclass(frozen=True, eq=False)
class Extents:
    """Where rows lie: (L, K, P) file numbers and offsets; file -1 where there is no such row."""

    file: NDArray[np.int32]
    offset: NDArray[np.int64]


class ExpertTensor(NamedTuple):
    """One of the K tensors an expert consists of."""

    template: str
    tensor: str


@dataclass(frozen=True, eq=False)
class ShardedCheckpoint:
    """Shards with a placement laid over them.

    Attributes:
        placement: OLD, with layer_ids.
        expert_tensors: the K expert tensors, by template.
        dtype, row_shape: (L, K) objects; None where a layer lacks the tensor.
        row_nbytes: (L, K), 0 where a layer lacks the tensor.
        series: (L, K) objects, the file series the tensor is in.
        extents: where each row lies.
        others: per rank, the other tensors by key.
    """

    shards: Shards
    placement: Placement
    expert_tensors: tuple[ExpertTensor, ...]
    dtype: NDArray[np.object_]
    row_shape: NDArray[np.object_]
    row_nbytes: NDArray[np.int64]
    series: NDArray[np.object_]
    extents: Extents
    others: tuple[Mapping[str, TensorAt], ...]

    @property
    def expert_nbytes(self) -> NDArray[np.int64]:
        """(L,) bytes of one expert with all its tensors."""
        return np.asarray(self.row_nbytes.sum(axis=1), np.int64)

    @property
    def unplaced_layers(self) -> list[int]:
        """MoE layers of the checkpoint that the placement does not name."""
        placed = set() if self.placement.layer_ids is None else set(self.placement.layer_ids.tolist())
        return [layer for layer in self.shards.moe_layers if layer not in placed]

    @cached_property
    def sharded_others(self) -> list[str]:
        """Other tensors that look sharded over the ranks, by their shapes alone."""
        shapes = [{key: at.entry.shape for key, at in tensors.items()} for tensors in self.others]
        return looks_sharded(shapes, self.shards.path)

    @property
    def can_share(self) -> bool:
        """Whether ranks can have files in common: each of them has several, and there are several ranks."""
        return self.placement.num_ranks > 1 and any(has_parts(file.name.series) for file in self.shards.files)

    @cached_property
    def warnings(self) -> list[str]:
        """What is odd, and yet no reason to refuse: other tensors that some rank lacks."""
        return lacking_others(self.others)


def with_layers(placement: Placement, shards: Shards) -> Placement:
    """`placement` with layer_ids, taken from the shards where it has none. Raises EP212."""
    if placement.layer_ids is None and placement.num_layers == len(shards.moe_layers):
        layer_ids = np.array(shards.moe_layers, np.int64)
        return Placement(
            placement.physical_to_logical, placement.first_slot, placement.num_logical_experts, layer_ids
        )
    if placement.layer_ids is None:
        raise CheckpointError(
            "EP212",
            f"the placement has {placement.num_layers} of the {len(shards.moe_layers)} MoE layers in "
            f"{shards.path}, and does not say which",
            "add layer_ids to the placement: `eplb inspect SRC` lists the numbers",
        )
    missing = sorted(set(placement.layer_ids.tolist()) - set(shards.moe_layers))
    if missing:
        raise CheckpointError("EP212", f"layer {missing[0]} of the placement has no experts in {shards.path}")
    return placement


def bind(shards: Shards, old: Placement) -> ShardedCheckpoint:
    """Lay OLD over the shards and check that it fits them.

    Raises:
        CheckpointError: EP202, EP207 to EP212, EP217, naming the tensor, layer and rank.
    """
    old = with_layers(old, shards)
    if old.num_ranks != shards.num_ranks:
        raise CheckpointError(
            "EP202", f"OLD has {old.num_ranks} ranks, and {shards.path} has files of {shards.num_ranks}"
        )
    layer_ids = [] if old.layer_ids is None else old.layer_ids.tolist()
    split = split_tensors(shards.layout, shards.tensors, layer_ids, old.slots_per_rank.tolist())
    check_scales(shards.layout, split.experts)
    templates = sorted({(template, tensor) for _, template, tensor in split.experts})
    tensors = tuple(ExpertTensor(*template) for template in templates)
    shape = (old.num_layers, len(tensors))
    if old.physical_to_logical.size * len(tensors) > _MAX_ROWS:
        raise CheckpointError(
            "EP209",
            f"{len(tensors):,} expert tensors in each of {old.physical_to_logical.size:,} rows are too many",
        )
    found = ShardedCheckpoint(
        shards,
        old,
        tensors,
        np.full(shape, None, object),
        np.full(shape, None, object),
        np.zeros(shape, np.int64),
        np.full(shape, None, object),
        Extents(np.full((*shape, old.num_slots), -1, np.int32), np.zeros((*shape, old.num_slots), np.int64)),
        split.others,
    )
    layer_index = {layer: index for index, layer in enumerate(layer_ids)}
    tensor_index = {tensor.template: index for index, tensor in enumerate(tensors)}
    for (layer, template, _), ranks in split.experts.items():
        _place(found, layer_index[layer], tensor_index[template], ranks)
    for array in (found.row_nbytes, found.extents.file, found.extents.offset):
        array.setflags(write=False)
    return found


def _place(
    checkpoint: ShardedCheckpoint, layer: int, tensor: int, ranks: Mapping[int, Mapping[int | None, TensorAt]]
) -> None:
    """Fill in one (layer, tensor) of a checkpoint from the tensors of all ranks."""
    old, shards = checkpoint.placement, checkpoint.shards
    template = checkpoint.expert_tensors[tensor].template
    kinds = {}
    for rank, numbered in ranks.items():
        for slot, at, row_shape, row in _rows(checkpoint, layer, rank, template, numbered):
            kinds[at.entry.dtype, row_shape] = (rank, shards.files[at.file].name.series)
            nbytes = _row_nbytes(at, row_shape, template, rank)
            checkpoint.row_nbytes[layer, tensor] = nbytes
            checkpoint.extents.file[layer, tensor, slot] = at.file
            checkpoint.extents.offset[layer, tensor, slot] = at.offset + row * nbytes
    where = f"{template!r}, layer {old.layer_name(layer)}"
    if len(kinds) != 1:
        said = " and ".join(
            f"{kind[0]} {list(kind[1])} on rank {at[0]}" for kind, at in sorted(kinds.items())
        )
        raise CheckpointError("EP209", f"{where}: rows are {said or 'on no rank'}")
    _require_all(checkpoint, layer, tensor)
    (dtype, row_shape), (_, series) = next(iter(kinds.items()))
    checkpoint.dtype[layer, tensor] = dtype
    checkpoint.row_shape[layer, tensor] = row_shape
    checkpoint.series[layer, tensor] = series


def _require_all(checkpoint: ShardedCheckpoint, layer: int, tensor: int) -> None:
    """A rank that holds an expert of the layer has the tensor: keys by expert do not say so by themselves."""
    old, found = checkpoint.placement, checkpoint.expert_tensors[tensor]
    lost = (checkpoint.extents.file[layer, tensor] < 0) & (old.physical_to_logical[layer] != EMPTY)
    if lost.any():
        slot = int(lost.argmax())
        code = "EP210" if found.tensor in checkpoint.shards.layout.scales else "EP209"
        raise CheckpointError(
            code,
            f"{found.template!r}, layer {old.layer_name(layer)}: missing on rank {old.rank_of_slot[slot]}, "
            f"which holds expert {old.physical_to_logical[layer, slot]}",
        )


def _rows(
    checkpoint: ShardedCheckpoint,
    layer: int,
    rank: int,
    template: str,
    numbered: Mapping[int | None, TensorAt],
) -> Iterator[tuple[int | slice, TensorAt, tuple[int, ...], int | NDArray[np.int64]]]:
    """Slot, tensor, row shape and row inside the tensor, for each tensor of a rank (a slice if stacked)."""
    old = checkpoint.placement
    first, last = int(old.first_slot[rank]), int(old.first_slot[rank + 1])
    if checkpoint.shards.layout.numbering == "stacked":
        at = numbered[None]
        yield slice(first, last), at, at.entry.shape[1:], np.arange(last - first)
        return
    if checkpoint.shards.layout.numbering == "row":
        slots = {number: first + number for number in range(last - first)}
    else:
        experts = old.physical_to_logical[layer, first:last]
        slots = {int(expert): first + row for row, expert in enumerate(experts) if expert != EMPTY}
        refuse_twice(experts, old.layer_name(layer), rank)
    if slots.keys() != numbered.keys():
        wrong = min(number for number in slots.keys() ^ numbered.keys() if number is not None)
        only = "in the shard and not in OLD" if wrong in numbered else "in OLD and not in the shard"
        by_expert = checkpoint.shards.layout.numbering == "expert"
        raise CheckpointError(
            "EP217" if by_expert else "EP208",
            f"rank {rank}, layer {old.layer_name(layer)}: {'expert' if by_expert else 'row'} {wrong} of "
            f"{template!r} is {only}",
            "`eplb inspect SRC` shows what the shards hold",
        )
    for number, slot in slots.items():
        yield slot, numbered[number], numbered[number].entry.shape, 0


def refuse_twice(experts: NDArray[np.int64], layer: int, rank: int) -> None:
    """EP218 where a rank holds an expert twice that its keys can name only once."""
    held = experts[experts != EMPTY]
    values, counts = np.unique(held, return_counts=True)
    if (counts > 1).any():
        expert = values[counts > 1][0]
        raise CheckpointError(
            "EP218",
            f"layer {layer}, rank {rank}: expert {expert} is there twice, and its key can be there only once",
            "choose a placement whose ranks hold an expert at most once",
        )


def _row_nbytes(at: TensorAt, row_shape: tuple[int, ...], template: str, rank: int) -> int:
    bits = DTYPE_BITS[at.entry.dtype] * int(np.prod(row_shape, dtype=object))
    if bits % 8:
        raise CheckpointError(
            "EP209",
            f"{template!r}, rank {rank}: a row of {bits} bits is no number of whole bytes",
            "eplb moves whole bytes: such a tensor cannot be cut into rows",
        )
    return bits // 8
