"""What engines save beside w13_weight and w2_weight, and where: every row goes with its expert.

Contents are judged by the safetensors library where it knows the dtypes, and else by hand; never by eplb.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from tests.cli.tree import BITS, Tensor, placement, read_tree, tensor

S, E, R = 2, 4, 2
H, W = 8, 4
LAYERS = (1, 2)
OLD = placement([[0, 1, 2, 3], [0, 1, 2, 3]], layer_ids=list(LAYERS))
NEW = placement([[2, 3, 0, 1], [0, 2, 1, 3]], layer_ids=list(LAYERS))

Names = dict[str, tuple[str, tuple[int, ...]]]

W13, W2 = (2 * W, H), (H, W)
BF16: Names = {"w13_weight": ("BF16", W13), "w2_weight": ("BF16", W2)}
FP4: Names = {
    "w13_weight": ("U8", (2 * W, H // 2)),
    "w2_weight": ("U8", (H, W // 2)),
    "w13_weight_scale": ("F8_E4M3", (2 * W, 2)),
    "w2_weight_scale": ("F8_E4M3", (H, 2)),
}
INT8: Names = {"w13_weight": ("I8", W13), "w2_weight": ("I8", W2)}

ROWS: dict[str, Names] = {
    "nvfp4 of ModelOpt in vLLM": {**FP4, "w13_weight_scale_2": ("F32", ()), "w2_weight_scale_2": ("F32", ())},
    "nvfp4 of ModelOpt in SGLang": {
        **FP4,
        "w13_blockscale_swizzled": ("F8_E4M3", (128, 4)),
        "w2_blockscale_swizzled": ("F8_E4M3", (128, 4)),
        "w13_weight_scale_2": ("F32", (2,)),
        "w2_weight_scale_2": ("F32", ()),
        "w13_input_scale": ("F32", (2,)),
        "w2_input_scale": ("F32", ()),
        "g1_alphas": ("F32", ()),
        "g2_alphas": ("F32", ()),
        "w2_input_scale_quant": ("F32", ()),
    },
    "gpt-oss in SGLang": {
        **FP4,
        "w13_weight_bias": ("F32", (2 * W,)),
        "w2_weight_bias": ("F32", (H,)),
    },
    "w4a8 of compressed-tensors": {
        "w13_weight_packed": ("I64", (2 * W, 1)),
        "w2_weight_packed": ("I64", (H, 1)),
        "w13_weight_scale": ("F8_E4M3", (2 * W, 1)),
        "w2_weight_scale": ("F8_E4M3", (H, 1)),
        "w13_weight_chan_scale": ("F32", (2 * W, 1)),
        "w2_weight_chan_scale": ("F32", (H, 1)),
        "w13_weight_shape": ("I64", (2,)),
        "w2_weight_shape": ("I64", (2,)),
    },
    "w8a8 of vllm-ascend": {
        **INT8,
        "w13_weight_scale": ("BF16", (2 * W,)),
        "w2_weight_scale": ("BF16", (H,)),
        "w13_weight_offset": ("BF16", (2 * W,)),
        "w2_weight_offset": ("BF16", (H,)),
        "w13_weight_scale_fp32": ("F32", (2 * W,)),
    },
    "w4a8 of vllm-ascend": {
        **INT8,
        "w13_weight_scale": ("I64", (2 * W,)),
        "w2_weight_scale": ("I64", (H,)),
        "w13_weight_scale_second": ("F32", (2 * W, 2)),
        "w2_weight_scale_second": ("F32", (H, 2)),
        "w13_weight_offset_second": ("F32", (2 * W, 2)),
        "w13_scale_bias": ("F32", (2 * W,)),
        "w2_scale_bias": ("F32", (H,)),
    },
    "awq as moe_wna16": {
        "w13_qweight": ("U8", (2 * W, H // 2)),
        "w2_qweight": ("U8", (H, W // 2)),
        "w13_scales": ("BF16", (2 * W, 2)),
        "w2_scales": ("BF16", (H, 2)),
        "w13_qzeros": ("U8", (W, 2)),
        "w2_qzeros": ("U8", (H // 2, 2)),
    },
    "fp8 in blocks": {
        "w13_weight": ("F8_E4M3", W13),
        "w2_weight": ("F8_E4M3", W2),
        "w13_weight_scale_inv": ("F32", (1, 1)),
        "w2_weight_scale_inv": ("F32", (1, 1)),
    },
    "e8m0 scales": {
        **{name: kind for name, kind in FP4.items() if not name.endswith("scale")},
        "w13_weight_scale": ("F8_E8M0", (2 * W, 1)),
        "w2_weight_scale": ("F8_E8M0", (H, 1)),
    },
    "something new": {**BF16, "lora_of_tomorrow": ("BF16", (3,))},
}
"""Tensors with a row for each expert, as the engines' sources have them."""

HOMES = [
    "model.layers.{}.mlp.experts",
    "model.layers.{}.mlp.experts.routed_experts",
    "model.layers.{}.mixer.experts",
    "model.layers.{}.moe.experts",
    "model.layers.{}.moe_block.experts",
    "model.layers.{}.block_sparse_moe.experts",
    "model.layers.{}.feed_forward.experts",
    "model.layers.{}.mlp.text_experts",
    "model.layers.{}.ffn.experts",
    "transformer.blocks.{}.ffn.experts",
    "backbone.layers.{}.mixer.experts",
    "language_model.model.layers.{}.mlp.experts",
    "model.language_model.layers.{}.mlp.experts",
    "layers.{}.ffn.experts",
]

BESIDE: Names = {
    "correction_bias": ("F32", (E,)),
    "e_score_correction_bias": ("F32", (E,)),
    "gate.weight": ("BF16", (E, H)),
    "_gate.weight": ("BF16", (E, H)),
    "router.weight": ("BF16", (E, H)),
    "router.bias": ("BF16", (E,)),
    "_shared_experts._layer.gate_up_proj.weight": ("BF16", (S, H)),
    "shared_expert.down_proj.weight": ("BF16", (S, H)),
}
"""Under a module of experts, and no rows: they stay, though their dim 0 may be that of the rows."""


def rows_of(layer, name, kind, experts):
    """The rows of some experts, each of them other bytes than any other."""
    dtype, shape = kind
    return b"".join(tensor(dtype, shape, f"{layer} {name} {expert}").data for expert in experts)


def shards(content, names, home=HOMES[0], beside=None):
    ranks = []
    for rank in range(R):
        held = {
            "model.embed_tokens.weight": tensor("BF16", (16, H), "embed"),
            "model.layers.1.mlp.gate.weight": tensor("BF16", (E, H), "gate"),
        }
        for layer, experts in zip(LAYERS, content["physical_to_logical_map"], strict=True):
            prefix = home.format(layer)
            for name, (dtype, shape) in names.items():
                data = rows_of(layer, name, (dtype, shape), experts[rank * S : (rank + 1) * S])
                held[f"{prefix}.{name}"] = Tensor(dtype, (S, *shape), data)
            for name, (dtype, shape) in (beside or {}).items():
                held[f"{prefix}.{name}"] = tensor(dtype, shape, f"{layer} {name}")
        ranks.append(held)
    return ranks


def reshard(case, names, **how):
    case.write(shards(OLD, names, **how))
    case.old(OLD)
    case.new(NEW)
    case.reshard()
    assert list(read_tree(case.dst).values()) == shards(NEW, names, **how)


@pytest.mark.parametrize("name", ROWS)
def test_every_tensor_of_an_engine(case, name):
    """All of them follow their experts."""
    reshard(case, ROWS[name])


@pytest.mark.parametrize("home", HOMES)
def test_every_home_of_a_model(case, home):
    """Found by shape: a number, and experts behind it."""
    reshard(case, BF16, home=home)


@pytest.mark.parametrize("name", BESIDE)
def test_what_stays(case, name):
    """Routers, what is in their order, and shared experts."""
    reshard(case, BF16, beside={name: BESIDE[name]})


def test_all_that_stays_with_a_rank_of_as_many_rows(case):
    """Also where a router's E is the number of rows on a rank."""
    old = placement([[0, 1, 1, 0]], layer_ids=[1])
    new = placement([[1, 0, 0, 1]], layer_ids=[1])
    bias = {"correction_bias": ("F32", (2,)), "e_score_correction_bias": ("F32", (2,))}

    def ranks(content):
        held = []
        for rank in range(R):
            experts = content["physical_to_logical_map"][0][2 * rank : 2 * rank + 2]
            rows = {
                f"model.layers.1.mlp.experts.{name}": Tensor(
                    kind[0], (2, *kind[1]), rows_of(1, name, kind, experts)
                )
                for name, kind in BF16.items()
            }
            more = {f"model.layers.1.mlp.experts.{name}": tensor(*kind, name) for name, kind in bias.items()}
            held.append({**rows, **more})
        return held

    case.write(ranks(old))
    case.old(old)
    case.new(new)
    case.reshard()
    assert list(read_tree(case.dst).values()) == ranks(new)


@pytest.mark.parametrize(
    "name", ["fp8 in blocks", "w8a8 of vllm-ascend", "awq as moe_wna16", "w4a8 of vllm-ascend"]
)
def test_as_the_safetensors_library_reads_it(case, name):
    """Row r of a rank in DST is the row that its expert has in SRC, for each tensor of each layer."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch reads all dtypes")
    from safetensors.torch import load_file

    names = ROWS[name]
    reshard(case, names)
    src, dst = (
        [load_file(path / case.file(rank).name) for rank in range(R)] for path in (case.src, case.dst)
    )
    for layer, old, new in zip(
        LAYERS, *(each["physical_to_logical_map"] for each in (OLD, NEW)), strict=True
    ):
        for tensor_name, (dtype, shape) in names.items():
            key = f"{HOMES[0].format(layer)}.{tensor_name}"
            before = np.concatenate([as_bytes(held[key]) for held in src])
            after = np.concatenate([as_bytes(held[key]) for held in dst])
            assert after.shape == (E, int(np.prod(shape, dtype=int)) * BITS[dtype] // 8)
            for slot, expert in enumerate(new):
                assert (after[slot] == before[old.index(expert)]).all(), (key, slot)


def as_bytes(rows):
    """(S, bytes) of a torch tensor."""
    import torch

    return rows.contiguous().reshape(len(rows), -1).view(torch.uint8).numpy()


@pytest.mark.parametrize(
    ("lost", "code"),
    [
        ("w13_weight_scale", "EP210"),
        ("w2_weight_scale_2", "EP210"),
        ("w2_weight", "EP210"),
        ("w2_blockscale_swizzled", "EP210"),
        ("w13_weight_scale_2", "EP210"),
    ],
)
def test_one_that_a_layer_lacks(case, lost, code):
    """Refused by name, in the dozen tensors of SGLang's NVFP4."""
    ranks = shards(OLD, ROWS["nvfp4 of ModelOpt in SGLang"])
    for held in ranks:
        del held[f"{HOMES[0].format(2)}.{lost}"]
    case.write(ranks)
    case.old(OLD)
    case.new(NEW)
    case.refuse(code, "layer 2", lost.split("_", 1)[0])


def test_engines_that_mix_styles(case):
    """Two kinds of experts in a layer, as ERNIE has for text and vision: each is a layer of its own."""
    text, vision = (f"model.layers.{{}}.mlp.{kind}_experts" for kind in ("text", "vision"))

    def ranks(content):
        held = shards(content, BF16, text)
        more = shards(OLD, {name: (dtype, (3, *shape)) for name, (dtype, shape) in BF16.items()}, vision)
        return [{**first, **second} for first, second in zip(held, more, strict=True)]

    case.write(ranks(OLD))
    case.old(OLD)
    case.new(NEW)
    case.reshard()
    assert list(read_tree(case.dst).values()) == ranks(NEW)
