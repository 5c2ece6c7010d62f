"""Telling expert tensors from others, and what must come together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from eplb_cli.checkpoint.classify import SplitTensors, check_scales, split_tensors
from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.layout_file import layout_from_json, presets
from eplb_cli.checkpoint.others import lacking_others, looks_sharded
from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import TensorEntry
from eplb_cli.models.config import config_beside

VLLM = next(layout for layout in presets() if layout.name == "sharded-state")
PREFIX = "model.layers.{}.mlp.experts."


def at(*shape: int, dtype: str = "F32") -> TensorAt:
    return TensorAt(0, 0, TensorEntry(dtype, shape, 0, 0))


def shards_of(*ranks: Mapping[str, TensorAt], layout: Layout = VLLM) -> Shards:
    """Shards without a file."""
    return Shards(Path("/nowhere"), layout, (), ranks, (), None)


def split(
    *ranks: dict[str, TensorAt], layers: tuple[int, ...] = (3,), slots: tuple[int, ...] = (2, 2)
) -> SplitTensors:
    return split_tensors(shards_of(*ranks), layers, slots)


def key(name: str, layer: int = 3) -> str:
    return PREFIX.format(layer) + name


ROWS = {key("w2_weight"): at(2, 5)}


def test_expert_tensors_are_sorted_by_layer_name_and_rank():
    """Everything else is another tensor of its rank."""
    tensors = {key("w2_weight"): at(2, 5), "model.norm.weight": at(5), key("e_score_correction_bias"): at(2)}
    found = split(tensors, tensors)
    assert list(found.experts) == [(3, PREFIX.format("{layer}") + "w2_weight", "w2_weight")]
    assert [set(rank) for rank in next(iter(found.experts.values())).values()] == [{None}, {None}]
    assert [set(rank) for rank in found.others] == [{"model.norm.weight", key("e_score_correction_bias")}] * 2
    assert not found.rank_numbers


def test_layers_outside_the_placement_are_others():
    """Whatever they hold, also where it would be refused inside."""
    tensors = {key("w2_weight", 61): at(7, 5), key("w2_weight_scale_inv", 61): at()}
    found = split({**tensors, key("w2_weight"): at(2, 5)}, {key("w2_weight"): at(2, 5)})
    assert set(found.others[0]) == set(tensors)
    assert not found.rank_numbers


def test_numbers_of_a_rank():
    """What has no dimension for rows stays, and may be of its experts; so may a (1,) beside more rows."""
    tensors = {key("w2_weight"): at(2, 5), key("something_new"): at(), key("w2_input_scale"): at(1)}
    numbers = {key("something_new"), key("w2_input_scale")}
    found = split(tensors, tensors)
    assert set(found.others[0]) == numbers
    assert found.rank_numbers == numbers


def test_one_row_is_a_row():
    """With a single row on each rank (1,) is a value for it."""
    tensors = {key("w2_weight"): at(1, 5), key("w2_input_scale"): at(1)}
    found = split(tensors, tensors, slots=(1, 1))
    assert {tensor for _, _, tensor in found.experts} == {"w2_weight", "w2_input_scale"}
    assert not found.rank_numbers


@pytest.mark.parametrize(
    ("code", "first", "second"),
    [
        ("EP207", {"model.w13_weight": at(2, 5), **ROWS}, ROWS),
        ("EP207", {key("w2_new"): at(5, 2), **ROWS}, {**ROWS, key("w2_new"): at(2, 5)}),
        ("EP208", {key("w2_weight"): at(), key("w13_weight"): at(2, 5)}, {key("w13_weight"): at(2, 5)}),
        ("EP208", {key("w2_weight"): at(3, 5)}, {key("w2_weight"): at(2, 5)}),
        ("EP208", {key("w2_weight"): at(2, 5)}, {key("w2_weight"): at(5, 2)}),
        ("EP209", {key("w2_weight"): at(2, 5)}, {}),
        ("EP210", {key("w2_weight_scale"): at(2)}, {}),
        ("EP211", {key("w2_input_scale"): at(2)}, {key("w2_input_scale"): at()}),
        ("EP211", {key("w2_input_scale"): at(3), **ROWS}, {key("w2_input_scale"): at(3), **ROWS}),
    ],
)  # fmt: skip
def test_what_is_neither(code, first, second):
    """A code for each way, with the key and the rank."""
    with pytest.raises(CheckpointError) as caught:
        split(first, second)
    assert caught.value.code == code
    assert next(iter(first)) in caught.value.message
    assert "rank " in caught.value.message


def test_a_rank_without_slots_may_lack_a_tensor():
    """Its tensor would have no rows."""
    found = split({key("w2_weight"): at(4, 5)}, {}, slots=(4, 0))
    assert len(found.experts) == 1


BEHIND = layout_from_json(
    {
        "format": "eplb-layout/1",
        "name": "behind",
        "files": ["r{rank}.safetensors"],
        "experts": ["h.{layer}.{tensor}.row{row}"],
        "tensors": ["up", "up_scale", "down", "down_scale"],
        "scales": {"up_scale": "up", "down_scale": "down"},
    },
    "behind.toml",
)
"""A layout with patterns, in whose keys the tensor does not come last."""


class TestScalesOfPatterns:
    def check(self, **dtypes: str) -> None:
        """Check shards whose tensors are named `up_scale_3` for layer 3."""
        named = [(*name.rsplit("_", 1), dtype) for name, dtype in dtypes.items()]
        tensors = {f"m.h.{layer}.{tensor}.row0": at(5, dtype=dtype) for tensor, layer, dtype in named}
        check_scales(shards_of(tensors, layout=BEHIND))

    def refused(self, **dtypes: str) -> str:
        with pytest.raises(CheckpointError) as caught:
            self.check(**dtypes)
        assert caught.value.code == "EP210"
        return caught.value.message

    def test_weights_with_and_without(self):
        """A layer in fp8 with scales, another in bf16 without: both are whole."""
        scaled = {"up_3": "F8_E4M3", "up_scale_3": "F32", "down_3": "F8_E4M3", "down_scale_3": "F32"}
        self.check(**scaled, up_4="BF16", down_4="BF16")
        self.check(up_3="BF16", down_3="BF16")

    def test_another_layer_has_it(self):
        """The weight of layer 4 is of the same dtype as that of layer 3, which has a scale."""
        said = self.refused(up_3="F8_E4M3", up_scale_3="F32", up_4="F8_E4M3")
        assert said == "layer 4: up.row{row} is there without up_scale"

    def test_the_other_weight_has_it(self):
        """Both weights of one dtype are quantised alike."""
        said = self.refused(up_3="F8_E4M3", up_scale_3="F32", down_3="F8_E4M3")
        assert said == "layer 3: down.row{row} is there without down_scale"

    def test_a_scale_alone(self):
        """Refused, even where no weight is of its kind."""
        said = self.refused(down_scale_3="F16", up_3="BF16")
        assert said == "layer 3: down_scale.row{row} is there without down"


class TestSharded:
    def test_shapes_that_differ(self, tmp_path):
        """Between ranks, or not there on one of them."""
        shapes = [{"a": (2,), "b": (3,), "c": (1,)}, {"a": (2,), "b": (2,)}]
        assert looks_sharded(shapes, config_beside(tmp_path), 2) == ["b", "c"]
        assert looks_sharded(shapes[:1], config_beside(tmp_path), 1) == []

    def test_parts_of_a_vocabulary(self, tmp_path):
        """Equal parts, of which config.json says the sum; padding at the end is no harm."""
        shapes = [{"model.embed_tokens.weight": (50, 3), "lm_head.weight": (100, 3), "x": (50, 3)}] * 2
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 99}))
        assert looks_sharded(shapes, config_beside(tmp_path), 2) == ["model.embed_tokens.weight"]
        assert looks_sharded([{"lm_head.weight": ()}] * 2, config_beside(tmp_path), 2) == []

    def test_parts_of_which_some_are_elsewhere(self, tmp_path):
        """All ranks together have the vocabulary, and not those that are there."""
        shapes = [{"lm_head.weight": (25, 3)}]
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
        assert looks_sharded(shapes, config_beside(tmp_path), 4) == ["lm_head.weight"]
        assert looks_sharded(shapes, config_beside(tmp_path), 1) == []

    @pytest.mark.parametrize(
        "text", ["{", "[]", "3", '{"vocab_size": "x"}', '{"vocab_size": null}', "[" * 10**5]
    )
    def test_a_config_that_says_nothing(self, tmp_path, text):
        """It is someone else's file: what cannot be read is not asked."""
        (tmp_path / "config.json").write_text(text)
        assert looks_sharded([{"lm_head.weight": (50, 3)}] * 2, config_beside(tmp_path), 2) == []

    def test_tensors_that_a_rank_lacks(self):
        """One sentence for all of them."""
        assert lacking_others([{"a": at()}, {"a": at()}]) == []
        (said,) = lacking_others([{"a": at(), "b": at()}, {"b": at()}, {}])
        assert (
            said == "rank 1 lacks 'a', which another rank has (and 2 more): are all parts of its shard there?"
        )
