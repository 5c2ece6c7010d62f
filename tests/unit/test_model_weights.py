"""What the tensors beside a config.json say: layers, experts and sizes, for models nobody has looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eplb_cli.errors import PlacementError
from eplb_cli.inputs.options import model_in
from eplb_cli.models.model import ModelTensor
from eplb_cli.models.preset import find_model
from tests.cli.tree import tensor, write_shard

NEW: dict[str, Any] = {"model_type": "unheard_of", "num_hidden_layers": 4}
Spec = dict[str, tuple[str, tuple[int, ...]]]
GATED: Spec = {"gate_proj.weight": ("BF16", (2, 6)), "up_proj.weight": ("BF16", (2, 6))}
ONE: Spec = {**GATED, "down_proj.weight": ("BF16", (6, 2))}


def experts(prefix: str, layers: list[int], count: int, one: Spec = ONE) -> Spec:
    """Numbered experts under a module of layers."""
    return {
        f"{prefix}.{layer}.mlp.experts.{expert}.{name}": spec
        for layer in layers
        for expert in range(count)
        for name, spec in one.items()
    }


def write(path: Path, config: dict[str, Any], tensors: Spec, *, index: str = "whole") -> str:
    """A checkpoint: with an index and its two files, with the index alone, with one file or with parts."""
    (path / "config.json").write_text(json.dumps(config))
    tensors = {"model.norm.weight": ("BF16", (6,)), **tensors}
    half = len(tensors) // 2
    names = {key: f"model-0000{1 + (at >= half)}-of-00002.safetensors" for at, key in enumerate(tensors)}
    if index == "one file":
        names = dict.fromkeys(tensors, "model.safetensors")
    if index in {"whole", "alone"}:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for file in set(names.values()) if index != "alone" else ():
        content = {key: tensor(*tensors[key], key) for key in tensors if names[key] == file}
        write_shard(path / file, content)
    return str(path)


@pytest.mark.parametrize("index", ["whole", "alone", "one file", "parts"])
def test_a_model_nobody_has_looked_at(tmp_path, index):
    """Names say its layers and experts; headers, where they are there, its sizes."""
    name = write(tmp_path, NEW, experts("model.layers", [1, 3], 4), index=index)
    model = find_model(name)
    assert (model.num_hidden_layers, model.moe_layers, model.mtp_layers) == (4, (1, 3), ())
    assert model.num_logical_experts == 4
    assert model.experts == "model.layers.{layer}.mlp.experts.{expert}.{tensor}"
    assert model.expert_nbytes == (None if index == "alone" else 3 * 2 * 12)
    if index != "alone":
        assert model.tensors["down_proj.weight"] == ModelTensor("BF16", (6, 2))
    assert find_model(str(tmp_path / "config.json")) == model
    assert model_in(tmp_path) == model


def test_further_tokens(tmp_path):
    """Layers of MTP come behind the model's own, however they are called."""
    own = experts("model.layers", [1, 2, 3], 4)
    for mtp in (experts("mtp.layers", [0], 4), experts("model.layers", [4], 4)):
        model = find_model(write(tmp_path, NEW, own | mtp))
        assert (model.moe_layers, model.mtp_layers) == ((1, 2, 3), (4,))


def test_stacked_experts(tmp_path):
    """Dim 0 is E, unless experts lie one below the other in two dimensions."""
    home = "model.layers.{}.mlp.experts."
    three: Spec = {f"{home.format(layer)}gate_up_proj": ("BF16", (4, 6, 4)) for layer in range(4)}
    model = find_model(write(tmp_path, NEW, three))
    assert (model.moe_layers, model.num_logical_experts) == ((0, 1, 2, 3), 4)
    assert model.tensors == {"gate_up_proj": ModelTensor("BF16", (6, 4))}
    assert model.experts == "model.layers.{layer}.mlp.experts.{tensor}"
    two: Spec = {f"{home.format(layer)}w1": ("BF16", (24, 6)) for layer in range(4)}
    with pytest.raises(PlacementError, match="neither its keys nor the tensors"):
        find_model(write(tmp_path, NEW, two))
    model = find_model(write(tmp_path, {**NEW, "num_experts": 4}, two))
    assert (model.num_logical_experts, model.expert_nbytes) == (4, None)


def test_experts_of_several_sizes(tmp_path):
    """A layer that is not quantized: then there is no one size, and none is said."""
    fp8: Spec = {"up_proj.weight": ("F8_E4M3", (2, 6))}
    mixed = experts("model.layers", [1], 4, fp8) | experts("model.layers", [2], 4)
    model = find_model(write(tmp_path, NEW, mixed))
    assert (model.moe_layers, model.expert_nbytes) == ((1, 2), None)


def test_the_weights_know_better_than_the_keys_how_large_they_are(tmp_path):
    """A config.json of the model before it was quantized says nothing of sizes."""
    config = {
        **NEW, "model_type": "deepseek_v3", "first_k_dense_replace": 1, "n_routed_experts": 4,
        "hidden_size": 6, "moe_intermediate_size": 2, "dtype": "float32",
    }  # fmt: skip
    model = find_model(write(tmp_path, config, experts("model.layers", [1, 2, 3], 4)))
    assert model.expert_nbytes == 3 * 2 * 12
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    assert find_model(str(tmp_path)).expert_nbytes == 3 * 4 * 12


@pytest.mark.parametrize(
    ("keys", "tensors", "says"),
    [
        ({"first_k_dense_replace": 2}, experts("model.layers", [1, 2, 3], 4), "layer 1 has experts in only"),
        ({"first_k_dense_replace": 0}, experts("model.layers", [1, 2, 3], 4), "layer 0 has experts in only"),
        ({"num_experts": 8}, experts("model.layers", [1], 4), "it says 8 experts, and there are 4"),
        ({}, experts("model.layers", [1], 4) | experts("model.layers", [2], 3), "other experts than one"),
        ({}, {"model.layers.1.mlp.experts.5.w1.weight": ("BF16", (2, 2))}, "or some are missing"),
        ({}, experts("model.layers", [4, 5], 4), "no experts in 4 layers"),
        ({}, experts("model.layers", [1, 20_000], 1), "too many"),
        ({}, experts("thinker.layers", [1], 4) | experts("talker.layers", [1], 4), "whose layers"),
        ({"num_hidden_layers": None}, experts("model.layers", [1], 4), "'num_hidden_layers' is no number"),
        ({"first_k_dense_replace": "x"}, experts("model.layers", [1], 4), "its layers cannot be told"),
    ],
)  # fmt: skip
def test_contradictions(tmp_path, keys, tensors, says):
    """EP118 says which of the two says what, also where a directory is given as a checkpoint."""
    name = write(tmp_path, {**NEW, **keys}, tensors, index="alone")
    for read in (find_model, lambda path: model_in(Path(path))):
        with pytest.raises(PlacementError, match=says) as caught:
            read(name)
        assert caught.value.code == "EP118"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors.index.json", b"{"),
        ("model.safetensors.index.json", b"[]"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}'),
        ("model.safetensors.index.json", b'{"weight_map": [' + b"[]," * 100_000 + b"[]]}"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
        ("model-00001-of-00001.safetensors", (1 << 60).to_bytes(8, "little") * 2),
    ],
)
def test_hostile_files_beside_it(tmp_path, file, content):
    """EP118, with the file that cannot be read."""
    (tmp_path / "config.json").write_text(json.dumps({**NEW, "first_k_dense_replace": 1, "num_experts": 4}))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(PlacementError, match=file) as caught:
        find_model(str(tmp_path))
    assert caught.value.code == "EP118"


def test_an_index_names_files_of_its_own_directory_only(tmp_path):
    """Whatever else it names is not opened."""
    said = dict.fromkeys(experts("model.layers", [1], 2), "../model.safetensors")
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    (home / "config.json").write_text(json.dumps(NEW))
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": said}))
    model = find_model(str(home))
    assert (model.num_logical_experts, model.expert_nbytes) == (2, None)


@pytest.mark.parametrize(
    "file", ["model-rank-0-part-0.safetensors", "model0-mp1.safetensors", "other.safetensors"]
)
def test_shards_of_ranks_are_not_asked(tmp_path, file):
    """Their rows are not the experts of the model."""
    config = {**NEW, "first_k_dense_replace": 1, "num_experts": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stacked = {f"model.layers.{layer}.mlp.experts.w13_weight": ("BF16", (6, 2, 2)) for layer in (1, 2, 3)}
    write_shard(tmp_path / file, {key: tensor(*spec, key) for key, spec in stacked.items()})
    assert find_model(str(tmp_path)).num_logical_experts == 4


def test_weights_that_are_not_all_there(tmp_path):
    """Half of a download says nothing."""
    config = {**NEW, "first_k_dense_replace": 1, "num_experts": 4}
    write(tmp_path, config, experts("model.layers", [1, 2, 3], 4), index="parts")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert find_model(str(tmp_path)).moe_layers == (1, 2, 3)
