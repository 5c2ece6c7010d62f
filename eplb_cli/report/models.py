"""Model presets as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eplb_cli.models.model import Model


def models_json(models: Sequence[Model]) -> dict[str, Any]:
    """What `eplb inspect --models --format json` shows."""
    return {"format": "eplb-models/1", "models": list(map(_model_json, models))}


def _model_json(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "description": model.description,
        "source": model.source,
        "num_hidden_layers": model.num_hidden_layers,
        "moe_layers": list(model.moe_layers),
        "mtp_layers": list(model.mtp_layers),
        "num_logical_experts": model.num_logical_experts,
        "num_groups": model.num_groups,
        "hidden_size": model.hidden_size,
        "moe_intermediate_size": model.intermediate_size,
        "expert_bytes": model.expert_nbytes,
        "experts": model.experts,
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
            for name, tensor in model.tensors.items()
        },
    }
