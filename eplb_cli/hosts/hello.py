"""What a host says of itself when it joins, and what two of them must not differ in."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from eplb_cli import __version__
from eplb_cli.errors import EplbError, PlanError, UsageError, WorkerError
from eplb_cli.hosts.board import BoardError
from eplb_cli.hosts.words import from_words, to_words
from eplb_cli.values import dataclass

MAX_NAME = 255


@dataclass(frozen=True)
class Hello:
    """A host that joins.

    Attributes:
        node: its `--node-rank`.
        count: its `--nnodes`.
        name: as its system calls it.
        nonce: random, so that it knows its own hello from any other.
        same: what has to be alike on all hosts: what it is, as "NEW" or "options", and a digest or a text.
        version: of eplb.
        pid: the leader.
    """

    node: int
    count: int
    name: str
    nonce: str
    same: Mapping[str, str]
    version: str = __version__
    pid: int = 0

    @property
    def who(self) -> str:
        """How a message calls it."""
        return f"host {self.node} ({self.name})"

    def to_words(self) -> bytes:
        """What is put on the board; the version first, since all else may change with it."""
        return to_words({"version": self.version, **{name: getattr(self, name) for name in _FIELDS}})


_FIELDS = ("node", "count", "name", "nonce", "same", "pid")


def hello_of(node: int, count: int, same: Mapping[str, str]) -> Hello:
    """That of this process."""
    return Hello(node, count, os.uname().nodename, secrets.token_hex(16), same, __version__, os.getpid())


def hello_in(words: bytes) -> Hello:
    """What was put on the board; of another version only that and the name. Raises BoardError."""
    said = from_words(words)
    version, node, count, name, nonce, same, pid = (said.get(key) for key in ("version", *_FIELDS))
    if not isinstance(version, str):
        raise BoardError("what is said there is not in the words of eplb")
    if version != __version__:
        return Hello(0, 0, str(name)[:MAX_NAME], "", {}, version[:MAX_NAME])
    if not (
        isinstance(node, int)
        and isinstance(count, int)
        and isinstance(name, str)
        and isinstance(nonce, str)
        and isinstance(pid, int)
        and isinstance(same, dict)
        and all(isinstance(value, str) for value in same.values())
    ):
        raise BoardError("what is said there is not in the words of eplb")
    return Hello(node, count, name[:MAX_NAME], nonce, same, version, pid)


def difference(first: Hello, mine: Hello) -> EplbError | None:
    """What keeps a host from joining the run of host 0, or None.

    Returns:
        EP404 for another version of eplb, EP001 for another `--nnodes` or a `--node-rank` that is none, EP302
        for what is not the same.
    """
    if mine.version != first.version:
        problem = f"{mine.who} has eplb {mine.version}, {first.who} has {first.version}"
        return WorkerError("EP404", problem, "install one version of eplb on all hosts")
    if mine.count != first.count:
        problem = (
            f"{mine.who} was started with --nnodes {mine.count}, {first.who} with --nnodes {first.count}"
        )
        return UsageError("EP001", problem, "give all hosts the same --nnodes")
    if not 0 <= mine.node < mine.count:
        problem = f"--node-rank {mine.node} ({mine.name}) is none of --nnodes {mine.count}"
        return UsageError(
            "EP001", problem, f"hosts have the numbers 0 to {mine.count - 1}, each a different one"
        )
    names = [*first.same, *(name for name in mine.same if name not in first.same)]
    for name in names:
        if first.same.get(name) != mine.same.get(name):
            problem = f"{first.who} and {mine.who} have different {name}"
            return PlanError("EP302", problem, "start all hosts with the same options and the same files")
    return None


def same_rank(there: Hello, mine: Hello, *, has_begun: bool) -> UsageError:
    """EP001 for two hosts with one `--node-rank`."""
    begun = ", and the run has begun without it" if has_begun else ""
    problem = f"{there.name} (process {there.pid}) and {mine.name} (process {mine.pid}) both have --node-rank"
    hint = "give each host a --node-rank of its own"
    return UsageError("EP001", f"{problem} {mine.node}{begun}", hint)
