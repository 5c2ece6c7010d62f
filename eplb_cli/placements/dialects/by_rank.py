"""Forms that say which experts a rank holds, instead of which expert a slot holds.

::

    expert map      vLLM (#14544), (layers, ranks, experts): the row of an expert on a rank, or -1
    expert to rank  vLLM (#34297, #34811), (experts,): the rank of each expert, the same in all layers
    pattern         OmniPlacement, (ranks, layers, experts): 1 where a rank holds an expert

The first says the row itself. The others do not, and both engines count: the first expert of a rank is in
its row 0, the next in row 1. OmniPlacement's weight loader takes the running total of a pattern's row, and
vLLM's `determine_expert_map` numbers the experts of a rank as they come.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.formats.json_text import shown
from eplb_cli.models.model import MAX_EXPERTS
from eplb_cli.placements.dialects.dialect import by_moe_index, depth, for_all_layers, not_this
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import MAX_RANKS

EXPERT_TO_RANK = "expert_to_ep_rank"
_ABSENT = -1


def cube(value: object) -> NDArray[np.int64] | None:
    """Lists of whole numbers three deep, as an array; None for anything else."""
    if depth(value) != 3:  # noqa: PLR2004
        return None
    try:
        array = np.array(value)
    except ValueError:  # no lists of equal length
        return None
    if array.ndim != 3 or array.dtype.kind not in "if":  # noqa: PLR2004 - as above
        return None
    with np.errstate(invalid="ignore"):  # NaN and infinities are no whole numbers
        whole = array.astype(np.int64)
    return whole if (whole == array).all() else None


def is_expert_map(value: object) -> bool:
    """Whether it has rows of experts, and says of some that a rank lacks them."""
    array = cube(value)
    return array is not None and array.size > 0 and array.min() == _ABSENT < array.max()


def is_pattern(value: object) -> bool:
    """Whether it has ones and zeros for several ranks; one alone looks like DeepSeek's list of one map."""
    array = cube(value)
    return array is not None and array.size > 0 and len(array) > 1 and array.min() >= 0 and array.max() == 1


def read_expert_map(name: str, value: object, hints: Hints) -> dict[str, Any]:
    """The content of (layers, ranks, experts).

    vLLM's recipe makes it as wide as there are slots: columns at the end that no rank holds are no experts.
    """
    rows = _cube_of(name, value)
    held = np.flatnonzero((rows != _ABSENT).any(axis=(0, 1)))
    is_whole = held[-1] == rows.shape[2] - 1
    experts = {"num_logical_experts": rows.shape[2]} if is_whole else {}
    return _content(name, rows, hints, experts)


def read_pattern(name: str, value: object, hints: Hints) -> dict[str, Any]:
    """The content of (ranks, layers, experts)."""
    pattern = _cube_of(name, value)
    rows = np.where(pattern == 1, pattern.cumsum(axis=2) - 1, _ABSENT).transpose(1, 0, 2)
    return _content(name, rows, hints, {"num_logical_experts": rows.shape[2]})


def read_expert_to_rank(name: str, ranks: object, hints: Hints) -> dict[str, Any]:
    """The content of (experts,): one more rank than the largest, or as many as the hints know."""
    if not isinstance(ranks, list) or not 0 < len(ranks) <= MAX_EXPERTS:
        raise not_this(name, f"{EXPERT_TO_RANK} is {shown(ranks)}, not a rank for each expert")
    for expert, rank in enumerate(ranks):
        if type(rank) is not int or not 0 <= rank < MAX_RANKS:
            raise not_this(name, f"{EXPERT_TO_RANK} has {shown(rank)} for expert {expert}, which is no rank")
    slots = np.bincount(ranks, minlength=min(max(hints.num_ranks or 0, 0), MAX_RANKS))
    row = np.argsort(ranks, kind="stable").tolist()
    return for_all_layers(row, hints, num_logical_experts=len(ranks), slots_per_rank=slots.tolist())


def _cube_of(name: str, value: object) -> NDArray[np.int64]:
    array = cube(value)
    if array is None:
        raise not_this(name, "it is not of integers in three dimensions")
    return array


def _content(name: str, rows: NDArray[np.int64], hints: Hints, experts: dict[str, int]) -> dict[str, Any]:
    """What (layers, ranks, experts) of rows says: each rank's rows are 0 to S - 1, and S is as in layer 0."""
    num_experts = rows.shape[2]
    counts = (rows != _ABSENT).sum(axis=2)
    order = np.argsort(np.where(rows == _ABSENT, num_experts, rows), axis=2, kind="stable")
    in_order = np.take_along_axis(rows, order, axis=2)
    is_filled = np.arange(num_experts) < counts[:, :, None]
    _refuse(
        name,
        (is_filled & (in_order != np.arange(num_experts))).any(axis=2),
        "its rows are not 0, 1, ...: an expert twice on a rank leaves one of them out",
    )
    _refuse(name, counts != counts[0], "other numbers of experts than in the first layer")
    table = np.concatenate([order[:, rank, :count] for rank, count in enumerate(counts[0])], axis=1)
    return by_moe_index(table.tolist(), hints, slots_per_rank=counts[0].tolist(), **experts)


def _refuse(name: str, marks: NDArray[np.bool_], problem: str) -> None:
    """EP103 for the first of the (layers, ranks) that are marked."""
    if marks.any():
        layer, rank = (int(number) for number in np.argwhere(marks)[0])
        raise not_this(name, f"MoE layer {layer}, rank {rank}: {problem}")
