"""Every tensor of a shard is an expert's or another; nothing passes that is neither."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from eplb_cli.checkpoint.complete import Group, is_scale, is_weight
from eplb_cli.checkpoint.layout import numbering
from eplb_cli.errors import CheckpointError

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import PlacedKey, Shards, TensorAt


Cell = tuple[int, str, str]
"""(the model's own layer number, template, tensor)."""


Experts = Mapping[Cell, Mapping[int, Mapping[int | None, "TensorAt"]]]
"""Cell → rank → number in the key (None if stacked) → tensor."""


class SplitTensors(NamedTuple):
    """What the tensors of all ranks are.

    Attributes:
        experts: those with rows.
        others: per rank, all the rest by key.
        rank_numbers: keys of others under a module of placed experts that have no row for each: a rank may
            have computed them from its own experts.
    """

    experts: Experts
    others: tuple[dict[str, TensorAt], ...]
    rank_numbers: frozenset[str]


def split_tensors(shards: Shards, layer_ids: Sequence[int], slots_per_rank: Sequence[int]) -> SplitTensors:
    """Tell expert tensors of the placed layers from the others.

    Raises:
        CheckpointError: EP207, EP208, EP209 or EP211, naming the tensor and the rank.
    """
    experts: dict[Cell, dict[int, dict[int | None, TensorAt]]] = defaultdict(lambda: defaultdict(dict))
    others: tuple[dict[str, TensorAt], ...] = tuple({} for _ in shards.tensors)
    placed, strange = set(layer_ids), _strange_layers(shards)
    rank_numbers: set[str] = set()
    for rank, of_rank in enumerate(shards.tensors):
        for key, at in of_rank.items():
            found = _expert_key(shards, key, at, rank, strange)
            is_placed = found is not None and found.layer in placed
            if found is not None and is_placed and _has_rows(shards, found, key, at, rank):
                experts[found.layer, found.template, found.tensor][rank][found.number] = at
                continue
            others[rank][key] = at
            if is_placed or (found is None and not shards.layout.is_known_other(key)):
                rank_numbers.add(key)
    _check_ranks(experts, others, slots_per_rank)
    _check_rows(shards, experts, slots_per_rank)
    return SplitTensors(experts, others, frozenset(rank_numbers))


def _strange_layers(shards: Shards) -> set[int]:
    """Layers of other modules than the main one in which nothing has a name like that of a weight.

    What is there may be of a layer of the main module, under a name that nobody knows.
    """
    if shards.layout.experts:
        return set()
    groups = groups_of(shards)
    known = {tensor for group in groups if group.layer in shards.layers.placed for tensor in group.dtypes}
    beside = [group for group in groups if group.layer in shards.layers.beside]
    return {
        group.layer for group in beside if not any(is_weight(name) or name in known for name in group.dtypes)
    }


def _expert_key(
    shards: Shards, key: str, at: TensorAt, rank: int, strange: Container[int]
) -> PlacedKey | None:
    """What the key says; None for another tensor."""
    found, layout = shards.expert_keys.get(key), shards.layout
    if found is not None and found.layer in strange:
        name = shards.layers.name(found.layer)
        problem = f"{key!r} on rank {rank} is of experts of another module, layer {name}, without any weight"
        raise CheckpointError("EP207", problem)
    if found is None and not layout.is_known_other(key) and (at.entry.shape or not layout.experts):
        raise CheckpointError(
            "EP207",
            f"{key!r} on rank {rank} looks like an expert's, and layout {layout.name} does not know it",
        )
    return found


def _has_rows(shards: Shards, found: PlacedKey, key: str, at: TensorAt, rank: int) -> bool:
    """Whether a tensor of an expert has a dimension for rows; EP208 where it has none and must."""
    if found.number is not None or at.entry.shape not in ((), (1,)):
        return True
    if at.entry.shape and shards.rows_of(found.layer)[rank] == 1:
        return True
    if is_weight(found.tensor) or found.tensor in shards.layout.tensors:
        raise CheckpointError("EP208", f"{key!r} on rank {rank} has no dimension, and so no rows")
    return False


def _check_ranks(
    experts: Experts, others: Sequence[Mapping[str, TensorAt]], slots_per_rank: Sequence[int]
) -> None:
    """An expert tensor that one rank has, every rank with slots has."""
    for (layer, template, tensor), ranks in experts.items():
        absent = [rank for rank, slots in enumerate(slots_per_rank) if slots and rank not in ranks]
        if not absent or numbering(template) == "expert":
            continue
        key = template.replace("{layer}", str(layer))
        if any(key in others[rank] for rank in absent):
            raise _uneven(key, absent[0])
        code = "EP210" if is_scale(tensor) else "EP209"
        raise CheckpointError(code, f"{key!r} is missing on rank {absent[0]}, and rank {min(ranks)} has it")


def _check_rows(shards: Shards, experts: Experts, slots_per_rank: Sequence[int]) -> None:
    """Dim 0 of a stacked expert tensor is the rank's row count."""
    for (layer, template, tensor), ranks in experts.items():
        for rank, numbered in ranks.items():
            if None not in numbered or rank >= len(slots_per_rank):
                continue
            shape, slots = numbered[None].entry.shape, slots_per_rank[rank]
            if shape[0] == slots:
                continue
            key, rows = template.replace("{layer}", str(layer)), shards.rows_of(layer)[rank]
            if shape[0] == rows:
                problem = f"{shape[0]} rows where OLD has {slots}"
                raise CheckpointError("EP208", f"{key!r} on rank {rank} is {list(shape)}: {problem}")
            if "input" in tensor or tensor in shards.layout.input_scales:
                raise _uneven(key, rank)
            problem = f"is {list(shape)}, and the rank has {rows} rows of experts: nothing says what it is"
            raise CheckpointError("EP207", f"{key!r} on rank {rank} {problem}")


def _uneven(key: str, rank: int) -> CheckpointError:
    return CheckpointError(
        "EP211", f"{key!r} on rank {rank} has neither one value nor one per row on every rank"
    )


def groups_of(shards: Shards) -> list[Group]:
    """The tensors of every module of experts, of layers that no placement names too."""
    dtypes: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
    for tensors in shards.tensors:
        for key, at in tensors.items():
            found = shards.expert_keys.get(key)
            if found is not None:
                dtypes[found.layer, found.home].setdefault(found.tensor, at.entry.dtype)
    return [Group(layer, home, found) for (layer, home), found in sorted(dtypes.items())]


def check_scales(shards: Shards) -> None:
    """Refuse a layer that has a scale without its weight, or lacks a scale its like have.

    A weight has like: the same tensor in another layer, or another weight of the layer, of the same
    dtype. Where such a one has a kind of scale, this one must have it.

    Raises:
        CheckpointError: EP210, naming the layer and the tensor.
    """
    layout = shards.layout
    present = {(group.layer, group.home): group.dtypes for group in groups_of(shards)}
    kinds = {
        (weight_dtype, _kind(scale, weight))
        for tensors in present.values()
        for scale, weights in layout.scales.items()
        for weight in weights.split()
        if scale in tensors and (weight_dtype := tensors.get(weight))
    }
    for (layer, home), tensors in sorted(present.items()):
        for scale, weights in layout.scales.items():
            owners = [weight for weight in weights.split() if weight in tensors]
            lacks = [weight for weight in owners if (tensors[weight], _kind(scale, weight)) in kinds]
            found, missing = "", ""
            if scale in tensors and not owners:
                found, missing = scale, weights.split()[0]
            elif lacks and scale not in tensors:
                found, missing = lacks[0], scale
            if found:
                name = home.replace("{tensor}", found)
                raise CheckpointError("EP210", f"layer {layer}: {name} is there without {missing}")


def _kind(scale: str, weight: str) -> str:
    """What a scale adds to the name of its weight: "_scale_inv", say."""
    shared = len([1 for a, b in zip(scale, weight, strict=False) if a == b])
    return scale[shared:]
