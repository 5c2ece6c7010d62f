"""Requests as a program makes them."""

from __future__ import annotations

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
