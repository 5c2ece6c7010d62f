"""One checkpoint in two forms: as Hugging Face has it, and as an engine's shards do.

Bytes are moved by the parts: the tensors of the Hugging Face form, wherever they lie. A part is a row of its
own in the table of places on both sides; only the headers, and the digests beside the shards, know that gate
and up are one tensor on the engine's side::

    Hugging Face           gate 0 | up 0 | down 0 | gate 1 | ...         K = 3 parts
    engine, rank r         [gate 5, up 5][gate 2, up 2]  [down 5][down 2]    T = 2 tensors, rows of two parts
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.checkpoint.places import Extents
from eplb_cli.checkpoint.sharded import ExpertTensor, ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import TensorAt
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import TensorEntry, row_nbytes_of
from eplb_cli.huggingface.engine import Names
from eplb_cli.huggingface.one_rank import OneRank
from eplb_cli.huggingface.parts import all_on_one_rank
from eplb_cli.output.tree import OtherCopy, OutputTree
from eplb_cli.placements.placement import Placement
from eplb_cli.values import dataclass


class PartOf(NamedTuple):
    """Where an other tensor of Hugging Face lies: in which of the engine's, from which byte on."""

    key: str
    offset: int


@dataclass(frozen=True, eq=False)
class Joined:
    """Both forms of a checkpoint with all experts in order on one rank.

    Attributes:
        checkpoint: what the keys of Hugging Face say.
        parts: the Hugging Face form: K parts of an expert, and all other tensors.
        engine: the engine's form, T tensors; no file holds it yet, so its extents mean nothing.
        tensor_of_part: (K,) the engine's tensor that a part is in.
        offset_in_row: (L, K) the first byte of a part in the engine's row.
        others: by its key, where an other tensor of Hugging Face lies.
        constants: by its key, what an other tensor of the engine holds that no tensor of Hugging Face makes.
    """

    checkpoint: OneRank
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


def find_parts(checkpoint: OneRank, names: Names) -> ShardedCheckpoint:
    """Where each part of each expert of a Hugging Face checkpoint lies, and its other tensors.

    Raises:
        CheckpointError: EP207 or EP224, a tensor has no name, or there is none of an expert; EP209, an expert
            lacks a tensor or has another kind of it, or some layer has another number of experts.
    """
    checkpoint.require_experts()
    experts, others = _sort_out(checkpoint, names)
    if not experts:
        raise CheckpointError(
            "EP224", f"{checkpoint.path} has no tensor of an expert that {names.engine} has"
        )
    num_experts = _count_experts(checkpoint, experts)
    old = all_on_one_rank(num_experts, sorted({layer for layer, _ in experts}))
    return _bind_parts(checkpoint, old, names, experts, others)


def join(checkpoint: OneRank, names: Names) -> Joined:
    """Tell which tensors of a Hugging Face checkpoint make which of the engine's.

    Raises:
        CheckpointError: EP224, the engine has no name for a tensor, or cannot join two; what `find_parts` and
            `bind` raise.
    """
    parts = find_parts(checkpoint, names)
    tensors, in_engine = _engine_tensors(checkpoint, parts, names)
    constants = _constants(checkpoint, names, tensors)
    empty = {
        key: TensorAt(0, 0, TensorEntry(dtype, (), 0, len(data))) for key, (dtype, data) in constants.items()
    }
    layout = names.layout
    files = tuple(file.as_shard(layout.files[0]) for file in checkpoint.tree.files)
    shards = replace(checkpoint, layout=layout, files=files, tensors=({**tensors, **empty},))
    engine = bind(shards, parts.placement)
    tensor_of_part, offsets = _place_parts(parts, engine, names)
    contents = {key: data for key, (_, data) in constants.items()}
    return Joined(checkpoint, parts, engine, tensor_of_part, offsets, in_engine, contents)


Experts = Mapping[tuple[int, str], Mapping[int | None, TensorAt]]
"""(layer, template of Hugging Face) to the expert, or None where it is stacked, to the tensor."""


def _sort_out(checkpoint: OneRank, names: Names) -> tuple[Experts, dict[str, TensorAt]]:
    experts: dict[tuple[int, str], dict[int | None, TensorAt]] = defaultdict(dict)
    others: dict[str, TensorAt] = {}
    for key, at in checkpoint.tensors[0].items():
        template, layer, expert, is_expert = checkpoint.keys[key]
        goal = names.goals.get(template)
        if goal is None:
            raise CheckpointError(
                "EP224",
                f"{key!r} in {checkpoint.tree.files[at.file].name}: no tensor of {names.engine} for models "
                f"of type {names.family!r} is made of it",
                "--engine huggingface keeps all names",
            )
        if goal.is_expert and is_expert and layer is not None:
            experts[layer, template][expert] = at
        else:
            others[key] = at
    return experts, others


def _count_experts(checkpoint: OneRank, experts: Experts) -> int:
    """E, the same for every layer and tensor, and for config.json where that says it. Raises EP209."""
    counts = {cell: _count(checkpoint, cell, numbered) for cell, numbered in experts.items()}
    said = None if checkpoint.config is None else checkpoint.config.num_logical_experts
    in_main = {cell: count for cell, count in counts.items() if "{layer}" in cell[1]} or counts
    expected = said or Counter(in_main.values()).most_common(1)[0][0]
    source = "the model has" if said is None else "config.json says"
    for (layer, template), count in sorted(counts.items()):
        if count != expected or not count:
            name = template.replace("{layer}", str(layer))
            problem = f"{name!r} is of {count:,} experts, and {source} {expected:,}"
            raise CheckpointError("EP209", f"{checkpoint.path}: {problem}", _ONE_NUMBER)
    return expected


_ONE_NUMBER = (
    "a placement is of one number of experts: are all files there, and is config.json of this model?"
)


def _count(checkpoint: OneRank, cell: tuple[int, str], numbered: Mapping[int | None, TensorAt]) -> int:
    """How many experts a tensor of a layer is of. Raises EP209 where some in between are missing."""
    if None in numbered:
        return numbered[None].entry.shape[0]
    missing = [number for number in range(len(numbered)) if number not in numbered]
    if missing:
        layer, template = cell
        name = template.replace("{layer}", str(layer)).replace("{expert}", str(missing[0]))
        raise CheckpointError("EP209", f"{checkpoint.path} has no {name!r}, and experts beyond that number")
    return len(numbered)


def _bind_parts(
    checkpoint: OneRank, old: Placement, names: Names, experts: Experts, others: dict[str, TensorAt]
) -> ShardedCheckpoint:
    """Where each part of each expert lies in the Hugging Face files."""
    order = sorted({template for _, template in experts}, key=lambda name: names.goals[name][:2])
    tensor_of = {said.template: said.tensor for said in checkpoint.expert_keys.values()}
    layers = [] if old.layer_ids is None else old.layer_ids.tolist()
    shape = (old.num_layers, len(order))
    found = ShardedCheckpoint(
        checkpoint,
        old,
        tuple(ExpertTensor(template, tensor_of[template]) for template in order),
        np.full(shape, None, object),
        np.full(shape, None, object),
        np.zeros(shape, np.int64),
        np.full(shape, None, object),
        Extents(np.full((*shape, old.num_slots), -1, np.int32), np.zeros((*shape, old.num_slots), np.int64)),
        (others,),
    )
    row_of, column_of = ({value: number for number, value in enumerate(values)} for values in (layers, order))
    for (layer_id, template), numbered in experts.items():
        layer, part = row_of[layer_id], column_of[template]
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


def _engine_tensors(
    checkpoint: OneRank, parts: ShardedCheckpoint, names: Names
) -> tuple[dict[str, TensorAt], dict[str, PartOf]]:
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
    others, where = _engine_others(checkpoint, parts.others[0], names)
    return {**tensors, **others}, where


def _engine_others(
    checkpoint: OneRank, sources: Mapping[str, TensorAt], names: Names
) -> tuple[dict[str, TensorAt], dict[str, PartOf]]:
    """The engine's other tensors, and where in them those of Hugging Face lie."""
    members_of: dict[tuple[str, int | None], dict[int, str]] = defaultdict(dict)
    for key in sources:
        said = checkpoint.keys[key]
        goal = names.goals[said.template]
        members_of[goal.template, said.layer][goal.part] = key
    tensors: dict[str, TensorAt] = {}
    where: dict[str, PartOf] = {}
    for (template, layer), members in members_of.items():
        target = template if layer is None else template.replace("{layer}", str(layer))
        found = [members[number] for number in sorted(members)]
        entries = [sources[key].entry for key in found]
        kinds = [(entry.dtype, entry.shape) for entry in entries]
        is_complete = len(found) == len(names.fused.get(template, found[:1]))
        nbytes = sum(entry.nbytes for entry in entries)
        tensors[target] = TensorAt(0, 0, _joined(target, kinds, nbytes, complete=is_complete))
        offset = 0
        for key, entry in zip(found, entries, strict=True):
            where[key] = PartOf(target, offset)
            offset += entry.nbytes
    return tensors, where


def _constants(
    checkpoint: OneRank, names: Names, tensors: Mapping[str, TensorAt]
) -> dict[str, tuple[str, bytes]]:
    """Dtype and content of each tensor that only the engine has, for every layer that has its module.

    A layer of linear attention has no attention, and so none of its scales: an engine's loader stops at a
    tensor that it does not know as at one that is missing.
    """
    said = checkpoint.keys.values()
    layers = sorted({key.layer for key in said if key.layer is not None and "{layer}" in key.template})
    modules = {_module_in_layer(key) for key in tensors}
    found = {}
    for template, (dtype, data) in names.constants.items():
        for layer in layers:
            key = template.replace("{layer}", str(layer))
            if _module_in_layer(key) in modules:
                found[key] = dtype, bytes.fromhex(data)
    return found


def _module_in_layer(key: str) -> str:
    """`model.layers.3.self_attn` of `model.layers.3.self_attn.attn._k_scale`."""
    return ".".join(key.split(".")[:4])


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
    return OutputTree(output.files, extents, tuple(copies), output.made), np.array(whole, np.int64)


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
