"""One checkpoint in two forms: as Hugging Face has it, and as an engine's shards do.

Bytes are moved by the parts: the tensors of the Hugging Face form, wherever they lie. A part is a row of its
own in the table of places on both sides; only the headers, and the digests beside the shards, know that gate
and up are one tensor on the engine's side::

    Hugging Face           gate 0 | up 0 | down 0 | gate 1 | ...         K = 3 parts
    engine, rank r         [gate 5, up 5][gate 2, up 2]  [down 5][down 2]    T = 2 tensors, rows of two parts
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.checkpoint.places import Extents
from eplb_cli.checkpoint.sharded import ExpertTensor, ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import TensorEntry, row_nbytes_of
from eplb_cli.huggingface.engine import Names, split_key
from eplb_cli.huggingface.source import HuggingFace
from eplb_cli.output.tree import OtherCopy, OutputTree
from eplb_cli.placements.placement import Placement


class PartOf(NamedTuple):
    """Where an other tensor of Hugging Face lies: in which of the engine's, from which byte on."""

    key: str
    offset: int


@dataclass(frozen=True, eq=False)
class Joined:
    """Both forms of a checkpoint with all experts in order on one rank.

    Attributes:
        parts: the Hugging Face form: K parts of an expert, and all other tensors.
        engine: the engine's form, T tensors; no file holds it yet, so its extents mean nothing.
        tensor_of_part: (K,) the engine's tensor that a part is in.
        offset_in_row: (L, K) the first byte of a part in the engine's row.
        others: by its key, where an other tensor of Hugging Face lies.
        constants: by its key, what an other tensor of the engine holds that no tensor of Hugging Face makes.
    """

    parts: ShardedCheckpoint
    engine: ShardedCheckpoint
    tensor_of_part: Int
    offset_in_row: Int
    others: Mapping[str, PartOf]
    constants: Mapping[str, bytes]

    def extents_of_parts(self, extents: Extents) -> Extents:
        """(L, K, P) where parts lie, from (L, T, P) where the engine's rows do."""
        file = extents.file[:, self.tensor_of_part].copy()
        file[self.parts.row_nbytes == 0] = -1
        return Extents(file, extents.offset[:, self.tensor_of_part] + self.offset_in_row[:, :, None])


def join(tree: HuggingFace, names: Names) -> Joined:
    """Tell which tensors of a Hugging Face checkpoint make which of the engine's.

    Raises:
        CheckpointError: EP224, the engine has no name for a tensor, or cannot join two; EP209, an expert
            lacks a tensor or has another kind of it; EP207 to EP211, as for shards.
    """
    experts, others = _sort_out(tree, names)
    layers = sorted({layer for layer, _ in experts})
    if not layers:
        raise CheckpointError("EP224", f"{tree.path} has no tensor of an expert that {names.engine} has")
    num_experts = _count_experts(tree, experts)
    old = _all_on_one_rank(num_experts, layers)
    layout = names.find_layout()
    shards = Shards(
        tree.path,
        layout,
        tuple(file.as_shard(layout.files[0]) for file in tree.files),
        (tree.tensors,),
        tuple(tree.carried),
        None,
    )
    parts = _bind_parts(shards, old, names, experts, others)
    tensors, in_engine = _engine_tensors(parts, names)
    constants = _constants(tree, names)
    empty = {
        key: TensorAt(0, 0, TensorEntry(dtype, (), 0, len(data))) for key, (dtype, data) in constants.items()
    }
    engine = bind(replace(shards, tensors=({**tensors, **empty},)), old)
    tensor_of_part, offsets = _place_parts(parts, engine, names)
    contents = {key: data for key, (_, data) in constants.items()}
    return Joined(parts, engine, tensor_of_part, offsets, in_engine, contents)


Experts = Mapping[tuple[int, str], Mapping[int | None, TensorAt]]
"""(layer, template of Hugging Face) to the expert, or None where it is stacked, to the tensor."""


def _sort_out(tree: HuggingFace, names: Names) -> tuple[Experts, dict[str, TensorAt]]:
    experts: dict[tuple[int, str], dict[int | None, TensorAt]] = defaultdict(dict)
    others: dict[str, TensorAt] = {}
    for key, at in tree.tensors.items():
        template, layer, expert = split_key(key)
        goal = names.goals.get(template)
        if goal is None:
            raise CheckpointError(
                "EP224",
                f"{key!r} in {tree.files[at.file].name}: no tensor of {names.engine} for models of type "
                f"{names.family!r} is made of it",
                "--engine huggingface keeps all names",
            )
        if goal.is_expert and layer is not None:
            experts[layer, template][expert] = at
        else:
            others[key] = at
    return experts, others


def _count_experts(tree: HuggingFace, experts: Experts) -> int:
    """E, the same for every layer and tensor. Raises EP209."""
    counts = set()
    for (layer, template), numbered in experts.items():
        if None in numbered:
            shape = numbered[None].entry.shape
            counts.add(shape[0] if shape else 0)
            continue
        missing = [number for number in range(len(numbered)) if number not in numbered]
        if missing:
            name = template.replace("{layer}", str(layer)).replace("{expert}", str(missing[0]))
            raise CheckpointError("EP209", f"{tree.path} has no {name!r}, and experts beyond that number")
        counts.add(len(numbered))
    if len(counts) != 1 or 0 in counts:
        said = " and ".join(map(str, sorted(counts)))
        raise CheckpointError("EP209", f"{tree.path} has tensors of {said} experts")
    return int(counts.pop())


def _all_on_one_rank(num_experts: int, layers: Sequence[int]) -> Placement:
    table = np.tile(np.arange(num_experts), (len(layers), 1))
    return Placement(table, np.array([0, num_experts]), num_experts, np.array(layers, np.int64))


def _bind_parts(
    shards: Shards, old: Placement, names: Names, experts: Experts, others: dict[str, TensorAt]
) -> ShardedCheckpoint:
    """Where each part of each expert lies in the Hugging Face files."""
    order = sorted({template for _, template in experts}, key=lambda name: names.goals[name][:2])
    layers = [] if old.layer_ids is None else old.layer_ids.tolist()
    shape = (old.num_layers, len(order))
    found = ShardedCheckpoint(
        shards,
        old,
        tuple(ExpertTensor(template, template) for template in order),
        np.full(shape, None, object),
        np.full(shape, None, object),
        np.zeros(shape, np.int64),
        np.full(shape, None, object),
        Extents(np.full((*shape, old.num_slots), -1, np.int32), np.zeros((*shape, old.num_slots), np.int64)),
        (others,),
    )
    for (layer_id, template), numbered in experts.items():
        layer, part = layers.index(layer_id), order.index(template)
        kinds = {(at.entry.dtype, at.entry.shape, at.entry.nbytes) for at in numbered.values()}
        if len(kinds) > 1:
            name = template.replace("{layer}", str(layer_id))
            raise CheckpointError("EP209", f"{name!r}: the experts differ in dtype or shape")
        dtype, tensor_shape, nbytes = kinds.pop()
        stacked = None in numbered
        row_nbytes = row_nbytes_of(template, dtype, tensor_shape[1:]) if stacked else nbytes
        found.dtype[layer, part] = dtype
        found.row_shape[layer, part] = tensor_shape[1:] if stacked else tensor_shape
        found.row_nbytes[layer, part] = row_nbytes
        for expert, at in numbered.items():
            slots = slice(None) if expert is None else expert
            rows = np.arange(old.num_slots) if expert is None else 0
            found.extents.file[layer, part, slots] = at.file
            found.extents.offset[layer, part, slots] = at.offset + rows * row_nbytes
    return found


def _engine_tensors(parts: ShardedCheckpoint, names: Names) -> tuple[dict[str, TensorAt], dict[str, PartOf]]:
    """The engine's tensors with all experts in order, and which parts of its others come from where."""
    old = parts.placement
    tensors: dict[str, TensorAt] = {}
    for layer in range(old.num_layers):
        for target, members in _members(parts, names, layer).items():
            kinds = [(parts.dtype[layer, part], parts.row_shape[layer, part]) for part in members]
            nbytes = int(parts.row_nbytes[layer, members].sum())
            row = _joined(target, kinds, nbytes, complete=len(members) == len(names.experts[target]))
            key = target.replace("{layer}", str(old.layer_number(layer)))
            if "{row}" in key:
                tensors |= {
                    key.replace("{row}", str(number)): TensorAt(0, 0, row) for number in range(old.num_slots)
                }
            else:
                stacked = TensorEntry(row.dtype, (old.num_slots, *row.shape), 0, nbytes * old.num_slots)
                tensors[key] = TensorAt(0, 0, stacked)
    members_of: dict[str, dict[int, str]] = defaultdict(dict)
    for key in parts.others[0]:
        template, layer_id, _ = split_key(key)
        goal = names.goals[template]
        members_of[goal.template.replace("{layer}", str(layer_id))][goal.part] = key
    where: dict[str, PartOf] = {}
    for key, found in members_of.items():
        sources = [found[number] for number in sorted(found)]
        entries = [parts.others[0][source].entry for source in sources]
        expected = len(names.fused.get(split_key(key).template, (key,)))
        nbytes = sum(entry.nbytes for entry in entries)
        kinds = [(entry.dtype, entry.shape) for entry in entries]
        tensors[key] = TensorAt(0, 0, _joined(key, kinds, nbytes, complete=len(sources) == expected))
        offset = 0
        for source, entry in zip(sources, entries, strict=True):
            where[source] = PartOf(key, offset)
            offset += entry.nbytes
    return tensors, where


def _constants(tree: HuggingFace, names: Names) -> dict[str, tuple[str, bytes]]:
    """Dtype and content of each tensor that only the engine has, for every layer of the checkpoint."""
    layers = sorted({layer for key in tree.tensors if (layer := split_key(key).layer) is not None})
    return {
        template.replace("{layer}", str(layer)): (dtype, bytes.fromhex(data))
        for template, (dtype, data) in names.constants.items()
        for layer in layers
    }


def _members(parts: ShardedCheckpoint, names: Names, layer: int) -> dict[str, list[int]]:
    """The engine's tensors of a layer, and the parts of each in order."""
    found: dict[str, list[int]] = defaultdict(list)
    for part, tensor in enumerate(parts.expert_tensors):
        if parts.dtype[layer, part] is not None:
            found[names.goals[tensor.template].template].append(part)
    return found


def _joined(
    name: str, kinds: Sequence[tuple[str, tuple[int, ...]]], nbytes: int, *, complete: bool
) -> TensorEntry:
    """Several tensors one behind the other along dim 0. Raises EP224."""
    (dtype, shape), *rest = kinds
    if not complete:
        raise CheckpointError("EP224", f"{name!r} cannot be joined: one of its parts is missing")
    if rest and (len({(other, size[1:]) for other, size in kinds}) > 1 or not all(size for _, size in kinds)):
        raise CheckpointError("EP224", f"{name!r} cannot be joined: its parts differ in dtype or shape")
    if rest:
        shape = (sum(size[0] for _, size in kinds), *shape[1:])
    return TensorEntry(dtype, shape, 0, nbytes)


def _place_parts(parts: ShardedCheckpoint, engine: ShardedCheckpoint, names: Names) -> tuple[Int, Int]:
    """(K,) the engine's tensor of each part, and (L, K) the part's first byte in its row."""
    numbers = {tensor.template: number for number, tensor in enumerate(engine.expert_tensors)}
    goals = [names.goals[tensor.template] for tensor in parts.expert_tensors]
    tensor_of_part = np.array([numbers[goal.template] for goal in goals], np.int64)
    before = np.cumsum(parts.row_nbytes, axis=1) - parts.row_nbytes
    first = np.array([tensor_of_part.tolist().index(tensor) for tensor in tensor_of_part], np.int64)
    return tensor_of_part, before - before[:, first]


def parts_of_output(joined: Joined, output: OutputTree) -> tuple[OutputTree, Int]:
    """The engine's output by parts; and (X,) for each of its other copies, which of the engine's it is in."""
    goals: dict[str, list[str]] = defaultdict(list)
    for key, (target, _) in joined.others.items():
        goals[target].append(key)
    copies, whole = [], []
    source = joined.parts.others[0]
    for number, copy in enumerate(output.others):
        for key in goals[copy.key]:
            offset = copy.dst_offset + joined.others[key].offset
            copies.append(OtherCopy(key, 0, source[key], copy.dst_rank, copy.dst_file, offset))
            whole.append(number)
    extents = joined.extents_of_parts(output.extents)
    return OutputTree(output.files, extents, tuple(copies)), np.array(whole, np.int64)


def tensor_places(joined: Joined, num_slots: int, num_rows: int, other_tensors: Int) -> Int:
    """(X,) for each new place of a part, the place of the engine's tensor or row that it is in.

    Args:
        num_rows: L × T × P. other_tensors: (N,) as `parts_of_output` gives them.
    """
    num_layers, num_tensors = joined.engine.row_nbytes.shape
    cell = np.arange(num_layers)[:, None] * num_tensors + joined.tensor_of_part
    rows = cell[:, :, None] * num_slots + np.arange(num_slots)
    return np.concatenate([rows.ravel(), num_rows + other_tensors])


def parts_of_shards(joined: Joined, engine: ShardedCheckpoint) -> ShardedCheckpoint:
    """Shards on disk by parts. Other tensors are those of rank 0: all ranks have them alike.

    Raises:
        CheckpointError: EP225, a tensor is not the one that the parts make.
    """
    expected = joined.engine
    same = [tensor.template for tensor in engine.expert_tensors] == [
        tensor.template for tensor in expected.expert_tensors
    ]
    if not same or not np.array_equal(engine.row_nbytes, expected.row_nbytes):
        raise CheckpointError("EP225", f"{engine.shards.path} has other expert tensors than `shard` wrote")
    others: dict[str, TensorAt] = {}
    for key, (target, offset) in joined.others.items():
        at, entry = engine.others[0].get(target), joined.parts.others[0][key].entry
        if at is None or at.entry.nbytes != expected.others[0][target].entry.nbytes:
            raise CheckpointError("EP225", f"{target!r} of rank 0 is not the tensor that `shard` wrote")
        others[key] = TensorAt(at.file, at.offset + offset, entry)
    return replace(
        joined.parts,
        shards=replace(engine.shards, manifest=None),
        placement=engine.placement,
        extents=joined.extents_of_parts(engine.extents),
        others=(others, *({} for _ in engine.others[1:])),
    )
