"""The scripts in configs/examples, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.tree import read_tree, write_json
from tests.support.huggingface import EXPERTS, deepseek_in_sglang, deepseek_v3, qwen3_moe, write_checkpoint

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples"
ROWS = [[3, 0, 2, 1, 0, 2], [0, 1, 2, 3, 0, 1]]
CONFIG = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": EXPERTS,
    "hidden_size": 4,
    "moe_intermediate_size": 6,
}


def run(home: Path, script: str, *arguments: str, **environment: str) -> str:
    """A script's output, where it ends well."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        [EXAMPLES / script, *arguments],
        cwd=home,
        env={**os.environ, **environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def home(tmp_path):
    """A checkpoint and a map of vLLM."""
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    write_json(tmp_path / "hf" / "config.json", CONFIG)
    write_json(tmp_path / "map.json", ROWS)
    return tmp_path


def assert_sharded(dst: Path) -> None:
    """The shards hold the experts that the map names."""
    for rank, tensors in enumerate(read_tree(dst).values()):
        held = {layer + 1: row[3 * rank : 3 * rank + 3] for layer, row in enumerate(ROWS)}
        assert tensors == deepseek_in_sglang(deepseek_v3(), held)


def test_sglang(home):
    """A map of all hidden layers and a checkpoint become shards, which are proved."""
    write_json(home / "all.json", {"physical_to_logical_map": [[0] * 6, *ROWS]})
    assert "12 of 12 rows proved" in run(home, "sglang.sh", "hf", "all.json", "2", "dst")
    assert_sharded(home / "dst")


def test_deepseek(home):
    """What the balancer returned, as torch saves it."""
    torch = pytest.importorskip("torch")
    phy2log = torch.tensor(ROWS)
    slots = [
        [[slot for slot, at in enumerate(row) if at == expert] for expert in range(EXPERTS)] for row in ROWS
    ]
    log2phy = torch.tensor([[[*found, -1][:2] for found in layer] for layer in slots])
    logcnt = torch.tensor([[len(found) for found in layer] for layer in slots])
    torch.save((phy2log, log2phy, logcnt), home / "map.pt")
    run(home, "deepseek.sh", "hf", "map.pt", "2", "dst")
    assert_sharded(home / "dst")


def test_engines_that_arrange_experts_themselves(home):
    """They get the map, in their own dialect."""
    run(home, "tensorrt-llm.sh", "hf", "map.json", "2", "out.yaml")
    assert "  1: [3, 0, 2, 1, 0, 2]" in (home / "out.yaml").read_text()
    run(home, "ascend.sh", "hf", "map.json", "2", "out.json")
    devices = json.loads((home / "out.json").read_text())["layer_list"][0]["device_list"]
    assert [device["device_expert"] for device in devices] == [[3, 0, 2], [1, 0, 2]]


def test_vllm(home):
    """It takes no map, so the checkpoint is put into the map's order."""
    write_json(home / "map.json", [[3, 0, 2, 1], [0, 1, 3, 2]])
    run(home, "vllm.sh", "hf", "map.json", "2", "out")
    found = read_tree(home / "out")
    tensors = {key: at for tensors in found.values() for key, at in tensors.items()}
    source = deepseek_v3()
    for number, expert in enumerate([3, 0, 2, 1]):
        new, old = (f"model.layers.1.mlp.experts.{at}.up_proj.weight" for at in (number, expert))
        assert tensors[new] == source[old]


def test_vllm_under_any_placement(tmp_path):
    """The first map, and the next one: shards that are proved, and vLLM's command line for them."""
    write_checkpoint(tmp_path / "hf", qwen3_moe(), "qwen3_moe")
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "num_experts": EXPERTS,
        "mlp_only_layers": [0],
    }
    write_json(tmp_path / "hf" / "config.json", {**config, "hidden_size": 4, "moe_intermediate_size": 6})
    script = "vllm-any-placement.sh"
    held = "mlp.experts.routed_experts.w2_weight"
    for source, rows, dst in (("hf", [[3, 0, 2, 1, 0, 2]], "first"), ("first", [[0, 3, 1, 2]], "second")):
        write_json(tmp_path / "map.json", rows)
        out = run(tmp_path, script, source, "map.json", "2", dst, BACKEND="file")
        assert f"vllm serve {dst} --load-format eplb --enable-expert-parallel" in out
        assert ("num_redundant_experts" in out) == (dst == "first")
        half = len(rows[0]) // 2
        for rank, tensors in enumerate(read_tree(tmp_path / dst).values()):
            experts = rows[0][rank * half : (rank + 1) * half]
            down = [
                qwen3_moe()[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"].data
                for expert in experts
            ]
            assert tensors[f"model.layers.1.{held}"].data == b"".join(down)


def test_every_script_is_tried():
    """None is there that nobody runs."""
    assert {path.name for path in EXAMPLES.iterdir()} == {
        "ascend.sh",
        "deepseek.sh",
        "sglang.sh",
        "tensorrt-llm.sh",
        "vllm-any-placement.sh",
        "vllm.sh",
    }
