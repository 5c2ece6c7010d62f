"""What a dialect is, and what several of them share: how layers are counted, and what cannot be said.

Dialects differ in how they number layers. DeepSeek-V3 has layers 0 to 60, of which 3 to 60 are MoE layers::

    MoE index           0 ... 57     vllm, ascend, deepseek
    the model's number  3 ... 60     eplb, tensorrt-llm
    all hidden layers   0 ... 60     sglang: a row for dense layers too
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import FORMAT, MAP
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass

Note = Callable[[str, str], None]
"""Takes the code and the message of a warning."""


@dataclass(frozen=True)
class Dialect:
    """A way to write a placement down.

    Attributes:
        suffixes: of the files it is written to, the usual one first.
        fits: whether a value may be of this dialect.
        read: the content of an eplb-placement/1 file that says the same. Raises PlacementError.
        write: the text of a file with one of the suffixes. Raises EP117 for what it cannot say.
        has_mtp: it has rows for MTP layers, which the others do not count.
    """

    name: str
    suffixes: tuple[str, ...]
    fits: Callable[[Any], bool]
    read: Callable[[Any, Hints, Note], Mapping[str, Any]]
    write: Callable[[Placement, Hints, str], str]
    has_mtp: bool = False


def content(rows: object, layer_ids: Sequence[int] | None = None, **keys: object) -> dict[str, Any]:
    """The content of an eplb-placement/1 file."""
    numbers = {} if layer_ids is None else {"layer_ids": list(layer_ids)}
    return {"format": FORMAT, **keys, **numbers, MAP: rows}


def not_this(name: str, problem: str, hint: str = "") -> PlacementError:
    """EP103 for a value that is not well-formed in a dialect."""
    return PlacementError("EP103", f"not a placement of {name}: {problem}", hint)


def by_moe_index(rows: object, hints: Hints, **keys: object) -> dict[str, Any]:
    """The content of rows that are the MoE layers in their order."""
    layers = hints.own_layers
    if layers is None or not isinstance(rows, list) or len(rows) != len(layers):
        return content(rows, None, **keys)
    return content(rows, layers, **keys)


def for_all_layers(row: list[int], hints: Hints, **keys: object) -> dict[str, Any]:
    """The content of one row that is meant for every MoE layer: of one, where nothing says how many."""
    layers = hints.own_layers
    count = len(layers) if layers is not None else hints.num_layers or 1
    return by_moe_index([row] * count, hints, **keys)


def depth(value: object) -> int:
    """How many lists are in each other, down the first item of each."""
    return 1 + depth(value[0]) if isinstance(value, list) and value else 0


def lossy(name: str, problem: str, hint: str = "") -> PlacementError:
    """EP117 for what a dialect cannot say."""
    return PlacementError("EP117", f"{name} cannot say that {problem}", hint)


def require_even(placement: Placement, name: str) -> None:
    """EP117 where ranks differ in slots: the dialect has no ranks, or as many slots on each."""
    slots = placement.slots_per_rank
    if (slots != slots[0]).any():
        rank = int(np.flatnonzero(slots != slots[0])[0])
        raise lossy(name, f"rank 0 has {slots[0]:,} slots and rank {rank} has {slots[rank]:,}")


def require_full(placement: Placement, name: str) -> None:
    """EP117 where a slot is empty."""
    empty = np.argwhere(placement.physical_to_logical == EMPTY)
    if len(empty):
        layer, slot = (int(number) for number in empty[0])
        raise lossy(name, f"layer {placement.layer_number(layer)}, slot {slot} is empty")


def moe_table(placement: Placement, hints: Hints, name: str) -> NDArray[np.int64]:
    """(L, P) with a row for each MoE layer of the model, in their order.

    Raises:
        PlacementError: EP117, the rows are others, or whether they are those nothing says.
    """
    if placement.layer_ids is None:
        return placement.physical_to_logical
    numbers = placement.layer_ids.tolist()
    layers = hints.own_layers
    if layers is None:
        layers = list(range(min(numbers), max(numbers) + 1))
    missing, further = sorted(set(layers) - set(numbers)), sorted(set(numbers) - set(layers))
    if missing and hints.model is None and hints.layer_ids is None:
        hint = "say which layers have experts: --model PRESET|config.json"
        raise lossy(name, f"layer {missing[0]} is between the others and has no row", hint)
    if missing:
        raise lossy(name, f"MoE layer {missing[0]} has no row")
    if further:
        raise lossy(name, f"layer {further[0]}, which is none of the model's counted MoE layers, has a row")
    return placement.physical_to_logical[np.argsort(placement.layer_ids)]


def layer_numbers(placement: Placement, hints: Hints, name: str) -> list[int]:
    """The model's own number of each row. Raises EP117 where nothing says them."""
    if placement.layer_ids is not None:
        return [int(layer) for layer in placement.layer_ids]
    layers = hints.own_layers
    if layers is None or len(layers) != placement.num_layers:
        known = "" if layers is None else f", and the model has {len(layers):,} MoE layers"
        raise PlacementError(
            "EP117",
            f"{name} needs the model's own number of each of the {placement.num_layers:,} rows{known}",
            "say them: layer_ids in the file, or --model PRESET|config.json",
        )
    return layers


def json_rows(table: NDArray[np.int64]) -> str:
    """A list of lists of integers, a row a line."""
    return ",\n  ".join(str(row) for row in table.tolist())
