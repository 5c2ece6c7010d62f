"""Layers with experts that no engine's map names, those of MTP and of other modules: what becomes of them.

DeepSeek's MTP layer goes on counting behind the hidden ones (`model.layers.61`), others have a module of
their own (`mtp.layers.0`). Engines place their experts in order, and so does `shard`, unless a placement
names them; or it leaves MTP out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from eplb_cli.errors import PlacementError
from eplb_cli.huggingface.one_rank import OneRank
from eplb_cli.huggingface.parts import in_layer_order
from eplb_cli.models.names import LayerNames, is_mtp
from eplb_cli.placements.beside import with_linear_layers
from eplb_cli.placements.placement import Placement
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Beside:
    """The layers beside those that the model's main map is of.

    Attributes:
        linear: those whose experts were laid out in order because the placement does not name them: by
            their number, in words.
        skipped: in words, those of MTP that were left out.
    """

    linear: Mapping[int, str]
    skipped: tuple[str, ...]

    @property
    def decisions(self) -> dict[str, object]:
        """What of it there is, as `eplb.json` holds it."""
        said = {"layers_in_order": list(self.linear), "layers_left_out": list(self.skipped)}
        return {key: layers for key, layers in said.items() if layers}

    @property
    def notes(self) -> list[str]:
        """It in sentences."""
        in_order = (f"layer {name}: experts in order, as engines place them" for name in self.linear.values())
        return [*in_order, *(f"layer {name}: left out" for name in self.skipped)]


def without_mtp(checkpoint: OneRank) -> tuple[OneRank, tuple[str, ...]]:
    """A checkpoint without all tensors of MTP, and in words the layers with experts that were among them."""
    layers = checkpoint.layers
    left = {key: at for key, at in checkpoint.tensors[0].items() if not is_of_mtp(checkpoint, key)}
    rest = replace(checkpoint, tensors=(left,))
    gone = {place for place in layers.numbers if place not in rest.layers.numbers}
    return rest, tuple(layers.name(number) for number in sorted(layers.numbers[place] for place in gone))


def is_of_mtp(checkpoint: OneRank, key: str) -> bool:
    """Whether a tensor is of a module of MTP, or of a layer of the main module beyond the hidden ones."""
    said, hidden = checkpoint.keys[key], checkpoint.layers.hidden
    is_beyond = hidden is not None and said.layer is not None and said.layer >= hidden
    return is_mtp(key) or (is_beyond and "{layer}" in said.template)


def with_beside(new: Placement, layers: LayerNames, where: object) -> tuple[Placement, dict[int, str]]:
    """A placement of all layers, by their numbers; and those that it did not name, by number in words.

    Raises:
        PlacementError: EP109, it lacks a layer of the main module.
    """
    named = [] if new.layer_ids is None else new.layer_ids.tolist()
    placed = layers.placed
    lacking = [layer for layer in placed if layer not in named]
    if lacking:
        more = f" (and {len(lacking) - 1:,} more)" if len(lacking) > 1 else ""
        raise PlacementError(
            "EP109",
            f"the placement does not name layer {layers.name(lacking[0])}{more}, a MoE layer of {where}",
            f"a row for each of {len(placed):,} MoE layers, from {placed[0]} to {placed[-1]}, makes it whole",
        )
    linear = {layer: layers.name(layer) for layer in layers.beside if layer not in named}
    return in_layer_order(with_linear_layers(new, layers.beside)), linear
