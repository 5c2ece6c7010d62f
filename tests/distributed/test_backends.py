"""Real runs of the command line: every backend and number of workers writes the same, right tree."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.placement import Placement
from tests.support.checkpoints import (
    ExpertTensor,
    Model,
    OtherTensor,
    Tensor,
    assert_tree,
    read_tree,
    write_tree,
)
from tests.support.huggingface import deepseek_v3, write_checkpoint
from tests.support.plans import holders, slots
from tests.support.runs import TINY_BUFFERS, contents, run

DATA = Path(__file__).parents[1] / "data"
SETS = ("eplb-replicas", "uneven-ranks")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=SETS)
def real(request, tmp_path_factory) -> tuple[str, Path]:
    """A set of real shards, and what the backend without any exchange made of it."""
    destination = tmp_path_factory.mktemp(request.param) / "dst"
    reshard_real(request.param, destination, "--backend", "file")
    return request.param, destination


def reshard_real(
    name: str, destination: Path, *options: object, module: str = "eplb_cli"
) -> dict[str, object]:
    """Reshard one of the sets; its report."""
    data = DATA / name
    placements = ("--old", data / "old.json", "--new", data / "new.json")
    arguments = ("reshard", data / "src", destination, *placements, "--format", "json", *options)
    done = run(*arguments, module=module)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    assert report["verified"] is True
    return report


def test_real_shards_become_what_vllm_made_of_them(real):
    """Every tensor of every rank is there, with the dtype, shape and bytes that vLLM expects."""
    name, destination = real
    expected = json.loads((DATA / name / "expected.json").read_text())
    found = {
        str(rank): {
            key: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "sha256": hashlib.sha256(tensor.data).hexdigest(),
            }
            for key, tensor in tensors.items()
        }
        for rank, tensors in read_tree(destination).items()
    }
    assert found == expected


@pytest.mark.parametrize(
    ("name", "num_workers", "buffer_size"),
    [
        ("eplb-replicas", 2, "256MiB"),
        ("eplb-replicas", 3, "100kB"),
        ("uneven-ranks", 1, "256MiB"),
        ("uneven-ranks", 4, "20kB"),
    ],
)
def test_gloo_writes_the_same_tree(tmp_path, name, num_workers, buffer_size):
    """1 to 4 workers, buffers for everything or a part of a row: all files are as without an exchange."""
    reshard_real(name, tmp_path / "file", "--backend", "file")
    workers = ("--nproc-per-node", num_workers, "--buffer-size", buffer_size)
    report = reshard_real(name, tmp_path / "gloo", "--backend", "gloo", *workers, module=TINY_BUFFERS)
    assert contents(tmp_path / "gloo") == contents(tmp_path / "file")
    assert report["backend"] == "gloo"
    assert (report["wire_bytes"] == 0) == (num_workers == 1)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", tmp_path / "gloo"]


STACKED = Model(
    "stacked",
    "model.layers.{layer}.mlp.experts.routed_experts.",
    {
        layer: (
            ExpertTensor("w13_weight", "F8_E4M3", (6, 8 * width)),
            ExpertTensor("w2_weight", "F8_E4M3", (4 * width, 6)),
            ExpertTensor("w13_weight_scale_inv", "F32", (1,)),
            ExpertTensor("w2_weight_scale_inv", "F32", (1,)),
        )
        for layer, width in ((3, 10), (4, 13))
    },
    (
        OtherTensor("model.norm.weight", shape=(64,)),
        OtherTensor("model.layers.3.self_attn.k_scale", "F32", ()),
    ),
    source_ranks=2,
)

PER_EXPERT = Model(
    "expert",
    "layers.{layer}.ffn.experts.",
    {
        layer: (
            ExpertTensor("w1.weight", "F4", shape),
            ExpertTensor("w1.scale", "F8_E8M0", (shape[0], groups)),
            ExpertTensor("w2.weight", "BF16", (shape[1], 1)),
        )
        for layer, shape, groups in ((3, (9, 6), 1), (7, (3, 4), 5))
    },
    (OtherTensor("embed.weight", shape=(5, 7)), OtherTensor("layers.3.attn.bool_mask", "BOOL", (9,))),
    source_ranks=4,
)


def placement(layer_ids: list[int], slots_per_rank: list[int], *rows: list[int]) -> Placement:
    first_slot = np.concatenate([[0], np.cumsum(slots_per_rank)])
    return Placement(np.array(rows, np.int64), first_slot, 6, np.array(layer_ids))


@pytest.mark.parametrize(
    ("model", "old", "new", "num_workers"),
    [
        pytest.param(
            STACKED,
            placement([3, 4], [4, 4], [0, 1, 2, 3, 4, 5, 0, -1], [5, 4, 3, 2, 1, 0, 5, 5]),
            placement([3, 4], [3, 3, 1, 3], [2, 0, 5, 1, -1, 1, 3, 4, 4, 2], [5, 4, 0, 2, 3, 3, 1, 0, -1, 4]),
            4,
            id="up",
        ),
        pytest.param(
            PER_EXPERT,
            placement([3, 7], [2, 2, 2, 1], [0, 1, 2, 3, 4, 5, 0], [5, 3, 1, 4, 2, 0, -1]),
            placement([3, 7], [4, 2, 3], [5, 0, 4, -1, 3, 0, 1, 2, 4], [0, 1, 5, 4, 2, 3, -1, 0, 4]),
            3,
            id="down",
        ),
    ],
)
def test_other_numbers_of_ranks_and_slots(tmp_path, model, old, new, num_workers):
    """Rows and the other tensors that a new rank needs come over the wire; the report says how many bytes."""
    (tmp_path / "src").mkdir()
    write_tree(tmp_path / "src", model, old, 3)
    (tmp_path / "src" / "config.json").write_text("{}")
    for name, side in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(format_placement(side))
    placements = ("--old", tmp_path / "old.json", "--new", tmp_path / "new.json")
    reports = {}
    for backend, workers in (("file", ()), ("gloo", ("--nproc-per-node", num_workers))):
        done = run(
            *("reshard", tmp_path / "src", tmp_path / backend, *placements, "--backend", backend, *workers),
            *("--buffer-size", 600, "--format", "json"),
            module=TINY_BUFFERS,
        )
        assert done.returncode == 0, done.stderr
        reports[backend] = json.loads(done.stdout)
    assert_tree(tmp_path / "gloo", model, new)
    assert contents(tmp_path / "gloo") == contents(tmp_path / "file")
    sent = expected_bytes(model, old, new)
    for report in reports.values():
        assert sum(rank["received_bytes"] for rank in report["ranks"]) == sent
        assert report["totals"]["remote_bytes"] == sent
    if num_workers >= max(old.num_ranks, new.num_ranks):
        others = sum(len(tensor.data) for tensor in other_tensors(model, tmp_path / "src"))
        assert reports["gloo"]["wire_bytes"] == sent + others * (new.num_ranks - old.num_ranks)
    assert reports["file"]["wire_bytes"] == 0


def expected_bytes(model: Model, old: Placement, new: Placement) -> int:
    """What ranks must receive: each expert once, where the rank had it in no slot."""
    total = 0
    for layer in range(new.num_layers):
        for rank in range(new.num_ranks):
            held = slots(new, layer)[int(new.first_slot[rank]) : int(new.first_slot[rank + 1])]
            lacking = {expert for expert in held if expert >= 0 and rank not in holders(old, layer, expert)}
            total += len(lacking) * model.expert_nbytes(new.layer_number(layer))
    return total


def other_tensors(model: Model, source: Path) -> list[Tensor]:
    """The other tensors of one rank of SRC."""
    keys = {other.key for other in model.others}
    return [tensor for key, tensor in read_tree(source)[0].items() if key in keys]


def test_workers_open_what_is_left_of_shards(tmp_path):
    """Each of them finds ranks that close up, and the experts that were lost, by itself."""
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    linear = ("--placement", "linear", "--num-ranks", 4, "--engine", "sglang")
    for options in ((tmp_path / "src",), (tmp_path / "patch", "--only", 1)):
        done = run("shard", tmp_path / "hf", *options, *linear)
        assert done.returncode == 0, done.stderr
    for file in (tmp_path / "src").glob("*rank-1-part*"):
        file.unlink()
    new = ("--new", "linear", "--num-ranks", 2, "--lost-ranks", 1, "--missing-from", tmp_path / "patch")
    found = []
    for backend, workers in (("file", ()), ("gloo", ("--nproc-per-node", 2))):
        done = run("reshard", tmp_path / "src", tmp_path / backend, *new, "--backend", backend, *workers)
        assert done.returncode == 0, done.stderr
        found.append(contents(tmp_path / backend))
    assert found[0] == found[1]
