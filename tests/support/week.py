"""What an operator has before a new load: a checkpoint, its shards under OLD, and the loads of two weeks.

Usually four MoE layers of 16 experts of 12 kB, for four ranks of five slots.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.cli.tree import Rank
from tests.support.huggingface import made, write_checkpoint


class Size(NamedTuple):
    """Of a model: MoE layers, experts in each, and the two sizes that an expert's tensors have."""

    layers: int = 4
    experts: int = 16
    hidden: int = 32
    width: int = 64

    @property
    def config(self) -> dict[str, object]:
        """Its config.json."""
        return {
            "model_type": "qwen3_moe",
            "num_hidden_layers": self.layers,
            "num_experts": self.experts,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "hidden_size": self.hidden,
            "moe_intermediate_size": self.width,
        }


USUAL = Size()
MANY_RANKS = Size(layers=2, experts=128, hidden=16, width=8)
"""Enough experts for 64 ranks: of 768 bytes each."""


def write_week(home: Path, size: Size = USUAL) -> None:
    """hf, last-week.npy and this-week.npy below `home`; OLD and the shards are for eplb to make."""
    write_checkpoint(home / "hf", _tensors(size), "qwen3_moe")
    (home / "hf" / "config.json").write_text(json.dumps(size.config))
    random = np.random.default_rng(19)
    first, drift = random.normal(size=(2, size.layers, size.experts))
    for name, logarithm in (("last-week", first), ("this-week", 0.9 * first + 0.44 * drift)):
        np.save(home / f"{name}.npy", (10_000 * np.exp(logarithm)).round().astype(np.int64))


def _tensors(size: Size) -> Rank:
    """Plain bf16, under the names of Qwen3."""
    shapes = {"model.embed_tokens.weight": (8, size.hidden), "model.norm.weight": (size.hidden,)}
    shapes["lm_head.weight"] = (8, size.hidden)
    for layer in range(size.layers):
        base = f"model.layers.{layer}"
        for name, rows in (("q", 4), ("k", 2), ("v", 2)):
            shapes[f"{base}.self_attn.{name}_proj.weight"] = (rows, size.hidden)
        shapes[f"{base}.self_attn.o_proj.weight"] = (size.hidden, 4)
        for name in ("q", "k"):
            shapes[f"{base}.self_attn.{name}_norm.weight"] = (2,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{base}.{name}.weight"] = (size.hidden,)
        shapes[f"{base}.mlp.gate.weight"] = (size.experts, size.hidden)
        for expert in range(size.experts):
            for name, shape in (
                ("gate", (size.width, size.hidden)),
                ("up", (size.width, size.hidden)),
                ("down", (size.hidden, size.width)),
            ):
                shapes[f"{base}.mlp.experts.{expert}.{name}_proj.weight"] = shape
    return made({key: ("BF16", shape) for key, shape in shapes.items()})
