"""How far the busiest rank is above the mean, and how far it has to be.

An expert's tokens are spread evenly over all its replicas, as engines do, also where two of them are on one
rank. A rank's load in a layer is what its slots get; an empty slot gets nothing::

    slot           0  1 | 2  3        load of experts 0, 1, 2:  8, 4, 2
    expert         0  1 | 0  2
    gets           4  4 | 4  2
    load of ranks    8  |  6          mean 7, max / mean 8 / 7
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError
from eplb_cli.placements.findings import missing_experts, raise_first
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Imbalance:
    """The load of ranks under a placement. A ratio is 1.0 where all ranks have the same, or none has any.

    Attributes:
        rank_load: (L, R) tokens that each rank gets in each layer.
        max_over_mean: (L,) the busiest rank's over the mean of all ranks.
        bound: (L,) what no placement of as many ranks and of as many replicas of each expert goes below: some
            rank has the heaviest replica, and some rank has the mean.
        overall: the time of a forward pass in which ranks wait for the busiest one in every layer, over that
            with all layers balanced: the sum over layers of the busiest rank's load over the sum of means.
        overall_bound: the same where every layer is at its bound.
    """

    rank_load: Float
    max_over_mean: Float
    bound: Float
    overall: float
    overall_bound: float

    def __post_init__(self) -> None:
        for array in (self.rank_load, self.max_over_mean, self.bound):
            array.setflags(write=False)

    @property
    def busiest_rank(self) -> NDArray[np.int64]:
        """(L,) the first of the ranks with most."""
        return np.asarray(self.rank_load.argmax(axis=1))

    @property
    def worst_layer(self) -> int:
        """The first of the layers whose max / mean is the largest, as a row of the placement."""
        return int(self.max_over_mean.argmax())


def judge(placement: Placement, load: Float) -> Imbalance:
    """How evenly a placement spreads a load.

    Args:
        load: (L, E) tokens of each expert, layer by layer as in the placement; `fitted` makes it of a dump.

    Raises:
        PlacementError: EP119, the load is of other layers or experts; EP110, an expert is in no slot.
    """
    shape = placement.num_layers, placement.num_logical_experts
    if load.shape != shape:
        problem = f"a load of the shape {load.shape} is not of {shape[0]:,} layers of {shape[1]:,} experts"
        raise PlacementError("EP119", problem)
    raise_first(missing_experts(placement))
    of_replica = load / placement.num_replicas
    num_ranks = placement.num_ranks
    layer, slot = np.nonzero(placement.physical_to_logical != EMPTY)
    gets = of_replica[layer, placement.physical_to_logical[layer, slot]]
    key = layer * num_ranks + placement.rank_of_slot[slot]
    rank_load = np.asarray(np.bincount(key, gets, shape[0] * num_ranks), np.float64).reshape(-1, num_ranks)
    mean = load.sum(axis=1) / num_ranks
    busiest, least = rank_load.max(axis=1), np.maximum(of_replica.max(axis=1), mean)
    return Imbalance(
        rank_load=rank_load,
        max_over_mean=_over(busiest, mean),
        bound=_over(least, mean),
        overall=_in_all(busiest, mean),
        overall_bound=_in_all(least, mean),
    )


def _over(amounts: Float, means: Float) -> Float:
    """(L,) each amount over its mean; 1.0 where that is nothing."""
    return np.divide(amounts, means, out=np.ones_like(means), where=means > 0)


def _in_all(amounts: Float, means: Float) -> float:
    """All layers together, by the same rule."""
    return float(_over(amounts.sum(keepdims=True), means.sum(keepdims=True))[0])
