"""Ranks that have no slot, in OLD and in NEW, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eplb_cli.checkpoint.manifest import digest_file
from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.placement import Placement
from tests.cli.case import Run
from tests.support.checkpoints import (
    ExpertTensor,
    Model,
    OtherTensor,
    Style,
    assert_tree,
    read_file,
    write_file,
    write_tree,
)
from tests.support.huggingface import deepseek_v3, write_checkpoint
from tests.support.placements import placement

LAYERS = [3, 4]
OLD = placement([[0, 1, 2], [2, 1, 0]], None, 3, LAYERS, [0, 2, 0, 1, 0])
"""Three slots on five ranks."""

NEW = placement([[2, 0, 1, -1], [1, 0, 2, 1]], None, 3, LAYERS, [1, 0, 0, 3, 0, 0, 0])
"""Four slots on seven ranks."""

LINEAR = placement([[0, 1, 2]] * 2, None, 3, LAYERS, [1, 1, 1, 0, 0, 0])
"""The named map of three experts on six ranks."""

PREFIXES: dict[Style, tuple[str, str, str]] = {
    "stacked": ("model.layers.{layer}.mlp.experts.", "w13_weight", "w2_weight"),
    "row": ("model.layers.{layer}.mlp.experts.", "up_proj.weight", "down_proj.weight"),
    "expert": ("layers.{layer}.ffn.experts.", "w1.weight", "w2.weight"),
}


def model_of(style: Style) -> Model:
    prefix, first, second = PREFIXES[style]
    tensors = (ExpertTensor(first, "BF16", (3, 2)), ExpertTensor(second, "BF16", (1, 2)))
    return Model(style, prefix, dict.fromkeys(LAYERS, tensors), (OtherTensor("model.norm.weight"),), 5)


def write(home: Path, model: Model, *sides: tuple[str, Placement]) -> Path:
    """SRC under OLD, and placements in files."""
    src = home / "src"
    src.mkdir()
    write_tree(src, model, OLD)
    for name, side in sides:
        (home / f"{name}.json").write_text(format_placement(side))
    return src


def drop_tensors_without_elements(src: Path) -> int:
    """Leave out what has no element, as vLLM does when it saves; how many there were."""
    dropped = 0
    for file in src.glob("*.safetensors"):
        tensors = read_file(file)
        kept = {key: tensor for key, tensor in tensors.items() if tensor.data}
        dropped += len(tensors) - len(kept)
        write_file(file, kept)
    return dropped


@pytest.mark.parametrize(
    ("style", "backend"), [("stacked", "file"), ("row", "file"), ("expert", "file"), ("stacked", "gloo")]
)
def test_there_and_back(tmp_path, eplb: Run, style: Style, backend):
    """From three slots on five ranks to four on seven, and back; both are proved, again by `verify`."""
    model, how = model_of(style), ["--backend", backend]
    if backend == "gloo":
        pytest.importorskip("torch")
        how += ["--nproc-per-node", "2"]
    src = write(tmp_path, model, ("old", OLD), ("new", NEW))
    there, back = tmp_path / "there", tmp_path / "back"
    for source, destination, name, side in ((src, there, "new", NEW), (there, back, "old", OLD)):
        old = ["--old", tmp_path / "old.json"] if source == src else []
        result = eplb("reshard", source, destination, "--new", tmp_path / f"{name}.json", *old, *how)
        assert result.code == 0, result.err
        assert_tree(destination, model, side)
        again = eplb("verify", destination, "--against", source)
        assert again.code == 0, again.err


def test_their_digests_are_of_no_row(tmp_path, eplb: Run):
    """uint8 (L, K, 0, 16) beside the shards; and the shard has the stacked tensors, of no row."""
    src = write(tmp_path, model_of("stacked"), ("old", OLD), ("new", NEW))
    new = ["--old", tmp_path / "old.json", "--new", tmp_path / "new.json"]
    assert eplb("reshard", src, tmp_path / "dst", *new, "--backend", "file").code == 0
    shapes = [np.load(tmp_path / "dst" / digest_file(rank)).shape for rank in range(NEW.num_ranks)]
    assert shapes == [(2, 2, slots, 16) for slots in NEW.slots_per_rank.tolist()]
    tensors = read_file(tmp_path / "dst" / "model-rank-1-part-0.safetensors")
    assert tensors["model.layers.3.mlp.experts.w13_weight"].shape == (0, 3, 2)


def test_shards_that_leave_out_what_has_no_element(tmp_path, eplb: Run):
    """As vLLM saves them: the rank has the other tensors, and no expert's."""
    src = write(tmp_path, model_of("stacked"), ("old", OLD), ("new", NEW))
    assert drop_tensors_without_elements(src) == 12
    new = ["--old", tmp_path / "old.json", "--new", tmp_path / "new.json"]
    result = eplb("reshard", src, tmp_path / "dst", *new, "--backend", "file")
    assert result.code == 0, result.err
    assert_tree(tmp_path / "dst", model_of("stacked"), NEW)
    assert eplb("verify", tmp_path / "dst", "--against", src).code == 0


@pytest.mark.parametrize("name", ["linear", "round_robin"])
def test_named_maps_of_more_ranks_than_experts(tmp_path, eplb: Run, name):
    """As NEW and as OLD: the first ranks have an expert each, the others none."""
    model = model_of("stacked")
    src = write(tmp_path, model, ("old", OLD), ("new", NEW))
    how = ["--backend", "file"]
    there = ["reshard", src, tmp_path / "there", "--old", tmp_path / "old.json", "--new", name]
    result = eplb(*there, "--num-ranks", 6, *how)
    assert result.code == 0, result.err
    assert_tree(tmp_path / "there", model, LINEAR)
    (tmp_path / "there" / "eplb.json").unlink()
    new = ["--old", name, "--new", tmp_path / "new.json"]
    result = eplb("reshard", tmp_path / "there", tmp_path / "dst", *new, *how)
    assert result.code == 0, result.err
    assert_tree(tmp_path / "dst", model, NEW)


def test_reports_have_them(tmp_path, eplb: Run):
    """A rank without a slot has an entry of zeros; text, page and plan say the same as the report."""
    src = write(tmp_path, model_of("stacked"), ("old", OLD), ("new", NEW))
    sides = [tmp_path / "old.json", tmp_path / "new.json"]
    for options in ([], ["--checkpoint", src], ["--ranks-per-node", 2], ["--senders", "vllm"]):
        result = eplb("plan", *sides, *options, "--format", "json")
        assert result.code == 0, result.err
        report = json.loads(result.out)
        assert len(report["ranks"]) == 7
        assert report["ranks"][2]["received_rows"] == report["ranks"][6]["sent_rows"] == 0
        assert sum(rank["sent_rows"] for rank in report["ranks"]) == report["totals"]["remote_rows"]
        assert eplb("plan", *sides, *options).code == 0
    assert eplb("plan", *reversed(sides), "--html", tmp_path / "page.html").code == 0
    saved = ["plan", *sides, "--checkpoint", src, "--out", tmp_path / "plan.json"]
    assert eplb(*saved).code == 0
    result = eplb("reshard", src, tmp_path / "dst", "--plan", tmp_path / "plan.json", "--backend", "file")
    assert result.code == 0, result.err
    assert_tree(tmp_path / "dst", model_of("stacked"), NEW)


def test_they_are_inspected(tmp_path, eplb: Run):
    """With their slots, before and after; none of it is a finding."""
    src = write(tmp_path, model_of("stacked"), ("old", OLD), ("new", NEW))
    new = ["--old", tmp_path / "old.json", "--new", tmp_path / "new.json"]
    assert eplb("reshard", src, tmp_path / "dst", *new, "--backend", "file").code == 0
    for tree, side in ((src, OLD), (tmp_path / "dst", NEW)):
        result = eplb("inspect", tree, "--format", "json")
        assert result.code == 0, result.err
        assert side.slots_per_rank.tolist() == json.loads(result.out)["slots_per_rank"]
        assert eplb("inspect", tree).code == 0
    assert eplb("inspect", tmp_path / "dst", "--deep").code == 0


def test_validate_warns_of_them(tmp_path, eplb: Run):
    """EP113 is a warning: such a placement is legal, and rarely meant; EP121 a note that it has holes."""
    write(tmp_path, model_of("stacked"), ("old", OLD), ("new", NEW))
    result = eplb("validate", tmp_path / "new.json", "--against", tmp_path / "old.json", "--format", "json")
    assert result.code == 0, result.err
    codes = [finding["code"] for finding in json.loads(result.out)["findings"]]
    assert set(codes) == {"EP113", "EP121"}


def test_a_list_of_devices_without_experts(tmp_path, eplb: Run):
    """vllm-ascend's dialect has devices with none; dialects without uneven ranks refuse them."""
    devices = [[0], [], [1, 2], []]
    layer = {
        "layer_id": 0,
        "device_count": 4,
        "device_list": [{"device_id": i, "device_expert": held} for i, held in enumerate(devices)],
    }
    path = tmp_path / "ascend.json"
    path.write_text(json.dumps({"moe_layer_count": 1, "layer_list": [layer]}))
    result = eplb("convert", path, tmp_path / "own.json", "--to", "eplb", "--num-logical-experts", 3)
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "own.json").read_text())["slots_per_rank"] == [1, 0, 2, 0]
    for dialect in ("ascend", "vllm"):
        refused = eplb("convert", tmp_path / "own.json", tmp_path / "other.json", "--to", dialect)
        assert "EP117" in refused.err


@pytest.mark.parametrize("engine", ["sglang", "huggingface"])
def test_shards_of_more_ranks_than_experts(tmp_path, eplb: Run, engine):
    """Four experts on six ranks, and back to the checkpoint that they are from."""
    hf = write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    dst = tmp_path / "dst"
    result = eplb("shard", hf, dst, "--placement", "linear", "--num-ranks", 6, "--engine", engine)
    assert result.code == 0, result.err
    assert eplb("verify", dst, "--against", hf).code == 0
    assert eplb("inspect", dst, "--deep").code == 0
    result = eplb("merge", dst, tmp_path / "merged")
    assert result.code == 0, result.err
    for file in hf.iterdir():
        assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes()
