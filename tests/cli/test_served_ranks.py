"""Whether ranks have slices of what is no expert's: what `reshard` tells of shards from elsewhere."""

from __future__ import annotations

import json

import pytest

from tests.cli.tree import placement, tensor, write_json, write_shard


def write_tree(path, rows, vocabulary):
    """Two ranks of two experts, each with some rows of the embedding."""
    for rank in range(2):
        tensors = {
            "model.embed_tokens.weight": tensor("F32", (rows, 2), f"embedding {rows}"),
            "model.layers.0.mlp.experts.w13_weight": tensor("F32", (2, 4, 2), f"w13 {rank}"),
            "model.layers.0.mlp.experts.w2_weight": tensor("F32", (2, 2, 2), f"w2 {rank}"),
        }
        write_shard(path / f"model-rank-{rank}-part-0.safetensors", tensors)
    if vocabulary is not None:
        config = {"model_type": "qwen3_moe", "vocab_size": vocabulary, "num_hidden_layers": 1}
        (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("rows", "vocabulary", "says"),
    [
        (64, 60, ["--data-parallel-size 2", "--data-parallel-size 2"]),
        (32, 60, ["--tensor-parallel-size 2", "--tensor-parallel-size 2"]),
        (32, None, ["--tensor-parallel-size 2", "with data parallelism"]),
    ],
)
def test_slices_are_told_by_the_embedding(eplb, tmp_path, rows, vocabulary, says):
    """Engines pad the vocabulary; a half of it is a slice, and without a config.json nothing says."""
    (tmp_path / "src").mkdir()
    write_tree(tmp_path / "src", rows, vocabulary)
    new = write_json(tmp_path / "new.json", placement([[0, 1, 2, 3]], layer_ids=[0]))
    arguments = ["--old", new, "--new", new, "--backend", "file", "--copy", "--format", "json"]
    result = eplb("reshard", tmp_path / "src", tmp_path / "dst", *arguments)
    assert result.code == 0, result.err
    vllm = [line for line in result.json["serving"] if line.startswith("vLLM")]
    assert [word in line for word, line in zip(says, vllm, strict=True)] == [True, True]
