"""All workers see the same, or all of them raise the same error, before the first byte moves."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist

from eplb_cli.errors import EplbError, PlanError, error_of

_WORD_NBYTES = 1024
"""What each worker says in `agree`: a digest, and the error it has instead of going on, if any."""

_DIGEST_NBYTES = 32


def agree(
    digest: str, group: dist.ProcessGroup, device: torch.device, error: EplbError | None = None
) -> None:
    """Compare a digest over all workers; also the collective that NCCL wants before any batch.

    A worker that has an error brings it here, so that all of them raise it before the first byte.

    Args:
        digest: hexadecimal sha256 of all that has to be alike.

    Raises:
        EplbError: the error of the first worker that has one; PlanError EP302 where digests differ.
    """
    mine = _word(digest, error).to(device)
    gathered = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(gathered, mine, group=group)
    words = [bytes(word) for word in torch.stack(gathered).cpu().numpy()]
    for word in words:
        if told := word[_DIGEST_NBYTES:].rstrip(b"\0"):
            raise error_of(*json.loads(told))
    differing = [worker for worker, word in enumerate(words) if word != words[0]]
    if differing:
        raise PlanError(
            "EP302",
            f"workers 0 and {differing[0]} see different plans, shards or shapes",
            "do all workers have the same inputs?",
        )


def _word(digest: str, error: EplbError | None) -> torch.Tensor:
    said = bytes.fromhex(digest) + (b"" if error is None else _told(error))
    return torch.frombuffer(bytearray(said.ljust(_WORD_NBYTES, b"\0")), dtype=torch.uint8)


def _told(error: EplbError) -> bytes:
    """Code, message and hint, cut where they do not fit."""
    room = _WORD_NBYTES - _DIGEST_NBYTES
    message, hint = error.message[:room], error.hint[:room]
    while len(told := json.dumps([error.code, message, hint]).encode()) > room:
        longer_is_message = len(message) >= len(hint)
        message, hint = (message[:-1], hint) if longer_is_message else (message, hint[:-1])
    return told
