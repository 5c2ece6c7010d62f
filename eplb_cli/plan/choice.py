"""How a plan may choose who sends an expert that several ranks hold."""

from __future__ import annotations

from typing import Literal, TypeGuard, get_args

Senders = Literal["balanced", "vllm"]
"""The busiest sends least; or as vLLM's rearrangement chooses."""

Relabel = Literal["none", "rows", "ranks"]
"""What of NEW may change places before it is planned: nothing; rows of a rank; ranks as well."""

RankScalars = Literal["max"]
"""What can be done with numbers that ranks computed from their own experts: all get the largest."""


def is_senders(word: object) -> TypeGuard[Senders]:
    """Whether a word from outside is one of them."""
    return word in get_args(Senders)


def is_rank_scalars(word: object) -> TypeGuard[RankScalars]:
    """Whether a word that comes from elsewhere names a rule for numbers of ranks."""
    return word in get_args(RankScalars)
