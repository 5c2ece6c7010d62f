"""Layouts: which names are shards, which keys are experts, and what a layout file may say."""

from __future__ import annotations

import itertools
import json
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli.checkpoint.layout import ShardName, file_name, key_name
from eplb_cli.checkpoint.layout_file import find_layout, layout_from_json, presets, read_layout
from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.errors import CheckpointError

PRESETS = {layout.name: layout for layout in presets()}
VLLM, PER_ROW, DEEPSEEK = (PRESETS[name] for name in ("sharded-state", "per-row", "deepseek"))

MINE = {
    "format": "eplb-layout/1",
    "name": "mine",
    "files": ["part{part}-of-rank{rank}.safetensors"],
    "experts": ["blocks.{layer}.moe.{tensor}"],
    "tensors": ["up", "down", "up_scale"],
    "scales": {"up_scale": "up"},
}


class TestFileNames:
    @pytest.mark.parametrize(
        ("layout", "name", "expected"),
        [
            (VLLM, "model-rank-0-part-0.safetensors", ("model-rank-{rank}-part-{part}.safetensors", 0, 0)),
            (VLLM, "model-rank-17-part-3.safetensors", ("model-rank-{rank}-part-{part}.safetensors", 17, 3)),
            (
                VLLM,
                "model-pp-1-tp-2-part-0.safetensors",
                ("model-pp-1-tp-{rank}-part-{part}.safetensors", 2, 0),
            ),
            (DEEPSEEK, "model3-mp8.safetensors", ("model{rank}-mp{world}.safetensors", 3, 0, 8)),
        ],
    )
    def test_what_a_name_says(self, layout, name, expected):
        """Rank and part, a series that joins the parts, and the number of ranks where it is there."""
        assert layout.match_file(name) == ShardName(*expected)

    @pytest.mark.parametrize(
        "name",
        [
            "model-rank-0-part-0.safetensors.tmp",
            "model-rank-00-part-0.safetensors",
            "model-rank--1-part-0.safetensors",
            "model-rank-0-part-.safetensors",
            "xmodel-rank-0-part-0.safetensors",
            "model-rank-0-part-0Xsafetensors",
            "model-rank-\u0661-part-0.safetensors",
            "model-rank-1234567890-part-0.safetensors",
            "model-rank-0-part-0.safetensors\n",
            "model.safetensors",
            "",
        ],
    )
    def test_names_that_are_none(self, name):
        """Only the whole name, only ASCII digits, only numbers as they are written."""
        assert all(layout.match_file(name) is None for layout in presets())

    def test_the_name_of_a_new_shard(self):
        """The series filled in; the stage stays as it was."""
        found = VLLM.match_file("model-pp-1-tp-2-part-0.safetensors")
        assert found is not None
        assert file_name(found.series, 7, 3, 16) == "model-pp-1-tp-7-part-3.safetensors"
        assert file_name("model{rank}-mp{world}.safetensors", 7, 0, 16) == "model7-mp16.safetensors"


class TestKeys:
    @pytest.mark.parametrize(
        ("layout", "key", "tensor", "layer", "number"),
        [
            (VLLM, "model.layers.3.mlp.experts.w13_weight", "w13_weight", 3, None),
            (VLLM, "model.layers.60.mlp.experts.routed_experts.w2_bias", "w2_bias", 60, None),
            (VLLM, "language_model.model.layers.0.feed_forward.experts.w13_weight", "w13_weight", 0, None),
            (VLLM, "layers.1.block_sparse_moe.experts.w2_weight", "w2_weight", 1, None),
            (VLLM, "model.layers.3.mlp.experts.w13_input_scale", "w13_input_scale", 3, None),
            (VLLM, "model.layers.3.mlp.experts.w13_lora_a", "w13_lora_a", 3, None),
            (VLLM, "model.layers.3.mlp.experts.gate_up_proj_blocks", "gate_up_proj_blocks", 3, None),
            (VLLM, "model.layers.3.mlp.experts.correction_bias_2", "correction_bias_2", 3, None),
            (VLLM, "model.layers.3.mixer.experts.w13_weight", "w13_weight", 3, None),
            (PER_ROW, "model.layers.3.mlp.experts.17.gate_proj.weight", "gate_proj.weight", 3, 17),
            (DEEPSEEK, "layers.3.ffn.experts.255.w1.scale", "w1.scale", 3, 255),
        ],
    )  # fmt: skip
    def test_what_a_key_says(self, layout, key, tensor, layer, number):
        """Layer, tensor and number; the template gives the key back."""
        found = layout.match_key(key)
        assert (found.tensor, found.place.number, found.number) == (tensor, layer, number)
        assert key_name(found.template, layer, number) == key
        assert key_name(found.of_layers, layer, number) == key
        assert "{layer}" in found.of_layers
        assert "{layer}" not in found.template

    @pytest.mark.parametrize(
        ("key", "is_known"),
        [
            ("model.layers.3.mlp.experts.e_score_correction_bias", True),
            ("model.layers.3.mlp.experts.routed_experts.e_score_correction_bias", True),
            ("model.layers.3.mlp.experts._shared_experts._layer.gate_up_proj.weight", True),
            ("model.layers.3.mlp.experts._gate.weight", True),
            ("model.layers.3.mlp.experts.expert_map", True),
            ("model.layers.3.mlp.experts.gate.weight", True),
            ("model.layers.3.mlp.shared_experts.down_proj.weight", True),
            ("model.layers.3.mlp.gate.weight", True),
            ("model.embed_tokens.weight", True),
            ("model.layers.3.mlp.experts.0.gate_proj.weight", False),
            ("model.layers.03.mlp.experts.w13_weight", False),
            ("model.layers.3.mixer.w13_weight", False),
            ("experts.x", False),
        ],
    )
    def test_keys_that_are_no_experts(self, key, is_known):
        """What looks like an expert's has to be known not to be one; or it lacks a layer, or has a number."""
        assert VLLM.match_key(key) is None
        assert VLLM.is_known_other(key) == is_known

    def test_what_fits_a_pattern_but_for_its_end_looks_like_an_experts(self):
        """Also where no part of the key is called experts."""
        mine = layout_from_json({**MINE, "others": ["router.*"]}, "mine")
        assert mine.match_key("x.blocks.0.moe.up") is not None
        assert not mine.is_known_other("x.blocks.0.moe.gate")
        assert mine.is_known_other("x.blocks.0.moe.router.bias")
        assert mine.is_known_other("x.blocks.0.attention.weight")

    def test_a_star_is_the_only_wildcard(self):
        """Brackets and question marks are letters."""
        mine = layout_from_json({**MINE, "others": ["a[b]?", "c*"]}, "mine")
        assert not mine.is_known_other("blocks.0.moe.abx")
        assert mine.is_known_other("blocks.0.moe.a[b]?")
        assert mine.is_known_other("blocks.0.moe.c.d.e")

    @given(st.text(max_size=60))
    def test_any_key_is_one_or_the_other(self, key):
        """No key makes matching fail."""
        for layout in presets():
            found = layout.match_key(key)
            if found is not None:
                assert key_name(found.template, found.place.number, found.number) == key
                assert key_name(found.of_layers, found.place.number, found.number) == key
            layout.is_known_other(key)

    @pytest.mark.parametrize(
        ("pattern", "key", "expected"),
        [
            ("a.{layer}.{tensor}{expert}", "x.a.3.up12", ("x.a.{layer}.up{expert}", "up", 3, 12)),
            ("a.{layer}.{tensor}.{expert}.w", "a.3.up.0.w", ("a.{layer}.up.{expert}.w", "up", 3, 0)),
            ("{tensor}.{layer}.{row}", "y.up.3.7", ("y.up.{layer}.{row}", "up", 3, 7)),
            ("a.{layer}.{tensor}{expert}", "a.3.up012", None),
            ("a.{layer}.{tensor}{expert}", "a.3.12", None),
            ("a.{layer}.{tensor}{row}", "a.3.up_scale17", ("a.{layer}.up_scale{row}", "up_scale", 3, 17)),
            ("a.{layer}.{tensor}{row}", "a.3.", None),
            ("a.{layer}.{tensor}", "{layer}.a.3.up", None),
            ("a.{layer}.{tensor}", "{row}.a.3.up", None),
        ],
    )
    def test_where_the_tensor_stands(self, pattern, key, expected):
        """Anywhere in a pattern; a key with a placeholder in it could not be written again, and is none."""
        layout = layout_from_json({**MINE, "experts": [pattern]}, "mine")
        found = layout.match_key(key)
        assert (found and (found.of_layers, found.tensor, found.place.number, found.number)) == expected
        assert layout.is_known_other(key) == (key == "a.3.")

    def test_a_hostile_key_is_matched_in_time(self):
        """Matching does not try all ways to read a key: four times the key, not 100 times the work."""
        assert seconds_to_match(4096) < 100 * seconds_to_match(1024)


def seconds_to_match(length):
    """The least time to match hostile keys of a length."""
    keys = [
        (part * length)[:length]
        for part in ("layers.0.mlp.experts.", "layers.0.ffn.experts.0.", "layers.", ".")
    ]
    least = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for layout, key in itertools.product(presets(), keys):
            layout.match_key(key)
            layout.is_known_other(key)
        least = min(least, time.perf_counter() - started)
    return least


REAL = [
    ("model-rank-0-part-0.safetensors", "model.layers.3.mlp.experts.w13_weight", "sharded-state"),
    ("model-rank-0-part-0.safetensors", "model.layers.3.mlp.experts.0.up_proj.weight", "per-row"),
    ("model-rank-0-part-0.safetensors", "model.layers.3.mlp.experts.gate_up_proj_blocks", "huggingface"),
    ("model0-mp2.safetensors", "layers.3.ffn.experts.0.w1.weight", "deepseek"),
]
"""A file and a key as a program writes them, and the layout that both are of."""


class TestChoice:
    @pytest.mark.parametrize(("name", "key", "expected"), REAL)
    def test_auto(self, name, key, expected):
        """Names of files and keys together say which it is."""
        assert find_layout("auto", [name], [key, "model.norm.weight"]).name == expected

    def test_every_layout_is_chosen_for_something_real(self):
        """None comes with eplb that nothing is known to be of."""
        assert sorted({expected for _, _, expected in REAL}) == LAYOUTS.names

    def refused(self, *arguments):
        with pytest.raises(CheckpointError) as caught:
            find_layout(*arguments)
        assert caught.value.code == "EP206"
        return f"{caught.value.message} {caught.value.hint}"

    def test_none_fits(self):
        """A file and a key are shown, those that are strange rather than others."""
        says = self.refused("auto", ["model-rank-0-part-0.safetensors", "x.safetensors"], ["a.experts.b"])
        assert "'x.safetensors'" in says
        assert "'a.experts.b'" in says

    def test_both_styles(self):
        """Stacked tensors beside numbered ones, as of main and MTP layers: only one layout has both."""
        keys = ["model.layers.3.mlp.experts.down_proj", "mtp.layers.0.mlp.experts.0.up_proj.weight"]
        assert find_layout("auto", ["model-rank-0-part-0.safetensors"], keys).name == "per-row"

    @pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00163.safetensors"])
    def test_hugging_face(self, name):
        """Recognised, and said."""
        assert "Hugging Face" in self.refused("auto", [name], ["model.layers.3.mlp.experts.0.up_proj.weight"])

    def test_no_such_layout(self):
        """The names there are."""
        assert f"auto, {', '.join(LAYOUTS.names)}" in self.refused("sharded", [], [])


class TestLayoutFiles:
    def test_a_good_one(self):
        """What may be left out is empty; JSON gives it back."""
        layout = layout_from_json(MINE, "mine")
        assert (layout.input_scales, layout.others, layout.description) == ((), (), "")
        assert (layout.numbers, layout.maps, layout.main) == ("", (), "")
        again = layout_from_json(json.loads(json.dumps(layout.as_json())), "again")
        assert again == layout

    def test_presets_are_layout_files(self):
        """Every preset reads back from its JSON."""
        for layout in presets():
            assert layout_from_json(layout.as_json(), layout.name) == layout
            assert layout.description

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"format": "eplb-layout/2"}, "format"),
            ({"extra": 1}, "'extra'"),
            ({"name": 3}, "name"),
            ({"description": 3}, "description"),
            ({"files": []}, "files is empty"),
            ({"files": "x"}, "files is not a list"),
            ({"files": [""]}, "files is not a list"),
            ({"files": ["x.safetensors"]}, "{rank}"),
            ({"files": ["{rank}{rank}.safetensors"]}, "{rank}"),
            ({"files": ["{rank}-{host}.safetensors"]}, "{rank}"),
            ({"files": ["../{rank}.safetensors"]}, "{rank}"),
            ({"files": ["{rank}.bin"]}, ".safetensors"),
            ({"experts": []}, "input_scales and scales are of tensors that experts have patterns for"),
            ({"experts": ["a.{layer}"]}, "{tensor}"),
            ({"experts": ["a.{tensor}"]}, "{layer}"),
            ({"experts": ["a.{layer}.{row}.{expert}.{tensor}"]}, "{layer}"),
            ({"experts": ["a.{layer}.{}.{tensor}"]}, "{layer}"),
            ({"experts": ["a.{layer}.{tensor}", "b.{layer}.{row}.{tensor}"]}, "two ways"),
            ({"tensors": []}, "tensors is empty"),
            ({"tensors": [1]}, "tensors is not a list"),
            ({"tensors": ["up", "up", "up_scale"]}, "more than once"),
            ({"others": ["up"]}, "more than once"),
            ({"others": ["a*b"]}, "* stands only at the end"),
            ({"others": ["a**"]}, "* stands only at the end"),
            ({"others": ["expert_map"]}, "'expert_map' says which experts a rank has"),
            ({"tensors": ["up", "up_scale", "_expert_map"]}, "'_expert_map' says which experts a rank has"),
            ({"maps": ["up"]}, "more than once"),
            ({"maps": [1]}, "maps is not a list"),
            ({"main": 3}, "main"),
            ({"numbers": "slot"}, 'numbers is not "row" or "expert"'),
            ({"numbers": "row"}, "experts say it"),
            ({"scales": ["up"]}, "scales"),
            ({"scales": {"up_scale": 1}}, "scales"),
            ({"scales": {"up_scale": "upp"}}, "'upp' in scales is not one of the tensors"),
            ({"scales": {"upscale": "up"}}, "'upscale' in scales"),
        ],
    )
    def test_what_is_wrong_is_said(self, change, says):
        """EP206, with the key or the pattern."""
        with pytest.raises(CheckpointError) as caught:
            layout_from_json({**MINE, **change}, "mine.toml")
        assert caught.value.code == "EP206"
        assert caught.value.message.startswith("mine.toml is not a layout: ")
        assert says in caught.value.message

    @pytest.mark.parametrize("raw", [None, [], "x", 3, {}])
    def test_what_is_no_layout_at_all(self, raw):
        """EP206."""
        with pytest.raises(CheckpointError, match="it does not say format"):
            layout_from_json(raw, "x")

    @pytest.mark.parametrize("content", [b"\xff", b"a = ", b"a = " + b"[" * 16_000, b"x" * (1 << 14)])
    def test_what_is_no_toml(self, tmp_path, content):
        """EP206, in one line."""
        (tmp_path / "x.toml").write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_layout(tmp_path / "x.toml")
        assert caught.value.code == "EP206"
        assert len(caught.value.message) < 500

    def test_a_file_that_is_too_large(self, tmp_path):
        """EP201: a layout has a few lines."""
        (tmp_path / "x.toml").write_bytes(b"#" * ((1 << 14) + 1))
        with pytest.raises(CheckpointError) as caught:
            read_layout(tmp_path / "x.toml")
        assert caught.value.code == "EP201"

    def test_the_worked_example_of_the_documentation(self):
        """Its file is a layout, and tells the tensors it lists as it says."""
        page = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()
        layout = layout_from_json(tomllib.loads(page.split("```toml")[1].split("```")[0]), "docs")
        listing = page.split("```\n")[1]
        found = {line.split()[0]: layout.match_key(line.split()[0]) for line in listing.splitlines()}
        names = [key.tensor for key in found.values() if key]
        assert names == ["up_gate", "up_gate_scale", "down", "down_scale", "act_scale"]
        assert all(layout.is_known_other(key) for key, match in found.items() if match is None)
        assert layout.match_file("expert_state_ep3.safetensors") == ShardName(layout.files[0], 3, 0)
        assert layout.match_file("expert_state_ep03.safetensors") is None

    @given(
        st.dictionaries(
            st.sampled_from([*MINE, "input_scales", "others", "description"]),
            st.recursive(
                st.none() | st.integers() | st.text(max_size=12) | st.just("{rank}.safetensors"),
                lambda inner: (
                    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
                ),
            ),
        )
    )
    def test_any_content(self, change):
        """EP206, or a layout."""
        try:
            layout_from_json({**MINE, **change}, "x")
        except CheckpointError as error:
            assert error.code == "EP206"  # noqa: PT017 - both ends are right
