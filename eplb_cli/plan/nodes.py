"""On which node each rank is, as far as a plan has to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Nodes:
    """The node of every old rank (R,) and of every new one (R',); a number may be on another node afterwards.

    So it is where R changes on the same hosts: of 4 ranks on 2 hosts rank 2 is on node 1, of 8 on node 0.
    """

    of_old: Int
    of_new: Int

    @classmethod
    def blocks(cls, num_old: int, num_new: int, ranks_per_node: int) -> Nodes:
        """Rank r, old or new, is on node r // G."""
        return cls(np.arange(num_old) // ranks_per_node, np.arange(num_new) // ranks_per_node)

    @property
    def count(self) -> int:
        """Nodes that are numbered, with or without a rank."""
        return 1 + max(int(self.of_old.max()), int(self.of_new.max()))

    @property
    def ranks_per_node(self) -> int | None:
        """G where nodes are blocks of G ranks, before and after; None where they are not."""
        of_old, of_new = self.of_old, self.of_new
        longer = of_old if len(of_old) >= len(of_new) else of_new
        size = max(int((longer == 0).sum()), 1)
        same = Nodes.blocks(len(of_old), len(of_new), size)
        is_same = np.array_equal(same.of_old, of_old) and np.array_equal(same.of_new, of_new)
        return size if is_same else None

    def to_json(self) -> dict[str, list[int]]:
        """As a manifest and a job file hold it."""
        return {"old": self.of_old.tolist(), "new": self.of_new.tolist()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Nodes:
        """What `to_json` gave."""
        return cls(np.array(raw["old"], np.int64), np.array(raw["new"], np.int64))
