"""What the name of a tensor says, whatever the model: layer, module of experts, number and tensor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli.errors import CheckpointError
from eplb_cli.models.names import (
    LayerPlace,
    is_mtp,
    looks_like_experts,
    names_experts,
    number_layers,
    split_expert_key,
)


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "place", "number", "tensor", "rest"),
        [
            (
                "model.layers.3.mlp.experts.17.gate_proj.weight",
                ("model.layers", 3, "mlp.experts"), 17, "gate_proj.weight", "17.gate_proj.weight",
            ),
            (
                "model.layers.3.mlp.experts.up_proj.17.qweight",
                ("model.layers", 3, "mlp.experts"), 17, "up_proj.qweight", "up_proj.17.qweight",
            ),
            (
                "transformer.blocks.0.ffn.experts.w13_weight",
                ("transformer.blocks", 0, "ffn.experts"), None, "w13_weight", "w13_weight",
            ),
            (
                "model.layers.60.mlp.experts.routed_experts.w2_bias",
                ("model.layers", 60, "mlp.experts"), None, "w2_bias", "w2_bias",
            ),
            (
                "layers.1.ffn.experts.255.w1.scale",
                ("layers", 1, "ffn.experts"), 255, "w1.scale", "255.w1.scale",
            ),
            (
                "model.layers.2.mlp.text_experts.4.down_proj.weight",
                ("model.layers", 2, "mlp.text_experts"), 4, "down_proj.weight", "4.down_proj.weight",
            ),
            (
                "mtp.0.moe_block.experts.w2_weight",
                ("mtp", 0, "moe_block.experts"), None, "w2_weight", "w2_weight",
            ),
            (
                "talker.model.layers.7.mlp.experts.0.weight_packed",
                ("talker.model.layers", 7, "mlp.experts"), 0, "weight_packed", "0.weight_packed",
            ),
            ("h.2.experts.w13_weight", ("h", 2, "experts"), None, "w13_weight", "w13_weight"),
        ],
    )  # fmt: skip
    def test_what_a_key_says(self, key, place, number, tensor, rest):
        """The last number before the experts is the layer's, the first one behind them the expert's."""
        found = split_expert_key(key)
        assert found is not None
        assert (found.place, found.number, found.tensor, found.rest) == (place, number, tensor, rest)

    @pytest.mark.parametrize(
        "key",
        [
            "model.layers.3.mlp.shared_experts.up_proj.weight",
            "model.layers.3.mlp.shared_expert.up_proj.weight",
            "model.layers.3.mlp._shared_experts.0.weight",
            "model.layers.3.mlp.gate.weight",
            "model.experts.w13_weight",
            "3.experts.w13_weight",
            "model.layers.3.mlp.experts",
            "model.layers.3.mlp.experts.routed_experts",
            "model.layers.03.mlp.experts.w13_weight",
            "model.layers.\u0663.mlp.experts.w13_weight",
            "model.layers.1234567890.mlp.experts.w13_weight",
            "model.layers.3.mlp.experts.{row}.weight",
            "{layer}.layers.3.mlp.experts.w13_weight",
            "",
        ],
    )
    def test_keys_of_no_expert(self, key):
        """Shared experts, experts of no layer, a module without a tensor, and numbers nobody writes."""
        assert split_expert_key(key) is None

    def test_templates(self):
        """The key with its number open, and perhaps its layer."""
        found = split_expert_key("model.layers.3.mlp.experts.up_proj.17.qweight")
        assert found is not None
        assert found.template("{row}", open_layer=False) == "model.layers.3.mlp.experts.up_proj.{row}.qweight"
        opened = found.template("{expert}", open_layer=True)
        assert opened == "model.layers.{layer}.mlp.experts.up_proj.{expert}.qweight"
        assert found.place.path == "model.layers.3"

    @given(
        st.lists(
            st.sampled_from(["a", "layers", "experts", "text_experts", "0", "7", "00", "shared_experts"])
        )
    )
    def test_any_key(self, parts):
        """Whatever is found, the parts give the key back, and the experts come between both numbers."""
        key = ".".join(parts)
        found = split_expert_key(key)
        if found is None:
            return
        assert ".".join(found.parts) == key
        assert (
            f"{found.place.path}.{found.place.home}." == key[: len(found.place.path + found.place.home) + 2]
        )
        assert names_experts(found.place.home.rsplit(".", 1)[-1])
        assert found.number_at is None or found.number_at >= found.home_end > found.layer_at
        template = found.template("{row}", open_layer=True)
        again = template.replace("{layer}", str(found.place.number)).replace("{row}", str(found.number))
        assert again == key

    def test_what_looks_like_experts(self):
        """Any component that names routed ones."""
        assert looks_like_experts("experts.x")
        assert looks_like_experts("a.routed_experts")
        assert not looks_like_experts("a.shared_experts.x")
        assert not looks_like_experts("a.myexperts.x")
        assert is_mtp("mtp.layers")
        assert is_mtp("model.mtp_layers")
        assert not is_mtp("model.layers")


def places(module, numbers, home="mlp.experts"):
    return [LayerPlace(module, number, home) for number in numbers]


class TestLayers:
    def test_other_modules_come_behind(self):
        """As DeepSeek numbers its MTP layers: behind the last one of the model, by name."""
        names = number_layers([*places("mtp.layers", [0, 1]), *places("model.layers", [1, 2, 3])] * 2)
        assert names.main == "model.layers"
        assert names.placed == [1, 2, 3]
        assert names.beside == [4, 5]
        assert [names.numbers[place] for place in places("mtp.layers", [0, 1])] == [4, 5]
        assert names.name(2) == "2"
        assert names.name(4) == "4 (mtp.layers.0.mlp.experts)"

    def test_behind_all_layers_of_the_config(self):
        """Dense layers at the end count too."""
        names = number_layers([*places("model.layers", [1, 2]), *places("mtp", [0])], hidden=5)
        assert names.numbers == {
            LayerPlace("model.layers", 1, "mlp.experts"): 1,
            LayerPlace("model.layers", 2, "mlp.experts"): 2,
            LayerPlace("mtp", 0, "mlp.experts"): 5,
        }

    def test_mtp_layers_that_are_numbered_on(self):
        """Beyond num_hidden_layers those of the main module keep their numbers, and are beside."""
        names = number_layers(places("model.layers", [3, 4, 61]), hidden=61)
        assert (names.placed, names.beside) == ([3, 4], [61])
        assert all(names.is_open(place) for place in names.numbers)

    def test_more_layers_of_mtp_than_of_the_model(self):
        """It is never the main module where there is another one."""
        assert number_layers([*places("mtp.layers", range(4)), *places("layers", [1])]).main == "layers"
        assert number_layers(places("mtp.layers", range(4))).main == "mtp.layers"

    def test_the_tower_with_more_layers(self):
        """Is the model's own; the other one follows."""
        both = [*places("talker.model.layers", range(2)), *places("thinker.model.layers", range(3))]
        names = number_layers(both)
        assert names.main == "thinker.model.layers"
        assert (names.placed, names.beside) == ([0, 1, 2], [3, 4])

    def test_two_towers_alike(self):
        """EP212 names both, and `main` decides."""
        both = [*places("a.layers", [0, 1]), *places("b.layers", [4, 5])]
        with pytest.raises(CheckpointError, match=r"'a\.layers' and 'b\.layers'") as caught:
            number_layers(both)
        assert caught.value.code == "EP212"
        names = number_layers(both, main="b.layers")
        assert (names.placed, names.beside) == ([4, 5], [6, 7])

    def test_a_main_module_that_is_not_there(self):
        """EP212: what somebody says is never replaced by a guess."""
        with pytest.raises(CheckpointError, match=r"'c\.layers'") as caught:
            number_layers(places("a.layers", [0, 1]), main="c.layers")
        assert caught.value.code == "EP212"

    def test_two_kinds_of_experts_in_a_layer(self):
        """They are two layers: the one that more layers have keeps the number."""
        text, vision = (
            places("m.layers", [0, 1, 2], "mlp.text_experts"),
            places("m.layers", [1], "mlp.vision_experts"),
        )
        names = number_layers([*vision, *text])
        assert [names.numbers[place] for place in text] == [0, 1, 2]
        assert names.numbers[vision[0]] == 3
        assert (names.placed, names.beside) == ([0, 1, 2], [3])

    def test_without_a_layer(self):
        """Nothing to number."""
        names = number_layers([])
        assert (names.numbers, names.placed, names.beside, names.name(3)) == ({}, [], [], "3")

    @given(
        st.lists(
            st.builds(
                LayerPlace,
                st.sampled_from(["model.layers", "mtp.layers", "talker.layers"]),
                st.integers(0, 5),
                st.sampled_from(["mlp.experts", "mlp.text_experts"]),
            ),
            min_size=1,
        ),
        st.none() | st.integers(0, 8),
    )
    def test_no_two_layers_have_one_number(self, found, hidden):
        """Every place has one, and only those of the main module may keep their own."""
        names = number_layers(found, hidden, found[0].module)
        assert names.numbers.keys() == set(found)
        assert len(set(names.numbers.values())) == len(names.numbers)
        assert sorted({*names.placed, *names.beside}) == sorted(names.numbers.values())
        for place, number in names.numbers.items():
            if place.module != names.main:
                assert number >= (hidden or 0)
                assert number in names.beside
