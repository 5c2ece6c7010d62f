"""Requests as a program makes them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import eplb_cli
from eplb_cli import EplbError, PlanRequest, Request
from eplb_cli.run.request import AnyRequest
from tests.cli.tree import NEW, OLD, stacked, write_json, write_tree


@pytest.fixture
def request_(tmp_path) -> Request:
    """A request that can be fulfilled."""
    write_tree(tmp_path / "src", stacked(OLD))
    new, old = (
        str(write_json(tmp_path / f"{name}.json", content)) for name, content in (("new", NEW), ("old", OLD))
    )
    return Request(tmp_path / "src", tmp_path / "dst", new=new, old=old, backend="file", durable=False)


def test_every_field_is_explained():
    """In the docstring of `Request`; a plan instead of placements in that of `PlanRequest`."""
    explained = set(re.findall(r"^    (\w+): ", inspect.getdoc(Request) or "", re.MULTILINE))
    assert explained == {field.name for field in fields(Request)}
    own = {field.name for field in fields(PlanRequest)} - {field.name for field in fields(AnyRequest)}
    assert own == {"plan"}
    assert "    plan: " in (inspect.getdoc(PlanRequest) or "")


def test_a_request_is_fulfilled(request_):
    """By the function of the package, without a word of the command line."""
    report = eplb_cli.reshard(request_)
    assert report.run is not None
    assert report.run.verified
    seconds, stages = report.run.seconds, ("plan", "compare", "create", "move", "prove", "commit")
    assert seconds["total"] == pytest.approx(sum(seconds[stage] for stage in stages))
    assert request_.destination.is_dir()


def test_senders_that_there_are_not(request_):
    """EP001 instead of the usual ones."""
    wrong = Request(request_.source, request_.destination, request_.new, request_.old, senders="fastest")  # type: ignore[arg-type]
    with pytest.raises(EplbError, match="no senders 'fastest'") as caught:
        eplb_cli.reshard(wrong)
    assert caught.value.code == "EP001"
    assert not request_.destination.exists()


def test_a_plan_that_is_not_there(request_):
    """EP201: a request of a plan reads that, and nothing else says what is wanted."""
    with pytest.raises(EplbError) as caught:
        eplb_cli.reshard(PlanRequest(request_.source, request_.destination, Path("nowhere.json")))
    assert caught.value.code == "EP201"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("backend", "mpi", "no backend 'mpi'"),
        ("backend", "", "no backend ''"),
        ("buffer_nbytes", 1, "the least is 1,048,576"),
        ("buffer_nbytes", (1 << 20) - 1, "the least is 1,048,576"),
        ("buffer_nbytes", -(1 << 30), "the least is 1,048,576"),
        ("threads", 0, "from 1 to 1,024"),
        ("threads", 10**9, "from 1 to 1,024"),
        ("num_workers", 0, "from 1 to 1,024"),
        ("num_workers", 10**6, "from 1 to 1,024"),
        ("timeout_s", 0.0, "number of seconds"),
        ("timeout_s", -1.0, "number of seconds"),
        ("timeout_s", float("nan"), "number of seconds"),
        ("timeout_s", float("inf"), "number of seconds"),
        ("ranks_per_node", 0, "from 1 to 1,000,000"),
        ("ranks_per_node", -3, "from 1 to 1,000,000"),
        ("ranks_per_node", 10**30, "from 1 to 1,000,000"),
    ],
)
def test_what_no_run_can_be_asked_for(request_, field, value, says):
    """EP001 before anything is written, as the command line has it."""
    with pytest.raises(EplbError, match=says) as caught:
        eplb_cli.reshard(dataclasses.replace(request_, **{field: value}))
    assert caught.value.code == "EP001"
    assert not request_.destination.exists()


def test_more_workers_than_ranks(request_):
    """A few may be idle; many more take memory for nothing."""
    wanted = dataclasses.replace(request_, backend="gloo", num_workers=9)
    with pytest.raises(EplbError, match="is 9, for 2 ranks") as caught:
        eplb_cli.reshard(wanted)
    assert caught.value.code == "EP001"


@pytest.mark.parametrize(
    "said",
    [{"num_ranks": 0}, {"old_num_ranks": -1}, {"num_logical_experts": 0}, {"num_redundant_experts": -1}],
)
def test_numbers_of_nothing(said):
    """EP001 where placements are said to have no ranks, or fewer."""
    with pytest.raises(EplbError, match="is the least") as caught:
        eplb_cli.PlacementOptions(**said)
    assert caught.value.code == "EP001"


@pytest.mark.parametrize("nbytes", [0, -1, 1 << 41])
def test_an_expert_of_no_size(request_, nbytes):
    """EP001 from a plan."""
    with pytest.raises(EplbError, match="--expert-bytes") as caught:
        eplb_cli.plan_files(request_.old, request_.new, expert_nbytes=nbytes)
    assert caught.value.code == "EP001"
