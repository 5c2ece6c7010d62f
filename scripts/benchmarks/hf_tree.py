"""A generated Hugging Face checkpoint with the experts of Qwen3-30B-A3B, for `shard` and `merge`."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from eplb_cli.formats.safetensors_header import build_header
from scripts.benchmarks.trees import BLOCK_NBYTES, HIDDEN, NUM_EXPERTS, SEED, Shape

_WINDOW_STEP = 7919 * 64


def write_huggingface(path: Path, shape: Shape, threads: int) -> int:
    """Write one file a layer, an index and config.json; the bytes of the files."""
    path.mkdir(parents=True)
    block = memoryview(np.random.default_rng(SEED).bytes(BLOCK_NBYTES))
    names = [
        f"model-{layer + 1:05}-of-{shape.num_layers:05}.safetensors" for layer in range(shape.num_layers)
    ]
    with ThreadPoolExecutor(threads) as pool:
        keys = list(
            pool.map(lambda layer: _write_layer(path / names[layer], layer, shape, block), range(len(names)))
        )
    weight_map = {key: name for name, written in zip(names, keys, strict=True) for key in written}
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": shape.num_layers,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 8,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": shape.width,
    }
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return sum((path / name).stat().st_size for name in names)


def _write_layer(path: Path, layer: int, shape: Shape, block: memoryview) -> list[str]:
    base = f"model.layers.{layer}"
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for expert in range(NUM_EXPERTS):
        experts = f"{base}.mlp.experts.{expert}"
        shapes += [(f"{experts}.{name}_proj.weight", (shape.width, HIDDEN)) for name in ("gate", "up")]
        shapes.append((f"{experts}.down_proj.weight", (HIDDEN, shape.width)))
    shapes.append((f"{base}.mlp.gate.weight", (NUM_EXPERTS, HIDDEN)))
    shapes.append((f"{base}.input_layernorm.weight", (HIDDEN,)))
    sized = [(key, "BF16", dims, 2 * int(np.prod(dims))) for key, dims in shapes]
    with path.open("wb", buffering=0) as file:
        file.write(build_header(sized, {})[0])
        for number, (_, _, _, nbytes) in enumerate(sized):
            salt = layer * len(sized) + number
            begin = salt * _WINDOW_STEP % (len(block) - nbytes)
            os.writev(file.fileno(), [salt.to_bytes(8, "little"), block[begin : begin + nbytes - 8]])
    return [key for key, _ in shapes]
