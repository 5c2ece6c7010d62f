"""What an expert cannot do without, and what its like have: nothing goes missing without a word."""

from __future__ import annotations

import pytest

from eplb_cli.checkpoint.complete import Group, check_complete, is_scale, is_weight
from eplb_cli.errors import CheckpointError

NAMES = {layer: str(layer) for layer in range(9)}

STACKED = {"w13_weight": "BF16", "w2_weight": "BF16"}
FP8 = {
    "w13_weight": "F8_E4M3",
    "w13_weight_scale": "F32",
    "w2_weight": "F8_E4M3",
    "w2_weight_scale": "F32",
}
NUMBERED = {f"{name}_proj.weight": "BF16" for name in ("gate", "up", "down")}

WHOLE = {
    "bf16": STACKED,
    "numbered": NUMBERED,
    "w1 to w3": {f"w{number}.weight": "BF16" for number in (1, 2, 3)},
    "no gate": {"up_proj.weight": "BF16", "down_proj.weight": "BF16"},
    "no w3": {"w1.weight": "BF16", "w2.weight": "BF16"},
    "hugging face stacked": {"gate_up_proj": "BF16", "down_proj": "BF16"},
    "gpt-oss": {
        f"{name}_{kind}": dtype
        for name in ("gate_up_proj", "down_proj")
        for kind, dtype in (("blocks", "U8"), ("scales", "U8"), ("bias", "BF16"))
    },
    "fp8": FP8,
    "fp8 with numbers": {**FP8, "w13_input_scale": "F32", "w2_input_scale": "F32"},
    "vllm-ascend": {
        "w13_weight": "I8",
        "w2_weight": "I8",
        "w13_weight_scale": "BF16",
        "w2_weight_scale": "BF16",
        "w13_weight_offset": "BF16",
        "w2_weight_offset": "BF16",
        "w13_weight_scale_fp32": "F32",
    },
    "awq": {
        f"{name}_proj.{kind}": dtype
        for name in ("gate", "up", "down")
        for kind, dtype in (("qweight", "I32"), ("qzeros", "I32"), ("scales", "F16"))
    },
    "nvfp4": {
        **{f"w{n}_weight": "U8" for n in (13, 2)},
        **{f"w{n}_weight_scale": "F8_E4M3" for n in (13, 2)},
        **{f"w{n}_weight_scale_2": "F32" for n in (13, 2)},
        "g1_alphas": "F32",
        "g2_alphas": "F32",
        "w13_blockscale_swizzled": "F8_E4M3",
        "w2_input_scale_quant": "F32",
    },
    "bitsandbytes": {
        f"{name}_proj.weight{kind}": "U8"
        for name in ("gate", "up", "down")
        for kind in ("", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4")
    },
    "names of nobody": {"bank": "BF16", "bank_scale": "F32"},
}


def check(*layers, home="mlp.experts"):
    return check_complete([Group(number, home, tensors) for number, tensors in enumerate(layers)], NAMES)


def refused(code, *layers):
    with pytest.raises(CheckpointError) as caught:
        check(*layers)
    assert caught.value.code == code, caught.value.message
    return caught.value.message


def without(tensors, *names):
    assert tensors.keys() >= {*names}
    return {name: dtype for name, dtype in tensors.items() if name not in names}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole(name):
    """As engines and quantisers write it; alone, and beside another layer of it."""
    assert check(WHOLE[name]) == []
    assert check(WHOLE[name], WHOLE[name]) == []


@pytest.mark.parametrize("other", [name for name in WHOLE if name != "names of nobody"])
def test_layers_of_several_kinds(other):
    """A layer that is quantised or named otherwise has other tensors, and is whole."""
    assert check(STACKED, WHOLE[other]) == []


class TestProjections:
    @pytest.mark.parametrize(
        ("tensors", "lost", "says"),
        [
            (STACKED, "w2_weight", "has w13 and no w2"),
            (STACKED, "w13_weight", "has w2 and no w13 or w1"),
            (NUMBERED, "down_proj.weight", "has up_proj and no down_proj"),
            (NUMBERED, "up_proj.weight", "no"),
            (WHOLE["w1 to w3"], "w2.weight", "has w1 and no w2"),
            (WHOLE["w1 to w3"], "w1.weight", "no w"),
            (WHOLE["hugging face stacked"], "down_proj", "has gate_up_proj and no down_proj"),
            (WHOLE["hugging face stacked"], "gate_up_proj", "has down_proj and no gate_up_proj or up_proj"),
        ],
    )  # fmt: skip
    def test_one_that_is_missing(self, tensors, lost, says):
        """EP230 where another one leads to it, in any layer and alone."""
        assert says in refused("EP230", without(tensors, lost))
        assert "layer 1: mlp.experts" in refused("EP230", tensors, without(tensors, lost))

    def test_one_that_only_other_layers_have(self):
        """EP230: a model without gates lacks them everywhere."""
        said = refused("EP230", NUMBERED, without(NUMBERED, "gate_proj.weight"))
        assert said == "layer 1: mlp.experts has no gate_proj, which other layers have"

    def test_another_module_is_another_model(self):
        """Experts of another kind may have other projections."""
        gateless = without(NUMBERED, "gate_proj.weight")
        groups = [Group(0, "mlp.experts", NUMBERED), Group(1, "mlp.vision_experts", gateless)]
        assert check_complete(groups, NAMES) == []


class TestWeights:
    @pytest.mark.parametrize(
        ("tensors", "lost", "code"),
        [
            (FP8, "w13_weight", "EP210"),
            ({**STACKED, "w13_bias": "BF16"}, "w13_weight", "EP230"),
            (WHOLE["awq"], "up_proj.qweight", "EP210"),
            (WHOLE["gpt-oss"], "down_proj_blocks", "EP210"),
            ({**STACKED, "w2_weight_shape": "I64"}, "w2_weight", "EP230"),
        ],
    )
    def test_something_of_a_weight_that_is_missing(self, tensors, lost, code):
        """EP210 for a scale, EP230 for anything else, though no other layer has the weight."""
        assert "is there without the weight of" in refused(code, without(tensors, lost))


class TestScales:
    @pytest.mark.parametrize("lost", ["w13_weight_scale", "w2_weight_scale"])
    def test_a_layer_without_one(self, lost):
        """EP210 names it: its like have it."""
        said = refused("EP210", FP8, without(FP8, lost))
        projection, kind = lost.split("_", 1)
        assert said == f"layer 1: mlp.experts.{projection}_weight is there without {kind}"

    def test_a_projection_without_any(self):
        """EP210: the other weight of its dtype has one, and a scale of some kind is needed."""
        said = refused("EP210", without(FP8, "w13_weight_scale"))
        assert said == "layer 0: mlp.experts.w13_weight is there without any scale, and other F8_E4M3 has one"

    def test_another_dtype_needs_none(self):
        """A weight that is not quantised."""
        assert check(FP8, {**without(FP8, "w2_weight_scale"), "w2_weight": "BF16"}) == []

    @pytest.mark.parametrize("lost", ["up_proj.scales", "up_proj.qzeros"])
    def test_zero_points_are_scales(self, lost):
        """EP210 for both."""
        refused("EP210", WHOLE["awq"], without(WHOLE["awq"], lost))

    def test_one_that_only_one_projection_has(self):
        """vllm-ascend keeps w13's scales in float32 too, and not w2's; a layer that lacks it is refused."""
        ascend = WHOLE["vllm-ascend"]
        assert check(ascend, ascend) == []
        refused("EP210", ascend, without(ascend, "w13_weight_scale_fp32"))


class TestOthers:
    def test_a_bias(self):
        """EP230 where its like have one."""
        biased = {**STACKED, "w13_bias": "BF16", "w2_bias": "BF16"}
        said = refused("EP230", biased, without(biased, "w2_bias"))
        assert said == "layer 1: mlp.experts.w2_weight is there without bias"

    @pytest.mark.parametrize("kind", ["input_scale", "input_global_scale"])
    def test_calibrations_of_activations(self, kind):
        """A sentence, and no error: whether a layer has one is its quantiser's choice."""
        calibrated = {**FP8, f"w13_{kind}": "F32"}
        (said,) = check(calibrated, FP8)
        assert said == f"layer 1: mlp.experts.w13_weight is there without {kind}, which its like have"

    def test_a_calibration_is_no_scale_of_a_weight(self):
        """EP210: one beside the weight does not stand for the scale that is missing."""
        lacking = {**without(FP8, "w13_weight_scale"), "w13_input_scale": "F32"}
        refused("EP210", lacking)

    def test_a_calibration_without_its_weight(self):
        """EP210: it is a scale of something that is not there."""
        refused("EP210", {"w2_input_scale": "F32", "w13_weight": "BF16"})


def test_names():
    """What is a weight, and what is nothing without one."""
    weights = [
        "w13_weight",
        "w2.weight",
        "gate_up_proj",
        "up_proj.weight_packed",
        "w1.qweight",
        "down_proj_blocks",
    ]
    assert [name for name in weights if not is_weight(name)] == []
    others = [
        "w13_weight_scale",
        "w13_bias",
        "weight",
        "w132_weight",
        "gate.weight",
        "down_proj.weight_shape",
    ]
    assert [name for name in others if is_weight(name)] == []
    scales = [
        "w13_weight_scale_inv",
        "w2_scales",
        "qzeros",
        "w2_zero_point",
        "up_proj.weight.absmax",
        "x.quant_state.nf4",
    ]
    assert [name for name in scales if not is_scale(name)] == []
    assert not is_scale("w13_bias")
