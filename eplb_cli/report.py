"""The numbers of a plan or a run, and nothing about how they are shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks; bytes are None where sizes are unknown."""

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
class Report:
    """What `plan` and `reshard` print; `traffic` is `[old_rank, new_rank, bytes, rows]`.

    `traffic_by` is "rank", or "node" where there are too many ranks to list.
    """

    totals: Totals
    ranks: list[RankTraffic]
    traffic: list[tuple[int, int, int | None, int]]
    traffic_by: str = "rank"
    warnings: list[str] = field(default_factory=list)
    run: RunReport | None = None


@dataclass(frozen=True)
class RunReport:
    """What `reshard` adds once it has run.

    Attributes:
        seconds: per step and "total"; and per stage of moving, of the worker that took longest.
        stage_bytes: bytes that went through each step and stage that has a rate.
        bound_by, busy: the stage of moving that was busiest, and its share of the time, 0 to 1.
        exchange_hidden: share of the exchange beside which files were at work; None without one.
        buffer_bytes, threads: of each worker, as they were chosen.
        peak_rss_bytes, peak_anonymous_bytes: per worker, with and without the pages of files.
        linked_bytes: not written, because a file that ranks have alike is there under several names.
        rows_proved, rows_total: rows (an expert in a slot, with all its tensors) whose digests
            were read back and compared; rows_proved is 0 without the check.
        serving: how each engine loads the output.
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
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


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
)


def report_json(report: Report) -> dict[str, Any]:
    """The report as `--format json` shows it.

    A plan has "format", "totals", "ranks" and "traffic"; a run adds its own keys and whatever is in
    `extra`. "traffic_by" is there only where it is "node".
    """
    result: dict[str, Any] = {
        "format": "eplb-report/1",
        "totals": asdict(report.totals),
        "ranks": [{key: getattr(rank, key) for key in _RANK_KEYS} for rank in report.ranks],
        "traffic": [list(entry) for entry in report.traffic],
    }
    if report.traffic_by != "rank":
        result["traffic_by"] = report.traffic_by
    if report.run:
        result |= {key: getattr(report.run, key) for key in _RUN_KEYS} | report.run.extra
    return result
