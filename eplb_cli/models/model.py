"""A model as far as placements and sizes need it: layers, experts, and what one expert consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from eplb_cli.errors import PlacementError
from eplb_cli.values import dataclass

MAX_EXPERTS = 1_000_000
"""E of no model; an id or a number of experts beyond it is a mistake."""

MAX_LAYERS = 10_000
"""L of no model, likewise."""


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of an expert.

    Attributes:
        dtype: as safetensors calls it.
        shape: of one expert, without a dimension for experts.
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """What is known of a model; None where the source does not say it.

    Attributes:
        num_hidden_layers: dense and MoE layers, without those that predict further tokens (MTP).
        moe_layers: the model's own numbers of its MoE layers, ascending; MTP layers apart.
        mtp_layers: the numbers of MTP layers with experts.
        num_logical_experts: E.
        num_groups: of experts, that the router chooses first: 1 where it has none.
        hidden_size, intermediate_size: of an expert.
        experts: the key of an expert tensor, with {layer}, {tensor} and, unless stacked, {expert}.
        tensors: what one expert consists of, by the value of {tensor}; empty where it is not known.
        source: where the numbers of a preset are from.
        family: the `model_type` of a config.json; empty where none was read.
    """

    name: str
    num_hidden_layers: int | None
    moe_layers: tuple[int, ...]
    mtp_layers: tuple[int, ...] = ()
    num_logical_experts: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    experts: str = ""
    tensors: Mapping[str, ModelTensor] = field(default_factory=dict)
    description: str = ""
    source: str = ""
    num_groups: int | None = None
    family: str = ""

    @property
    def expert_nbytes(self) -> int | None:
        """Bytes of one expert with all its tensors. Raises EP209 where one has no whole number of them."""
        from eplb_cli.formats.safetensors_header import row_nbytes_of

        if not self.tensors:
            return None
        return sum(row_nbytes_of(name, tensor.dtype, tensor.shape) for name, tensor in self.tensors.items())


def read_model_file(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises EP118."""
    from eplb_cli.formats.reading import read_bytes

    try:
        return read_bytes(str(path), limit)
    except PlacementError as error:
        raise malformed(path, error.message[:300]) from error


def number(path: Path, raw: Mapping[str, Any], key: str, most: int) -> int:
    """A number from 1 to `most`. Raises EP118."""
    value = raw.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise malformed(path, f"{key!r} is no number from 1 to {most:,}")
    return value


def malformed(path: object, reason: str) -> PlacementError:
    """EP118 for a file that describes no model."""
    return PlacementError("EP118", f"{path} describes no model: {reason}")
