"""Seconds, bounds, memory and space, against sums done by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest

from eplb_cli.errors import UsageError
from eplb_cli.machine import MAX_BUFFER_NBYTES
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.render import print_report
from eplb_cli.report.estimate import WORKER_NBYTES, estimate
from eplb_cli.report.report import report_json
from eplb_cli.report.sizes import Rates, parse_rates
from eplb_cli.report.tally import plan_report
from tests.support.placements import placement

OLD = placement([[0, 1, 2, 3]], num_ranks=4)
NEW = placement([[1, 0, 0, 3]], num_ranks=4, num_experts=4)
"""Ranks 0 and 1 swap, rank 2 needs what rank 0 has, rank 3 keeps its own; nodes are {0, 1} and {2, 3}."""


def plan(nbytes=60):
    return plan_reshard(OLD, NEW, expert_nbytes=np.array([nbytes]), ranks_per_node=2)


def test_every_stage():
    """Node 0 reads three rows and writes two, node 1 one and two; rank 0 sends one row near, one far."""
    found = estimate(plan(), Rates(nvlink=30, network=12, disk=10))
    assert found.seconds == {"read": 18.0, "exchange": 5.0, "write": 12.0, "verify": 12.0, "total": 42.0}
    assert found.bound_by == "disk"
    assert found.disk_bytes == 4 * 60
    assert found.memory_bytes_per_worker >= WORKER_NBYTES + MAX_BUFFER_NBYTES


def test_each_link_can_be_what_bounds_the_run():
    """The slowest of the three, for the bytes that go over it."""
    assert estimate(plan(), Rates(nvlink=1, network=900, disk=900)).bound_by == "nvlink"
    assert estimate(plan(), Rates(nvlink=900, network=1, disk=900)).bound_by == "network"
    assert estimate(plan(), Rates(nvlink=900, network=900, disk=1)).bound_by == "disk"
    slow_link = estimate(plan(), Rates(network=1, disk=900))
    assert slow_link.seconds["total"] == 60 + 120 / 900


def test_other_tensors_and_the_output():
    """Each rank reads and writes its share of the others; the output says how much space it takes."""
    found = estimate(plan(), Rates(disk=10), other_nbytes=80, output_nbytes=999)
    assert (found.seconds["read"], found.seconds["write"]) == ((180 + 40) / 10, (120 + 40) / 10)
    assert found.disk_bytes == 999


def test_rates_that_are_missing():
    """What they would say is null; the rest is there."""
    found = estimate(plan(), Rates(network=6))
    assert found.seconds == {"read": None, "exchange": 10.0, "write": None, "verify": None, "total": 10.0}
    assert found.bound_by == "network"


def test_without_sizes():
    """EP001 says how to get them."""
    with pytest.raises(UsageError) as raised:
        estimate(plan_reshard(OLD, NEW), Rates(disk=1))
    assert "--expert-bytes" in raised.value.hint


def test_it_is_in_the_report_only_where_rates_are(monkeypatch):
    """JSON and page, beside the keys that every plan has."""
    report = plan_report(plan(), np.array([60]))
    assert "estimate" not in report_json(report)
    import dataclasses

    report = dataclasses.replace(report, estimate=estimate(plan(), Rates(network=6)))
    assert report_json(report)["estimate"]["seconds"]["exchange"] == 10.0
    page = io.StringIO()
    print_report(report, page)
    assert "bound by network" in page.getvalue()
    assert "no rate given" in page.getvalue()


def test_rates():
    """In any order, some of them, with or without the second."""
    assert parse_rates("nvlink=370GB/s,network=50GB/s,disk=3GB/s") == Rates(
        370 * 10**9, 50 * 10**9, 3 * 10**9
    )
    assert parse_rates(" disk = 1.5 GiB / s ") == Rates(disk=3 << 29)
    assert parse_rates("network=50gb") == Rates(network=50 * 10**9)


@pytest.mark.parametrize(
    "text", ["", "disk", "disk=", "disk=fast", "tape=1GB/s", "disk=1GB/s,disk=2GB/s", "disk=0"]
)
def test_rates_that_are_none(text):
    """EP001 with an example."""
    with pytest.raises(UsageError) as raised:
        parse_rates(text)
    assert "nvlink=370GB/s" in raised.value.hint
