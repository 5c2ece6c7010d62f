"""Who does the work of a run: the hosts that take part, and where the workers of this one come from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from eplb_cli.hosts.board import Board
from eplb_cli.hosts.hosts import ALONE, Hosts
from eplb_cli.hosts.words import from_words
from eplb_cli.values import dataclass

VARIABLE = "EPLB_PRESENT"
"""Where a process that another launcher has started tells the command that it starts of all of them."""


@dataclass(frozen=True)
class Present:
    """The workers of this host that another launcher has started; they wait for a job.

    Attributes:
        node: which of the hosts this is.
        workers: how many each host has.
        processes: of this host's: the id and start time of each, as /proc has them.
        run: names what is said on the board.
    """

    node: int
    workers: tuple[int, ...]
    processes: tuple[tuple[int, int], ...]
    run: str

    def in_words(self) -> str:
        """For `VARIABLE`."""
        return json.dumps(asdict(self))


def present() -> Present | None:
    """The workers that are there already; None where the command has to start its own."""
    words = os.environ.get(VARIABLE)
    if words is None:
        return None
    said = from_words(words.encode())
    processes = tuple((int(pid), int(start)) for pid, start in said["processes"])
    return Present(int(said["node"]), tuple(map(int, said["workers"])), processes, str(said["run"]))


def job_key(node: int) -> str:
    """Where on the board a host's workers, which are there already, read what their job is."""
    return f"job/{node}"


def over_key(node: int) -> str:
    """Where on the board they read that there is none."""
    return f"over/{node}"


@dataclass(frozen=True)
class Crew:
    """The hosts of a run, and the workers of this one.

    Attributes:
        endpoint: HOST:PORT where workers of several hosts find each other; None where there is one host, or
            where hosts share storage and no worker is needed.
        present: workers that are there already; None where the run starts them.
        board: where they read what their job is.
    """

    hosts: Hosts = ALONE
    endpoint: str | None = None
    present: Present | None = None
    board: Board | None = None


ONE_HOST = Crew()
