"""What the command line says of placements that leave it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.errors import EplbError, UsageError
from eplb_cli.models.model import Model
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.named_map import NAMED_MAPS

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards


@dataclass(frozen=True)
class PlacementOptions:
    """What the command line says of placements that leave it out.

    Attributes:
        dialect, old_dialect: of NEW and of OLD, where their content is not to say it.
        model: the model of both.
    """

    num_ranks: int | None = None
    old_num_ranks: int | None = None
    num_logical_experts: int | None = None
    num_redundant_experts: int | None = None
    dialect: str | None = None
    old_dialect: str | None = None
    model: Model | None = None

    @property
    def hints(self) -> Hints:
        """What is said of both placements. Raises EP001 where the model has another number of experts."""
        experts, model = self.num_logical_experts, self.model
        if model is None:
            return Hints(num_logical_experts=experts, num_redundant_experts=self.num_redundant_experts)
        if experts is not None and model.num_logical_experts not in (None, experts):
            raise UsageError(
                "EP001",
                f"--num-logical-experts is {experts:,}, and {model.name} has {model.num_logical_experts:,}",
            )
        return Hints(
            num_logical_experts=experts or model.num_logical_experts,
            num_redundant_experts=self.num_redundant_experts,
            layer_ids=np.array(model.moe_layers, np.int64),
            model=model,
        )

    def beside(self, shards: Shards) -> PlacementOptions:
        """The options together with what shards say of their model."""
        return self if self.model is not None else replace(self, model=model_of(shards))


def model_of(shards: Shards) -> Model:
    """What shards show of their model: MoE layers, and beyond the hidden ones those of MTP."""
    from eplb_cli.models.config import config_beside

    config = config_beside(shards.path)
    hidden = None if config is None else config.num_hidden_layers
    layers = shards.moe_layers
    counted = tuple(layer for layer in layers if hidden is None or layer < hidden)
    return Model(str(shards.path), hidden, counted, tuple(layers[len(counted) :]))


def hints_to_validate(
    options: PlacementOptions, against: str | None, checkpoint: Path | None
) -> tuple[Hints, Hints]:
    """Hints for the files that `validate` checks, and for the one that they are checked against."""
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    old_ranks = options.old_num_ranks or (options.num_ranks if against in NAMED_MAPS else None)
    old_hints = replace(hints, num_ranks=old_ranks, dialect=options.old_dialect)
    if checkpoint is None:
        return hints, old_hints
    from eplb_cli.checkpoint.shards import open_shards

    shards = open_shards(checkpoint)
    layer_ids, model = np.array(shards.moe_layers, np.int64), model_of(shards)
    slots = shards.slots_per_rank
    hints = replace(hints, layer_ids=layer_ids, model=model, slots_per_rank=None if against else slots)
    return hints, replace(old_hints, layer_ids=layer_ids, model=model, slots_per_rank=slots)


def model_in(checkpoint: Path | None) -> Model | None:
    """The model that --checkpoint says: that of its config.json, or the layers of its shards.

    Raises:
        EplbError: the directory shows none.
    """
    if checkpoint is None:
        return None
    from eplb_cli.models.preset import find_model

    try:
        return find_model(str(checkpoint))
    except EplbError as error:
        if error.code != "EP118":
            raise
    from eplb_cli.checkpoint.shards import open_shards

    return model_of(open_shards(checkpoint))
