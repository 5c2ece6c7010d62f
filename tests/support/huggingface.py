"""Small Hugging Face checkpoints, and what an engine's shards of them hold; written by hand, judged by hand.

Layers 1 and 2 of 3 are MoE layers of four experts. Every byte follows from the key it is under.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.cli.tree import Rank, Tensor, tensor, write_shard

HIDDEN, WIDTH, EXPERTS = 4, 6, 4
MOE_LAYERS = (1, 2)

Family = str


def made(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> Rank:
    return {key: tensor(dtype, shape, key) for key, (dtype, shape) in shapes.items()}


def deepseek_v3() -> Rank:
    """fp8 with scales, latent attention, a shared expert, a router with a bias."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (8, HIDDEN)),
        "model.norm.weight": ("BF16", (HIDDEN,)),
        "lm_head.weight": ("BF16", (8, HIDDEN)),
    }
    for layer in range(3):
        base = f"model.layers.{layer}"
        linear = {
            "self_attn.q_a_proj": (3, HIDDEN),
            "self_attn.kv_a_proj_with_mqa": (2, HIDDEN),
            "self_attn.q_b_proj": (4, 3),
            "self_attn.kv_b_proj": (4, 2),
            "self_attn.o_proj": (HIDDEN, 4),
        }
        prefixes = ["mlp"]
        if layer in MOE_LAYERS:
            prefixes = ["mlp.shared_experts", *(f"mlp.experts.{expert}" for expert in range(EXPERTS))]
            shapes[f"{base}.mlp.gate.weight"] = ("BF16", (EXPERTS, HIDDEN))
            shapes[f"{base}.mlp.gate.e_score_correction_bias"] = ("F32", (EXPERTS,))
        for prefix in prefixes:
            linear |= {
                f"{prefix}.gate_proj": (WIDTH, HIDDEN),
                f"{prefix}.up_proj": (WIDTH, HIDDEN),
                f"{prefix}.down_proj": (HIDDEN, WIDTH),
            }
        for name, shape in linear.items():
            shapes[f"{base}.{name}.weight"] = ("F8_E4M3", shape)
            shapes[f"{base}.{name}.weight_scale_inv"] = ("F32", (1, 1))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{base}.{norm}.weight"] = ("BF16", (HIDDEN,))
        shapes[f"{base}.self_attn.q_a_layernorm.weight"] = ("BF16", (3,))
        shapes[f"{base}.self_attn.kv_a_layernorm.weight"] = ("BF16", (2,))
    return made(shapes)


def qwen3_moe() -> Rank:
    """Plain bf16; layer 0 is dense."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (8, HIDDEN)),
        "model.norm.weight": ("BF16", (HIDDEN,)),
        "lm_head.weight": ("BF16", (8, HIDDEN)),
    }
    for layer in range(2):
        base = f"model.layers.{layer}"
        linear = {"self_attn.q_proj": (4, HIDDEN), "self_attn.k_proj": (2, HIDDEN)}
        linear |= {"self_attn.v_proj": (2, HIDDEN), "self_attn.o_proj": (HIDDEN, 4)}
        linear |= {"self_attn.q_norm": (2,), "self_attn.k_norm": (2,)}  # type: ignore[dict-item]
        linear |= {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}  # type: ignore[dict-item]
        prefixes = ["mlp"] if layer == 0 else [f"mlp.experts.{expert}" for expert in range(EXPERTS)]
        if layer:
            linear["mlp.gate"] = (EXPERTS, HIDDEN)
        for prefix in prefixes:
            linear |= {f"{prefix}.gate_proj": (WIDTH, HIDDEN), f"{prefix}.up_proj": (WIDTH, HIDDEN)}
            linear[f"{prefix}.down_proj"] = (HIDDEN, WIDTH)
        shapes |= {f"{base}.{name}.weight": ("BF16", shape) for name, shape in linear.items()}
    return made(shapes)


def gpt_oss() -> Rank:
    """mxfp4, stacked over all experts, with biases."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"model.norm.weight": ("BF16", (HIDDEN,))}
    for layer in range(2):
        base = f"model.layers.{layer}.mlp"
        shapes |= {
            f"{base}.experts.gate_up_proj_blocks": ("U8", (EXPERTS, 2 * WIDTH, 2, 16)),
            f"{base}.experts.gate_up_proj_scales": ("U8", (EXPERTS, 2 * WIDTH, 2)),
            f"{base}.experts.gate_up_proj_bias": ("BF16", (EXPERTS, 2 * WIDTH)),
            f"{base}.experts.down_proj_blocks": ("U8", (EXPERTS, HIDDEN, 2, 16)),
            f"{base}.experts.down_proj_scales": ("U8", (EXPERTS, HIDDEN, 2)),
            f"{base}.experts.down_proj_bias": ("BF16", (EXPERTS, HIDDEN)),
            f"{base}.router.weight": ("BF16", (EXPERTS, HIDDEN)),
            f"{base}.router.bias": ("BF16", (EXPERTS,)),
        }
    return made(shapes)


def write_checkpoint(path: Path, tensors: Rank, family: Family, num_files: int = 2) -> Path:
    """Files, an index where there are several of them, config and a tokenizer."""
    path.mkdir(parents=True)
    keys = list(tensors)
    names = [f"model-{number + 1:05d}-of-{num_files:05d}.safetensors" for number in range(num_files)]
    if num_files == 1:
        names = ["model.safetensors"]
    files = {name: keys[number::num_files] for number, name in enumerate(names)}
    for name, members in files.items():
        write_shard(path / name, {key: tensors[key] for key in members}, {"format": "pt"})
    if num_files > 1:
        where = {key: name for name, members in files.items() for key in members}
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = {"model_type": family, "num_hidden_layers": 3}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_bytes(bytes(range(256)) * 8)
    return path


def joined(parts: Iterable[Tensor], lead: tuple[int, ...] = ()) -> Tensor:
    """Tensors one behind the other along dim 0."""
    found = list(parts)
    rows = sum(part.shape[0] for part in found)
    return Tensor(found[0].dtype, (*lead, rows, *found[0].shape[1:]), b"".join(part.data for part in found))


def deepseek_in_sglang(source: Rank, experts: Mapping[int, list[int]]) -> Rank:
    """What SGLang calls the tensors of a rank that holds `experts` of each MoE layer, in that order."""
    found: Rank = {}
    for key, at in source.items():
        if ".experts." not in key and not any(
            part in key for part in ("q_a_proj", "kv_a_proj", "gate_proj", "up_proj")
        ):
            found[key] = at
    for layer in range(3):
        base = f"model.layers.{layer}"
        for kind in ("weight", "weight_scale_inv"):
            pairs = [
                ("self_attn.fused_qkv_a_proj_with_mqa", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
            ]
            block = "mlp.shared_experts" if layer in MOE_LAYERS else "mlp"
            pairs.append((f"{block}.gate_up_proj", f"{block}.gate_proj", f"{block}.up_proj"))
            for target, first, second in pairs:
                found[f"{base}.{target}.{kind}"] = joined(
                    source[f"{base}.{part}.{kind}"] for part in (first, second)
                )
            if layer in MOE_LAYERS:
                held = experts[layer]
                suffix = kind.removeprefix("weight")
                w13 = [
                    source[f"{base}.mlp.experts.{expert}.{part}.{kind}"]
                    for expert in held
                    for part in ("gate_proj", "up_proj")
                ]
                w2 = [source[f"{base}.mlp.experts.{expert}.down_proj.{kind}"] for expert in held]
                for name, parts, per_row in (("w13", w13, 2), ("w2", w2, 1)):
                    rows = parts[0].shape[0] * per_row
                    found[f"{base}.mlp.experts.{name}_weight{suffix}"] = Tensor(
                        parts[0].dtype,
                        (len(held), rows, *parts[0].shape[1:]),
                        b"".join(part.data for part in parts),
                    )
    return found
