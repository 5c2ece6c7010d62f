"""The keys that scripts rely on."""

from __future__ import annotations

import json

import pytest

from eplb_cli.report.report import RankTraffic, Report, RunReport, Totals, report_json

TOTALS = Totals(
    unchanged_bytes=30,
    local_bytes=10,
    remote_bytes=20,
    duplicate_bytes=0,
    empty_bytes=0,
    cross_node_bytes=0,
    other_bytes=7,
    output_bytes=99,
    unchanged_rows=3,
    local_rows=1,
    remote_rows=2,
    duplicate_rows=0,
    empty_rows=0,
    busiest_sender_bytes=10,
)
RANKS = [RankTraffic(rank, 10, 10, 5 * rank, 0, 15, 1, 1, rank, 0, 1) for rank in range(2)]
RUN = RunReport(
    backend="gloo",
    num_workers=2,
    wire_bytes=20,
    seconds={"read": 0.5, "total": 1.5},
    stage_bytes={"read": 60},
    bound_by="read",
    busy=0.75,
    exchange_hidden=0.5,
    buffer_bytes=64,
    threads=3,
    peak_rss_bytes=[100, 200],
    peak_anonymous_bytes=[50, 60],
    linked_bytes=7,
    verified=True,
    output="/out",
    rows_proved=6,
    rows_total=6,
    serving=[],
)


@pytest.fixture
def plan() -> Report:
    return Report(TOTALS, RANKS, [(0, 1, 10, 1), (1, 0, 10, 1)])


def test_a_plan_has_the_keys_of_the_design_and_no_others(plan):
    """Scripts may rely on every key, and on their order."""
    result = report_json(plan)
    assert list(result) == ["format", "totals", "ranks", "traffic"]
    assert result["format"] == "eplb-report/1"
    assert list(result["totals"]) == [
        "unchanged_bytes",
        "local_bytes",
        "remote_bytes",
        "duplicate_bytes",
        "empty_bytes",
        "cross_node_bytes",
        "other_bytes",
        "output_bytes",
        "unchanged_rows",
        "local_rows",
        "remote_rows",
        "duplicate_rows",
        "empty_rows",
        "busiest_sender_bytes",
        "busiest_sender_bound_bytes",
        "cross_node_bound_bytes",
    ]


def test_a_rank_has_the_keys_of_the_design_and_no_others(plan):
    """Sent and received count what changes rank; the other bytes stay where they are."""
    assert report_json(plan)["ranks"][1] == {
        "rank": 1,
        "sent_bytes": 10,
        "received_bytes": 10,
        "local_bytes": 5,
        "duplicate_bytes": 0,
        "unchanged_bytes": 15,
        "sent_rows": 1,
        "received_rows": 1,
    }


def test_traffic_is_a_list_of_four_numbers(plan):
    """Old rank, new rank, bytes, rows; a round trip through JSON changes nothing."""
    result = report_json(plan)
    assert result["traffic"] == [[0, 1, 10, 1], [1, 0, 10, 1]]
    assert json.loads(json.dumps(result)) == result


def test_traffic_by_node_says_so():
    """Nothing is added for ranks, which is what the design describes."""
    assert report_json(Report(TOTALS, RANKS, [], block=8))["traffic_by"] == "node"


def test_a_run_adds_its_keys():
    """They follow those of a plan."""
    result = report_json(Report(TOTALS, RANKS, [], run=RUN))
    assert {key: result[key] for key in list(result)[4:]} == {
        "serving": [],
        "misread": [],
        "warnings": [],
        "backend": "gloo",
        "wire_bytes": 20,
        "seconds": {"read": 0.5, "total": 1.5},
        "stage_bytes": {"read": 60},
        "bound_by": "read",
        "busy": 0.75,
        "exchange_hidden": 0.5,
        "buffer_bytes": 64,
        "threads": 3,
        "peak_rss_bytes": [100, 200],
        "peak_anonymous_bytes": [50, 60],
        "linked_bytes": 7,
        "verified": True,
        "output": "/out",
    }
