"""What `balance` made of a load, as it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from eplb_cli.balance.curve import Point
from eplb_cli.balance.shape import Shape
from eplb_cli.report.balance import Balances, balances_json
from eplb_cli.report.report import LayerTraffic
from eplb_cli.values import dataclass

_DIGITS = 6
"""Behind the point of ratios, as those of a load have them."""


@dataclass(frozen=True, eq=False)
class Rebalance:
    """A placement made for a load.

    Attributes:
        output: where it is written.
        shape: its ranks, slots, nodes and groups.
        load: OLD, where there is one, and NEW under the load.
        layers: what has to come from other ranks in each layer; None without OLD.
        max_moved_bytes: the limit that was asked for.
        points: balance against what has to move, where it was looked at; what moves is in rows where sizes
            are not known.
        warnings: what is odd about OLD.
    """

    output: str
    shape: Shape
    load: Balances
    layers: Sequence[LayerTraffic] | None = None
    max_moved_bytes: int | None = None
    points: Sequence[Point] = ()
    warnings: Sequence[str] = ()

    @property
    def policy(self) -> str:
        """How it was made: "groups" are on nodes, or all ranks are alike ("global")."""
        return "groups" if self.shape.keeps_groups else "global"

    @property
    def remote_rows(self) -> int | None:
        """Rows that come from another rank, as `plan` counts them."""
        return None if self.layers is None else sum(layer.remote_rows for layer in self.layers)

    @property
    def remote_bytes(self) -> int | None:
        """Bytes of these; None where sizes are not known."""
        sizes = [layer.remote_bytes for layer in self.layers or ()]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    @property
    def in_bytes(self) -> bool:
        """Whether points are of bytes, and not of rows."""
        return self.remote_bytes is not None


def rebalance_json(found: Rebalance) -> dict[str, Any]:
    """As `--format json` shows it."""
    shape = found.shape
    return {
        "format": "eplb-balance/1",
        "output": found.output,
        "policy": found.policy,
        "num_ranks": shape.num_ranks,
        "num_slots": shape.num_slots,
        "num_logical_experts": shape.num_experts,
        "num_redundant_experts": shape.num_redundant_experts,
        "ranks_per_node": shape.ranks_per_node,
        "num_groups": shape.num_groups,
        "remote_bytes": found.remote_bytes,
        "remote_rows": found.remote_rows,
        "max_moved_bytes": found.max_moved_bytes,
        "load": balances_json(found.load),
        "layers": None if found.layers is None else list(map(asdict, found.layers)),
        "curve": [_point_json(point, in_bytes=found.in_bytes) for point in found.points],
        "warnings": list(found.warnings),
    }


def _point_json(point: Point, *, in_bytes: bool) -> dict[str, Any]:
    return {
        "limit_bytes": point.limit if in_bytes else None,
        "remote_bytes": point.moved if in_bytes else None,
        "remote_rows": point.rows,
        "max_over_mean": round(point.overall, _DIGITS),
        "is_knee": point.is_knee,
    }
