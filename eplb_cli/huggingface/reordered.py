"""A Hugging Face checkpoint with its experts in another order: names, router rows, and where it all lies."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli import __version__, files
from eplb_cli.checkpoint.manifest import BAKED_FORMAT, MANIFEST_NAME, MAX_MANIFEST_NBYTES
from eplb_cli.checkpoint.places import Extents
from eplb_cli.checkpoint.sharded import ExpertTensor, ShardedCheckpoint
from eplb_cli.checkpoint.shards import TensorAt
from eplb_cli.checkpoint.staged import refuse_staging
from eplb_cli.errors import CheckpointError, PlacementError
from eplb_cli.formats.index_file import index_json
from eplb_cli.formats.reading import read_json
from eplb_cli.formats.safetensors_header import DATA_ALIGNMENT, header_json, row_nbytes_of
from eplb_cli.huggingface.one_rank import OneRank
from eplb_cli.huggingface.parts import in_layer_order
from eplb_cli.huggingface.routers import unbakeable
from eplb_cli.huggingface.source import HuggingFace, SourceFile
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.counted import Load
from eplb_cli.models.families import Family
from eplb_cli.output.commit import carry_files
from eplb_cli.output.journal import Known
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import Staging
from eplb_cli.output.tree import OtherCopy, OutputFile, OutputTree
from eplb_cli.placements.own_format import placement_from_json, placement_to_json
from eplb_cli.placements.placement import Placement
from eplb_cli.values import dataclass

_MAX_APART = 10
"""So many experts have numbers of which none is the beginning of another."""


def with_routers(parts: ShardedCheckpoint, entries: ShardedCheckpoint, family: Family) -> ShardedCheckpoint:
    """Parts of experts together with the rows of their routers, wherever `parts` has those.

    Args:
        entries: the same in the Hugging Face form, for its layers and keys.

    Raises:
        CheckpointError: EP226, a layer has no router, or one of another number of experts; EP209, a router
            whose rows are no whole bytes.
    """
    others = dict(parts.others[0])
    placement = parts.placement
    table, num_experts = placement.physical_to_logical, placement.num_logical_experts
    shape = (placement.num_layers, len(family.routers))
    found: dict[tuple[int, int], tuple[TensorAt, int]] = {}
    for layer, number in np.ndindex(shape):
        key = family.routers[number].replace("{layer}", str(entries.placement.layer_number(layer)))
        if key in others:
            at = others.pop(key)
            if not at.entry.shape or at.entry.shape[0] != num_experts:
                raise unbakeable(f"{key!r} has the shape {list(at.entry.shape)}, and no row for each expert")
            found[layer, number] = at, row_nbytes_of(key, at.entry.dtype, at.entry.shape[1:])
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
        expert_tensors=(*parts.expert_tensors, *(ExpertTensor(name, name) for name in family.routers)),
        dtype=merged[0],
        row_shape=merged[1],
        row_nbytes=merged[2],
        series=np.full(merged[0].shape, None, object),
        extents=Extents(merged[3], merged[4]),
        others=(others, *parts.others[1:]),
    )


def _columns(
    found: Mapping[tuple[int, int], tuple[TensorAt, int]], shape: tuple[int, int], table: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """dtype, row_shape, row_nbytes (L, K), file and offset (L, K, P) of tensors with rows of experts.

    Args:
        found: by layer and number, each tensor and the bytes of its rows.
    """
    dtype, row_shape = np.full(shape, None, object), np.full(shape, None, object)
    row_nbytes = np.zeros(shape, np.int64)
    file = np.full((*shape, table.shape[1]), -1, np.int32)
    offset = np.zeros((*shape, table.shape[1]), np.int64)
    for (layer, number), (at, nbytes) in found.items():
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
        checkpoint: before. rows: its parts and router rows, all experts in order.
        order: (L, E) the expert that becomes expert p.
    """

    checkpoint: OneRank
    rows: ShardedCheckpoint
    order: NDArray[np.int64]

    @property
    def tree(self) -> HuggingFace:
        """Its files."""
        return self.checkpoint.tree

    @property
    def placement(self) -> Placement:
        """The order as a placement on one rank."""
        old = self.rows.placement
        return Placement(self.order, old.first_slot, old.num_logical_experts, old.layer_ids)

    def new_key(self, key: str) -> str:
        """What a tensor is called afterwards."""
        said = self.checkpoint.keys.get(key)
        number = None if said is None else self._numbers.get((said.layer, said.expert))
        if said is None or number is None:
            return key
        return said.template.replace("{layer}", str(said.layer)).replace("{expert}", str(number))

    def new_name(self, name: str) -> str | None:
        """What a tensor or module of a single expert is called afterwards; None where there is no such one.

        The bare name of an expert is read as a prefix by some: with more than ten it may be of several.
        """
        found = self.checkpoint.layout.match_key(name)
        layer = None if found is None else self.checkpoint.layers.numbers.get(found.place)
        number = None if found is None else self._numbers.get((layer, found.number))
        if found is None or number is None or (not found.tensor and self.order.shape[1] > _MAX_APART):
            return None
        return found.template.replace("{expert}", str(number))

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
            header = header_json(file.start[8:], file.name)
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
            _clone(file, stage.path / output.name, output.header)
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

    def write_rest(
        self, stage: Staging, new: Placement, config: ModelConfig, lists: Mapping[str, bytes]
    ) -> None:
        """Carried files, the index, and `eplb.json` with the permutation.

        Args:
            lists: the new content of carried files that name single experts.
        """
        tree = self.tree
        carry_files({name: file for name, file in tree.carried.items() if name not in lists}, stage)
        for name, text in lists.items():
            stage.write(name, text)
        if tree.index_name is not None:
            index = index_json(tree.index, unbakeable)
            index["weight_map"] = dict(
                sorted((self.new_key(key), name) for key, name in index["weight_map"].items())
            )
            stage.write(tree.index_name, json.dumps(index, indent=2).encode() + b"\n")
        content = {
            "format": BAKED_FORMAT,
            "tool": f"eplb {__version__}",
            "model_type": config.model_type,
            "placement": placement_to_json(new),
        }
        stage.write(MANIFEST_NAME, json.dumps(content).encode() + b"\n")


def _clone(source: SourceFile, destination: Path, header: bytes) -> bool:
    """Share the blocks of a file's data with another; False where that cannot be.

    Raises:
        CheckpointError: EP220, the file is not the one whose header was read.
    """
    begin = len(source.start) // DATA_ALIGNMENT * DATA_ALIGNMENT
    shift = len(header) - len(source.start)
    with (
        files.opened_source(source.path, source.stamp) as read,
        files.opened_output(destination) as write,
    ):
        if not files.clone_range(read, write, source.nbytes - begin, begin, begin + shift, destination):
            return False
        files.write_from(write, memoryview(header), 0, destination)
        return True


def read_baked(path: Path) -> Placement:
    """The placement that a checkpoint was baked with. Raises EP226, EP233."""
    refuse_staging(path)
    where = path / MANIFEST_NAME
    raw = read_json(where, MAX_MANIFEST_NBYTES, partial(_not_baked, where))
    if not isinstance(raw, dict) or raw.get("format") != BAKED_FORMAT:
        raise _not_baked(where, f"its format is not {BAKED_FORMAT}")
    return in_layer_order(placement_from_json(raw.get("placement"), str(where)))


def _not_baked(where: Path, reason: str) -> CheckpointError:
    return CheckpointError("EP226", f"{where} is not of a baked checkpoint: {reason}")


def unbaked(load: Load, placement: Placement) -> Load:
    """The load of a baked model by the experts of the model that it was baked of.

    Raises:
        PlacementError: EP109, they differ in experts or layers.
    """
    layers = None if load.layer_ids is None else load.layer_ids.tolist()
    named = None if placement.layer_ids is None else placement.layer_ids.tolist()
    if load.counts.shape[2] != placement.num_logical_experts:
        said = f"{load.counts.shape[2]:,} experts, and the placement has {placement.num_logical_experts:,}"
        raise PlacementError("EP109", f"the load is of {said}")
    if layers is None or named is None:
        if load.counts.shape[1] != placement.num_layers:
            said = f"{load.counts.shape[1]:,} layers, and the placement has {placement.num_layers:,}"
            raise PlacementError("EP109", f"the load is of {said}", "say the model with --model")
        places = list(range(placement.num_layers))
    else:
        places = [layers.index(layer) for layer in named if layer in layers]
        placement = replace(
            placement,
            physical_to_logical=placement.physical_to_logical[[layer in layers for layer in named]],
        )
    counts = load.counts.copy()
    table = np.broadcast_to(
        placement.physical_to_logical, (len(counts), *placement.physical_to_logical.shape)
    )
    moved = np.empty_like(counts[:, places])
    np.put_along_axis(moved, table, counts[:, places], axis=2)
    counts[:, places] = moved
    return replace(load, counts=counts)
