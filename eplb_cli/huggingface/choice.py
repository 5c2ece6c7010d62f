"""What `shard` may do with MTP layers that a placement does not name."""

from __future__ import annotations

from typing import Literal, get_args

from eplb_cli.errors import UsageError

Mtp = Literal["linear", "skip"]
"""Their experts in order, as engines place them; or all tensors of MTP left out."""


def require_mtp(word: str) -> None:
    """EP001 for a word from outside that is none of them."""
    if word not in get_args(Mtp):
        raise UsageError("EP001", f"mtp is {word!r}", f"it is one of {', '.join(get_args(Mtp))}")
