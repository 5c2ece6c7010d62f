"""All that is wrong with a tree, as one error."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from eplb_cli.errors import BytesError

MAX_LISTED = 20
"""Differences that are told; of more only the number is."""


def raise_all(found: Iterable[BytesError], note: str = "") -> None:
    """Do nothing without differences.

    Args:
        note: what else there is to say where there are some.

    Raises:
        BytesError: the first of them, with the others in `further`.
    """
    differences = iter(found)
    listed = list(islice(differences, MAX_LISTED))
    if not listed:
        return
    first, *further = listed
    error = BytesError(first.code, first.message, "; ".join(filter(None, [first.hint, note])), first.where)
    error.further = further
    error.num_further = len(further) + sum(1 for _ in differences)
    raise error
