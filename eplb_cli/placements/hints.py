"""What a placement may leave out, and who says it instead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb_cli.placements.placement import Placement
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.models.model import Model


@dataclass(frozen=True, eq=False)
class Hints:
    """What a placement may leave out, as OLD, the checkpoint or the command line say it.

    A placement that says it too has to say the same.

    Attributes:
        num_ranks: R.
        slots_per_rank: (R,) S of each rank.
        num_logical_experts: E.
        layer_ids: the model's own numbers of its MoE layers; a placement may name fewer of them.
        num_layers: L, where the numbers are not known.
        num_redundant_experts: N = P - E, for the named map `linear` only.
        dialect: the dialect of the file, None to find it from its content.
        model: whose layers a dialect numbers in its own way.
        spare_slots: (R,) S of each rank where nothing else says it; the placement may say other ones.
    """

    num_ranks: int | None = None
    slots_per_rank: NDArray[np.int64] | None = None
    num_logical_experts: int | None = None
    layer_ids: NDArray[np.int64] | None = None
    num_layers: int | None = None
    num_redundant_experts: int | None = None
    dialect: str | None = None
    model: Model | None = None
    spare_slots: NDArray[np.int64] | None = None

    @property
    def layer_count(self) -> int | None:
        """L, from whichever of the two says it."""
        return self.num_layers if self.layer_ids is None else len(self.layer_ids)

    @property
    def own_layers(self) -> list[int] | None:
        """The model's own numbers of its MoE layers without MTP, ascending; None where nothing says them."""
        model = self.model
        if self.layer_ids is None:
            return None if model is None else list(model.moe_layers)
        numbers: list[int] = sorted(self.layer_ids.tolist())
        if model is None:
            return numbers
        hidden = model.num_hidden_layers
        return [
            layer for layer in numbers if layer not in model.mtp_layers and (hidden is None or layer < hidden)
        ]

    def after(self, old: Placement) -> Hints:
        """The hints for NEW: the same ranks, but the experts and layers of OLD."""
        layer_ids = self.layer_ids if old.layer_ids is None else old.layer_ids
        experts, num_layers = old.num_logical_experts, old.num_layers
        return replace(self, num_logical_experts=experts, layer_ids=layer_ids, num_layers=num_layers)


NO_HINTS = Hints()
