"""Quantised checkpoints in `shard`, `reshard`, `merge` and `bake`: what is behind an expert is its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.case import assert_error
from tests.cli.test_shard import assert_same
from tests.cli.tree import Rank, Tensor, placement, read_tree, tensor, write_json
from tests.support.huggingface import write_checkpoint
from tests.support.published import read_rank

Kinds = dict[str, tuple[str, tuple[int, ...]]]

HIDDEN, WIDTH, EXPERTS = 16, 8, 4
ROWS = [[3, 2, 1, 0], [1, 0, 3, 2]]
NEW = [[0, 3, 2, 1, 1, 2], [2, 2, 0, 3, 1, 0]]
IN_HF = "model.layers.{layer}.mlp.experts.{expert}.{projection}.{kind}"
AUTOROUND = "model.layers.{layer}.mlp.experts.{projection}.{expert}.{kind}"

QUANTISED: dict[str, Callable[[int, int], Kinds]] = {
    "bf16": lambda o, i: {"weight": ("BF16", (o, i))},
    "fp8-block": lambda o, i: {"weight": ("F8_E4M3", (o, i)), "weight_scale_inv": ("F32", (1, 1))},
    "fp8-modelopt": lambda o, i: {
        "weight": ("F8_E4M3", (o, i)),
        "weight_scale": ("F32", ()),
        "input_scale": ("F32", ()),
    },
    "fp8-ct-channel": lambda o, i: {"weight": ("F8_E4M3", (o, i)), "weight_scale": ("BF16", (o, 1))},
    "awq": lambda o, i: {
        "qweight": ("I32", (i, o // 8)),
        "qzeros": ("I32", (1, o // 8)),
        "scales": ("F16", (1, o)),
    },
    "gptq": lambda o, i: {
        "qweight": ("I32", (i // 8, o)),
        "qzeros": ("I32", (1, o // 8)),
        "scales": ("F16", (1, o)),
        "g_idx": ("I32", (i,)),
    },
    "nvfp4-modelopt": lambda o, i: {
        "weight": ("U8", (o, i // 2)),
        "weight_scale": ("F8_E4M3", (o, 1)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    },
    "nvfp4-ct": lambda o, i: {
        "weight_packed": ("U8", (o, i // 2)),
        "weight_scale": ("F8_E4M3", (o, 1)),
        "weight_global_scale": ("F32", (1,)),
        "input_global_scale": ("F32", (1,)),
    },
    "w4a16-ct": lambda o, i: {
        "weight_packed": ("I32", (o, i // 8)),
        "weight_scale": ("BF16", (o, 1)),
        "weight_shape": ("I64", (2,)),
    },
    "w4a16-ct-asym": lambda o, i: {
        "weight_packed": ("I32", (o, i // 8)),
        "weight_scale": ("BF16", (o, 1)),
        "weight_shape": ("I64", (2,)),
        "weight_zero_point": ("I32", (o // 8, 1)),
    },
    "w8a8-modelslim": lambda o, i: {
        "weight": ("I8", (o, i)),
        "weight_scale": ("F32", (o, 1)),
        "weight_offset": ("F32", (o, 1)),
    },
    "w4a8-modelslim": lambda o, i: {
        "weight": ("I8", (o, i)),
        "weight_scale": ("F32", (o, 1)),
        "weight_offset": ("F32", (o, 1)),
        "weight_scale_second": ("F32", (o, 1)),
        "weight_offset_second": ("F32", (o, 1)),
        "scale_bias": ("F32", (o, 1)),
    },
    "w4afp8-sglang": lambda o, i: {
        "weight": ("I8", (o, i // 2)),
        "weight_scale_inv": ("F32", (o, 1)),
        "input_scale": ("F32", (1,)),
    },
    "mxfp4-quark": lambda o, i: {"weight": ("U8", (o, i // 2)), "weight_scale": ("U8", (o, 1))},
    "bnb-nf4": lambda o, i: {
        "weight": ("U8", (o * i // 2, 1)),
        "weight.absmax": ("U8", (4,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.nested_absmax": ("F32", (1,)),
        "weight.nested_quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (8,)),
    },
}
"""What a projection of so many outputs and inputs consists of, as each way of quantising names it."""


def experts(way: str, layer: int, keys: str = IN_HF) -> Rank:
    """All experts of a layer."""
    found: Rank = {}
    for expert in range(EXPERTS):
        for projection, sizes in (
            ("gate_proj", (WIDTH, HIDDEN)),
            ("up_proj", (WIDTH, HIDDEN)),
            ("down_proj", (HIDDEN, WIDTH)),
        ):
            for kind, (dtype, shape) in QUANTISED[way](*sizes).items():
                key = keys.format(layer=layer, expert=expert, projection=projection, kind=kind)
                found[key] = tensor(dtype, shape, key)
    return found


def rest(layer: int) -> Rank:
    """Some of what else a layer has."""
    kinds = {"mlp.gate.weight": (EXPERTS, HIDDEN), "self_attn.q_proj.weight": (HIDDEN, HIDDEN)}
    keys = {f"model.layers.{layer}.{name}": shape for name, shape in kinds.items()}
    return {key: tensor("BF16", shape, key) for key, shape in keys.items()}


def checkpoint(way: str, keys: str = IN_HF) -> Rank:
    """Two layers quantised in one way."""
    return {key: at for layer in range(2) for key, at in (experts(way, layer, keys) | rest(layer)).items()}


def stacked() -> Rank:
    """All experts of a layer in one tensor, as are their scales; and one number for all of them."""
    base = "model.layers.{}.mlp.experts"
    kinds: Kinds = {
        "gate_up_proj": ("F8_E4M3", (EXPERTS, HIDDEN, 2 * WIDTH)),
        "gate_up_proj_scale": ("F32", (EXPERTS, 1, 2 * WIDTH)),
        "down_proj": ("F8_E4M3", (EXPERTS, WIDTH, HIDDEN)),
        "down_proj_scale": ("F32", (EXPERTS, 1, HIDDEN)),
        "down_proj_input_scale": ("F32", ()),
    }
    found = {f"{base.format(layer)}.{name}": kind for layer in range(2) for name, kind in kinds.items()}
    others = {key: at for layer in range(2) for key, at in rest(layer).items()}
    return {key: tensor(*kind, key) for key, kind in found.items()} | others


def renumbered(tensors: Rank, numbers: dict[str, list[int]], keys: str) -> Rank:
    """Experts under the numbers that they get in each layer, by what the keys of the layer begin with."""
    found = {key: at for key, at in tensors.items() if ".experts." not in key}
    for prefix, row in numbers.items():
        for key, at in tensors.items():
            if ".experts." not in key or not key.startswith(f"{prefix}."):
                continue
            parts = key.split(".")
            place = 5 if keys == IN_HF else 6
            for new, old in enumerate(row):
                if parts[place] == str(old):
                    found[".".join([*parts[:place], str(new), *parts[place + 1 :]])] = at
    return found


CHECKPOINTS = {way: (checkpoint(way), IN_HF) for way in QUANTISED} | {
    "autoround": (checkpoint("gptq", AUTOROUND), AUTOROUND),
    "mixed": (experts("bf16", 0) | rest(0) | experts("awq", 1) | rest(1), IN_HF),
}


@pytest.fixture(params=CHECKPOINTS)
def source(request, tmp_path) -> tuple[Rank, str]:
    """Each of them, and maps."""
    tensors, keys = CHECKPOINTS[request.param]
    write_checkpoint(tmp_path / "hf", tensors, "qwen3_moe")
    write_json(tmp_path / "map.json", placement(ROWS, layer_ids=[0, 1]))
    write_json(tmp_path / "new.json", placement(NEW, 3, layer_ids=[0, 1]))
    return tensors, keys


def held(path: Path, num_ranks: int) -> list[Rank]:
    """What each rank has."""
    return [read_rank(path, rank) for rank in range(num_ranks)]


def on_ranks(tensors: Rank, keys: str, rows: list[list[int]], num_ranks: int) -> list[Rank]:
    """What each rank has to have, from the plain definition."""
    size = len(rows[0]) // num_ranks
    return [
        renumbered(
            tensors,
            {f"model.layers.{layer}": row[size * rank : size * (rank + 1)] for layer, row in enumerate(rows)},
            keys,
        )
        for rank in range(num_ranks)
    ]


def run(eplb, *arguments: object) -> None:
    """A command that does what it should."""
    result = eplb(*arguments)
    assert result.code == 0, result.err


def test_there_and_back(eplb, tmp_path, source):
    """Every tensor of an expert goes where the expert goes, under another map too; and all of it back."""
    tensors, keys = source
    hf, dst, new, merged = (tmp_path / name for name in ("hf", "dst", "moved", "merged"))
    run(eplb, "shard", hf, dst, "--placement", tmp_path / "map.json", "--engine", "huggingface")
    assert held(dst, 2) == on_ranks(tensors, keys, ROWS, 2)
    run(eplb, "reshard", dst, new, "--new", tmp_path / "new.json", "--backend", "file")
    assert held(new, 3) == on_ranks(tensors, keys, NEW, 3)
    run(eplb, "verify", new, "--against", hf)
    run(eplb, "merge", new, merged)
    assert_same(hf, merged)


def test_baked(eplb, tmp_path, source):
    """The same numbers for all tensors of an expert, and its row of the router at that place."""
    tensors, keys = source
    run(eplb, "bake", tmp_path / "hf", tmp_path / "out", "--placement", tmp_path / "map.json")
    expected = renumbered(tensors, {f"model.layers.{layer}": row for layer, row in enumerate(ROWS)}, keys)
    for layer, row in enumerate(ROWS):
        key = f"model.layers.{layer}.mlp.gate.weight"
        gate, nbytes = tensors[key].data, 2 * HIDDEN
        expected[key] = tensors[key]._replace(
            data=b"".join(gate[expert * nbytes : (expert + 1) * nbytes] for expert in row)
        )
    assert {key: at for file in read_tree(tmp_path / "out").values() for key, at in file.items()} == expected


def test_stacked_with_scales(eplb, tmp_path):
    """Rows of weights and of scales; the number for all experts is on all ranks."""
    tensors = stacked()
    write_checkpoint(tmp_path / "hf", tensors, "qwen3_moe")
    write_json(tmp_path / "map.json", placement(ROWS, layer_ids=[0, 1]))
    write_json(tmp_path / "new.json", placement(NEW, 3, layer_ids=[0, 1]))
    arguments = ["--placement", tmp_path / "map.json", "--engine", "huggingface"]
    run(eplb, "shard", tmp_path / "hf", tmp_path / "dst", *arguments)
    run(
        eplb,
        "reshard",
        tmp_path / "dst",
        tmp_path / "new",
        "--new",
        tmp_path / "new.json",
        "--backend",
        "file",
    )
    for path, rows, num_ranks in (("dst", ROWS, 2), ("new", NEW, 3)):
        for rank, found in enumerate(held(tmp_path / path, num_ranks)):
            assert found.keys() == tensors.keys()
            for key, at in tensors.items():
                layer, size = int(key.split(".")[2]), len(rows[0]) // num_ranks
                assert found[key] == (
                    rows_of(at, rows[layer][size * rank : size * (rank + 1)])
                    if ".experts." in key and at.shape
                    else at
                )
    run(eplb, "merge", tmp_path / "new", tmp_path / "merged")
    assert_same(tmp_path / "hf", tmp_path / "merged")


def rows_of(at: Tensor, experts: list[int]) -> Tensor:
    """Some rows of a tensor."""
    nbytes = len(at.data) // at.shape[0]
    data = b"".join(at.data[expert * nbytes : (expert + 1) * nbytes] for expert in experts)
    return Tensor(at.dtype, (len(experts), *at.shape[1:]), data)


@pytest.mark.parametrize("shape", [(1,), (3, 2)])
def test_stacked_tensors_of_another_number_of_experts(eplb, tmp_path, shape):
    """What it belongs to cannot be told."""
    key = "model.layers.1.mlp.experts.down_proj_input_scale"
    write_checkpoint(tmp_path / "hf", {**stacked(), key: tensor("F32", shape, key)}, "qwen3_moe")
    arguments = ["--placement", "linear", "--num-ranks", 2, "--engine", "huggingface"]
    result = eplb("shard", tmp_path / "hf", tmp_path / "dst", *arguments)
    assert_error(result, "EP209", f"{key!r} is of {shape[0]} experts, and the model has 4")


class TestLists:
    """Files beside a checkpoint that name single experts, and what `bake` makes of them."""

    @pytest.fixture
    def bake(self, eplb, tmp_path):
        """Bake with a file beside the tensors; what became of the file."""

        def run_with(name: str, content: dict[str, Any]) -> Any:
            write_checkpoint(tmp_path / "hf", checkpoint("w8a8-modelslim"), "qwen3_moe")
            write_json(tmp_path / "map.json", placement(ROWS, layer_ids=[0, 1]))
            path = tmp_path / "hf" / name
            known = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**known, **content}, indent=3))
            run(eplb, "bake", tmp_path / "hf", tmp_path / "out", "--placement", tmp_path / "map.json")
            again = ["--placement", tmp_path / "map.json", "--engine", "huggingface"]
            run(eplb, "shard", tmp_path / "hf", tmp_path / "dst", *again)
            run(eplb, "merge", tmp_path / "dst", tmp_path / "merged", "--bake")
            assert_same(tmp_path / "out", tmp_path / "merged")
            return json.loads((tmp_path / "out" / name).read_text())

        return run_with

    def test_a_word_for_each_tensor(self, bake):
        """modelslim's: the word goes where its tensor goes, and the names are those of all tensors."""
        tensors = checkpoint("w8a8-modelslim")
        words = {key: f"word of {key.replace('experts', 'e')}" for key in tensors}
        found = bake("quant_model_description.json", {"version": "1.0", **words})
        expected = {"version": "1.0"}
        for key, word in words.items():
            parts = key.split(".")
            if "experts" in parts:
                parts[5] = str(ROWS[int(parts[2])].index(int(parts[5])))
            expected[".".join(parts)] = word
        assert found == expected
        assert found["model.layers.0.mlp.experts.3.up_proj.weight"].endswith("e.0.up_proj.weight")

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("model.layers.0.mlp.experts.3.up_proj", "model.layers.0.mlp.experts.0.up_proj"),
            ("model.layers.1.mlp.experts.0", "model.layers.1.mlp.experts.1"),
            ("model.layers.1.mlp.experts.2.*", "model.layers.1.mlp.experts.3.*"),
            ("model.layers.0.mlp.shared_experts.3", "model.layers.0.mlp.shared_experts.3"),
            ("re:.*mlp.experts.*", "re:.*mlp.experts.*"),
            (r"re:.*experts\.[0-9]+\.up_proj", r"re:.*experts\.[0-9]+\.up_proj"),
            ("lm_head", "lm_head"),
        ],
    )
    def test_what_is_left_out_of_quantization(self, bake, before, after):
        """Names of single experts follow them, wherever in the file; what is of all experts stays."""
        nested = {"quantization_config": {"ignore": [before, ["x", {before: {"bits": 4}}]], "of": before}}
        found = bake("config.json", nested)
        assert found["quantization_config"] == {"ignore": [after, ["x", {after: {"bits": 4}}]], "of": after}
        assert found["model_type"] == "qwen3_moe"

    @pytest.mark.parametrize(
        "word",
        [
            "re:.*experts.3.up_proj",
            r"re:.*experts\.[0-2]\..*",
            r"-:model\.layers\.0\.mlp\.experts\.(0|1)\.",
            "model.layers.0.mlp.experts.0*",
            "*layers.1.mlp.experts.2.up_proj",
            "model.layers.9.mlp.experts.2.up_proj",
            "other.layers.0.mlp.experts.2.up_proj",
            "model.layers.0.mlp.experts.7.up_proj",
            "mlp.experts.3",
            r"re:.*experts\.up_proj\.3\.weight",
        ],
    )
    def test_what_names_some_experts_otherwise(self, eplb, tmp_path, word):
        """A pattern over some of them, or a name of none, is refused, and nothing is written."""
        write_checkpoint(tmp_path / "hf", checkpoint("bf16"), "qwen3_moe")
        write_json(tmp_path / "map.json", placement(ROWS, layer_ids=[0, 1]))
        arguments = [tmp_path / "hf", tmp_path / "out", "--placement", tmp_path / "map.json"]
        for content in ({"exclude_modules": [word]}, {word: "FLOAT"}):
            write_json(tmp_path / "hf" / "hf_quant_config.json", content)
            result = eplb("bake", *arguments)
            assert_error(result, "EP226", "hf_quant_config.json names single experts in", repr(word))
        write_json(tmp_path / "hf" / "hf_quant_config.json", {})
        (tmp_path / "hf" / "quant.yaml").write_text(f"ignore:\n- {word}\n")
        assert_error(eplb("bake", *arguments), "EP226", "quant.yaml names single experts in", "is no JSON")
        assert not (tmp_path / "out").exists()

    def test_the_rest_of_the_text_stays(self, eplb, tmp_path):
        """Spaces, numbers and the order of keys are its author's."""
        write_checkpoint(tmp_path / "hf", checkpoint("bf16"), "qwen3_moe")
        write_json(tmp_path / "map.json", placement(ROWS, layer_ids=[0, 1]))
        text = '{ "b":1e-05,"a" : ["model.layers.0.mlp.experts.1.up_proj" ],\t"é\\n": 1.10 }\n'
        (tmp_path / "hf" / "quantize_config.json").write_text(text)
        run(eplb, "bake", tmp_path / "hf", tmp_path / "out", "--placement", tmp_path / "map.json")
        found = (tmp_path / "out" / "quantize_config.json").read_text()
        assert found == text.replace("experts.1.", "experts.2.")

    def test_bare_names_of_more_than_ten_experts(self, eplb, tmp_path):
        """Some read "experts.1" as the beginning of "experts.11" too."""
        key = "model.layers.0.mlp.experts.{}.up_proj.weight"
        tensors = {key.format(number): tensor("BF16", (2, 2), str(number)) for number in range(12)}
        tensors["model.layers.0.mlp.gate.weight"] = tensor("BF16", (12, 2), "gate")
        write_checkpoint(tmp_path / "hf", tensors, "qwen3_moe")
        write_json(tmp_path / "map.json", placement([[*range(11, -1, -1)]], layer_ids=[0]))
        arguments = [tmp_path / "hf", tmp_path / "out", "--placement", tmp_path / "map.json"]
        write_json(tmp_path / "hf" / "quant.json", ["model.layers.0.mlp.experts.1"])
        assert_error(eplb("bake", *arguments), "EP226", "quant.json names single experts")
        write_json(tmp_path / "hf" / "quant.json", ["model.layers.0.mlp.experts.1.up_proj"])
        run(eplb, "bake", *arguments)
        assert json.loads((tmp_path / "out" / "quant.json").read_text()) == [
            "model.layers.0.mlp.experts.10.up_proj"
        ]


def test_a_table_of_experts_by_token_is_not_baked(eplb, tmp_path):
    """DeepSeek-V4: the table would go on naming the old ones; the tensor and what it holds are said."""
    key = "model.layers.0.mlp.gate.tid2eid"
    write_checkpoint(tmp_path / "hf", {**checkpoint("bf16"), key: tensor("I64", (8, 2), key)}, "deepseek_v4")
    result = eplb("bake", tmp_path / "hf", tmp_path / "out", "--placement", "linear", "--num-ranks", 2)
    assert_error(result, "EP226", f"{key!r} holds the experts of each token")
