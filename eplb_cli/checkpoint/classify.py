"""Every tensor of a shard is an expert's or another; nothing passes that is neither."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from eplb_cli.checkpoint.layout import ExpertKey, Layout
from eplb_cli.errors import CheckpointError

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import TensorAt


Cell = tuple[int, str, str]
"""(the model's own layer number, template, tensor)."""


Experts = Mapping[Cell, Mapping[int, Mapping[int | None, "TensorAt"]]]
"""Cell → rank → number in the key (None if stacked) → tensor."""


class SplitTensors(NamedTuple):
    """Expert tensors, and per rank the other tensors."""

    experts: Experts
    others: tuple[dict[str, TensorAt], ...]


def split_tensors(
    layout: Layout,
    tensors: Sequence[Mapping[str, TensorAt]],
    layer_ids: Sequence[int],
    slots_per_rank: Sequence[int],
) -> SplitTensors:
    """Tell expert tensors of the placed layers from the others.

    Raises:
        CheckpointError: EP207, EP208, EP209 or EP211, naming the tensor and the rank.
    """
    experts: dict[Cell, dict[int, dict[int | None, TensorAt]]] = defaultdict(lambda: defaultdict(dict))
    others: tuple[dict[str, TensorAt], ...] = tuple({} for _ in tensors)
    placed = set(layer_ids)
    for rank, of_rank in enumerate(tensors):
        for key, at in of_rank.items():
            found = _expert_key(layout, key, at, rank)
            if found is not None and found.layer in placed and _has_rows(layout, found, at, rank):
                experts[found.layer, found.template, found.tensor][rank][found.number] = at
            else:
                others[rank][key] = at
    _check_ranks(layout, experts, others, slots_per_rank)
    if layout.numbering == "stacked":
        _check_rows(layout, experts, slots_per_rank)
    return SplitTensors(experts, others)


def _expert_key(layout: Layout, key: str, at: TensorAt, rank: int) -> ExpertKey | None:
    """What the key says; None for another tensor."""
    found = layout.match_key(key)
    is_number = not at.entry.shape and layout.numbering == "stacked"
    if found is None and not is_number and not layout.is_known_other(key):
        raise CheckpointError(
            "EP207",
            f"{key!r} on rank {rank} looks like an expert's, and layout {layout.name} does not know it",
        )
    return found


def _has_rows(layout: Layout, key: ExpertKey, at: TensorAt, rank: int) -> bool:
    """Whether a known tensor of an expert has a dimension for rows; EP208 where it has none and must."""
    if layout.numbering != "stacked" or at.entry.shape:
        return True
    if key.tensor in layout.tensors:
        name = key.template.replace("{layer}", str(key.layer))
        raise CheckpointError("EP208", f"{name!r} on rank {rank} has no dimension, and so no rows")
    return False


def _check_ranks(
    layout: Layout,
    experts: Experts,
    others: Sequence[Mapping[str, TensorAt]],
    slots_per_rank: Sequence[int],
) -> None:
    """An expert tensor that one rank has, every rank with slots has."""
    for (layer, template, tensor), ranks in experts.items():
        absent = [rank for rank, slots in enumerate(slots_per_rank) if slots and rank not in ranks]
        if not absent or layout.numbering == "expert":
            continue
        key = template.replace("{layer}", str(layer))
        if tensor in layout.input_scales and any(key in others[rank] for rank in absent):
            raise _input_scale(key, absent[0])
        code = "EP210" if tensor in layout.scales else "EP209"
        raise CheckpointError(code, f"{key!r} is missing on rank {absent[0]}, and rank {min(ranks)} has it")


def _check_rows(
    layout: Layout,
    experts: Experts,
    slots_per_rank: Sequence[int],
) -> None:
    """Dim 0 of a stacked expert tensor is the rank's row count."""
    for (layer, template, tensor), ranks in experts.items():
        for rank, numbered in ranks.items():
            entry = numbered[None].entry
            if rank < len(slots_per_rank) and entry.shape[0] != slots_per_rank[rank]:
                key = template.replace("{layer}", str(layer))
                if tensor in layout.input_scales:
                    raise _input_scale(key, rank)
                raise CheckpointError(
                    "EP208",
                    f"{key!r} on rank {rank} is {list(entry.shape)}: "
                    f"{entry.shape[0]} rows where OLD has {slots_per_rank[rank]}",
                )


def _input_scale(key: str, rank: int) -> CheckpointError:
    return CheckpointError(
        "EP211", f"{key!r} on rank {rank} has neither one value nor one per row on every rank"
    )


def check_scales(layout: Layout, experts: Experts) -> None:
    """Refuse a layer that has a scale without its weight, or lacks a scale its like have.

    A weight has like: the same tensor in another layer, or another weight of the layer, of the same
    dtype. Where such a one has a kind of scale, this one must have it.

    Raises:
        CheckpointError: EP210, naming the layer and the tensor.
    """
    present: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
    for cell in experts:
        layer, template, tensor = cell
        present[layer, layout.family(template, tensor)][tensor] = _dtype(experts[cell])
    kinds = {
        (weight_dtype, _kind(scale, weight))
        for tensors in present.values()
        for scale, weights in layout.scales.items()
        for weight in weights.split()
        if scale in tensors and (weight_dtype := tensors.get(weight))
    }
    for (layer, family), tensors in sorted(present.items()):
        for scale, weights in layout.scales.items():
            owners = [weight for weight in weights.split() if weight in tensors]
            where = f"layer {layer}: {family.replace('{layer}', str(layer))}"
            if scale in tensors and not owners:
                found = where.replace("{tensor}", scale)
                raise CheckpointError("EP210", f"{found} is there without {weights.split()[0]}")
            lacks = [weight for weight in owners if (tensors[weight], _kind(scale, weight)) in kinds]
            if lacks and scale not in tensors:
                raise CheckpointError(
                    "EP210",
                    f"{where.replace('{tensor}', lacks[0])} is there without {scale}",
                )


def _kind(scale: str, weight: str) -> str:
    """What a scale adds to the name of its weight: "_scale_inv", say."""
    shared = len([1 for a, b in zip(scale, weight, strict=False) if a == b])
    return scale[shared:]


def _dtype(ranks: Mapping[int, Mapping[int | None, TensorAt]]) -> str:
    numbered = next(iter(ranks.values()))
    return next(iter(numbered.values())).entry.dtype
