"""How evenly placements spread a load, as it is shown."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from eplb_cli.balance.fit import counted, fitted
from eplb_cli.balance.imbalance import Imbalance, judge
from eplb_cli.models.counted import Load
from eplb_cli.placements.placement import Placement
from eplb_cli.values import dataclass

_DIGITS = 6
"""Behind the point, of what is shown: sums in another order differ far behind it."""


@dataclass(frozen=True, eq=False)
class Balance:
    """One placement under a load.

    Attributes:
        name: what the placement is called: OLD, NEW, or the file or directory that has it.
        layers: (L,) the model's own numbers, or rows of the placement where nothing says them.
        imbalance: of its ranks.
    """

    name: str
    layers: tuple[int, ...]
    imbalance: Imbalance

    @property
    def worst_layer(self) -> int:
        """The number of the least balanced layer."""
        return self.layers[self.imbalance.worst_layer]


@dataclass(frozen=True, eq=False)
class Balances:
    """Placements under one load.

    Attributes:
        path: the load dump.
        form: as `Load` has it.
        notes: what was left out of it, and what was taken for granted.
        placements: in the order in which they are shown, OLD before NEW.
    """

    path: str
    form: str
    notes: tuple[str, ...]
    placements: tuple[Balance, ...]


def balance(path: str, load: Load, name: str, placement: Placement, further: Collection[int] = ()) -> Balance:
    """Judge a placement by a load.

    Args:
        path: what the load is called.
        name: what the placement is called.
        further: layers of MTP or another module, which are left out where the load does not count them.

    Raises:
        PlacementError: EP119, the load is of other layers or experts; EP110, an expert is in no slot.
    """
    main = counted(load, placement, further)
    layers = tuple(map(main.layer_number, range(main.num_layers)))
    return Balance(name, layers, judge(main, fitted(load, main, path, name)))


def balances_json(found: Balances) -> dict[str, Any]:
    """The key `load` of what is shown: ratios and tokens to six digits."""
    return {
        "path": found.path,
        "form": found.form,
        "notes": list(found.notes),
        "placements": list(map(_balance_json, found.placements)),
    }


def _balance_json(balance: Balance) -> dict[str, Any]:
    found = balance.imbalance
    columns = {
        "layer": list(balance.layers),
        "tokens": np.round(found.rank_load.sum(axis=1), _DIGITS).tolist(),
        "max_over_mean": np.round(found.max_over_mean, _DIGITS).tolist(),
        "bound": np.round(found.bound, _DIGITS).tolist(),
        "busiest_rank": found.busiest_rank.tolist(),
    }
    return {
        "name": balance.name,
        "max_over_mean": round(found.overall, _DIGITS),
        "bound": round(found.overall_bound, _DIGITS),
        "worst_layer": balance.worst_layer,
        "layers": [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)],
        "rank_load": np.round(found.rank_load, _DIGITS).tolist(),
    }
