"""Which worker hosts each rank, on which host, and so on which node a rank is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.plan.nodes import Nodes
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Hosting:
    """Who hosts what. Workers are numbered over all hosts: those of host 0 first, then those of host 1.

    Attributes:
        of_old: (R,) the worker that reads an old rank.
        of_new: (R',) the worker that writes a new rank.
        node: (W,) the host of each worker.
        reads_all: every worker sees the files of all old ranks, and reads what its own new ranks need, so
            that nothing travels. `of_old` still says who reads what no new rank needs.
    """

    of_old: Int
    of_new: Int
    node: Int
    reads_all: bool = False

    @classmethod
    def one_host(cls, num_old: int, num_new: int, num_workers: int = 1) -> Hosting:
        """Workers of one host take turns: rank r is hosted by worker r % W, old or new."""
        old, new = np.arange(num_old), np.arange(num_new)
        return cls(old % num_workers, new % num_workers, np.zeros(num_workers, np.int64))

    @classmethod
    def over_hosts(
        cls,
        sees: NDArray[np.bool_],
        num_new: int,
        workers_per_node: Sequence[int],
        *,
        reads_all: bool = False,
    ) -> Hosting:
        """New ranks in contiguous blocks over all workers; old ranks where their files are.

        An old rank is hosted by the worker of the new rank of its number, if that one's host sees its files.
        Else it goes to the host that sees them and has the fewest old ranks so far, over its workers in turn.

        Args:
            sees: (N, R) whether a host sees all files of an old rank; every rank is seen by one.
            workers_per_node: (N,) workers of each host, one at the least.
        """
        counts = np.asarray(workers_per_node, np.int64)
        node, first = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts) - counts
        num_workers = len(node)
        bounds = np.arange(1, num_workers + 1) * num_new // num_workers
        of_new = np.searchsorted(bounds, np.arange(num_new), "right")
        num_old = sees.shape[1]
        of_old = np.full(num_old, -1)
        both = min(num_old, num_new)
        same = of_new[:both]
        of_old[:both] = np.where(sees[node[same], np.arange(both)], same, -1)
        ranks = np.bincount(node[of_old[of_old >= 0]], minlength=len(counts))
        for rank in np.flatnonzero(of_old < 0).tolist():
            hosts = np.flatnonzero(sees[:, rank])
            host = hosts[ranks[hosts].argmin()]
            of_old[rank] = first[host] + ranks[host] % counts[host]
            ranks[host] += 1
        return cls(of_old, of_new, node, reads_all)

    @property
    def num_workers(self) -> int:
        """W, on all hosts together."""
        return len(self.node)

    @property
    def num_nodes(self) -> int:
        """Hosts."""
        return int(self.node[-1]) + 1

    @cached_property
    def node_of_old(self) -> Int:
        """(R,) the host of each old rank."""
        return self.node[self.of_old]

    @cached_property
    def node_of_new(self) -> Int:
        """(R',) the host of each new rank."""
        return self.node[self.of_new]

    @property
    def nodes(self) -> Nodes | None:
        """The hosts as nodes of a plan; None where there is one."""
        return Nodes(self.node_of_old, self.node_of_new) if self.num_nodes > 1 else None

    def ends(self, src_rank: Int, dst_rank: Int) -> tuple[Int, Int]:
        """The workers that pieces (N,) go from and to, given their ranks.

        Of several hosts, what lies on the host that needs it is read by the worker that needs it: nothing is
        faster than that. On one host workers exchange what they need, as an engine's do.
        """
        sender, receiver = self.of_old[src_rank], self.of_new[dst_rank]
        if self.reads_all:
            return receiver, receiver
        if self.num_nodes > 1:
            sender = np.where(self.node[sender] == self.node[receiver], receiver, sender)
        return sender, receiver

    def nearest(self, origin: int, rank: int) -> int:
        """Of old ranks that are all alike one on the host of a new rank: `origin` if it is there, or none is.

        New ranks of a host take turns over its old ranks.
        """
        near = np.flatnonzero(self.node_of_old == self.node_of_new[rank])
        if self.reads_all or not len(near) or origin in near:
            return origin
        return int(near[rank % len(near)])

    def to_json(self) -> dict[str, Any]:
        """As a job file holds it."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value if name == "reads_all" else value.tolist() for name, value in columns.items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Hosting:
        """What `to_json` gave."""
        columns = {name: np.array(raw[name], np.int64) for name in ("of_old", "of_new", "node")}
        return cls(**columns, reads_all=raw["reads_all"])
