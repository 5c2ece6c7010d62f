"""What vLLM has built, as plain values: whatever is looked at before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from eplb_cli.values import dataclass


class Layer(NamedTuple):
    """A module of experts.

    Attributes:
        name: what the names of its tensors begin with, as in "model.layers.3.mlp.experts".
        num_ranks, rank: of the expert-parallel group.
        num_slots, num_experts: P and E.
        num_rows: slots on this rank.
        strategy: where vLLM itself would put experts without EPLB.
        why_not: what keeps ids of experts from becoming slots before a kernel sees them; empty for nothing.
    """

    name: str
    num_ranks: int
    rank: int
    num_slots: int
    num_experts: int
    num_rows: int
    strategy: str = "linear"
    why_not: str = ""


class Parameter(NamedTuple):
    """A tensor that wants a value.

    Attributes:
        names: all the names it has.
        dtype: as safetensors calls it; empty for one it does not know.
        has_loader: whether it takes a whole tensor and cuts out its own part.
        is_real: whether it has memory, rather than being made while weights are loaded.
    """

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    has_loader: bool = False
    is_real: bool = True


@dataclass(frozen=True)
class Engine:
    """A model without weights.

    Attributes:
        config: of the text model, as vLLM took it.
        has_eplb: whether vLLM keeps maps itself and may rearrange experts.
        can_have_eplb: whether it knows the experts of such a model.
        num_stages: of pipeline parallelism.
        is_elastic: whether the number of ranks may change while it serves.
    """

    layers: tuple[Layer, ...]
    parameters: tuple[Parameter, ...]
    config: Mapping[str, Any]
    has_eplb: bool = False
    can_have_eplb: bool = True
    num_stages: int = 1
    is_elastic: bool = False
