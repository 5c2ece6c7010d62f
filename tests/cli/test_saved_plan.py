"""`plan --out` and `reshard --plan`: exactly that plan, or a reason why not."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import NEW, OLD, fingerprint, stacked, write_json


@pytest.fixture
def saved(case):
    """A plan for the case's checkpoint, with the options that are not the defaults."""
    file = case.home / "plan.json"
    result = plan(case, file, "--senders", "vllm", "--ranks-per-node", 1)
    assert result.code == 0, result.err
    return file


def plan(case, file, *options):
    old, new = case.home / "old.json", case.home / "new.json"
    return case.eplb("plan", old, new, "--checkpoint", case.src, "--out", file, *options)


def reshard(case, file, *options):
    return case.eplb("reshard", case.src, case.dst, "--plan", file, "--backend", "file", *options)


def refuse(case, file, code, *says, exit_code=3):
    """A run that has to fail, and to leave everything as it was."""
    before = fingerprint(case.home)
    assert_error(reshard(case, file), code, *says, exit_code=exit_code)
    assert fingerprint(case.home) == before


def test_a_plan_is_carried_out(case, saved):
    """The tree is the one that --old and --new give, and its manifest has the plan's options."""
    assert reshard(case, saved).code == 0
    manifest = json.loads((case.dst / "eplb.json").read_text())
    assert (manifest["senders"], manifest["ranks_per_node"]) == ("vllm", 1)
    other = case.home / "other"
    case.reshard(dst=other)
    for file in sorted(other.glob("*.safetensors")):
        assert file.read_bytes() == (case.dst / file.name).read_bytes()


def test_what_a_plan_file_holds(case, saved):
    """Placements, options, digests, totals, and the shards it was made for: no times and no owners."""
    content = json.loads(saved.read_text())
    report = case.eplb("reshard", case.src, case.dst, "--plan", saved, "--dry-run", "--format", "json").json
    assert content["format"] == "eplb-plan/1"
    assert content["totals"] == report["totals"]
    assert content["old"]["physical_to_logical_map"] == OLD["physical_to_logical_map"]
    assert content["new"]["physical_to_logical_map"] == NEW["physical_to_logical_map"]
    assert set(content["shards"]) == {file.name for file in case.src.glob("*.safetensors")}
    assert all(set(shard) == {"nbytes", "header_digest"} for shard in content["shards"].values())


def test_the_same_plan_is_the_same_file(case, saved):
    """Written again, in place of the old one, it has the same bytes; nothing else is left beside it."""
    first = saved.read_bytes()
    assert plan(case, saved, "--senders", "vllm", "--ranks-per-node", 1).code == 0
    assert saved.read_bytes() == first
    assert plan(case, saved).code == 0
    assert saved.read_bytes() != first
    assert [path.name for path in case.home.iterdir() if "plan" in path.name] == ["plan.json"]


def test_a_plan_that_cannot_be_written(case):
    """EP604, or EP001 for a directory, and no result on stdout that says otherwise."""
    assert_error(plan(case, case.home / "nowhere" / "plan.json"), "EP604", "plan.json", exit_code=6)
    (case.home / "directory").mkdir()
    assert_error(plan(case, case.home / "directory"), "EP001", "directory", exit_code=2)
    assert not [path for path in case.home.iterdir() if path.name.startswith(".")]


def test_a_plan_does_not_replace_what_it_is_made_from(case):
    """EP001 for a placement, EP602 for anything inside SRC: nothing is written."""
    before = fingerprint(case.home)
    for name in ("old.json", "new.json"):
        assert_error(plan(case, case.home / name), "EP001", name, exit_code=2)
    assert_error(plan(case, case.src / "plan.json"), "EP602", "plan.json", exit_code=6)
    assert fingerprint(case.home) == before


@pytest.mark.parametrize("name", ["old.json", "new.json"])
def test_a_placement_that_changed(case, saved, name):
    """EP304 where the file has another placement than the plan; another spelling of it is the same."""
    file = case.home / name
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content, indent=7))
    assert reshard(case, saved, "--dry-run").code == 0
    content["physical_to_logical_map"][0].reverse()
    write_json(file, content)
    refuse(case, saved, "EP304", name)
    file.write_text("{")
    refuse(case, saved, "EP304", name)
    file.unlink()
    assert reshard(case, saved).code == 0, "the plan itself holds the placement"


def test_a_manifest_that_says_another_old(case, saved):
    """EP304 where SRC is a tree that eplb wrote, under another placement."""
    second = case.home / "second.json"
    case.reshard()
    result = case.eplb(
        "plan", case.home / "new.json", case.home / "old.json", "--checkpoint", case.dst, "--out", second
    )
    assert result.code == 0, result.err
    case.dst.rename(case.home / "kept")
    case.src.rename(case.home / "first")
    (case.home / "kept").rename(case.src)
    assert reshard(case, second, "--dry-run").code == 0
    refuse(case, saved, "EP304")


def test_shards_that_changed(case, saved):
    """EP304 for another header, for a file more and for a file less; another time of writing is no change."""
    case.write(stacked(OLD))
    assert reshard(case, saved, "--dry-run").code == 0
    good = case.file(1).read_bytes()
    case.file(1).write_bytes(good.replace(b'"BF16"', b'"F16" '))
    assert case.file(1).read_bytes() != good, "the header has changed"
    refuse(case, saved, "EP304", case.file(1).name, "another file")
    case.file(1).write_bytes(good)
    extra = case.src / "model-rank-2-part-0.safetensors"
    extra.write_bytes(good)
    refuse(case, saved, "EP304", extra.name, "is new")
    extra.unlink()
    assert reshard(case, saved).code == 0


def test_a_layout_that_changed(case, saved):
    """EP304 where --layout says another one than the plan was made with."""
    assert reshard(case, saved, "--layout", "sharded-state", "--dry-run").code == 0
    layout = case.home / "mine.toml"
    layout.write_text(MINE)
    refuse_layout = reshard(case, saved, "--layout", layout)
    assert_error(refuse_layout, "EP304", "layout")
    mine = case.home / "mine.json"
    assert plan(case, mine, "--layout", layout).code == 0
    assert reshard(case, mine, "--dry-run").code == 0
    layout.write_text(MINE.replace("mine", "yours"))
    refuse(case, mine, "EP304", "mine.toml")


MINE = """
format = "eplb-layout/1"
name = "mine"
files = ["model-rank-{rank}-part-{part}.safetensors"]
experts = ["layers.{layer}.mlp.experts.{tensor}"]
tensors = ["w13_weight", "w13_weight_scale_inv", "w2_weight", "w2_weight_scale_inv"]
others = ["*"]
"""


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:-20], "not JSON"),
        (lambda text: text.replace("eplb-plan/1", "eplb-plan/9"), "format"),
        (lambda text: text.replace('"senders": "vllm"', '"senders": "balanced"'), "changed or damaged"),
        (lambda text: text[:0] + "[]", "format"),
        (lambda text: "[" * 100_000 + text, "not JSON"),
    ],
)
def test_a_file_that_is_no_plan(case, saved, damage, says):
    """EP303 says what is wrong with it."""
    saved.write_text(damage(saved.read_text()))
    refuse(case, saved, "EP303", says)


def test_senders_that_there_are_not(case, saved):
    """EP303 where a whole plan names others than this version has, instead of taking the usual ones."""
    content = json.loads(saved.read_text())
    del content["digest"]
    content["senders"] = "fastest"
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(saved, {**content, "digest": digest})
    refuse(case, saved, "EP303", "'fastest'")


def test_a_plan_without_a_checkpoint(case):
    """It holds the placements alone, and is carried out on any shards that fit them."""
    file = case.home / "plan.json"
    assert case.eplb("plan", case.home / "old.json", case.home / "new.json", "--out", file).code == 0
    assert json.loads(file.read_text())["shards"] is None
    assert reshard(case, file).code == 0


def test_a_plan_without_layers_on_a_tree_that_has_them(case):
    """Layer numbers that only the manifest of SRC has are no change."""
    case.reshard()
    bare = [{key: value for key, value in each.items() if key != "layer_ids"} for each in (OLD, NEW)]
    old, new = case.old(bare[1]), case.new(bare[0])
    file = case.home / "plan.json"
    assert case.eplb("plan", old, new, "--out", file).code == 0
    arguments = ("reshard", case.dst, case.home / "back", "--plan", file, "--backend", "file")
    assert case.eplb(*arguments).code == 0
    again = case.eplb("plan", new, old, "--out", file)
    assert again.code == 0
    assert_error(case.eplb(*arguments[:2], case.home / "other", *arguments[3:]), "EP304", "eplb.json")


@pytest.mark.parametrize(
    "options",
    [("--new", "x"), ("--old", "x"), ("--senders", "balanced"), ("--ranks-per-node", 2), ("--num-ranks", 2)],
)
def test_options_that_the_plan_says(case, saved, options):
    """EP001: the plan has them."""
    assert_error(reshard(case, saved, *options), "EP001", "--plan", exit_code=2)


def test_neither_new_nor_plan(case):
    """EP001 names both."""
    assert_error(case.eplb("reshard", case.src, case.dst), "EP001", "--new", "--plan", exit_code=2)


@pytest.mark.parametrize("options", [(), ("--format", "json"), ("--senders", "vllm", "--ranks-per-node", 1)])
def test_a_dry_run_prints_what_plan_prints(case, options):
    """Both of them, to the last character, and so does one that follows a plan."""
    planned = plan(case, case.home / "plan.json", *options)
    tried = case.eplb(*case.arguments("--dry-run", *options))
    assert (planned.code, planned.out, planned.err) == (tried.code, tried.out, tried.err)
    output = options if "--format" in options else ()
    followed = reshard(case, case.home / "plan.json", "--dry-run", *output)
    assert followed.out == planned.out
