"""Random checkpoints for a pair of placements: every layout, every dtype, scales, and other tensors."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.checkpoints import ExpertTensor, Model, OtherTensor, Style
from tests.support.pairs import Pair

STACKED_PREFIXES = (
    "model.layers.{layer}.mlp.experts.",
    "model.layers.{layer}.mlp.experts.routed_experts.",
    "model.layers.{layer}.block_sparse_moe.experts.",
    "language_model.model.layers.{layer}.feed_forward.experts.routed_experts.",
)

STACKED_FAMILIES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("w13_weight", "BF16"), ("w2_weight", "BF16")),
    (("w13_weight", "F32"), ("w2_weight", "F16"), ("w13_bias", "F32"), ("w2_bias", "F16")),
    (
        ("w13_weight", "F8_E4M3"),
        ("w2_weight", "F8_E4M3"),
        ("w13_weight_scale_inv", "F32"),
        ("w2_weight_scale_inv", "F32"),
        ("w13_input_scale", "F32"),
    ),
    (
        ("w13_weight", "U8"),
        ("w2_weight", "U8"),
        ("w13_weight_scale", "F8_E8M0"),
        ("w2_weight_scale", "F8_E8M0"),
        ("w13_bias", "BF16"),
    ),
    (
        ("w13_weight_packed", "F4"),
        ("w2_weight_packed", "F4"),
        ("w13_weight_scale", "F8_E4M3"),
        ("w2_weight_scale", "F8_E4M3"),
        ("w13_weight_global_scale", "F32"),
        ("w2_weight_global_scale", "F32"),
    ),
    (
        ("w13_qweight", "I32"),
        ("w2_qweight", "I32"),
        ("w13_scales", "F16"),
        ("w2_scales", "F16"),
        ("w13_g_idx", "I64"),
    ),
    (("w13_weight", "BOOL"), ("w2_weight", "I8"), ("w2_bias", "F8_E5M2")),
)

ROW_FAMILIES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("gate_proj.weight", "BF16"), ("up_proj.weight", "BF16"), ("down_proj.weight", "BF16")),
    (
        ("w1.weight", "F8_E4M3"),
        ("w2.weight", "F8_E4M3"),
        ("w1.weight_scale_inv", "F32"),
        ("w2.weight_scale_inv", "F32"),
    ),
    (
        ("up_proj.weight_packed", "I32"),
        ("up_proj.weight_scale", "BF16"),
        ("up_proj.weight_shape", "I64"),
        ("down_proj.weight_packed", "I32"),
        ("down_proj.weight_scale", "BF16"),
    ),
)

EXPERT_FAMILIES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("w1.weight", "BF16"), ("w2.weight", "BF16"), ("w3.weight", "BF16")),
    (
        ("w1.weight", "F8_E4M3"),
        ("w2.weight", "F8_E4M3"),
        ("w1.scale", "F8_E8M0"),
        ("w2.scale", "F8_E8M0"),
    ),
    (("w1.weight", "F4"), ("w1.scale", "F32"), ("w2.weight", "U8")),
)

ROW_SHAPES = ((), (1,), (2,), (3,), (2, 3), (7, 1), (1, 2, 8), (61,), (700,), (0,))


@st.composite
def models(draw: st.DrawFn, pair: Pair, style: Style) -> Model:
    """A checkpoint that the pair fits: rows differ in size from layer to layer.

    Other tensors that are a rank's own, and MoE layers that the placement does not name, come where
    they can stay: with the same R, and with the same R and S.
    """
    old, new = pair
    families = {"stacked": STACKED_FAMILIES, "row": ROW_FAMILIES, "expert": EXPERT_FAMILIES}[style]
    family = draw(st.sampled_from(families))
    prefix = {
        "stacked": draw(st.sampled_from(STACKED_PREFIXES)),
        "row": "model.layers.{layer}.mlp.experts.",
        "expert": "layers.{layer}.ffn.experts.",
    }[style]
    layers = {
        old.layer_number(index): tuple(draw(_expert_tensor(name, dtype)) for name, dtype in family)
        for index in range(old.num_layers)
    }
    same_ranks = old.num_ranks == new.num_ranks
    unplaced: list[OtherTensor] = []
    others = [
        OtherTensor("model.norm.weight"),
        OtherTensor("model.layers.77.self_attn.attn._k_scale", "F32", ()),
    ]
    if style == "stacked":
        key = prefix.format(layer=min(layers))
        others.append(OtherTensor(f"{key}e_score_correction_bias", "F32", (old.num_logical_experts,)))
        others.append(OtherTensor(f"{key}_shared_experts._layer.w13_weight", "BF16", (2, 2), same_ranks))
        others.append(OtherTensor(f"{key}w2_input_scale", "F32", ()))
    if same_ranks:
        others.append(OtherTensor("model.embed_tokens.weight", "BF16", (3, 3), own=True))
        if style == "stacked" and old.slots_per_rank.tolist() == new.slots_per_rank.tolist():
            key = prefix.format(layer=99)
            unplaced = [
                OtherTensor(f"{key}{name}", "I64", (0, 2), own=True, rows=True)
                for name in ("w13_weight", "w2_weight")
            ]
    count = draw(st.integers(0, len(others)))
    chosen = (*draw(st.permutations(others))[:count], *(unplaced if draw(st.booleans()) else []))
    num_stages = draw(st.sampled_from([0, 0, 1, 2])) if style == "stacked" else 0
    return Model(style, prefix, layers, chosen, old.num_ranks, num_stages)


@st.composite
def _expert_tensor(draw: st.DrawFn, name: str, dtype: str) -> ExpertTensor:
    shape = draw(st.sampled_from(ROW_SHAPES))
    if dtype == "F4":
        shape = (*shape, 2)
    return ExpertTensor(name, dtype, shape)
