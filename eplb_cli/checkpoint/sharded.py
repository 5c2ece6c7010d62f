"""Shards with a placement laid over them: where every row of every expert lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.classify import check_scales, groups_of, split_tensors
from eplb_cli.checkpoint.complete import check_complete, is_scale
from eplb_cli.checkpoint.expert_maps import map_keys
from eplb_cli.checkpoint.known import known_digests
from eplb_cli.checkpoint.layout import has_parts, numbering
from eplb_cli.checkpoint.others import lacking_others, looks_sharded
from eplb_cli.checkpoint.places import Extents, Places, old_places, other_numbers
from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import row_nbytes_of
from eplb_cli.models.names import looks_like_experts
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass

_MAX_ROWS = 1 << 27
"""(L, K, P) of no checkpoint; where rows lie takes 12 bytes each."""


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
        rank_numbers: keys of others that a rank may have computed from its own experts.
        chosen_rank: keys of others of which all new ranks get what one old rank has.
        decisions: what had to be decided for a plan, as `eplb.json` holds it.
        odd: what is odd about its tensors, and yet no reason to refuse them.
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
    rank_numbers: frozenset[str] = frozenset()
    chosen_rank: Mapping[str, int] = field(default_factory=dict)
    decisions: Mapping[str, object] = field(default_factory=dict)
    odd: tuple[str, ...] = ()

    @property
    def expert_nbytes(self) -> NDArray[np.int64]:
        """(L,) bytes of one expert with all its tensors."""
        return np.asarray(self.row_nbytes.sum(axis=1), np.int64)

    @cached_property
    def maps(self) -> Mapping[str, int]:
        """Keys of others that say where experts are, and the layer of each."""
        return dict(map_keys(self.shards))

    @property
    def settled(self) -> frozenset[str]:
        """Keys of others that new ranks do not have from the old rank of their number."""
        return frozenset({*self.maps, *self.chosen_rank})

    @property
    def settled_places(self) -> list[int]:
        """The places of settled tensors, in the order of `places`."""
        settled, numbers = self.settled, other_numbers(self.others)
        return [self.extents.file.size + number for (_, key), number in numbers.items() if key in settled]

    @cached_property
    def sharded_others(self) -> list[str]:
        """Other tensors that look sharded over the ranks, by their shapes alone."""
        shapes = [{key: at.entry.shape for key, at in tensors.items()} for tensors in self.others]
        num_ranks = len(self.shards.recorded_ranks) + len(self.shards.lost)
        return looks_sharded(shapes, self.shards.config, num_ranks)

    @property
    def can_share(self) -> bool:
        """Whether ranks can have files in common: each of them has several, and there are several ranks."""
        return self.placement.num_ranks > 1 and any(has_parts(file.name.series) for file in self.shards.files)

    @cached_property
    def places(self) -> Places:
        """Where everything lies in SRC."""
        return old_places(self.extents, self.row_nbytes, self.placement.rank_of_slot, self.others)

    @cached_property
    def known_digests(self) -> Digests | None:
        """(X, 16) digests of the places that the manifest has, zero for the others; None without any.

        Raises:
            CheckpointError: EP214, the digests beside the shards cannot be used, or are not there.
        """
        templates = [tensor.template for tensor in self.expert_tensors]
        return known_digests(self.shards, self.placement, templates, self.others)

    @cached_property
    def warnings(self) -> list[str]:
        """What is odd, and yet no reason to refuse: tensors that some layer or rank lacks."""
        return [*self.odd, *lacking_others(self.others)]


def with_layers(placement: Placement, shards: Shards) -> Placement:
    """`placement` with layer_ids, taken from the shards where it has none. Raises EP212."""
    layers = shards.layers
    if placement.layer_ids is None:
        for known in (layers.placed, shards.moe_layers):
            if placement.num_layers == len(known):
                return replace(placement, layer_ids=np.array(known, np.int64))
        beside = f" ({len(layers.beside)} of them of MTP or another module)" if layers.beside else ""
        raise CheckpointError(
            "EP212",
            f"the placement has {placement.num_layers} of the {len(shards.moe_layers)} MoE layers in "
            f"{shards.path}{beside}, and does not say which",
            "add layer_ids to the placement: `eplb inspect SRC` lists the numbers",
        )
    missing = sorted(set(placement.layer_ids.tolist()) - set(shards.moe_layers))
    if missing:
        raise _without_experts(shards, missing[0])
    return placement


def with_layers_beside(new: Placement, old: Placement, shards: Shards) -> Placement:
    """NEW with layer_ids, from the shards where it has none.

    Raises:
        CheckpointError: EP212, as `with_layers`; OLD has its layers in another order than their numbers, and
            NEW, which has not as many, may mean either.
    """
    ids = None if old.layer_ids is None else old.layer_ids
    if new.layer_ids is None and ids is not None and (np.diff(ids) < 0).any():
        raise CheckpointError(
            "EP212",
            f"NEW has {new.num_layers} layers and does not say which, and OLD has its {old.num_layers} in "
            "another order than that of their numbers",
            "add layer_ids to NEW: `eplb inspect SRC` lists the numbers",
        )
    return with_layers(new, shards)


def _without_experts(shards: Shards, layer: int) -> CheckpointError:
    """EP212 for a layer of which no tensor is known to be an expert's."""
    strange = [
        key
        for key in dict.fromkeys(chain.from_iterable(shards.tensors))
        if f".{layer}." in f".{key}" and looks_like_experts(key) and key not in shards.expert_keys
    ]
    if strange:
        problem = (
            f"layer {layer} has no tensor that layout {shards.layout.name} knows: what is {strange[0]!r}?"
        )
        return CheckpointError("EP212", problem, "describe it in a layout file: see docs/layouts.md")
    return CheckpointError("EP212", f"layer {layer} of the placement has no experts in {shards.path}")


def require_ranks(shards: Shards, old: Placement) -> None:
    """EP202 where OLD has other ranks than there are files of."""
    if old.num_ranks != shards.num_ranks:
        asked = "" if shards.pool is None else shards.pool.asked
        problem = f"OLD has {old.num_ranks} ranks, and {shards.path} has files of {shards.num_ranks}"
        lacks = f": rank {shards.num_ranks} is missing" if old.num_ranks > shards.num_ranks else ""
        raise CheckpointError("EP202", problem + lacks + asked)


def bind(shards: Shards, old: Placement) -> ShardedCheckpoint:
    """Lay OLD over the shards and check that it fits them.

    Raises:
        CheckpointError: EP202, EP207 to EP212, EP217, EP230, naming the tensor, layer and rank.
    """
    old = with_layers(old, shards)
    require_ranks(shards, old)
    layer_ids = [] if old.layer_ids is None else old.layer_ids.tolist()
    split = split_tensors(shards, layer_ids, old.slots_per_rank.tolist())
    odd = _check_tensors(shards)
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
        split.rank_numbers,
        odd=tuple(odd),
    )
    layer_index = {layer: index for index, layer in enumerate(layer_ids)}
    tensor_index = {tensor.template: index for index, tensor in enumerate(tensors)}
    for (layer, template, _), ranks in split.experts.items():
        _place(found, layer_index[layer], tensor_index[template], ranks)
    for array in (found.row_nbytes, found.extents.file, found.extents.offset):
        array.setflags(write=False)
    return found


def _check_tensors(shards: Shards) -> list[str]:
    """Refuse layers that lack tensors, EP210 and EP230; sentences on what they may lack."""
    if shards.layout.experts:
        check_scales(shards)
        return []
    names = {layer: shards.layers.name(layer) for layer in shards.moe_layers}
    return check_complete(groups_of(shards), names)


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
            nbytes = row_nbytes_of(template, at.entry.dtype, row_shape)
            checkpoint.row_nbytes[layer, tensor] = nbytes
            checkpoint.extents.file[layer, tensor, slot] = at.file
            checkpoint.extents.offset[layer, tensor, slot] = at.offset + row * nbytes
    where = f"{template!r}, layer {old.layer_number(layer)}"
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
        code = "EP210" if is_scale(found.tensor) else "EP209"
        raise CheckpointError(
            code,
            f"{found.template!r}, layer {old.layer_number(layer)}: missing on rank {old.rank_of_slot[slot]}, "
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
    by_expert = numbering(template) == "expert"
    if numbering(template) == "stacked":
        at = numbered[None]
        yield slice(first, last), at, at.entry.shape[1:], np.arange(last - first)
        return
    if not by_expert:
        slots = {number: first + number for number in range(last - first)}
    else:
        experts = old.physical_to_logical[layer, first:last]
        slots = {int(expert): first + row for row, expert in enumerate(experts) if expert != EMPTY}
        refuse_twice(experts, old.layer_number(layer), rank)
    if slots.keys() != numbered.keys():
        wrong = min(number for number in slots.keys() ^ numbered.keys() if number is not None)
        only = "in the shard and not in OLD" if wrong in numbered else "in OLD and not in the shard"
        raise CheckpointError(
            "EP217" if by_expert else "EP208",
            f"rank {rank}, layer {old.layer_number(layer)}: {'expert' if by_expert else 'row'} {wrong} of "
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
        )
