"""A load, and what all its forms share: counts that are checked, slots that become experts, layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS, Model
from eplb_cli.values import dataclass

MAX_COUNTS = 1 << 24
"""Steps × layers × experts of no load; a file that names a few large numbers could take any memory."""

_NUMBERS = "iuf"
"""Kinds of arrays that count: no booleans, words, dates or spans of time, and no half of a complex number."""

_MAX_COUNT = 1 << 53

Counts = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Load:
    """A load.

    Attributes:
        form: "sglang", "vllm", "tensorrt-llm", "mindspeed-rl", "msit" or "array".
        counts: (T, L, E) float64, tokens that each expert got in each step.
        layer_ids: (L,) the model's own layer numbers, None where nothing says them.
        notes: what was left out, and what was taken for granted.
    """

    form: str
    counts: Counts
    layer_ids: NDArray[np.int64] | None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Counts:
        """(L, E) tokens of all steps."""
        return np.asarray(self.counts.sum(axis=0))


def no_load(name: str, problem: str, hint: str = "") -> PlacementError:
    """EP119 for a file that holds no load, or one that cannot be by expert."""
    return PlacementError("EP119", f"{name} holds no load: {problem}", hint)


def counts_of(name: str, value: object) -> Counts:
    """(T, L, E) from (L, E) or (T, L, E). Raises EP119 for what counts nothing."""
    try:
        found = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise no_load(name, "its counts are no rectangle of numbers") from error
    found = found[None] if found.ndim == 2 else found  # noqa: PLR2004
    if found.ndim != 3 or not found.size:  # noqa: PLR2004
        raise no_load(name, f"its counts have the shape {found.shape}, not (steps, layers, experts)")
    if found.shape[1] > MAX_LAYERS or found.shape[2] > MAX_EXPERTS:
        raise no_load(name, f"it has {found.shape[1]:,} layers of {found.shape[2]:,} experts")
    if found.dtype.kind not in _NUMBERS or has_booleans(value):
        raise no_load(name, f"its counts are no rectangle of numbers, but of {str(found.dtype)[:80]}")
    with np.errstate(over="ignore"):  # longer floats than Python's become infinite, and are refused as such
        counts = found.astype(np.float64)
    if not ((counts >= 0) & (counts <= _MAX_COUNT)).all():  # NaN is neither
        raise no_load(name, "a count is negative, or no number of tokens")
    return counts


def has_booleans(value: object) -> bool:
    """Whether a boolean is among the items of lists, where numpy takes it for 0 or 1."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind == "b")
    if not isinstance(value, list):
        return False
    kinds = set(map(type, value))
    inner = (item for item in value if isinstance(item, list | np.ndarray)) if kinds - {int, float} else ()
    return bool in kinds or any(map(has_booleans, inner))


def require_counts(name: str, num_steps: int, num_layers: int, num_experts: int) -> None:
    """EP119 for more counts than any load has."""
    if (
        num_layers > MAX_LAYERS
        or num_experts > MAX_EXPERTS
        or num_steps * num_layers * num_experts > MAX_COUNTS
    ):
        raise no_load(name, f"it has {num_steps:,} steps, {num_layers:,} layers and {num_experts:,} experts")


def no_counts(name: str, num_steps: int, num_layers: int, num_experts: int) -> Counts:
    """(T, L, E) of zeros. Raises EP119 where that is more than any load has."""
    require_counts(name, num_steps, num_layers, num_experts)
    return np.zeros((num_steps, num_layers, num_experts))


def by_expert(name: str, steps: Sequence[tuple[Counts, NDArray[np.int64]]], model: Model | None) -> Counts:
    """(T, L, E): what the slots got, added up by the experts that they held at each step.

    Args:
        steps: of each step the counts (L, P), and the expert of each slot (L, P); what an empty slot got
            counts for nobody.
    """
    known = None if model is None else model.num_logical_experts
    num_experts = known or 1 + max(int(experts.max()) for _, experts in steps)
    num_layers = len(steps[0][0])
    if any(len(slots) != num_layers for slots, _ in steps):
        raise no_load(name, "its records differ in layers")
    if any(experts.max() >= num_experts for _, experts in steps):
        raise no_load(name, f"its map of slots has an expert beyond {num_experts:,}")
    counts = no_counts(name, len(steps), num_layers, num_experts)
    for step, (slots, experts) in zip(counts, steps, strict=True):
        layer, slot = np.nonzero(experts >= 0)
        np.add.at(step, (layer, experts[layer, slot]), slots[layer, slot])
    return counts


def of_moe_layers(
    name: str, form: str, counts: Counts, model: Model | None, notes: tuple[str, ...] = (), hint: str = ""
) -> Load:
    """The load of counts whose layers are the MoE layers; `hint` is for those of other experts (EP119)."""
    if model is None:
        return Load(form, counts, None, notes)
    _check_model(name, counts, model, len(model.moe_layers), "MoE", hint)
    return Load(form, counts, np.array(model.moe_layers, np.int64), notes)


def of_hidden_layers(name: str, counts: Counts, model: Model | None, notes: tuple[str, ...] = ()) -> Load:
    """Only rows of MoE layers; without a model those are the ones that counted anything."""
    if model is not None and model.num_hidden_layers is not None:
        _check_model(name, counts, model, model.num_hidden_layers, "hidden")
        layers = np.array(model.moe_layers, np.int64)
        return Load("sglang", counts[:, layers], layers, notes)
    layers = np.flatnonzero(counts.any(axis=(0, 2)))
    if not len(layers):
        raise no_load(name, "no layer counted a token")
    if left_out := counts.shape[1] - len(layers):
        notes += (f"{left_out:,} layers without any token are taken for dense ones",)
    return Load("sglang", counts[:, layers], layers, notes)


def _check_model(name: str, counts: Counts, model: Model, num_layers: int, kind: str, hint: str = "") -> None:
    found = counts.shape[1:]
    experts = model.num_logical_experts or found[1]
    if found != (num_layers, experts):
        said = f"{num_layers:,} {kind} layers of {experts:,} experts"
        problem = f"it counts {found[0]:,} layers of {found[1]:,} experts; {model.name} has {said}"
        raise no_load(name, problem, hint if found[1] != experts else "")
