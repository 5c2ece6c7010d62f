"""A load in few numbers: per layer, how far the busiest expert is above the mean."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.models.counted import Counts, Load
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class LayerLoad:
    """The load of one layer.

    Attributes:
        layer: the model's own number where known, else counted from 0.
        tokens: of all its experts and steps.
        busiest_expert: the first of those with most tokens.
        busiest_over_mean: its tokens over the mean of the layer's experts, to four digits; 0 without tokens.
        idle_experts: experts without a token.
    """

    layer: int
    tokens: float
    busiest_expert: int
    busiest_over_mean: float
    idle_experts: int


@dataclass(frozen=True, eq=False)
class LoadSummary:
    """What a load dump holds.

    Attributes:
        path: the file.
        form: as `Load` has it.
        num_steps: T.
        num_logical_experts: E.
        tokens: of all layers, experts and steps.
        counts: (L, E) tokens of each expert, of all steps.
        layers: one entry per layer.
        layer_ids: (L,) the model's own layer numbers, None where nothing says them.
        notes: what was left out.
    """

    path: Path
    form: str
    num_steps: int
    num_logical_experts: int
    tokens: float
    counts: Counts
    layers: tuple[LayerLoad, ...]
    layer_ids: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def summarize_load(path: Path, load: Load) -> LoadSummary:
    """Add up the steps of a load."""
    total = load.total
    mean = total.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        imbalance = np.where(mean > 0, total.max(axis=1) / mean, 0.0)
    numbers = np.arange(len(total)) if load.layer_ids is None else load.layer_ids
    layers = tuple(
        LayerLoad(
            layer=int(layer),
            tokens=float(row.sum()),
            busiest_expert=int(row.argmax()),
            busiest_over_mean=round(float(ratio), 4),
            idle_experts=int((row == 0).sum()),
        )
        for layer, row, ratio in zip(numbers, total, imbalance, strict=True)
    )
    return LoadSummary(
        path=path,
        form=load.form,
        num_steps=len(load.counts),
        num_logical_experts=total.shape[1],
        tokens=float(total.sum()),
        counts=total,
        layers=layers,
        layer_ids=None if load.layer_ids is None else tuple(load.layer_ids.tolist()),
        notes=load.notes,
    )


def load_json(summary: LoadSummary) -> dict[str, Any]:
    """A load as `--format json` shows it."""
    layer_ids = summary.layer_ids
    return {
        "format": "eplb-load/1",
        "path": str(summary.path),
        "form": summary.form,
        "num_steps": summary.num_steps,
        "num_layers": len(summary.layers),
        "num_logical_experts": summary.num_logical_experts,
        "layer_ids": None if layer_ids is None else list(layer_ids),
        "tokens": summary.tokens,
        "layers": [asdict(layer) for layer in summary.layers],
        "notes": list(summary.notes),
        "counts": summary.counts.tolist(),
    }
