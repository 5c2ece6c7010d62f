"""The JSON Schemas in `eplb_cli/schemas`: what commands write fits them, and what is damaged does not.

`tests/cli/conftest.py` holds whatever any command of these tests prints or writes to the same schemas.
"""

from __future__ import annotations

import copy
import json
from dataclasses import fields

import pytest
from jsonschema import Draft202012Validator

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.models.model import MAX_EXPERTS
from eplb_cli.placements.placement import MAX_RANKS
from eplb_cli.report.report import HostReport
from tests.support.formats import FORMATS, KINDS, load, problems, validator
from tests.support.week import write_week

MAY_BE_MISSING = {
    *("num_ranks", "slots_per_rank", "num_logical_experts", "layer_ids"),
    *("samples", "rank_scalars"),
    *("estimate", "load", "relabelled"),
    *("decisions", "engine"),
}
"""Keys that not every placement, plan, report or manifest has."""
NAMED_FREELY = {"sources", "files", "shards", "samples", "carried", "digests", "others", "stage_bytes"}
"""Objects whose keys are names."""
WRONG = ({"not": ["this"]}, -2, "not this", None)


@pytest.fixture
def examples(eplb, tmp_path, monkeypatch):
    """A file of each kind, with nearly all that it can have."""
    write_week(tmp_path)
    monkeypatch.chdir(tmp_path)
    ranks = ("--num-ranks", 4, "--num-redundant-experts", 4)
    assert eplb("balance", "last-week.npy", *ranks, "--out", "first.json").code == 0
    assert eplb("shard", "hf", "src", "--placement", "first.json", "--engine", "vllm").code == 0
    assert eplb("balance", "this-week.npy", "--checkpoint", "src", "--out", "new.json").code == 0
    options = ("--load", "this-week.npy", "--ranks-per-node", 2, "--bandwidth", "disk=3GB/s,network=50GB/s")
    relabel = ("--relabel", "ranks", "--out-new", "named.json")
    plan = ("plan", "src/eplb.json", "new.json", "--checkpoint", "src", *options, *relabel)
    planned = eplb(*plan, "--out", "plan.json", "--format", "json")
    run = eplb("reshard", "src", "dst", "--new", "new.json", "--backend", "file", "--format", "json")
    files = {"placement": "new.json", "plan": "plan.json", "checkpoint": "dst/eplb.json"}
    found = {kind: json.loads((tmp_path / name).read_text()) for kind, name in files.items()}
    return {**found, "report": json.loads(planned.out) | json.loads(run.out)}


def is_valid(value):
    """Whether the schema of its format has nothing against it."""
    return validator(FORMATS[value["format"]]).is_valid(value)


def changes(value, place=()):
    """Every place in a value; of a list, and of an object whose keys are names, in its first element only."""
    yield place
    is_list = isinstance(value, list)
    inner = list(enumerate(value) if is_list else value.items() if isinstance(value, dict) else ())
    for key, item in inner[:1] if is_list or NAMED_FREELY & set(place[-1:]) else inner:
        yield from changes(item, (*place, key))


def at(value, place):
    """What is at a place."""
    for key in place:
        value = value[key]
    return value


def changed(value, place, other):
    """A copy with something else at a place."""
    result = copy.deepcopy(value)
    at(result, place[:-1])[place[-1]] = other
    return result


def without(value, place):
    """A copy that lacks a key."""
    result = copy.deepcopy(value)
    del at(result, place[:-1])[place[-1]]
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_one(kind):
    """By its own schema; it says what it is about, and every key has a description."""
    schema = load(kind)
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == f"eplb-{kind}/1" == schema["properties"]["format"]["const"]
    places = [place for place in changes(schema) if len(place) > 1 and place[-2] == "properties"]
    assert [place for place in places if not at(schema, place).get("description")] == []


def test_what_is_written_is_valid(examples):
    """A placement, a plan, a report of a run and the eplb.json of shards."""
    for kind, example in examples.items():
        assert FORMATS[example["format"]] == kind
        assert problems(example) == []


def test_every_value_is_held_to_something(examples):
    """Whatever stands in a file: something of another kind in its place is noticed."""
    for kind, example in examples.items():
        for place in changes(example):
            if not place or place == ("format",):
                continue
            noticed = [not is_valid(changed(example, place, wrong)) for wrong in WRONG]
            assert noticed[0], (kind, place)
            assert sum(noticed) >= len(WRONG) - 2, (kind, place)


def test_a_key_that_is_missing_or_unknown_is_noticed(examples):
    """Each, wherever keys are known; so no key is written that the reference does not have."""
    for kind, example in examples.items():
        for place in changes(example):
            inside = at(example, place)
            if isinstance(inside, dict) and not NAMED_FREELY & set(place[-1:]):
                assert not is_valid(changed(example, (*place, "another"), 1)), (kind, place)
            if not place or place[-1] in MAY_BE_MISSING | {"format"} or not isinstance(place[-1], str):
                continue
            if not NAMED_FREELY & set(place[-2:-1]) and place[-2:-1] != ("seconds",):
                assert not is_valid(without(example, place)), (kind, place)


def test_limits_are_those_of_the_code():
    """Of ranks and experts; and a layout, or a host, has the keys that its value has."""
    placement = load("placement")["properties"]
    assert placement["num_ranks"]["maximum"] == MAX_RANKS
    assert placement["num_logical_experts"]["maximum"] == MAX_EXPERTS
    assert load("layout")["properties"].keys() == Layout("x", ("y",)).as_json().keys()
    hosts = load("report")["properties"]["hosts"]["items"]["properties"]
    assert list(hosts) == [field.name for field in fields(HostReport)]
