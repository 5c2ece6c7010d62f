"""The hosts of a run: found, and asked for the same, before anything is read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass

from eplb_cli.errors import PlanError
from eplb_cli.hosts.board import Board, BoardError
from eplb_cli.hosts.hosts import Hosts
from eplb_cli.output.destination import meeting_path, real_path
from eplb_cli.run.crew import ONE_HOST, Crew, over_key, present
from eplb_cli.run.request import AnyRequest

_OF_A_HOST = {
    "source",
    "destination",
    "missing_from",
    "num_workers",
    "threads",
    "keep",
    "timeout_s",
    "num_hosts",
    "host",
    "rendezvous",
    "new",
    "old",
    "plan",
}
"""What hosts may say differently; OLD, NEW and a plan are compared by what is in them."""

_OPTIONS = {"verify": "--no-verify", "digests": "--no-digest", "durable": "--no-fsync"}


def asked_of_all(request: AnyRequest) -> dict[str, str]:
    """By option what all hosts have to say alike."""
    said = {}
    for field in fields(request):
        if field.name not in _OF_A_HOST:
            value = getattr(request, field.name)
            plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            option = _OPTIONS.get(field.name, "--" + field.name.replace("_", "-"))
            said[option] = json.dumps(plain, default=str, sort_keys=True)
    return said


def require_same(hosts: Hosts, said: dict[str, str], hint: str) -> None:
    """Compare what every host says by name, which is digests of all sorts. Raises PlanError EP302."""
    if hosts.count == 1:
        return
    everyone = hosts.gather_words(said, "compare")
    for name in said:
        for node, theirs in enumerate(everyone):
            if theirs.get(name) != everyone[0].get(name):
                problem = f"{hosts.name_of(0)} and {hosts.name_of(node)} have different {name}"
                raise PlanError("EP302", problem, hint)


@contextlib.contextmanager
def meeting(request: AnyRequest) -> Iterator[Crew]:
    """All hosts of a run, once they are there, are of one version, and are asked for the same.

    Raises:
        UsageError: EP001, HOST:PORT is none, or another host has this --node-rank.
        WorkerError: EP404, another version of eplb; EP407, a host is not there, or is lost.
        PlanError: EP302, hosts are asked for different things.
    """
    started = present()
    if request.num_hosts == 1 and started is None:
        yield ONE_HOST  # without importing what finds others
        return
    from eplb_cli.hosts.joining import joined

    node, same, timeout_s = request.host or 0, asked_of_all(request), request.timeout_s
    if started is None:
        with joined(
            lambda: _board(request, serve=node == 0), node, request.num_hosts, same, timeout_s
        ) as hosts:
            yield Crew(hosts, request.rendezvous)
        return
    board = _board(request, started.run)
    try:
        name = f"{started.run}-hosts"
        with joined(lambda: _board(request, name), node, request.num_hosts, same, timeout_s) as hosts:
            endpoint = request.rendezvous if hosts.count > 1 else None  # one host needs no network
            yield Crew(hosts, endpoint, started, board)
    finally:
        with contextlib.suppress(BoardError):
            board.set(over_key(node), b"")
        board.close()


def _board(request: AnyRequest, name: str = "hosts", *, serve: bool = False) -> Board:
    """Where hosts meet: at HOST:PORT, or in the storage of DST where they have no network.

    Args:
        name: of what is said there, which other processes may use as well.
        serve: nobody else does, so that this host has to.
    """
    from eplb_cli.hosts.watch import lost_after

    timeout_s, lost_s = request.timeout_s, lost_after(request.timeout_s)
    if request.rendezvous is None:
        from eplb_cli.hosts.file_board import meet_in

        return meet_in(meeting_path(real_path(request.destination)), request.host or 0, timeout_s, lost_s)
    from eplb_cli.hosts.addresses import read_endpoint
    from eplb_cli.hosts.tcp_board import board_at

    endpoint = read_endpoint(request.rendezvous)
    return board_at(endpoint, serve=serve, timeout_s=timeout_s, lost_s=lost_s, name=name)
