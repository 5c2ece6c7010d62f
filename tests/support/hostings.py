"""Random tables of who hosts which rank, most of them such as no run would choose."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.nodes import Nodes


@st.composite
def hostings(draw: st.DrawFn, num_old: int, num_new: int) -> Hosting:
    """Workers of one host that take turns; or any table over up to three hosts."""
    if draw(st.booleans()):
        return Hosting.one_host(num_old, num_new, draw(st.integers(1, 6)))
    workers = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    node = np.repeat(np.arange(len(workers)), workers)
    worker = st.integers(0, len(node) - 1)
    of_old, of_new = (
        np.array(draw(st.lists(worker, min_size=count, max_size=count)), np.int64)
        for count in (num_old, num_new)
    )
    return Hosting(of_old, of_new, node, reads_all=draw(st.booleans()))


@st.composite
def nodes(draw: st.DrawFn, num_old: int, num_new: int) -> Nodes | None:
    """One node; blocks of up to four ranks; or any node for each rank, before and after."""
    kind = draw(st.sampled_from(("one", "blocks", "any")))
    if kind == "one":
        return None
    if kind == "blocks":
        return Nodes.blocks(num_old, num_new, draw(st.integers(1, 4)))
    node = st.integers(0, 2)
    sides = (draw(st.lists(node, min_size=count, max_size=count)) for count in (num_old, num_new))
    return Nodes(*(np.array(side, np.int64) for side in sides))
