"""What an operator has before a new load: a checkpoint, its shards under OLD, and the loads of two weeks.

Four MoE layers of 16 experts of 12 kB, on four ranks of five slots.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.cli.tree import Rank
from tests.support.huggingface import made, write_checkpoint

LAYERS, EXPERTS, HIDDEN, WIDTH = 4, 16, 32, 64

CONFIG = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": LAYERS,
    "num_experts": EXPERTS,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_size": HIDDEN,
    "moe_intermediate_size": WIDTH,
}


def write_week(home: Path) -> None:
    """hf, last-week.npy and this-week.npy below `home`; OLD and the shards are for eplb to make."""
    write_checkpoint(home / "hf", _tensors(), "qwen3_moe")
    (home / "hf" / "config.json").write_text(json.dumps(CONFIG))
    random = np.random.default_rng(19)
    first, drift = random.normal(size=(2, LAYERS, EXPERTS))
    for name, logarithm in (("last-week", first), ("this-week", 0.9 * first + 0.44 * drift)):
        np.save(home / f"{name}.npy", (10_000 * np.exp(logarithm)).round().astype(np.int64))


def _tensors() -> Rank:
    """Plain bf16, under the names of Qwen3."""
    shapes = {"model.embed_tokens.weight": (8, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes["lm_head.weight"] = (8, HIDDEN)
    for layer in range(LAYERS):
        base = f"model.layers.{layer}"
        for name, rows in (("q", 4), ("k", 2), ("v", 2)):
            shapes[f"{base}.self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        shapes[f"{base}.self_attn.o_proj.weight"] = (HIDDEN, 4)
        for name in ("q", "k"):
            shapes[f"{base}.self_attn.{name}_norm.weight"] = (2,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{base}.{name}.weight"] = (HIDDEN,)
        shapes[f"{base}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for name, shape in (
                ("gate", (WIDTH, HIDDEN)),
                ("up", (WIDTH, HIDDEN)),
                ("down", (HIDDEN, WIDTH)),
            ):
                shapes[f"{base}.mlp.experts.{expert}.{name}_proj.weight"] = shape
    return made({key: ("BF16", shape) for key, shape in shapes.items()})
