"""Copying many rows at once on a CUDA device, from a table of addresses."""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

TILE_WORDS = 8192
NUM_WARPS = 32
BLOCK_NBYTES = 1 << 18
"""Bytes that one program copies before it takes the next block."""


@triton.jit  # type: ignore[untyped-decorator]
def copy_blocks(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917 - a kernel has no other way of being told
    source,  # noqa: ANN001 - pointers to (N,) int64
    destination,  # noqa: ANN001
    nbytes,  # noqa: ANN001
    first_block,  # noqa: ANN001
    row_of_block,  # noqa: ANN001
    begin,  # noqa: ANN001
    end,  # noqa: ANN001
    WORD: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """Copy blocks `begin` to `end`: block b is bytes (b - first_block[r]) * BLOCK onwards of row r.

    Every program takes each so-many-th block. Words have WORD bytes, which divides every address and
    size.
    """
    if WORD == 1:
        word = tl.uint8
    elif WORD == 4:  # noqa: PLR2004
        word = tl.int32
    else:
        word = tl.int64
    words_per_block = BLOCK // min(WORD, 8)
    for block in range(begin + tl.program_id(0), end, tl.num_programs(0)):
        row = tl.load(row_of_block + block)
        offset = (block - tl.load(first_block + row)) * BLOCK
        left = (tl.load(nbytes + row) - offset) // min(WORD, 8)
        origin = (tl.load(source + row) + offset).to(tl.pointer_type(word))
        goal = (tl.load(destination + row) + offset).to(tl.pointer_type(word))
        origin, goal = tl.multiple_of(origin, WORD), tl.multiple_of(goal, WORD)
        for start in range(0, min(left, words_per_block), TILE):
            place = start + tl.arange(0, TILE)
            here = place < left
            tl.store(goal + place, tl.load(origin + place, mask=here), mask=here)
