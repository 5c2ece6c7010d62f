"""The numbers of a plan or a run, and nothing about how they are shown."""

from __future__ import annotations

from dataclasses import asdict, field
from typing import TYPE_CHECKING, Any

from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.report.balance import Balances

from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import Relabel


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks; bytes are None where sizes are unknown.

    The bounds are what no choice of senders goes below. In rows that of the busiest sender is None where
    experts differ in size, since it is bytes that are spread.
    """

    unchanged_bytes: int | None
    local_bytes: int | None
    remote_bytes: int | None
    duplicate_bytes: int | None
    empty_bytes: int | None
    cross_node_bytes: int | None
    other_bytes: int | None
    output_bytes: int | None
    unchanged_rows: int
    local_rows: int
    remote_rows: int
    duplicate_rows: int
    empty_rows: int
    busiest_sender_bytes: int | None
    busiest_sender_bound_bytes: int | None = None
    cross_node_bound_bytes: int | None = None
    cross_node_rows: int = 0
    busiest_sender_rows: int = 0
    busiest_sender_bound_rows: int | None = None
    cross_node_bound_rows: int | None = None


@dataclass(frozen=True)
class RankTraffic:
    """What one rank sends (as an old rank) and gets (as a new rank)."""

    rank: int
    sent_bytes: int | None
    received_bytes: int | None
    local_bytes: int | None
    duplicate_bytes: int | None
    unchanged_bytes: int | None
    sent_rows: int
    received_rows: int
    local_rows: int
    duplicate_rows: int
    unchanged_rows: int


@dataclass(frozen=True)
class LayerTraffic:
    """What comes from another rank in one layer; `layer` is the model's own number where known."""

    layer: int
    remote_bytes: int | None
    remote_rows: int


@dataclass(frozen=True)
class Estimate:
    """What a run of the plan needs at given rates.

    Attributes:
        seconds: "read", "exchange", "write", "verify" and "total"; None where a rate is missing. The total
            is of the stages that are known.
        bound_by: the link that moving the bytes waits for; None without rates.
        memory_bytes_per_worker: peak, with buffers of the usual size.
        disk_bytes: of DST; the expert rows alone where nothing says more.
    """

    seconds: dict[str, float | None]
    bound_by: str | None
    memory_bytes_per_worker: int
    disk_bytes: int


@dataclass(frozen=True)
class HostReport:
    """One of several hosts that have taken part.

    Attributes:
        name: as the system there calls itself.
        workers: of this host.
        old_ranks: that it has read. new_ranks: whose files are in DST there.
        output: DST, as it is called there.
        written_bytes: of the shard files of its new ranks.
        sent_bytes, received_bytes: that went to other hosts, and came from them: rows and other tensors.
    """

    host: int
    name: str
    workers: int
    old_ranks: list[int]
    new_ranks: list[int]
    output: str
    written_bytes: int
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True)
class RunReport:
    """What `reshard` adds once it has run.

    Attributes:
        seconds: per step and "total", which is their sum; "start" to "finish", which add up to "move"; and
            per activity while bytes move, of the worker that took longest.
        stage_bytes: bytes that went through each step and stage that has a rate.
        bound_by, busy: the stage of moving that was busiest, and its share of the time, 0 to 1.
        exchange_hidden: share of the exchange beside which files were at work; None without one.
        buffer_bytes, threads: of each worker, as they were chosen.
        peak_rss_bytes, peak_anonymous_bytes: per worker, with and without the pages of files.
        linked_bytes: not written, because a file that ranks have alike is there under several names.
        rows_proved, rows_total: rows (an expert in a slot, with all its tensors) whose digests
            were read back and compared; rows_proved is 0 without the check.
        serving: how each engine loads the output.
        misread: what an engine would load without an error, and wrongly; `warnings` has it too.
        notes: what a run that went on has taken over.
        cross_host_bytes: of `wire_bytes`, what went from one host to another; 0 for one host.
        hosts: those that took part; none where there was one.
        host: which of them this is.
    """

    backend: str
    num_workers: int
    wire_bytes: int
    seconds: dict[str, float]
    stage_bytes: dict[str, int]
    bound_by: str
    busy: float
    exchange_hidden: float | None
    buffer_bytes: int
    threads: int
    peak_rss_bytes: list[int]
    peak_anonymous_bytes: list[int]
    linked_bytes: int
    verified: bool
    output: str
    rows_proved: int
    rows_total: int
    serving: list[str]
    misread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cross_host_bytes: int = 0
    hosts: list[HostReport] = field(default_factory=list)
    host: int = 0


@dataclass(frozen=True, eq=False)
class Relabelled:
    """What another name for its ranks and rows has done to NEW.

    Attributes:
        how: "rows", or "ranks" and rows.
        new: NEW as it is planned; an engine that loads DST needs this one.
        before: the totals of a plan for NEW as it was given.
        output: the file that has `new`; None where it was not written.
    """

    how: Relabel
    new: Placement
    before: Totals
    output: str | None = None


@dataclass(frozen=True)
class Report:
    """What a plan moves, or a run has moved.

    Attributes:
        totals: sums over all ranks: `remote_bytes`, `remote_rows` and so on for each kind of move.
        ranks: per rank, `sent_bytes`, `received_bytes` and so on.
        traffic: (old rank, new rank, bytes, rows) of all that goes to another rank, non-zero and ascending.
        warnings: what is odd about the placements or the checkpoint.
        run: what a run adds; None for a plan.
        estimate: how long a plan will take, where rates are given.
        layers: what comes from another rank, layer by layer.
        block: ranks of each entry of `traffic`: 1, or those of a node.
        ranks_per_node: G, None where there is one node.
        has_uneven_nodes: there are several nodes, which are no blocks of G ranks.
        nothing_to_do: OLD and NEW are the same, and SRC is not to be copied all the same.
        relabelled: what came of it where NEW was to be relabelled; None where it was not.
        load: OLD and NEW under a load, where one is given.
        is_finished: an earlier run had done all of it, and one of its hosts had only to rename.
    """

    totals: Totals
    ranks: list[RankTraffic]
    traffic: list[tuple[int, int, int | None, int]]
    warnings: list[str] = field(default_factory=list)
    run: RunReport | None = None
    estimate: Estimate | None = None
    layers: list[LayerTraffic] = field(default_factory=list)
    block: int = 1
    ranks_per_node: int | None = None
    has_uneven_nodes: bool = False
    nothing_to_do: bool = False
    relabelled: Relabelled | None = None
    load: Balances | None = None
    is_finished: bool = False

    @property
    def traffic_by(self) -> str:
        """What `traffic` is by: "rank", or "node" where there are too many ranks to list."""
        return "rank" if self.block == 1 else "node"


_NOT_SHOWN = ("cross_node_rows", "busiest_sender_rows", "busiest_sender_bound_rows", "cross_node_bound_rows")
"""Totals for people who gave no sizes; the keys of the JSON are those of bytes."""

_BEFORE_KEYS = ("remote_bytes", "cross_node_bytes", "remote_rows", "unchanged_rows")
"""Totals that relabelling changes, which are shown as they were before it."""

_RANK_KEYS = (
    "rank",
    "sent_bytes",
    "received_bytes",
    "local_bytes",
    "duplicate_bytes",
    "unchanged_bytes",
    "sent_rows",
    "received_rows",
)
_RUN_KEYS = (
    "backend",
    "wire_bytes",
    "seconds",
    "stage_bytes",
    "bound_by",
    "busy",
    "exchange_hidden",
    "buffer_bytes",
    "threads",
    "peak_rss_bytes",
    "peak_anonymous_bytes",
    "linked_bytes",
    "verified",
    "output",
    "serving",
    "misread",
)


def report_json(report: Report) -> dict[str, Any]:
    """The report as `--format json` shows it.

    A plan has "format", "totals", "ranks" and "traffic"; a run adds its own keys. "traffic_by" is there only
    where it is "node", "estimate" and "load" only where rates or a load are given, "nothing_to_do" only where
    it is true, "relabelled" only where NEW was to be; "hosts", "host" and "cross_host_bytes" only of several
    hosts, and "finished" only where these had only to rename.
    """
    result: dict[str, Any] = {
        "format": "eplb-report/1",
        "totals": {key: value for key, value in asdict(report.totals).items() if key not in _NOT_SHOWN},
        "ranks": [{key: getattr(rank, key) for key in _RANK_KEYS} for rank in report.ranks],
        "traffic": list(map(list, report.traffic)),
    }
    if report.traffic_by != "rank":
        result["traffic_by"] = report.traffic_by
    if report.nothing_to_do:
        result["nothing_to_do"] = True
    if report.relabelled:
        before = asdict(report.relabelled.before)
        result["relabelled"] = {
            "how": report.relabelled.how,
            "output": report.relabelled.output,
            **{f"{key}_before": before[key] for key in _BEFORE_KEYS},
        }
    if report.estimate:
        result["estimate"] = asdict(report.estimate)
    if report.load:
        from eplb_cli.report.balance import balances_json

        result["load"] = balances_json(report.load)
    if report.run:
        result |= {key: getattr(report.run, key) for key in _RUN_KEYS}
        result["warnings"] = report.warnings
        if report.run.hosts:
            result["host"], result["cross_host_bytes"] = report.run.host, report.run.cross_host_bytes
            result["hosts"] = [asdict(host) for host in report.run.hosts]
    if report.is_finished:
        result["finished"] = True
    return result
