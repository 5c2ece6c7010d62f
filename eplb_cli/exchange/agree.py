"""All workers see the same, or all of them raise the same error, before the first byte moves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from eplb_cli.errors import EplbError, PlanError, error_of

WORD_NBYTES = 1024
"""What each worker says in a collective."""

_DIGEST_NBYTES = 32
_NOTE_NBYTES = 32


def agree(
    digest: str,
    group: dist.ProcessGroup,
    device: torch.device,
    error: EplbError | None = None,
    note: bytes = b"",
) -> list[bytes]:
    """Compare a digest over all workers; also the collective that NCCL wants before any batch.

    A worker that has an error brings it here, so that all of them raise it before the first byte.

    Args:
        digest: hexadecimal sha256 of all that has to be alike.
        note: at most 32 bytes that may differ.

    Returns:
        The notes of all workers, with zero bytes after them.

    Raises:
        EplbError: the error of the first worker that has one; PlanError EP302 where digests differ.
    """
    begin = _DIGEST_NBYTES + _NOTE_NBYTES
    told = b"" if error is None else told_in(error, WORD_NBYTES - begin)
    words = say_to_all(bytes.fromhex(digest) + note.ljust(_NOTE_NBYTES, b"\0") + told, group, device)
    for word in words:
        if theirs := word[begin:].rstrip(b"\0"):
            raise error_of(*json.loads(theirs))
    digests = [word[:_DIGEST_NBYTES] for word in words]
    differing = [worker for worker, theirs in enumerate(digests) if theirs != digests[0]]
    if differing:
        raise PlanError(
            "EP302",
            f"workers 0 and {differing[0]} see different plans, shards or shapes",
            "do all workers have the same inputs?",
        )
    return [word[_DIGEST_NBYTES:begin] for word in words]


def say_to_all(said: bytes, group: dist.ProcessGroup, device: torch.device) -> list[bytes]:
    """What each worker of a group says, in at most `WORD_NBYTES`; with zero bytes after it."""
    mine = torch.frombuffer(bytearray(said.ljust(WORD_NBYTES, b"\0")), dtype=torch.uint8).to(device)
    gathered = mine.repeat(group.size(), 1)
    dist.all_gather(list(gathered), mine, group=group)
    return [bytes(word) for word in gathered.cpu().numpy()]


def tell_all(
    said: Mapping[str, str | int], group: dist.ProcessGroup, device: torch.device
) -> list[dict[str, Any]]:
    """The same as some few names and values, of which long texts are cut."""
    cut = {name: value[:300] if isinstance(value, str) else value for name, value in said.items()}
    words = say_to_all(json.dumps(cut).encode(), group, device)
    return [json.loads(word.rstrip(b"\0")) for word in words]


def told_in(error: EplbError, room: int) -> bytes:
    """An error as JSON of at most `room` bytes: code, message and hint, cut where they do not fit."""
    message, hint = error.message[:room], error.hint[:room]
    while len(told := json.dumps([error.code, message, hint]).encode()) > room:
        longer_is_message = len(message) >= len(hint)
        message, hint = (message[:-1], hint) if longer_is_message else (message, hint[:-1])
    return told
