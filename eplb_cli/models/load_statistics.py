"""TensorRT-LLM's statistics of experts: a directory, with a file of tensors for each rank.

::

    meta_info.json        num_experts, num_experts_per_token
    rankR.safetensors     a tensor (E,) ITERATION_LAYER for each, LAYER by the model's own number

The ranks are added up, as `generate_eplb_config.py` does.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from eplb_cli import files
from eplb_cli.formats.budget import MAX_FILE_NBYTES
from eplb_cli.formats.integer_tensors import read_integers
from eplb_cli.formats.reading import read_json
from eplb_cli.models.counted import Counts, Load, counts_of, no_counts, no_load, require_counts
from eplb_cli.models.model import MAX_EXPERTS, Model

META = "meta_info.json"
_RANK = re.compile(r"rank[0-9]{1,6}\.safetensors")
_KEY = re.compile(r"([0-9]{1,9})_([0-9]{1,9})")

_Totals = dict[tuple[int, int], Counts]


def read_statistics(name: str, model: Model | None) -> Load:
    """The load in a directory of statistics.

    Raises:
        PlacementError: EP119.
        CheckpointError: EP201, EP203 or EP204, one of its files cannot be read.
    """
    num_experts = _num_experts(name)
    totals: _Totals = {}
    with files.reading(name):
        paths = sorted(path for path in Path(name).iterdir() if _RANK.fullmatch(path.name))
    for path in paths:
        _add(name, path, num_experts, totals)
    if not totals:
        raise no_load(name, "it has no rankR.safetensors with counts")
    steps, layers = (sorted({key[place] for key in totals}) for place in (0, 1))
    counts = no_counts(name, len(steps), len(layers), num_experts)
    for (step, layer), total in totals.items():
        counts[np.searchsorted(steps, step), np.searchsorted(layers, layer)] = total
    return _of_layers(name, counts, layers, model)


def _num_experts(name: str) -> int:
    meta = read_json(Path(name) / META, MAX_FILE_NBYTES, lambda reason: no_load(name, f"{META}: {reason}"))
    number = meta.get("num_experts") if isinstance(meta, dict) else None
    if type(number) is not int or not 1 <= number <= MAX_EXPERTS:
        raise no_load(name, f"{META} has no num_experts")
    return number


def _add(name: str, path: Path, num_experts: int, totals: _Totals) -> None:
    """Add what one rank counted."""
    tensors = read_integers(path)
    require_counts(name, len(tensors) + len(totals), 1, num_experts)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or tensor.shape != (num_experts,):
            problem = f"{key[:80]!r} {list(tensor.shape)} is no ITERATION_LAYER of {num_experts:,} experts"
            raise no_load(name, f"{path.name}: {problem}")
        place = int(match[1]), int(match[2])
        totals[place] = totals.get(place, 0) + counts_of(name, tensor[None])[0, 0]


def _of_layers(name: str, counts: Counts, layers: list[int], model: Model | None) -> Load:
    """Layers are the model's own numbers; those of MTP layers are no layers of a load."""
    if model is None:
        return Load("tensorrt-llm", counts, np.array(layers, np.int64))
    if model.num_logical_experts not in (None, counts.shape[2]):
        raise no_load(
            name, f"it counts {counts.shape[2]:,} experts; {model.name} has {model.num_logical_experts:,}"
        )
    is_mtp = np.isin(layers, model.mtp_layers)
    kept = np.array(layers, np.int64)[~is_mtp]
    if tuple(kept) != tuple(model.moe_layers):
        odd = min(set(kept.tolist()) ^ set(model.moe_layers))
        raise no_load(
            name, f"layer {odd} is counted and no MoE layer of {model.name}, or the other way round"
        )
    left_out = ", ".join(str(layer) for layer, mtp in zip(layers, is_mtp, strict=True) if mtp)
    notes = (f"left out: MTP layer {left_out}",) if left_out else ()
    return Load("tensorrt-llm", counts[:, ~is_mtp], kept, notes)
