"""A load dump beside the placements of a command."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from eplb_cli.errors import HINTS, PlacementError
from eplb_cli.inputs.options import model_in
from eplb_cli.models.counted import Load
from eplb_cli.models.load import read_load
from eplb_cli.models.model import Model
from eplb_cli.placements.draft import Draft
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import Placement
from eplb_cli.report.balance import Balance, Balances, balance
from eplb_cli.values import dataclass

_ROUNDING = 1e-6
"""Of ratios: as many digits are shown, and sums of floats differ in the last of all."""


@dataclass(frozen=True, eq=False)
class GivenLoad:
    """A load that placements are judged by.

    Attributes:
        name: what it is called.
        mtp_layers: those of the model, which a placement may name, and the load need not count.
    """

    name: str
    load: Load
    mtp_layers: tuple[int, ...] = ()

    def judge(self, name: str, placement: Placement, further: Collection[int] = ()) -> Balance:
        """A placement under the load.

        Args:
            name: what the placement is called.
            further: layers of another module, as shards have them, which the load need not count either.

        Raises:
            PlacementError: EP119, the load is of other layers or experts; EP110, an expert is in no slot.
        """
        return balance(self.name, self.load, name, placement, {*self.mtp_layers, *further})

    def judging(self, further: Collection[int], limit: float | None) -> Judging:
        """To judge one placement after the other; `limit` is of max / mean in each layer."""
        return Judging(self, further, limit)

    def together(self, *judged: Balance) -> Balances:
        """What is shown of placements under the load."""
        return Balances(self.name, self.load.form, self.load.notes, judged)


def given_load(name: str, model: Model | None, checkpoint: Path | None) -> GivenLoad:
    """The load in a dump of any form.

    Args:
        model: of --model, which says what the layers of the dump are.
        checkpoint: the directory that says it otherwise.

    Raises:
        PlacementError: EP101 or EP119, the dump cannot be read or holds no load, or not a token.
        EplbError: `checkpoint` shows no model.
    """
    model = model or model_in(checkpoint)
    load = _with_tokens(name, read_load(name, model))
    return GivenLoad(name, load, () if model is None else model.mtp_layers)


def _with_tokens(name: str, load: Load) -> Load:
    """A load by which something can be judged, with a note on layers that have no tokens. Raises EP119."""
    idle = np.flatnonzero(~load.counts.any(axis=(0, 2)))
    if len(idle) == load.counts.shape[1]:
        hint = "was it recorded while the engine served?"
        raise PlacementError("EP119", f"{name}: no expert got a token", hint)
    if not len(idle):
        return load
    numbers = ", ".join(map(str, idle if load.layer_ids is None else load.layer_ids[idle]))
    return replace(load, notes=(*load.notes, f"no token in layer {numbers}, so any placement balances it"))


class Judging:
    """What is found where one placement after the other is judged; `GivenLoad.judging` begins it."""

    def __init__(self, given: GivenLoad, further: Collection[int], limit: float | None) -> None:
        self._given = given
        self._further = further
        self._limit = limit
        self._judged: dict[tuple[str, str], Balance] = {}

    @property
    def balances(self) -> Balances:
        """All that the load fits, in the order in which they came."""
        return self._given.together(*self._judged.values())

    def of_placement(self, name: str, placement: Placement) -> list[Finding]:
        """Judge what was not judged before; EP110 or EP119 where the load does not fit it."""
        if (key := (name, placement.digest)) in self._judged:
            return []
        try:
            self._judged[key] = self._given.judge(name, placement, self._further)
        except PlacementError as error:
            return [Finding(error.code, "error", error.message, error.hint, file=name)]
        return []

    def of_file(self, draft: Draft) -> list[Finding]:
        """Judge a file without errors, and hold it to the limit: EP120."""
        name, placement = draft.origin.name, draft.placement
        if placement is None:
            return []
        found = self.of_placement(name, placement)
        if found or self._limit is None:
            return found
        above = _above(self._judged[name, placement.digest], self._limit)
        return draft.origin.locate(above, placement)


def _above(found: Balance, limit: float) -> Iterator[Finding]:
    """EP120 for each layer whose max / mean is above a limit, the worst first."""
    imbalance = found.imbalance
    ratios, bounds = imbalance.max_over_mean, imbalance.bound
    for row in np.argsort(-ratios, kind="stable"):
        if ratios[row] <= limit + _ROUNDING:
            return
        layer, rank = found.layers[row], int(imbalance.busiest_rank[row])
        said = f"{ratios[row]:.7g} times the mean load of all ranks"
        message = f"layer {layer}: rank {rank} has {said}, and --max-imbalance is {limit:.7g}"
        hint = HINTS["EP120"]
        if bounds[row] > limit + _ROUNDING:
            hint = (
                f"no placement with these replicas goes below {bounds[row]:.7g}: {hint}, with more replicas"
            )
        yield Finding("EP120", "error", message, hint, layer=layer, rank=rank)
