"""How much of a long sweep runs: a share of it with the other tests, all of it at night (EPLB_SWEEPS=all)."""

from __future__ import annotations

import os

ALL = os.environ.get("EPLB_SWEEPS") == "all"


def share(count: int, divisor: int) -> int:
    """So many of `count` cases: all at night, else one of `divisor`."""
    return count if ALL else -(-count // divisor)


def stride(divisor: int) -> int:
    """The distance from one case to the next, where they are numbered."""
    return 1 if ALL else divisor
