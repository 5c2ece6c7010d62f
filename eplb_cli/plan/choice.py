"""How a plan may choose who sends an expert that several ranks hold."""

from __future__ import annotations

from typing import Literal, TypeGuard, get_args

Senders = Literal["balanced", "vllm"]
"""The busiest sends least; or as vLLM's rearrangement chooses."""


def is_senders(word: object) -> TypeGuard[Senders]:
    """Whether a word from outside is one of them."""
    return word in get_args(Senders)
