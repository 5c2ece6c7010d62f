"""`eplb convert`, and dialects, models and loads wherever a command takes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eplb_cli.placements.dialects.registry import NAMES, dialect_called
from tests.cli.case import assert_error
from tests.cli.tree import NEW, OLD, Tensor, placement, write_json, write_shard

GOLDEN = Path(__file__).parents[1] / "data" / "dialects"
PRESET = """
format = "eplb-model/1"
name = "tiny"
num_hidden_layers = 5
moe_layers = { first = 3, last = 4 }
mtp_layers = { first = 5, last = 5 }
num_experts = 4
experts = "model.layers.{layer}.mlp.experts.{expert}.{tensor}"

[tensors]
"up_proj.weight" = ["BF16", 4, 8]
"""


@pytest.fixture
def home(tmp_path):
    """Placements of layers 3 and 4 of 5, in eplb's dialect; the model in a preset."""
    write_json(tmp_path / "old.json", OLD)
    write_json(tmp_path / "new.json", NEW)
    (tmp_path / "tiny.toml").write_text(PRESET)
    return tmp_path


@pytest.mark.parametrize(
    ("to", "name"),
    [(name, f"m{suffix}") for name in NAMES for suffix in dialect_called(name).suffixes],
)
def test_there_and_back(eplb, home, to, name):
    """Through every dialect with a model, and back to the same bytes."""
    model = ["--model", home / "tiny.toml"]
    there = eplb("convert", home / "old.json", home / name, "--to", to, *model)
    assert there.code == 0, there.err
    assert there.out == f"{home / name}: {to}, 2 layers, 6 slots, 2 ranks, 4 logical experts\n"
    back = eplb("convert", home / name, home / "back.json", "--to", "eplb", "--num-ranks", 2, *model)
    assert back.code == 0, back.err
    straight = eplb("convert", home / "old.json", home / "straight.json", "--to", "eplb")
    assert straight.code == 0, straight.err
    assert (home / "back.json").read_bytes() == (home / "straight.json").read_bytes()


def test_json_says_what_was_written(eplb, home):
    """For scripts."""
    result = eplb("convert", home / "old.json", home / "m.json", "--to", "vllm", "--format", "json")
    assert json.loads(result.out) == {
        "format": "eplb-conversion/1",
        "output": str(home / "m.json"),
        "dialect": "vllm",
        "num_layers": 2,
        "num_slots": 6,
        "num_ranks": 2,
        "num_logical_experts": 4,
    }


def test_trivial_is_a_map_with_a_name(eplb, home):
    """SGLang's start, which is `linear` with as many slots on every rank."""
    options = ["--to", "vllm", "--num-ranks", 2, "--num-logical-experts", 4, "--num-redundant-experts", 2]
    texts = [eplb("convert", name, home / f"{name}.json", *options).out for name in ("trivial", "linear")]
    assert texts == [
        f"{home / name}.json: vllm, 1 layers, 6 slots, 2 ranks, 4 logical experts\n"
        for name in ("trivial", "linear")
    ]
    assert (home / "trivial.json").read_bytes() == (home / "linear.json").read_bytes()


def test_inspect_takes_a_directory_of_statistics(eplb, home):
    """TensorRT-LLM's; every other directory is one of shards."""
    path = home / "statistics"
    path.mkdir()
    (path / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')
    counts = Tensor("I32", (4,), np.array([1, 2, 3, 4], "<i4").tobytes())
    write_shard(path / "rank0.safetensors", {"7_3": counts, "7_4": counts})
    result = eplb("inspect", path, "--model", home / "tiny.toml", "--format", "json")
    assert result.code == 0, result.err
    described = json.loads(result.out)
    assert (described["form"], described["layer_ids"], described["tokens"]) == ("tensorrt-llm", [3, 4], 20)


def test_a_named_map_is_converted_too(eplb, home):
    """VLLM's start, written for SGLang."""
    arguments = ["--model", home / "tiny.toml", "--num-ranks", 2, "--num-redundant-experts", 2]
    assert eplb("convert", "linear", home / "m.json", "--to", "sglang", *arguments).code == 0
    rows = json.loads((home / "m.json").read_text())["physical_to_logical_map"]
    assert rows == [[0, 1, 2, 3, 0, 1]] * 5


@pytest.mark.parametrize(
    ("content", "to", "name", "code", "exit_code", "says"),
    [
        (placement([[0, 1, 2, -1]]), "sglang", "m.json", "EP117", 3, "slot 3 is empty"),
        (placement([[0, 1, 2]], None, slots_per_rank=[2, 1]), "vllm", "m.json", "EP117", 3, "rank 1 has 1"),
        (placement([[0, 1, 2, 2]]), "ascend", "m.json", "EP117", 3, "holds expert 2 twice"),
        (placement([[0, 1]]), "sglang", "m.json", "EP117", 3, "how many there are nothing says"),
        (placement([[0, 2]]), "vllm", "m.json", "EP110", 3, "expert 1 is in no slot"),
        (placement([[0, 1]]), "vllm", "m.yaml", "EP001", 2, "is written to .json or .jsonl"),
        (placement([[0, 1]]), "vllm", "new.json", "EP601", 6, "exists"),
        (placement([[0, 1]]), "vllm", "no/m.json", "EP604", 6, "cannot be written"),
        ({"physical_to_logical_map": [[0, 1]]}, "eplb", "m.json", "EP116", 3, "--from"),
        ([[0, 1]], "eplb", "m.json", "EP103", 3, "num_ranks"),
    ],
)
def test_a_conversion_that_would_lose_something_is_refused(
    eplb, home, content, to, name, code, exit_code, says
):
    """With the reason, and nothing is written."""
    write_json(home / "in.json", content)
    before = sorted(path.name for path in home.iterdir())
    result = eplb("convert", home / "in.json", home / name, "--to", to)
    assert_error(result, code, says, exit_code=exit_code)
    assert sorted(path.name for path in home.iterdir()) == before


def test_model_and_checkpoint_are_one_too_many(eplb, home):
    """Both say the model."""
    arguments = ["--model", "kimi-k2", "--checkpoint", home]
    assert_error(eplb("convert", "linear", home / "m.json", "--to", "eplb", *arguments), "EP001", exit_code=2)
    assert_error(eplb("plan", "linear", "linear", *arguments), "EP001", exit_code=2)
    assert_error(eplb("validate", home / "old.json", *arguments), "EP001", exit_code=2)


def test_a_checkpoint_says_its_layers(case):
    """Shards beside a config.json are enough for SGLang's numbering."""
    (case.src / "config.json").write_text('{"num_hidden_layers": 5}')
    out = case.home / "m.json"
    result = case.eplb("convert", case.home / "new.json", out, "--to", "sglang", "--checkpoint", case.src)
    assert result.code == 0, result.err
    assert len(json.loads(out.read_text())["physical_to_logical_map"]) == 5


@pytest.mark.parametrize(
    ("to", "name"), [("vllm", "m.jsonl"), ("sglang", "m.json"), ("tensorrt-llm", "m.yaml")]
)
def test_every_command_takes_every_dialect(case, to, name):
    """`plan`, `validate` and `reshard` with NEW as an engine wrote it give what they give with eplb's own."""
    (case.src / "config.json").write_text('{"num_hidden_layers": 5}')
    out = case.home / name
    assert case.eplb("convert", case.home / "new.json", out, "--to", to, "--checkpoint", case.src).code == 0
    case.reshard("--num-ranks", 2, new=out)
    case.reshard("--num-ranks", 2, "--old-num-ranks", 2, dst=case.home / "dst2")
    for file in case.dst.glob("*.safetensors"):
        assert file.read_bytes() == (case.home / "dst2" / file.name).read_bytes()
    planned = case.eplb(
        "plan", case.home / "old.json", out, "--num-ranks", 2, "--checkpoint", case.src, "--format", "json"
    )
    own = case.eplb(
        "plan", case.home / "old.json", case.home / "new.json", "--checkpoint", case.src, "--format", "json"
    )
    assert planned.out == own.out
    checked = case.eplb("validate", out, "--num-ranks", 2, "--checkpoint", case.src)
    assert checked.code == 0, checked.out + checked.err


def test_old_may_be_of_a_dialect_too(case):
    """--old-from and --old-num-ranks say what the file does not."""
    out = case.home / "old-map.json"
    assert case.eplb("convert", case.home / "old.json", out, "--to", "vllm").code == 0
    named = {"physical_to_logical_map": json.loads(out.read_text())}
    write_json(out, named)
    case.reshard("--old-num-ranks", 2, "--old-from", "vllm", "--num-logical-experts", 4, old=out)


def test_plan_knows_sizes_from_a_preset(eplb, tmp_path):
    """No checkpoint is needed: 58 layers of 256 experts, 44,050,944 bytes each."""
    options = ["--model", "deepseek-v3", "--num-ranks", 32, "--format", "json"]
    result = eplb("plan", "linear", "round_robin", *options)
    assert result.code == 0, result.err
    totals = json.loads(result.out)["totals"]
    rows = [totals[f"{kind}_rows"] for kind in ("unchanged", "local", "remote", "duplicate")]
    assert sum(rows) == 58 * 256
    assert totals["remote_bytes"] == totals["remote_rows"] * 44_050_944


def test_a_placement_that_is_not_the_models(eplb, home):
    """Layers and experts are compared; MTP layers may have a place."""
    tiny = ["--model", home / "tiny.toml"]
    with_mtp = placement([[0, 1, 2, 3]] * 3, layer_ids=[3, 4, 5])
    write_json(home / "mtp.json", with_mtp)
    assert eplb("validate", home / "mtp.json", *tiny).code == 0
    write_json(home / "other.json", placement([[0, 1, 2, 3]], layer_ids=[7]))
    assert "EP109" in eplb("validate", home / "other.json", *tiny).out
    assert_error(eplb("plan", home / "old.json", home / "new.json", "--model", "kimi-k2"), "EP109")
    result = eplb("plan", home / "old.json", home / "new.json", *tiny, "--num-logical-experts", 5)
    assert_error(result, "EP001", exit_code=2)


def test_inspect_lists_the_models(eplb):
    """A line each, and all numbers for scripts."""
    page = eplb("inspect", "--models")
    assert page.code == 0
    assert "deepseek-v3" in page.out
    models = json.loads(eplb("inspect", "--models", "--format", "json").out)["models"]
    assert {model["name"]: model["expert_bytes"] for model in models}["qwen3-30b-a3b"] == 9_437_184
    assert_error(eplb("inspect"), "EP001", exit_code=2)
    assert_error(eplb("inspect", GOLDEN, "--models"), "EP001", exit_code=2)


def test_inspect_shows_a_load(eplb, home):
    """A file instead of a directory."""
    write_json(home / "load.json", [[5, 0, 1, 2], [4, 4, 4, 0]])
    page = eplb("inspect", home / "load.json", "--model", home / "tiny.toml")
    assert page.code == 0, page.err
    assert "array: 1 step, 2 layers, 4 experts, 20 tokens" in page.out
    found = json.loads(eplb("inspect", home / "load.json", "--format", "json").out)
    assert found["format"] == "eplb-load/1"
    assert found["layers"][0]["busiest_over_mean"] == 2.5
    write_json(home / "bad.json", {"a": 1})
    assert_error(eplb("inspect", home / "bad.json"), "EP119", "neither logical_count")
