"""`scripts/bench balance`: `eplb balance` beside DeepSeek's EPLB, for loads of 256 experts in 58 layers.

OLD is DeepSeek's placement for a load, NEW is for one that is correlated with it; with several nodes both
keep eight groups of experts on nodes. `excess` is the mean over layers of how far the busiest rank is above
the mean of ranks, or above the heaviest expert's load over its replicas where that is more. `moves` is the
share of rows that come from another rank for DeepSeek's NEW, `relabelled` for the same with its ranks named
anew, and `eplb` where ours begins to be as balanced as DeepSeek's in every layer. `seconds` are of one core;
all else is the same for the same seed. The exit code is 1 where ours is less balanced in some layer.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli.balance.anew import balanced_anew
from eplb_cli.balance.curve import curve
from eplb_cli.balance.imbalance import judge
from eplb_cli.balance.relabel import relabel
from eplb_cli.balance.replicas import replicate
from eplb_cli.balance.shape import Shape, placement_of
from eplb_cli.balance.state import State
from eplb_cli.balance.way import SAME, Way
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.moves import REMOTE
from eplb_cli.plan.plan import plan_reshard
from scripts.benchmarks.deepseek import rebalance
from scripts.benchmarks.trees import SEED

NUM_LAYERS = 58
NUM_EXPERTS = 256
NUM_GROUPS = 8
ZIPF_EXPONENT = 0.8
CORRELATIONS = (0.95, 0.8)
HEAD = (
    "load", "ranks", "redundant", "nodes", "excess, DeepSeek", "excess, eplb", "layers worse", "seconds",
    *(f"{what}, {rho}" for rho in CORRELATIONS for what in ("moves", "relabelled", "eplb")),
)  # fmt: skip

Loads = NDArray[np.float64]


class Case(NamedTuple):
    """So many ranks and redundant experts; `num_nodes` keep groups where there are several."""

    kind: str
    num_ranks: int
    num_redundant: int
    num_nodes: int

    @property
    def shape(self) -> Shape:
        """What NEW is made for."""
        groups = NUM_GROUPS if self.num_nodes > 1 else 1
        return Shape(
            NUM_EXPERTS, self.num_redundant, self.num_ranks, self.num_ranks // self.num_nodes, groups
        )


CASES = [
    Case(kind, ranks, redundant, nodes)
    for kind, (ranks, some, nodes) in itertools.product(
        ("log-normal", "Zipf"), ((8, 32, 2), (32, 32, 4), (64, 64, 8))
    )
    for redundant, nodes in itertools.product((0, some), (1, nodes))
]


def main(arguments: list[str]) -> int:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(prog="scripts/bench balance", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--large", action="store_true", help="seconds for 61 layers, 384 experts, 64 ranks")
    options = parser.parse_args(arguments)
    if options.large:
        return _timed(options.seed)
    print(_row(HEAD), _row(["---"] * len(HEAD)), sep="\n")
    worse = 0
    for case in CASES:
        cells, layers_worse = _measured(case, options.seed)
        print(_row(cells), flush=True)
        worse += layers_worse
    return 1 if worse else 0


def loads(kind: str, correlation: float, seed: int) -> tuple[Loads, Loads]:
    """(L, E) loads for OLD and NEW, from correlated normal numbers: powers of e, or of their places."""
    random = np.random.default_rng(seed)
    before, other = random.normal(size=(2, NUM_LAYERS, NUM_EXPERTS))
    after = correlation * before + np.sqrt(1 - correlation**2) * other
    if kind == "log-normal":
        return np.exp(before), np.exp(after)
    places = (1 + np.argsort(np.argsort(-numbers, axis=1), axis=1) for numbers in (before, after))
    first, second = (place.astype(np.float64) ** -ZIPF_EXPONENT for place in places)
    return first, second


def _measured(case: Case, seed: int) -> tuple[list[str], int]:
    """The cells of a line, and the layers in which ours is less balanced than the peer's."""
    excess, moved, worse = [], [], 0
    shape, start = case.shape, time.process_time()
    seconds = 0.0
    for correlation in CORRELATIONS:
        before, after = loads(case.kind, correlation, seed)
        old, new = _peer(before, case), _peer(after, case)
        start = time.process_time()
        ours = balanced_anew(after, shape)
        seconds = max(seconds, time.process_time() - start)
        peer = State(after, new.physical_to_logical.reshape(ours.experts.shape)).worst
        least = np.maximum(
            after.sum(axis=1) / case.num_ranks,
            (after / replicate(after, shape.num_slots, case.num_ranks)).max(axis=1),
        )
        excess.append([float((worst / least - 1).mean()) for worst in (peer, ours.worst)])
        worse += int((ours.worst > peer * SAME).sum())
        nodes = shape.ranks_per_node if shape.keeps_groups else None
        way = Way(after, shape, old)
        as_good = (way.worst <= peer * SAME).argmax(axis=0)
        rows = way.rows[as_good, np.arange(NUM_LAYERS)].sum()
        total = new.physical_to_logical.size
        moved += [
            _remote(old, new) / total,
            _remote(old, relabel(old, new, "ranks", nodes)) / total,
            rows / total,
        ]
    first, second = np.mean(excess, axis=0)
    cells = [case.kind, str(case.num_ranks), str(case.num_redundant), str(case.num_nodes)]
    cells += [
        f"{first:.2%}",
        f"{second:.2%}",
        str(worse),
        f"{seconds:.1f}",
        *(f"{share:.0%}" for share in moved),
    ]
    return cells, worse


def _timed(seed: int) -> int:
    """Seconds of one core for the largest of the usual models."""
    random = np.random.default_rng(seed)
    before = random.lognormal(0, 1, (61, 384))
    after = before * random.lognormal(0, 0.3, before.shape)
    shape = Shape(384, 64, 64)
    old = placement_of(balanced_anew(before, shape).experts, 384, None)
    new = placement_of(balanced_anew(after, shape).experts, 384, None)
    for what, run in (
        ("balanced", lambda: balanced_anew(after, shape)),
        (
            "balanced, from OLD, with the curve",
            lambda: curve(Way(after, shape, old), np.ones(61, np.int64), after.sum(axis=1) / 64),
        ),
        ("relabelled", lambda: relabel(old, new, "ranks")),
        ("judged", lambda: judge(new, after)),
    ):
        start = time.process_time()
        run()
        print(f"{what}: {time.process_time() - start:.2f} s")
    return 0


def _peer(load: Loads, case: Case) -> Placement:
    shape = case.shape
    table = rebalance(load, shape.num_slots, shape.num_groups, shape.num_nodes, shape.num_ranks)
    return placement_of(table.reshape(len(load), shape.num_ranks, -1), NUM_EXPERTS, None)


def _remote(old: Placement, new: Placement) -> int:
    """Rows that come from another rank."""
    return int((plan_reshard(old, new, "vllm").moves.kind == REMOTE).sum())


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
