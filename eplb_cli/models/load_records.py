"""Loads that were counted by slot, step by step, with the map that says which expert a slot held.

::

    vllm      expert_load and p2l_map of each record, (MoE layers, P)
    sglang    per pass: global_physical_count of each record, (hidden layers, P)
              per token: topk_ids_of_layer of each record, (hidden layers, tokens, k), -1 for none
              and of all records last_physical_to_logical_map, (hidden layers, P)

What SGLang calls topk ids there are slots: its recorder is called after experts were replaced by slots, and
adds the ids up to `global_physical_count` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.models.counted import (
    Counts,
    Load,
    by_expert,
    counts_of,
    has_booleans,
    no_load,
    of_hidden_layers,
)
from eplb_cli.models.model import Model

VLLM_RECORD = "eplb_load_stats"
SGLANG_MAP = "last_physical_to_logical_map"


def vllm_records(value: object) -> list[Any]:
    """The records of counts among the lines of a file."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict) and item.get("record_type") == VLLM_RECORD]


def read_vllm_records(name: str, records: Sequence[dict[str, Any]], model: Model | None) -> Counts:
    """(T, L, E). Raises EP119."""
    steps = []
    for record in records:
        experts = _map_of(name, "p2l_map", record)
        steps.append((_one_step(name, record.get("expert_load"), experts.shape), experts))
    return by_expert(name, steps, model)


def read_sglang_records(name: str, value: dict[str, Any], model: Model | None) -> Load:
    """The load in the records of SGLang, as it dumps them for one rank. Raises EP119."""
    records = value["records"]
    if not isinstance(records, list) or not records or not all(isinstance(item, dict) for item in records):
        raise no_load(name, "it has no records of passes")
    experts = _map_of(name, SGLANG_MAP, value)
    steps = [(_slots_of(name, record, experts.shape), experts) for record in records]
    ranks = sorted({str(record.get("rank"))[:20] for record in records})
    notes = (
        f"these are the records of rank {', '.join(ranks)} alone: SGLang writes a file for each rank",
        "the map at the end of the recording is taken for that of all its steps",
    )
    return of_hidden_layers(name, by_expert(name, steps, model), model, notes)


def _slots_of(name: str, record: dict[str, Any], shape: tuple[int, ...]) -> Counts:
    """(L, P) what the slots got in one record of SGLang."""
    if "global_physical_count" in record:
        return _one_step(name, record["global_physical_count"], shape)
    if "topk_ids_of_layer" in record:
        return _add_up(name, _integers(name, "topk_ids_of_layer", record), shape)
    raise no_load(name, "a record has neither global_physical_count nor topk_ids_of_layer")


def _one_step(name: str, value: object, shape: tuple[int, ...]) -> Counts:
    """(L, P) what the slots of a map got."""
    counts = counts_of(name, value)
    if counts.shape != (1, *shape):
        raise no_load(name, f"a map {shape} does not say the expert of each slot of {counts.shape[1:]}")
    return np.asarray(counts[0])


def _add_up(name: str, ids: NDArray[np.int64], shape: tuple[int, ...]) -> Counts:
    """(L, P) how often each slot is among the ids (L, tokens, k)."""
    num_layers, num_slots = shape
    if ids.ndim != 3 or len(ids) != num_layers:  # noqa: PLR2004
        raise no_load(name, f"topk_ids_of_layer has the shape {ids.shape}, and the map {num_layers:,} layers")
    if ids.size and not -1 <= ids.min() <= ids.max() < num_slots:
        raise no_load(name, f"topk_ids_of_layer has a slot beyond the {num_slots:,} of the map")
    rows = ids.reshape(num_layers, -1)
    return np.array([np.bincount(row[row >= 0], minlength=num_slots) for row in rows], np.float64)


def _map_of(name: str, key: str, record: dict[str, Any]) -> NDArray[np.int64]:
    """(L, P) the expert of each slot."""
    experts = _integers(name, key, record)
    if experts.ndim != 2 or not experts.size:  # noqa: PLR2004
        raise no_load(name, f"a {key} does not say the expert of each slot: it has the shape {experts.shape}")
    return experts


def _integers(name: str, key: str, record: dict[str, Any]) -> NDArray[np.int64]:
    try:
        found = np.asarray(record.get(key))
    except ValueError as error:
        raise no_load(name, f"a {key} is no rectangle") from error
    if found.dtype.kind != "i" or has_booleans(record.get(key)):
        raise no_load(name, f"a {key} does not say experts or slots")
    return found.astype(np.int64)
