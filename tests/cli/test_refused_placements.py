"""`eplb reshard` with placements that cannot be used: a coded error, exit code 3, and nothing on disk."""

from __future__ import annotations

import json

import pytest

from tests.cli.tree import NEW, OLD, placement, write_json


def with_map(*rows: list[object]) -> dict[str, object]:
    """NEW with another map."""
    return {**NEW, "physical_to_logical_map": rows}


OTHER_LAYERS = placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], layer_ids=[3, 5])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "line"),
        (b'{"format": "eplb-placement/1",}', "new.json:1"),
        (b"", "new.json:1"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b'{"a":' * 100_000, "nest"),
        (b'{"num_ranks": 2, "num_ranks": 2}', "num_ranks"),
    ],
)
def test_malformed_json(case, text, says):
    """EP102, with the line."""
    (case.home / "new.json").write_bytes(text)
    case.refuse("EP102", says)


@pytest.mark.parametrize(
    ("code", "says", "content"),
    [
        ("EP103", '"physical_to_logical_map" is missing', {"format": "eplb-placement/1", "num_ranks": 2}),
        ("EP103", '"format" is missing', {"physical_to_logical_map": [[0]], "num_ranks": 2}),
        ("EP103", "instead of an object", "linear"),
        ("EP109", "the map has 1 rows, for 2 MoE layers", {"physical_to_logical_map": [[0]]}),
        ("EP103", "num_ranks", placement([[0, 1, 2, 3, 0, 1]] * 2, None)),
        ("EP103", "not an integer", {**NEW, "num_ranks": "2"}),
        ("EP104", "layer 4 has 5 slots", with_map([3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 1])),
        ("EP104", "slot 1: 0.5 is not an integer", with_map([3, 0.5, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1])),
        ("EP105", "layer 4, slot 5: 4 is not", with_map([3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 4])),
        ("EP105", "layer 3, slot 2: -2 is not", with_map([3, 0, -2, 1, 2, 2], [0, 1, 2, 3, 3, 1])),
        ("EP108", "6 slots do not divide over 4 ranks", {**NEW, "num_ranks": 4}),
        ("EP108", "slots_per_rank", {**NEW, "slots_per_rank": [3, 2]}),
        ("EP109", "num_logical_experts", {**NEW, "num_logical_experts": 5}),
        ("EP109", "layer", placement([[3, 0, 0, 1, 2, 2]])),
        ("EP109", "5", OTHER_LAYERS),
    ],
)  # fmt: skip
def test_a_placement_that_is_none(case, code, says, content):
    """A code for each kind of mistake, and the key, layer or slot it is in."""
    case.new(content)
    case.refuse(code, says)


def test_an_expert_without_a_source(case):
    """EP106, trap 1 of the reference: refused before anything is read, with layer, slot and expert."""
    case.old(placement([[0, 1, 2, 2, 0, 1], [3, 2, 1, 0, 2, 3]]))
    case.refuse("EP106", "layer 3, slot 0: expert 3 is in NEW but nowhere in OLD")


def test_an_expert_that_new_drops(case):
    """EP107: the router would still name it."""
    case.new(placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 0, 1, 1]], num_logical_experts=4))
    case.refuse("EP107", "layer 4, slot 0 of OLD: expert 3 is in OLD but nowhere in NEW")


def test_layers_that_the_shards_do_not_have(case):
    """EP212: a layer of both placements without experts in SRC."""
    case.old(OTHER_LAYERS)
    case.new({**NEW, "layer_ids": [3, 5]})
    case.refuse("EP212", "layer 5")


def test_more_layers_in_the_shards_than_in_placements_without_numbers(case):
    """EP212: one row for two layers, and nothing says which it is."""
    case.old(placement([[0, 1, 2, 3, 0, 1]], layer_ids=None))
    case.new(placement([[3, 0, 0, 1, 2, 2]], layer_ids=None))
    case.refuse("EP212", "1 of the 2 MoE layers", "layer_ids")


def test_a_placement_that_is_not_there(case):
    """EP101, for NEW and for OLD."""
    case.refuse("EP101", "nothing.json", new="nothing.json")
    case.refuse("EP101", "nothing.json", old="nothing.json")


def test_a_directory_or_a_pipe_is_no_placement(case, tmp_path):
    """EP101, without waiting for a writer."""
    import os

    os.mkfifo(tmp_path / "pipe")
    case.refuse("EP101", "pipe", new=tmp_path / "pipe")
    case.refuse("EP101", "src", new=case.src)


def test_an_old_that_leaves_out_its_ranks(case):
    """They are those of the shards, with and without --old-num-ranks; other slots are EP108."""
    short = {key: value for key, value in OLD.items() if key != "num_ranks"}
    case.old(short)
    case.reshard()
    case.reshard("--old-num-ranks", "2", dst=case.home / "again")
    case.old({**short, "physical_to_logical_map": [[0, 1, 2, 3], [3, 2, 1, 0]]})
    case.refuse("EP108", "the map has 4 slots", "says 6", dst=case.home / "none")


def test_nothing_says_what_old_is(case):
    """EP216: no --old, and no eplb.json in SRC."""
    case.refuse("EP216", "eplb.json", "--old linear", old=None)


def test_old_contradicts_the_manifest_of_src(case, tmp_path):
    """EP215; the same placement in other words is no contradiction."""
    case.reshard()
    wrong = write_json(tmp_path / "wrong.json", OLD)
    case.refuse("EP215", "wrong.json", "eplb.json", src=case.dst, dst=tmp_path / "again", old=wrong)
    same = tmp_path / "same.json"
    same.write_text(json.dumps({**NEW, "slots_per_rank": 3}, indent=3))
    case.reshard(src=case.dst, dst=tmp_path / "again", old=same, new=wrong)


@pytest.mark.parametrize(
    ("code", "says", "options"),
    [
        ("EP202", "2 ranks of 3 slots", ("--num-logical-experts", 9)),
        ("EP109", "6 slots", ("--num-redundant-experts", 6)),
        ("EP109", "4 experts and 1 redundant", ("--num-logical-experts", 4, "--num-redundant-experts", 1)),
    ],
)
def test_a_named_map_that_does_not_fit_the_shards(case, code, says, options):
    """More experts than slots, as far as OLD goes."""
    case.refuse(code, says, old="linear", options=options)


def test_a_named_map_and_the_config_of_the_model(case):
    """EP109: six slots a layer, and config.json says four experts; a guess is a warning, a number none."""
    assert "OLD is taken to have 6 experts" in case.reshard(old="linear", new="round_robin").err
    (case.src / "config.json").write_text(json.dumps({"n_routed_experts": 4}))
    says = ("6 experts in 6 slots", "config.json says 4", "--num-logical-experts 4")
    case.refuse("EP109", *says, dst=case.home / "other", old="linear", new="round_robin")
    result = case.reshard("--num-logical-experts", 4, dst=case.home / "other", old="linear")
    assert "OLD is taken" not in result.err


def test_redundant_experts_of_old_or_of_new(case):
    """EP001: with named maps on both sides only --num-logical-experts tells which of them has replicas."""
    options = ("--num-redundant-experts", 2)
    case.refuse("EP001", "leaves open", exit_code=2, old="linear", new="linear", options=options)
