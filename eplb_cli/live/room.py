"""How large the buffers of all ranks have to be, which each of them can tell from the plan."""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.exchange.units import PART_ALIGNMENT
from eplb_cli.live.plan import CHUNKS_PER_BUFFER
from eplb_cli.plan.moves import LOCAL, REMOTE, ReshardPlan


def chunk_room(plan: ReshardPlan, sizes: Int, buffer_nbytes: int) -> int:
    """Bytes that no chunk of a plan, or of any of its layers, has more of for one rank.

    A chunk is a part of `buffer_nbytes`, or one byte of each row of a cell where that is more. Where all that
    any rank gets is far less, it is a power of two that has room for all of it.

    Args:
        sizes: (L, K) bytes of a row.
    """
    moves = plan.moves
    arrives = np.flatnonzero((moves.kind == REMOTE) | (moves.kind == LOCAL))
    nbytes = sizes.sum(axis=1)[moves.layer[arrives]]
    busiest = int(np.bincount(plan.dst_rank[arrives], weights=nbytes).max(initial=0))
    chunk = max(buffer_nbytes // CHUNKS_PER_BUFFER, plan.new.num_slots * PART_ALIGNMENT)
    all_of_it = busiest + PART_ALIGNMENT * plan.num_ranks * int(sizes.size)
    return 1 << all_of_it.bit_length() if all_of_it < chunk // 2 else chunk
