"""A load in, a placement out that balances it; near to another one, if need be."""

from __future__ import annotations

from eplb_cli.arrays import Int
from eplb_cli.balance.anew import balanced_anew
from eplb_cli.balance.curve import within
from eplb_cli.balance.replicas import Float
from eplb_cli.balance.shape import Shape, placement_of
from eplb_cli.balance.way import Way
from eplb_cli.errors import UsageError
from eplb_cli.placements.placement import Placement


def balance(
    load: Float,
    shape: Shape,
    *,
    layer_ids: Int | None = None,
    old: Placement | None = None,
    expert_nbytes: Int | None = None,
    max_moved_nbytes: int | None = None,
) -> Placement:
    """The placement of a shape in which the busiest rank of each layer bears as little as can be found.

    As DeepSeek's EPLB it spreads an expert's load evenly over its replicas and keeps groups of experts on
    nodes where they fit; a local search makes it at least as balanced. No expert is twice on a rank, unless
    that has more slots than there are experts. The same arguments give the same placement.

    Args:
        load: (L, E) tokens of each expert.
        layer_ids: (L,) the model's own layer numbers; those of `old` where it is given.
        old: OLD, of the same layers and experts: ranks and rows get its names, and of two that are as
            balanced the one is taken for which less has to move. If OLD is as balanced, it is OLD.
        expert_nbytes: (L,) bytes of an expert in each layer.
        max_moved_nbytes: the most that may move from rank to rank, as `plan` counts `remote_bytes`.

    Raises:
        UsageError: EP001, less than that cannot be moved, or a limit lacks OLD or sizes.

    Examples:
        >>> load = np.array([[9.0, 5.0, 1.0, 1.0]])
        >>> balance(load, Shape(4, 2, 2)).physical_to_logical.tolist()
        [[0, 1, 2, 0, 1, 3]]
    """
    if old is None:
        if max_moved_nbytes is not None:
            raise UsageError("EP001", "a limit of what moves needs OLD", "add --old")
        return placement_of(balanced_anew(load, shape).experts, shape.num_experts, layer_ids)
    way = Way(load, shape, old)
    if max_moved_nbytes is None:
        return way.at(way.best)
    if expert_nbytes is None:
        raise UsageError(
            "EP001", "a limit of bytes needs the bytes of an expert", "add --model or --expert-bytes"
        )
    return way.at(within(way, expert_nbytes, max_moved_nbytes))
