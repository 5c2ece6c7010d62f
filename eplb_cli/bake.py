"""`eplb bake`: a placement without replicas as the order of the experts in a plain Hugging Face checkpoint.

Slot p of the placement becomes expert p: its tensors get that number, and the router's row for it moves to
row p. What an engine does by default, linear, is then the placement, and the model computes what it did.

Tensors of single experts stay where they are in their files and get another name in the header. Stacked
tensors and routers have their rows moved. Where the file system can share blocks, whole files are shared::

    before   header | experts.0.up | experts.1.up | gate: row 0, row 1
    after    header | experts.1.up | experts.0.up | gate: row 1, row 0       same bytes, but for the gate
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli import __version__, files
from eplb_cli.checkpoint import ExpertTensor, Extents, ShardedCheckpoint, TensorAt
from eplb_cli.commit import carry_files, reopen
from eplb_cli.engine import AS_THEY_ARE, find_names, split_key
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.findings import check_pair, raise_first
from eplb_cli.header import DATA_ALIGNMENT
from eplb_cli.huggingface import HuggingFace, config_of, open_huggingface
from eplb_cli.inputs import PlacementOptions
from eplb_cli.joined import Joined, join, parts_of_shards
from eplb_cli.journal import Known
from eplb_cli.manifest import MANIFEST_NAME
from eplb_cli.merge import open_sharded
from eplb_cli.origin import Origin, read_origin
from eplb_cli.output import OtherCopy, OutputFile, OutputTree
from eplb_cli.placement import Placement
from eplb_cli.placement_file import placement_from_json, placement_to_json
from eplb_cli.prepare import Prepared
from eplb_cli.progress import ProgressBar, accumulate
from eplb_cli.prove import Proof
from eplb_cli.routers import (
    Routers,
    check_placement,
    check_tensors,
    check_texts,
    find_routers,
    unbakeable,
)
from eplb_cli.shard import Converted, in_layer_order, move_parts, placement_for, plan_moves, prove_parts
from eplb_cli.shards import Staging, check_destination, check_space, create_files, publish, staging

FORMAT = "eplb-baked/1"


def bake(
    source: Path,
    destination: Path,
    placement: str,
    options: PlacementOptions,
    *,
    durable: bool,
    progress: ProgressBar,
) -> Converted:
    """Write a Hugging Face checkpoint whose experts are in the order of a placement, and prove it.

    Raises:
        CheckpointError: EP226, the model or the placement cannot be baked.
        EplbError: whatever else went wrong; there is no output then.
    """
    started = time.perf_counter()
    check_destination(source, destination)
    tree, config = open_huggingface(source), config_of(source)
    if (source / MANIFEST_NAME).exists():
        raise unbakeable(f"{source} has an eplb.json: it was baked already", "bake what it was made of")
    routers = check_bakeable(tree, config)
    parts = join(tree, find_names(AS_THEY_ARE, str(config["model_type"]), tree.tensors)).parts
    new, warnings = placement_for(source, config, placement, parts.placement, options)
    rows = with_routers(parts, parts, routers)
    baked = Baked(tree, rows, order_of(new, parts.placement, routers, config))
    prepared = Prepared(rows, plan_moves(parts.placement, baked.placement), baked.output())
    with staging(destination) as stage:
        check_space(stage, prepared.output)
        create_files(stage, prepared.output)
        known = baked.share(prepared, stage)
        proof, _ = _move(prepared, stage, known, durable=durable, progress=progress)
        _finish(baked, prepared, stage, new, config, durable=durable)
    said = [*(finding.message for finding in warnings), *proof.warnings]
    return _made(destination, new, prepared, proof.rows_proved, time.perf_counter() - started, said)


def bake_shards(source: Path, destination: Path, *, durable: bool, progress: ProgressBar) -> Converted:
    """Write the Hugging Face checkpoint that shards were made of, in the order they have its experts in.

    Raises:
        CheckpointError: EP226, the model or the placement cannot be baked; EP225, they cannot be merged.
        EplbError: whatever else went wrong; there is no output then.
    """
    started = time.perf_counter()
    check_destination(source, destination)
    origin = read_origin(source)
    engine, joined = open_sharded(source, origin)
    config, new = config_of(source), engine.placement
    routers = check_bakeable(origin.tree, config)
    rows = with_routers(joined.parts, joined.parts, routers)
    baked = Baked(origin.tree, rows, order_of(new, joined.parts.placement, routers, config))
    parts = with_routers(parts_of_shards(joined, engine), joined.parts, routers)
    prepared = Prepared(parts, plan_moves(new, baked.placement), baked.output(parts))
    with staging(destination) as stage:
        check_space(stage, prepared.output)
        create_files(stage, prepared.output)
        known = Known.nothing(len(prepared.old_places.rank), len(prepared.new_places.rank))
        proof, new_digests = _move(prepared, stage, known, durable=durable, progress=progress)
        _compare(baked, joined, origin, prepared, new_digests)
        _finish(baked, prepared, stage, new, config, durable=durable)
    seconds = time.perf_counter() - started
    return _made(destination, new, prepared, proof.rows_proved, seconds, proof.warnings)


def _finish(
    baked: Baked,
    prepared: Prepared,
    stage: Staging,
    new: Placement,
    config: Mapping[str, Any],
    *,
    durable: bool,
) -> None:
    """Everything beside the tensors, and the rename."""
    carry_files(baked.tree.carried, stage, durable=durable)
    baked.write_rest(stage, new, config, durable=durable)
    reopen(prepared.output, stage)
    publish(stage, durable=durable)


def _made(
    destination: Path, new: Placement, prepared: Prepared, rows: int, seconds: float, warnings: list[str]
) -> Converted:
    return Converted(
        destination,
        AS_THEY_ARE,
        new.num_ranks,
        new.num_layers,
        new.num_logical_experts,
        rows,
        prepared.output.nbytes,
        seconds,
        [f"any engine, with {new.num_ranks} expert-parallel ranks and its default linear placement"],
        warnings,
    )


def _compare(
    baked: Baked, joined: Joined, origin: Origin, prepared: Prepared, new_digests: NDArray[np.uint8]
) -> None:
    """EP506 where an expert, or an other tensor but a router, is not what `shard` had read."""
    shape = joined.parts.extents.file.shape
    size = joined.parts.extents.file.size
    before = origin.digests[:size].reshape(*shape, -1)
    index = np.broadcast_to(baked.order[:, None, :, None], before.shape)
    rows = new_digests[: prepared.checkpoint.row_nbytes.size * shape[2]]
    after = rows.reshape(shape[0], -1, shape[2], rows.shape[1])[:, : shape[1]]
    keys = sorted(joined.parts.others[0])
    others = {key: origin.digests[size + number] for number, key in enumerate(keys)}
    wrong = [
        copy.key
        for copy, digest in zip(prepared.output.others, new_digests[len(rows) :], strict=True)
        if (others[copy.key] != digest).any()
    ]
    if wrong or not np.array_equal(np.take_along_axis(before, index, axis=2), after):
        where = repr(wrong[0]) if wrong else "a row of an expert"
        raise BytesError("EP506", f"{where} is not what `shard` had read")


def check_bakeable(tree: HuggingFace, config: Mapping[str, Any]) -> Routers:
    """The routers of a checkpoint, where everything that names experts is known. Raises EP226."""
    routers = find_routers(config)
    layers = {key.layer for key in map(split_key, tree.tensors) if key.template in routers.tensors}
    check_tensors(routers, tree.tensors, [layer for layer in layers if layer is not None])
    texts = [name for name in tree.carried if name == "config.json" or "quant" in name]
    check_texts({name: files.read_small_file(tree.carried[name], 1 << 28) for name in texts})
    return routers


def order_of(
    new: Placement, all_layers: Placement, routers: Routers, config: Mapping[str, Any]
) -> NDArray[np.int64]:
    """(L, E) the expert that becomes expert p, in every MoE layer; unchanged in those NEW does not name.

    Raises:
        CheckpointError: EP226, NEW cannot be baked; EP212, it names a layer without experts.
        PlacementError: it is of other experts.
    """
    check_placement(new, routers, config)
    order = np.array(all_layers.physical_to_logical)
    layers = [] if all_layers.layer_ids is None else all_layers.layer_ids.tolist()
    named = [] if new.layer_ids is None else new.layer_ids.tolist()
    if missing := sorted(set(named) - set(layers)):
        raise CheckpointError(
            "EP212", f"layer {missing[0]} of the placement has no experts in the checkpoint"
        )
    places = [layers.index(layer) for layer in named]
    old = Placement(order[places], all_layers.first_slot, all_layers.num_logical_experts, new.layer_ids)
    raise_first(check_pair(old, new))
    order[places] = new.physical_to_logical
    return order


def with_routers(parts: ShardedCheckpoint, entries: ShardedCheckpoint, routers: Routers) -> ShardedCheckpoint:
    """Parts of experts together with the rows of their routers, wherever `parts` has those.

    Args:
        entries: the same in the Hugging Face form, for its layers and keys.

    Raises:
        CheckpointError: EP226, a layer has no router, or one of another number of experts.
    """
    others = dict(parts.others[0])
    placement = parts.placement
    table, num_experts = placement.physical_to_logical, placement.num_logical_experts
    shape = (placement.num_layers, len(routers.tensors))
    found: dict[tuple[int, int], TensorAt] = {}
    for layer, number in np.ndindex(shape):
        key = routers.tensors[number].replace("{layer}", str(entries.placement.layer_name(layer)))
        if key in others:
            at = found[layer, number] = others.pop(key)
            if not at.entry.shape or at.entry.shape[0] != num_experts:
                raise unbakeable(f"{key!r} has the shape {list(at.entry.shape)}, and no row for each expert")
        elif number == 0:
            raise unbakeable(f"there is no {key!r}")
    extra = _columns(found, shape, table)
    merged = [
        np.concatenate([first, second], axis=1)
        for first, second in zip(
            (parts.dtype, parts.row_shape, parts.row_nbytes, parts.extents.file, parts.extents.offset),
            extra,
            strict=True,
        )
    ]
    return replace(
        parts,
        expert_tensors=(*parts.expert_tensors, *(ExpertTensor(name, name) for name in routers.tensors)),
        dtype=merged[0],
        row_shape=merged[1],
        row_nbytes=merged[2],
        series=np.full(merged[0].shape, None, object),
        extents=Extents(merged[3], merged[4]),
        others=(others, *parts.others[1:]),
    )


def _columns(
    found: Mapping[tuple[int, int], TensorAt], shape: tuple[int, int], table: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """dtype, row_shape, row_nbytes (L, K), file and offset (L, K, P) of tensors with rows of experts."""
    dtype, row_shape = np.full(shape, None, object), np.full(shape, None, object)
    row_nbytes = np.zeros(shape, np.int64)
    file = np.full((*shape, table.shape[1]), -1, np.int32)
    offset = np.zeros((*shape, table.shape[1]), np.int64)
    for (layer, number), at in found.items():
        nbytes = at.entry.nbytes // at.entry.shape[0]
        dtype[layer, number], row_shape[layer, number] = at.entry.dtype, at.entry.shape[1:]
        row_nbytes[layer, number] = nbytes
        filled = table[layer] >= 0
        file[layer, number, filled] = at.file
        offset[layer, number, filled] = at.offset + table[layer, filled] * nbytes
    return dtype, row_shape, row_nbytes, file, offset


@dataclass(frozen=True, eq=False)
class Baked:
    """A Hugging Face checkpoint with its experts in another order.

    Attributes:
        tree: the checkpoint before. rows: its parts and router rows, all experts in order.
        order: (L, E) the expert that becomes expert p.
    """

    tree: HuggingFace
    rows: ShardedCheckpoint
    order: NDArray[np.int64]

    @property
    def placement(self) -> Placement:
        """The order as a placement on one rank."""
        old = self.rows.placement
        return Placement(self.order, old.first_slot, old.num_logical_experts, old.layer_ids)

    def new_key(self, key: str) -> str:
        """What a tensor is called afterwards."""
        template, layer, expert = split_key(key)
        number = self._numbers.get((layer, expert))
        if number is None:
            return key
        return template.replace("{layer}", str(layer)).replace("{expert}", str(number))

    @cached_property
    def _numbers(self) -> dict[tuple[int | None, int | None], int]:
        """By layer and expert, the number that the expert gets."""
        layers = [self.rows.placement.layer_number(layer) for layer in range(len(self.order))]
        return {
            (layer, expert): number
            for layer, row in zip(layers, self.order.tolist(), strict=True)
            for number, expert in enumerate(row)
        }

    def starts(self) -> list[bytes]:
        """The beginning of each file, as long as before or longer by whole pages."""
        result = []
        for file in self.tree.files:
            header = json.loads(file.start[8:])
            renamed = {self.new_key(key): value for key, value in header.items()}
            text = json.dumps(renamed, separators=(",", ":"), ensure_ascii=False).encode()
            more = max(8 + len(text) - len(file.start), 0)
            nbytes = len(file.start) - 8 + math.ceil(more / DATA_ALIGNMENT) * DATA_ALIGNMENT
            result.append(nbytes.to_bytes(8, "little") + text.ljust(nbytes))
        return result

    def output(self, parts: ShardedCheckpoint | None = None) -> OutputTree:
        """The files afterwards, and where each row is in them.

        Args:
            parts: where the tensors come from, if not from the files themselves.
        """
        sources = (parts or self.rows).others[0]
        starts, extents = self.starts(), self.rows.extents
        shift = np.array(
            [len(start) - len(file.start) for start, file in zip(starts, self.tree.files, strict=True)]
        )
        renamed = ["{expert}" in tensor.template for tensor in self.rows.expert_tensors]
        place = np.broadcast_to(self.order[:, None], extents.file.shape)
        stays = np.broadcast_to(np.array(renamed)[None, :, None], extents.file.shape)
        own = np.broadcast_to(np.arange(self.order.shape[1]), extents.file.shape)
        index = np.where(stays, place, own)
        file = np.take_along_axis(extents.file, index, axis=2)
        offset = np.take_along_axis(extents.offset, index, axis=2) + np.where(file >= 0, shift[file], 0)
        by_file: dict[int, dict[str, tuple[int, int]]] = defaultdict(dict)
        others = []
        for key, at in sorted(self.rows.others[0].items()):
            begin = at.offset + int(shift[at.file])
            others.append(OtherCopy(key, 0, sources[key], 0, at.file, begin))
            by_file[at.file][key] = (begin, at.entry.nbytes)
        outputs = [
            OutputFile(old.name, 0, start, old.nbytes + len(start) - len(old.start), by_file[number])
            for number, (old, start) in enumerate(zip(self.tree.files, starts, strict=True))
        ]
        return OutputTree(tuple(outputs), Extents(file, offset), tuple(others))

    def share(self, prepared: Prepared, stage: Staging) -> Known:
        """Share whole files where the file system can; which places are right by that."""
        pieces, old, new = prepared.pieces, prepared.old_places, prepared.new_places
        known = Known.nothing(len(old.rank), len(new.rank))
        shared = [
            _clone(file.path, len(file.start), stage.path / output.name, output.header)
            for file, output in zip(self.tree.files, prepared.output.files, strict=True)
        ]
        shift = [
            len(output.header) - len(file.start)
            for file, output in zip(self.tree.files, prepared.output.files, strict=True)
        ]
        source, destination = pieces.source, pieces.destination
        file = new.file[destination]
        same = (old.file[source] == file) & (
            old.offset[source] + np.array(shift)[file] == new.offset[destination]
        )
        known.written[destination] = same & np.array(shared, bool)[file]
        return known

    def write_rest(self, stage: Staging, new: Placement, config: Mapping[str, Any], *, durable: bool) -> None:
        """The index, and `eplb.json` with the permutation."""
        tree = self.tree
        if tree.index_name is not None:
            index = json.loads(tree.index)
            index["weight_map"] = dict(
                sorted((self.new_key(key), name) for key, name in index["weight_map"].items())
            )
            text = json.dumps(index, indent=2) + "\n"
            files.write_file(stage.path / tree.index_name, text.encode(), durable=durable)
        content = {
            "format": FORMAT,
            "tool": f"eplb {__version__}",
            "model_type": config["model_type"],
            "placement": placement_to_json(new),
        }
        files.write_file(stage.path / MANIFEST_NAME, json.dumps(content).encode() + b"\n", durable=durable)


def _clone(source: Path, start_nbytes: int, destination: Path, header: bytes) -> bool:
    """Share the blocks of a file's data with another; False where that cannot be."""
    begin = start_nbytes // DATA_ALIGNMENT * DATA_ALIGNMENT
    shift = len(header) - start_nbytes
    read, write = files.open_source(source), files.open_output(destination)
    try:
        nbytes = os.fstat(read).st_size - begin
        if not files.clone_range(read, write, nbytes, begin, begin + shift, destination):
            return False
        files.write_from(write, memoryview(header), 0, destination)
        return True
    finally:
        os.close(read)
        os.close(write)


def _move(
    prepared: Prepared, stage: Staging, known: Known, *, durable: bool, progress: ProgressBar
) -> tuple[Proof, NDArray[np.uint8]]:
    """Move what was not shared, and prove all of it; the digests of new places too."""
    nbytes = int(prepared.pieces.nbytes[~known.written[prepared.pieces.destination]].sum())
    with progress(2 * nbytes, "bake") as show:
        old_digests, new_digests = move_parts(
            prepared, stage, accumulate(show), durable=durable, verify=True, known=known
        )
    return prove_parts(prepared, old_digests, new_digests), new_digests


def read_baked(path: Path) -> Placement:
    """The placement that a checkpoint was baked with. Raises EP226."""
    where = path / MANIFEST_NAME
    try:
        raw = json.loads(files.read_small_file(where, 1 << 28))
        if raw["format"] == FORMAT:
            return in_layer_order(placement_from_json(raw["placement"], str(where)))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError("EP226", f"{where} is not of a baked checkpoint") from error
    raise CheckpointError("EP226", f"{where} is not of a baked checkpoint")
