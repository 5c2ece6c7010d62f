"""Small checkpoints with the names, dtypes and files of published models; only their sizes are made up.

Names and dtypes are those in the headers of the published files. Where they were read:

- DeepSeek-R1 (the files of V3), -V3.2 and -V4-Flash, Qwen3-Next-80B-A3B, Qwen3.5-35B-A3B, MiniMax-M2.7 and
  gpt-oss-20b: listings of all headers, with config.json, that a public collection of model reports has.
- GLM-4.5 and -4.6: transformers' Glm4MoeForCausalLM; which of them has which MTP tensors: vllm-project/vllm
  pull request 27597. Qwen3.6: the list of its MTP tensors that loaders of `mtp.safetensors` ask for.
- Kimi-K2: its deployment guide, by which it is DeepSeek-V3 but for its `model_type`. Qwen3-30B-A3B, Mixtral
  and Llama 4: the modules that transformers builds, and its conversion of numbered experts.

Every byte follows from the key it is under, but for DeepSeek-V4's table of expert ids, which has ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from tests.cli.tree import Rank, Tensor, tensor, write_shard

HIDDEN, WIDTH, EXPERTS, VOCAB, HEADS = 4, 6, 4, 16, 2

Kinds = dict[str, tuple[str, tuple[int, ...]]]
"""By name, dtype and shape."""

_NUMBERED = re.compile(r"\.experts\.([0-9]+)\.")
GATED = ("gate_proj", "up_proj", "down_proj")
SHAPES = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@dataclass(frozen=True)
class Published:
    """A checkpoint.

    Attributes:
        config: what its config.json says.
        tensors: by their keys.
        layers: what the keys of each main MoE layer begin with, in order; a placement has a row for each.
        mtp: likewise of the MTP layers, which no engine's placement names.
    """

    config: Mapping[str, Any]
    tensors: Rank
    layers: tuple[str, ...]
    mtp: tuple[str, ...] = ()

    def on_rank(self, held: Mapping[str, list[int]]) -> Rank:
        """What the shard of a rank that holds these experts of each layer has, with all names kept."""
        found: Rank = {}
        for key, at in self.tensors.items():
            experts = next((held[layer] for layer in held if key.startswith(layer + ".")), [])
            if ".experts." not in key:
                found[key] = at
            elif number := _NUMBERED.search(key):
                for row in (row for row, expert in enumerate(experts) if expert == int(number[1])):
                    found[key[: number.start(1)] + str(row) + key[number.end(1) :]] = at
            else:
                nbytes = len(at.data) // EXPERTS
                rows = (at.data[expert * nbytes : (expert + 1) * nbytes] for expert in experts)
                found[key] = Tensor(at.dtype, (len(experts), *at.shape[1:]), b"".join(rows))
        return found

    def expert(self, layer: str, number: int) -> Rank:
        """The tensors of an expert that has tensors of its own, by what their keys end in."""
        begin = re.compile(re.escape(layer) + rf"\.\w+\.experts\.{number}\.")
        return {key[m.end() :]: at for key, at in self.tensors.items() if (m := begin.match(key))}

    def others(self) -> Rank:
        """The tensors that are no expert's."""
        return {key: at for key, at in self.tensors.items() if ".experts." not in key}


def write_published(path: Path, model: Published, num_files: int = 3) -> Path:
    """Files of consecutive tensors with an index of them, as published; config.json and a tokenizer."""
    path.mkdir(parents=True)
    keys = list(model.tensors)
    size = -(-len(keys) // num_files)
    where: dict[str, str] = {}
    for number in range(num_files):
        name = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        members = keys[number * size : (number + 1) * size]
        write_shard(path / name, {key: model.tensors[key] for key in members}, {"format": "pt"})
        where |= dict.fromkeys(members, name)
    total = sum(len(at.data) for at in model.tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (path / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    (path / "tokenizer.json").write_bytes(bytes(range(256)))
    return path


def read_rank(path: Path, rank: int) -> Rank:
    """All tensors of a rank's shard files, as the safetensors library reads them."""
    found: Rank = {}
    for file in sorted(path.glob(f"model-rank-{rank}-part-*.safetensors")):
        for key, at in safetensors.deserialize(file.read_bytes()):
            assert key not in found, f"{key} is in two files of rank {rank}"
            found[key] = Tensor(at["dtype"], tuple(at["shape"]), bytes(at["data"]))
    return found


def _made(kinds: Kinds) -> Rank:
    return {key: tensor(dtype, shape, key) for key, (dtype, shape) in kinds.items()}


def _bf16(shapes: Mapping[str, tuple[int, ...]]) -> Kinds:
    return {f"{name}.weight": ("BF16", shape) for name, shape in shapes.items()}


def _fp8(shapes: Mapping[str, tuple[int, ...]]) -> Kinds:
    """Weights, each with the scale of its one block."""
    weights: Kinds = {f"{name}.weight": ("F8_E4M3", shape) for name, shape in shapes.items()}
    return weights | {f"{name}.weight_scale_inv": ("F32", (1, 1)) for name in shapes}


def _under(prefix: str, kinds: Kinds) -> Kinds:
    return {f"{prefix}.{name}": kind for name, kind in kinds.items()}


def _gated(prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}": shape for name, shape in SHAPES.items()}


def _gated_experts(block: str, names: Iterable[str] = GATED) -> dict[str, tuple[int, ...]]:
    """Gate, up and down of each expert, under whatever names."""
    shapes = dict(zip(names, SHAPES.values(), strict=True))
    return {
        f"{block}.experts.{number}.{name}": shape
        for number in range(EXPERTS)
        for name, shape in shapes.items()
    }


def _norms(*names: str, size: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, (size,))


_BLOCK_NORMS = _norms("input_layernorm", "post_attention_layernorm")
_QKVO: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (8, HIDDEN),
    "self_attn.k_proj": (2, HIDDEN),
    "self_attn.v_proj": (2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 8),
}
_QKV_BIAS: Kinds = {
    f"{name}.bias": ("BF16", shape[:1]) for name, shape in _QKVO.items() if "o_proj" not in name
}
_QK_NORM = _norms("self_attn.q_norm", "self_attn.k_norm", size=2)


def _ends(prefix: str = "model", head: str = "lm_head") -> Kinds:
    """Embedding, last norm and head."""
    return _bf16(
        {f"{prefix}.embed_tokens": (VOCAB, HIDDEN), f"{prefix}.norm": (HIDDEN,), head: (VOCAB, HIDDEN)}
    )


def _mtp_of_deepseek(*, shared: bool) -> Kinds:
    """What an MTP layer that is numbered on has beside its block; `shared`: what the model has as well."""
    kinds = _bf16({"enorm": (HIDDEN,), "hnorm": (HIDDEN,), "eh_proj": (HIDDEN, 2 * HIDDEN)})
    kinds |= _bf16({"shared_head.norm": (HIDDEN,)})
    return kinds | (
        _bf16(dict.fromkeys(("embed_tokens", "shared_head.head"), (VOCAB, HIDDEN))) if shared else {}
    )


def _latent_block(*, dense: bool, indexer: bool) -> Kinds:
    """A layer of DeepSeek-V3, in blocks of fp8."""
    linear: dict[str, tuple[int, ...]] = {
        "self_attn.q_a_proj": (3, HIDDEN),
        "self_attn.q_b_proj": (8, 3),
        "self_attn.kv_a_proj_with_mqa": (4, HIDDEN),
        "self_attn.kv_b_proj": (8, 2),
        "self_attn.o_proj": (HIDDEN, 4),
    }
    linear |= _gated("mlp") if dense else _gated("mlp.shared_experts") | _gated_experts("mlp")
    norms = {**_BLOCK_NORMS, "self_attn.q_a_layernorm": (3,), "self_attn.kv_a_layernorm": (2,)}
    kinds = _fp8(linear) | _bf16(norms)
    if not dense:
        kinds |= {
            "mlp.gate.weight": ("BF16", (EXPERTS, HIDDEN)),
            "mlp.gate.e_score_correction_bias": ("F32", (EXPERTS,)),
        }
    if indexer:
        name = "self_attn.indexer"
        kinds |= _fp8({f"{name}.wq_b": (8, 3), f"{name}.wk": (4, HIDDEN)})
        kinds |= {
            f"{name}.k_norm.weight": ("F32", (4,)),
            f"{name}.k_norm.bias": ("F32", (4,)),
            f"{name}.weights_proj.weight": ("BF16", (2, HIDDEN)),
        }
    return kinds


def _latent(config: dict[str, Any], *, mtp: bool, indexer: bool = False) -> Published:
    """One dense layer, two MoE layers and, with `mtp`, the MTP layer that goes on with the numbers."""
    kinds = _ends()
    for number in range(4 if mtp else 3):
        block = _latent_block(dense=number == 0, indexer=indexer)
        block |= _mtp_of_deepseek(shared=True) if number == 3 else {}
        kinds |= _under(f"model.layers.{number}", block)
    if indexer:  # V3.2 has its norms in F32
        kinds |= {key: ("F32", shape) for key, (_, shape) in kinds.items() if key.endswith("norm.weight")}
    said = {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "intermediate_size": WIDTH,
        "vocab_size": VOCAB,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": int(mtp),
        "quantization_config": FP8,
        "torch_dtype": "bfloat16",
        **config,
    }
    layers = tuple(f"model.layers.{number}" for number in (1, 2))
    return Published(said, _made(kinds), layers, ("model.layers.3",) if mtp else ())


def deepseek_v3() -> Published:
    config = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "n_group": 2}
    return _latent({**config, "topk_group": 1}, mtp=True)


def deepseek_v32() -> Published:
    """V3 with an indexer in every layer, the MTP layer included."""
    config = {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "n_group": 2}
    sizes = {"topk_group": 1, "index_head_dim": 4, "index_n_heads": 2, "index_topk": 8}
    return _latent({**config, **sizes}, mtp=True, indexer=True)


def kimi_k2() -> Published:
    """DeepSeek-V3's names without an MTP layer."""
    config = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "n_group": 1}
    return _latent({**config, "topk_group": 1}, mtp=False)


def _v4_linear(name: str, shape: tuple[int, ...]) -> Kinds:
    return {f"{name}.weight": ("F8_E4M3", shape), f"{name}.scale": ("F8_E8M0", (1, 4))}


def _v4_block(*, hashed: bool, ratio: int) -> Kinds:
    """A layer of DeepSeek-V4: experts of 4 bits in bytes, and scales that are powers of two."""
    kinds: Kinds = {"attn.attn_sink": ("F32", (HEADS,))}
    kinds |= _bf16({"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn.q_norm": (3,), "attn.kv_norm": (2,)})
    for name, shape in (
        ("wq_a", (3, HIDDEN)),
        ("wq_b", (8, 3)),
        ("wkv", (2, HIDDEN)),
        ("wo_a", (4, HIDDEN)),
        ("wo_b", (HIDDEN, 4)),
    ):
        kinds |= _v4_linear(f"attn.{name}", shape)
    for name in ("attn", "ffn"):
        kinds |= {
            f"hc_{name}_base": ("F32", (6,)),
            f"hc_{name}_fn": ("F32", (6, 2 * HIDDEN)),
            f"hc_{name}_scale": ("F32", (3,)),
        }
    for compressor in ["attn.compressor"] * bool(ratio) + ["attn.indexer.compressor"] * (ratio == 4):
        kinds |= {f"{compressor}.ape": ("F32", (4, 2))}
        kinds |= _bf16({f"{compressor}.{name}": (2, HIDDEN) for name in ("wgate", "wkv")})
        kinds |= _bf16({f"{compressor}.norm": (2,)})
    if ratio == 4:
        kinds |= _v4_linear("attn.indexer.wq_b", (4, 3)) | _bf16({"attn.indexer.weights_proj": (2, HIDDEN)})
    kinds |= _bf16({"ffn.gate": (EXPERTS, HIDDEN)})
    kinds |= {} if hashed else {"ffn.gate.bias": ("F32", (EXPERTS,))}
    shapes: dict[str, tuple[int, ...]] = {"w1": (WIDTH, HIDDEN), "w2": (HIDDEN, WIDTH), "w3": (WIDTH, HIDDEN)}
    for name, (rows, columns) in shapes.items():
        kinds |= _v4_linear(f"ffn.shared_experts.{name}", (rows, columns))
        for number in range(EXPERTS):
            kinds[f"ffn.experts.{number}.{name}.weight"] = ("I8", (rows, columns // 2))
            kinds[f"ffn.experts.{number}.{name}.scale"] = ("F8_E8M0", (rows, 1))
    return kinds


def deepseek_v4() -> Published:
    """Names of its own: `ffn`, no `model.`, an MTP layer `mtp.0`, and a first layer that a table routes."""
    kinds = _bf16({"embed": (VOCAB, HIDDEN), "norm": (HIDDEN,), "head": (VOCAB, HIDDEN)})
    head: Kinds = {
        "hc_head_base": ("F32", (2,)),
        "hc_head_fn": ("F32", (2, 2 * HIDDEN)),
        "hc_head_scale": ("F32", (1,)),
    }
    ratios = [0, 4, 128, 0]
    for number, ratio in enumerate(ratios[:3]):
        kinds |= _under(f"layers.{number}", _v4_block(hashed=number == 0, ratio=ratio))
    mtp = _v4_block(hashed=False, ratio=0) | head | _bf16(_norms("enorm", "hnorm", "norm"))
    for name in ("e_proj", "h_proj"):
        mtp |= _v4_linear(name, (HIDDEN, HIDDEN))
    kinds |= head | _under("mtp.0", mtp)
    ids = b"".join((token % EXPERTS).to_bytes(8, "little") for token in range(2 * VOCAB))
    tensors = _made(kinds) | {"layers.0.ffn.gate.tid2eid": Tensor("I64", (VOCAB, 2), ids)}
    config = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "num_hidden_layers": 3,
        "num_hash_layers": 1,
        "num_nextn_predict_layers": 1,
        "compress_ratios": ratios,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "hc_mult": 2,
        "vocab_size": VOCAB,
        "quantization_config": {**FP8, "scale_fmt": "ue8m0"},
        "torch_dtype": "bfloat16",
    }
    return Published(config, tensors, tuple(f"layers.{number}" for number in range(3)), ("mtp.0",))


def _glm(*, shared: bool) -> Published:
    kinds = _ends()
    for number in range(4):
        block = _bf16(_BLOCK_NORMS | _QKVO | _QK_NORM) | _QKV_BIAS
        if number == 0:
            block |= _bf16(_gated("mlp"))
        else:
            block |= _bf16(
                _gated("mlp.shared_experts") | _gated_experts("mlp") | {"mlp.gate": (EXPERTS, HIDDEN)}
            )
            block |= {"mlp.gate.e_score_correction_bias": ("F32", (EXPERTS,))}
        block |= _mtp_of_deepseek(shared=shared) if number == 3 else {}
        kinds |= _under(f"model.layers.{number}", block)
    config = {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "attention_bias": True,
        "use_qk_norm": True,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "intermediate_size": WIDTH,
        "vocab_size": VOCAB,
        "torch_dtype": "bfloat16",
    }
    return Published(config, _made(kinds), ("model.layers.1", "model.layers.2"), ("model.layers.3",))


def glm_4_5() -> Published:
    return _glm(shared=True)


def glm_4_6() -> Published:
    """GLM-4.5 without the tensors that its MTP layer shares with the model."""
    return _glm(shared=False)


_QWEN_MOE = {
    "mlp.gate": (EXPERTS, HIDDEN),
    "mlp.shared_expert_gate": (1, HIDDEN),
    **_gated("mlp.shared_expert"),
}
_STACKED: Kinds = {
    "mlp.experts.gate_up_proj": ("BF16", (EXPERTS, 2 * WIDTH, HIDDEN)),
    "mlp.experts.down_proj": ("BF16", (EXPERTS, HIDDEN, WIDTH)),
}
_NUMBERED_EXPERTS = _bf16(_gated_experts("mlp"))
_DELTA_NET: Kinds = {
    "linear_attn.A_log": ("BF16", (HEADS,)),
    "linear_attn.dt_bias": ("BF16", (HEADS,)),
    **_bf16({"linear_attn.conv1d": (8, 1, 4), "linear_attn.norm": (2,), "linear_attn.out_proj": (HIDDEN, 8)}),
}
_LAYER_TYPES = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]


def _qwen_layers(prefix: str, own: Kinds, experts: Kinds) -> Kinds:
    """Four layers, of which the last has full attention; `own` is what a model's linear attention has."""
    kinds: Kinds = {}
    for number, kind in enumerate(_LAYER_TYPES):
        full = kind == "full_attention"
        attention = _bf16(_QKVO | _QK_NORM) if full else _DELTA_NET | _under("linear_attn", own)
        block = _bf16(_BLOCK_NORMS | _QWEN_MOE) | attention | experts
        kinds |= _under(f"{prefix}.{number}", block)
    return kinds


def _qwen_mtp(experts: Kinds) -> Kinds:
    block = _bf16(_BLOCK_NORMS | _QWEN_MOE | _QKVO | _QK_NORM) | experts
    outer = _norms("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden") | {"fc": (HIDDEN, 2 * HIDDEN)}
    return _under("mtp", _bf16(outer) | _under("layers.0", block))


def _qwen_config() -> dict[str, Any]:
    return {
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "layer_types": _LAYER_TYPES,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "shared_expert_intermediate_size": WIDTH,
        "vocab_size": VOCAB,
        "dtype": "bfloat16",
    }


def qwen3_next() -> Published:
    """Its MTP layer begins again at 0, in a module of its own; config.json does not say that there is one."""
    kinds = _ends() | _qwen_mtp(_NUMBERED_EXPERTS)
    own = _bf16({"in_proj_ba": (4, HIDDEN), "in_proj_qkvz": (16, HIDDEN)})
    kinds |= _qwen_layers("model.layers", own, _NUMBERED_EXPERTS)
    sparse = {"decoder_sparse_step": 1, "mlp_only_layers": []}
    names = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
    layers = tuple(f"model.layers.{number}" for number in range(4))
    return Published({**names, **sparse, **_qwen_config()}, _made(kinds), layers, ("mtp.layers.0",))


def _visual() -> Kinds:
    """One block of the vision tower of Qwen3.5, and what is around it."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj": (HIDDEN, 3, 2, 2, 2)}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "merger.norm"):
        shapes[name] = (HIDDEN,)
    for name in ("attn.proj", "attn.qkv", "mlp.linear_fc1", "mlp.linear_fc2"):
        shapes[f"blocks.0.{name}"] = (HIDDEN, HIDDEN)
    for name in ("merger.linear_fc1", "merger.linear_fc2"):
        shapes[name] = (HIDDEN, HIDDEN)
    kinds = _bf16(shapes | {"pos_embed": (VOCAB, HIDDEN)})
    return _under("model.visual", kinds | {f"{name}.bias": ("BF16", (HIDDEN,)) for name in shapes})


def _qwen3_5(mtp_experts: Kinds) -> Published:
    kinds = _ends("model.language_model") | _visual() | _qwen_mtp(mtp_experts)
    own: Kinds = {"A_log": ("F32", (HEADS,)), "norm.weight": ("F32", (2,))}
    own |= _bf16({f"in_proj_{name}": (2, HIDDEN) for name in "ab"})
    own |= _bf16({f"in_proj_{name}": (8, HIDDEN) for name in ("qkv", "z")})
    kinds |= _qwen_layers("model.language_model.layers", own, _STACKED)
    text = {"model_type": "qwen3_5_moe_text", "mtp_num_hidden_layers": 1, **_qwen_config()}
    config = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": {"model_type": "qwen3_5_moe", "depth": 1, "hidden_size": HIDDEN},
    }
    layers = tuple(f"model.language_model.layers.{number}" for number in range(4))
    return Published(config, _made(kinds), layers, ("mtp.layers.0",))


def qwen3_5() -> Published:
    """Experts are stacked in the main layers, and numbered in the MTP layer."""
    return _qwen3_5(_NUMBERED_EXPERTS)


def qwen3_6() -> Published:
    """Experts are stacked everywhere."""
    return _qwen3_5(_STACKED)


def qwen3_30b_a3b() -> Published:
    kinds = _ends()
    for number in range(3):
        block = _bf16(_BLOCK_NORMS | _QKVO | _QK_NORM | {"mlp.gate": (EXPERTS, HIDDEN)}) | _NUMBERED_EXPERTS
        kinds |= _under(f"model.layers.{number}", block)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 3,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "vocab_size": VOCAB,
        "torch_dtype": "bfloat16",
    }
    return Published(config, _made(kinds), tuple(f"model.layers.{number}" for number in range(3)))


def _sparse_moe(config: dict[str, Any], block: Kinds) -> Published:
    """Two layers of Mixtral's names."""
    kinds = _ends()
    for number in range(2):
        kinds |= _under(f"model.layers.{number}", _bf16(_BLOCK_NORMS) | block)
    said = {
        "num_hidden_layers": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "vocab_size": VOCAB,
        "torch_dtype": "bfloat16",
        **config,
    }
    return Published(said, _made(kinds), ("model.layers.0", "model.layers.1"))


_SPARSE_EXPERTS = _gated_experts("block_sparse_moe", ("w1", "w3", "w2"))


def mixtral() -> Published:
    block = _bf16(_QKVO | _SPARSE_EXPERTS | {"block_sparse_moe.gate": (EXPERTS, HIDDEN)})
    return _sparse_moe({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, block)


def minimax_m2() -> Published:
    """config.json counts MTP modules, and the checkpoint has none."""
    block = _fp8(_QKVO | _SPARSE_EXPERTS) | _bf16(_QK_NORM)
    block |= {
        "block_sparse_moe.gate.weight": ("F32", (EXPERTS, HIDDEN)),
        "block_sparse_moe.e_score_correction_bias": ("F32", (EXPERTS,)),
    }
    kept = {"modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]}
    mtp = {"use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1}
    config = {"architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2"}
    return _sparse_moe({**config, **mtp, "quantization_config": {**FP8, **kept}}, block)


def gpt_oss() -> Published:
    """mxfp4, stacked over all experts, with biases and sinks."""
    block = _bf16(_BLOCK_NORMS | _QKVO | {"mlp.router": (EXPERTS, HIDDEN)}) | _QKV_BIAS
    block |= {
        "self_attn.o_proj.bias": ("BF16", (HIDDEN,)),
        "self_attn.sinks": ("BF16", (HEADS,)),
        "mlp.router.bias": ("BF16", (EXPERTS,)),
        "mlp.experts.gate_up_proj_blocks": ("U8", (EXPERTS, 2 * WIDTH, 2, 16)),
        "mlp.experts.gate_up_proj_scales": ("U8", (EXPERTS, 2 * WIDTH, 2)),
        "mlp.experts.gate_up_proj_bias": ("BF16", (EXPERTS, 2 * WIDTH)),
        "mlp.experts.down_proj_blocks": ("U8", (EXPERTS, HIDDEN, 2, 16)),
        "mlp.experts.down_proj_scales": ("U8", (EXPERTS, HIDDEN, 2)),
        "mlp.experts.down_proj_bias": ("BF16", (EXPERTS, HIDDEN)),
    }
    kinds = _ends() | _under("model.layers.0", block) | _under("model.layers.1", block)
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "vocab_size": VOCAB,
        "quantization_config": {"quant_method": "mxfp4"},
        "torch_dtype": "bfloat16",
    }
    return Published(config, _made(kinds), ("model.layers.0", "model.layers.1"))


def _llama_vision() -> Kinds:
    """The vision tower of Llama 4: a second module with layers of its own, and no experts in them."""
    attention = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    layer = {**attention, "mlp.fc1": (HIDDEN, HIDDEN), "mlp.fc2": (HIDDEN, HIDDEN), **_BLOCK_NORMS}
    named = _under("model.layers.1", _bf16(layer)) | _bf16(_norms("layernorm_pre", "layernorm_post"))
    biases: Kinds = {
        key.removesuffix("weight") + "bias": ("BF16", (HIDDEN,)) for key in named if key.endswith(".weight")
    }
    plain: Kinds = {
        "class_embedding": ("BF16", (HIDDEN,)),
        "positional_embedding_vlm": ("BF16", (3, HIDDEN)),
        **_bf16(dict.fromkeys(("patch_embedding.linear", "vision_adapter.mlp.fc1"), (HIDDEN, HIDDEN))),
        **_bf16({"vision_adapter.mlp.fc2": (HIDDEN, HIDDEN)}),
    }
    return _under("vision_model", named | biases | plain)


def llama_4() -> Published:
    """Every second layer has experts, stacked and transposed; the text model is inside another."""
    kinds = _ends("language_model.model", "language_model.lm_head") | _llama_vision()
    kinds |= _bf16({"multi_modal_projector.linear_1": (HIDDEN, HIDDEN)})
    for number in range(4):
        block = _bf16(_BLOCK_NORMS | _QKVO)
        if number % 2:
            block |= _bf16({"feed_forward.router": (EXPERTS, HIDDEN), **_gated("feed_forward.shared_expert")})
            block |= {
                "feed_forward.experts.gate_up_proj": ("BF16", (EXPERTS, HIDDEN, 2 * WIDTH)),
                "feed_forward.experts.down_proj": ("BF16", (EXPERTS, WIDTH, HIDDEN)),
            }
        else:
            block |= _bf16(_gated("feed_forward"))
        kinds |= _under(f"language_model.model.layers.{number}", block)
    text = {
        "model_type": "llama4_text",
        "num_hidden_layers": 4,
        "interleave_moe_layer_step": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "intermediate_size_mlp": WIDTH,
        "vocab_size": VOCAB,
    }
    config = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": text,
        "vision_config": {"model_type": "llama4_vision_model", "num_hidden_layers": 2},
        "torch_dtype": "bfloat16",
    }
    layers = tuple(f"language_model.model.layers.{number}" for number in (1, 3))
    return Published(config, _made(kinds), layers)


PUBLISHED: dict[str, Callable[[], Published]] = {
    "deepseek-v3": deepseek_v3,
    "deepseek-v3.2": deepseek_v32,
    "deepseek-v4": deepseek_v4,
    "glm-4.5": glm_4_5,
    "glm-4.6": glm_4_6,
    "qwen3-next": qwen3_next,
    "qwen3.5": qwen3_5,
    "qwen3.6": qwen3_6,
    "kimi-k2": kimi_k2,
    "qwen3-30b-a3b": qwen3_30b_a3b,
    "gpt-oss": gpt_oss,
    "mixtral": mixtral,
    "minimax-m2": minimax_m2,
    "llama-4": llama_4,
}
"""By a short name, what makes it."""
