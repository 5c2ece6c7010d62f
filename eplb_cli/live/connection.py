"""How the ranks of a group reach each other, found out once and kept with the group.

Ranks of one host that can map each other's memory push rows into it; all others are reached through
torch.distributed. What one rank cannot do, no rank does: they say to each other what hinders them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
import torch.distributed as dist

from eplb_cli.exchange.agree import tell_all
from eplb_cli.live.driver import Driver, DriverError
from eplb_cli.live.neighbours import PUSH_TURNS, Neighbours
from eplb_cli.machine import host_identity
from eplb_cli.values import dataclass

SWITCH = "EPLB_PUSH"
"""Environment variable; "0" on any rank keeps all of them from pushing."""


@dataclass(frozen=True, eq=False)
class Connection:
    """How a rank reaches the others.

    Attributes:
        token: the same on all ranks that were connected together, and on no other.
        neighbours: the ranks whose memory this rank writes into, None where there are none.
        has_far: whether there are ranks that only torch.distributed reaches.
        backend: what carries messages to these.
        why: why no rank pushes, "" where some do.
    """

    token: bytes
    neighbours: Neighbours | None
    has_far: bool
    backend: str
    why: str = ""

    @property
    def near(self) -> tuple[int, ...]:
        """Other ranks whose memory this rank writes into."""
        pushed = self.neighbours
        return () if pushed is None else tuple(rank for rank in pushed.ranks if rank != pushed.me)

    @property
    def transport(self) -> str:
        """How rows travel: "push", "nccl", "gloo", or two of them with a plus sign."""
        ways = ["push"] if self.neighbours is not None else []
        return "+".join([*ways, *([self.backend] if self.has_far or not ways else [])])

    @property
    def nbytes(self) -> int:
        """Bytes of the device that are kept with the group."""
        return 0 if self.neighbours is None else self.neighbours.num_turns * self.neighbours.turn_nbytes

    @property
    def keeps_buffers(self) -> bool:
        """Whether all buffers belong to the group, so that one plan may follow another without a pause."""
        return self.neighbours is not None and not self.has_far

    def running(self) -> AbstractContextManager[None]:
        """A run, from its start until its end or that of the rank that cannot go on."""
        return nullcontext() if self.neighbours is None else self.neighbours.running()

    def serves(self, turn_nbytes: int) -> bool:
        """Whether chunks of a size can be moved."""
        if self.neighbours is None:
            return True
        return turn_nbytes <= self.neighbours.turn_nbytes and not self.neighbours.is_broken


ON_HOST = Connection(b"gloo", None, has_far=True, backend="gloo")
"""Groups on CPUs need no connecting."""

_KEPT: WeakKeyDictionary[dist.ProcessGroup, Connection] = WeakKeyDictionary()
_LEFT: list[Neighbours] = []
"""Whose groups have ended: their memory is freed once no other process has it mapped."""


def has_devices(group: dist.ProcessGroup) -> bool:
    """Whether nccl connects the group."""
    return "nccl" in str(dist.get_backend(group))


def connection_of(group: dist.ProcessGroup) -> Connection | None:
    """What was kept for a group of devices, None where nothing is known of it."""
    return _KEPT.get(group)


def is_kept(connection: Connection, group: dist.ProcessGroup) -> bool:
    """Whether a connection is still that of a group, and works."""
    return connection is ON_HOST or (_KEPT.get(group) is connection and connection.serves(0))


def connect(group: dist.ProcessGroup, device: torch.device, turn_nbytes: int) -> Connection:
    """Find out how the ranks reach each other, and keep it; must be called by all of them.

    Args:
        turn_nbytes: the largest chunk; the same on all ranks.
    """
    disconnect(group, device)
    salt = os.urandom(8).hex()  # what the ranks are is the same each time, and a token is not
    words = tell_all({**_host(), "why": _hindrance(), "salt": salt}, group, device)
    why = _first_reason(words)
    mine = [rank for rank, word in enumerate(words) if word["host"] == words[group.rank()]["host"]]
    hosts = {word["host"] for word in words}
    if not why and len(hosts) == len(words):
        why = "each rank is on a host of its own"
    neighbours = None
    if not why:
        neighbours, why = _meet(group, device, mine, turn_nbytes, has_far=len(hosts) > 1)
    token = hashlib.sha256(json.dumps(words).encode()).digest()
    connection = Connection(token, neighbours, neighbours is None or len(hosts) > 1, "nccl", why)
    _KEPT[group] = connection
    return connection


def release_buffers(ep_group: dist.ProcessGroup) -> None:
    """Give back the memory of the device that is kept for a group; must be called by all of its ranks.

    Ranks of one host push rows into buffers that belong to the group and are kept from one rearrangement to
    the next. The next one makes them anew. Groups that are destroyed need no call.

    Args:
        ep_group: a group that no rearrangement is running in.
    """
    if has_devices(ep_group):
        disconnect(ep_group, torch.device("cuda", torch.cuda.current_device()))


def disconnect(group: dist.ProcessGroup, device: torch.device) -> None:
    """Give back what is kept for a group; must be called by all of its ranks, between rearrangements."""
    kept = _KEPT.pop(group, None)
    if kept is not None and kept.neighbours is not None:
        kept.neighbours.close()
    tell_all({}, group, device)
    if kept is not None and kept.neighbours is not None:
        kept.neighbours.free()


def _meet(
    group: dist.ProcessGroup, device: torch.device, host: Sequence[int], turn_nbytes: int, *, has_far: bool
) -> tuple[Neighbours | None, str]:
    """Map the memory of the ranks of this host, or say why no rank of the group does."""
    made, said, why = None, dict[str, Any](), ""
    try:
        if len(host) > 1:
            turns = PUSH_TURNS // (2 if has_far else 1)
            made = Neighbours(host, group.size(), group.rank(), turns, turn_nbytes, device)
            said = made.introduction()
    except (DriverError, OSError) as error:
        why = f"rank {group.rank()}: {error}"
    words = tell_all({**said, "pid": os.getpid(), "why": why}, group, device)
    reason = _first_reason(words)
    try:
        if made is not None and not reason:
            made.meet([words[rank] for rank in host])
    except (DriverError, OSError) as error:
        why = f"rank {group.rank()}: {error}"
    reason = reason or _first_reason(tell_all({"why": why}, group, device))
    if made is not None:
        made.met()
    if not reason:
        if made is not None:
            finalize(group, _left, made).atexit = False
        return made, ""
    if made is not None:
        made.close()
    tell_all({}, group, device)
    if made is not None:
        made.free()
    return None, reason


def _left(neighbours: Neighbours) -> None:
    """A group has ended: free its memory, or leave that to the next one where others have it mapped."""
    if not neighbours.is_closed:
        neighbours.close()
        _LEFT.append(neighbours)
    for one in [one for one in _LEFT if one.is_closed_by_all]:
        one.free()
        _LEFT.remove(one)


def _hindrance() -> str:
    """Why this rank cannot push, "" where nothing is known to hinder it."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    try:
        Driver()
    except DriverError as error:
        return str(error)
    return ""


def _host() -> dict[str, str]:
    """What is the same for processes that can see each other's memory."""
    try:
        return {"host": host_identity()}
    except OSError as error:
        return {"host": f"{os.getpid()} {error}"}


def _first_reason(words: Sequence[dict[str, Any]]) -> str:
    return next((str(word["why"]) for word in words if word.get("why")), "")
