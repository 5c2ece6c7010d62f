"""How many tokens each expert got: the dumps of the engines, read into one form.

::

    sglang    the recorder's .pt: logical_count (steps, hidden layers, E), or without steps
    vllm      JSON lines of record_type eplb_load_stats: expert_load and p2l_map, (MoE layers, P) each
    array     .npy, .pt or JSON: (MoE layers, E) or (steps, MoE layers, E)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError
from eplb_cli.formats.budget import NotReadableError
from eplb_cli.formats.document import parse_document
from eplb_cli.formats.reading import read_bytes
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS, Model

RECORD = "eplb_load_stats"
_NUMBERS = "iuf"
"""Kinds of arrays that count: no booleans, words, dates or spans of time, and no half of a complex number."""

_MAX_COUNT = 1 << 53

Counts = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Load:
    """A load.

    Attributes:
        form: "sglang", "vllm" or "array".
        counts: (T, L, E) float64, tokens that each expert got in each step.
        layer_ids: (L,) the model's own layer numbers, None where nothing says them.
        notes: what was left out.
    """

    form: str
    counts: Counts
    layer_ids: NDArray[np.int64] | None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Counts:
        """(L, E) tokens of all steps."""
        return np.asarray(self.counts.sum(axis=0))


def read_load(name: str, model: Model | None = None) -> Load:
    """The load in a file.

    Args:
        model: says which hidden layers are MoE layers, and what the rows of the others are.

    Raises:
        PlacementError: EP101 or EP119, the file cannot be read or holds no load.
    """
    try:
        value = parse_document(name, read_bytes(name)).value
    except NotReadableError as error:
        raise _no_load(name, error.message) from error
    records = _records(value)
    if records:
        return _of_moe_layers(name, "vllm", _physical_counts(name, records, model), model)
    if isinstance(value, dict) and "logical_count" in value:
        return _of_hidden_layers(name, _counts(name, value["logical_count"]), model)
    if isinstance(value, list | np.ndarray):
        return _of_moe_layers(name, "array", _counts(name, value), model)
    raise _no_load(name, "neither logical_count, nor records of vLLM, nor an array of counts")


def _records(value: object) -> list[Any]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict) and item.get("record_type") == RECORD]


def _counts(name: str, value: object) -> Counts:
    """(T, L, E) from (L, E) or (T, L, E). Raises EP119 for what counts nothing."""
    try:
        found = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_load(name, "its counts are no rectangle of numbers") from error
    found = found[None] if found.ndim == 2 else found  # noqa: PLR2004
    if found.ndim != 3 or not found.size:  # noqa: PLR2004
        raise _no_load(name, f"its counts have the shape {found.shape}, not (steps, layers, experts)")
    if found.shape[1] > MAX_LAYERS or found.shape[2] > MAX_EXPERTS:
        raise _no_load(name, f"it has {found.shape[1]:,} layers of {found.shape[2]:,} experts")
    if found.dtype.kind not in _NUMBERS or _has_booleans(value):
        raise _no_load(name, f"its counts are no rectangle of numbers, but of {str(found.dtype)[:80]}")
    with np.errstate(over="ignore"):  # longer floats than Python's become infinite, and are refused as such
        counts = found.astype(np.float64)
    if not ((counts >= 0) & (counts <= _MAX_COUNT)).all():  # NaN is neither
        raise _no_load(name, "a count is negative, or no number of tokens")
    return counts


def _has_booleans(value: object) -> bool:
    """Whether a boolean is among the items of lists, where numpy takes it for 0 or 1."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind == "b")
    if not isinstance(value, list):
        return False
    kinds = set(map(type, value))
    inner = (item for item in value if isinstance(item, list | np.ndarray)) if kinds - {int, float} else ()
    return bool in kinds or any(map(_has_booleans, inner))


def _physical_counts(name: str, records: Sequence[dict[str, Any]], model: Model | None) -> Counts:
    """(T, L, E): what the slots got, added up by the experts they held at each step."""
    steps = []
    for record in records:
        slots = _counts(name, record.get("expert_load"))[0]
        try:
            experts = np.asarray(record.get("p2l_map"))
        except ValueError as error:
            raise _no_load(name, "a p2l_map is no rectangle") from error
        is_map = experts.dtype.kind == "i" and not _has_booleans(record.get("p2l_map"))
        if experts.shape != slots.shape or not is_map:
            raise _no_load(name, "a p2l_map does not say the expert of each slot of expert_load")
        steps.append((slots, experts.astype(np.int64)))
    known = None if model is None else model.num_logical_experts
    num_experts = known or 1 + max(int(experts.max()) for _, experts in steps)
    if any(slots.shape[0] != steps[0][0].shape[0] for slots, _ in steps):
        raise _no_load(name, "its records differ in layers")
    if num_experts > MAX_EXPERTS or any(experts.max() >= num_experts for _, experts in steps):
        raise _no_load(name, f"a p2l_map has an expert beyond {num_experts:,}")
    return np.stack([_by_expert(slots, experts, num_experts) for slots, experts in steps])


def _by_expert(slots: Counts, experts: NDArray[np.int64], num_experts: int) -> Counts:
    """(L, E); what an empty slot got counts for nobody."""
    layer, slot = np.nonzero(experts >= 0)
    key = layer * num_experts + experts[layer, slot]
    sums = np.zeros(len(slots) * num_experts)
    np.add.at(sums, key, slots[layer, slot])
    return sums.reshape(len(slots), num_experts)


def _of_moe_layers(name: str, form: str, counts: Counts, model: Model | None) -> Load:
    if model is None:
        return Load(form, counts, None)
    _check_model(name, counts, model, len(model.moe_layers), "MoE")
    return Load(form, counts, np.array(model.moe_layers, np.int64))


def _of_hidden_layers(name: str, counts: Counts, model: Model | None) -> Load:
    """Only rows of MoE layers; without a model those are the ones that counted anything."""
    if model is not None and model.num_hidden_layers is not None:
        _check_model(name, counts, model, model.num_hidden_layers, "hidden")
        layers = np.array(model.moe_layers, np.int64)
        return Load("sglang", counts[:, layers], layers)
    layers = np.flatnonzero(counts.any(axis=(0, 2)))
    if not len(layers):
        raise _no_load(name, "no layer counted a token")
    left_out = counts.shape[1] - len(layers)
    notes = (f"{left_out:,} layers without any token are taken for dense ones",) if left_out else ()
    return Load("sglang", counts[:, layers], layers, notes)


def _check_model(name: str, counts: Counts, model: Model, num_layers: int, kind: str) -> None:
    found = counts.shape[1:]
    experts = model.num_logical_experts or found[1]
    if found != (num_layers, experts):
        said = f"{num_layers:,} {kind} layers of {experts:,} experts"
        raise _no_load(
            name, f"it counts {found[0]:,} layers of {found[1]:,} experts; {model.name} has {said}"
        )


def _no_load(name: str, problem: str) -> PlacementError:
    return PlacementError("EP119", f"{name} holds no load: {problem}")
