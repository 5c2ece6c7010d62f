"""Published models in small: every name they have goes to shards, to other ranks, and back, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

import eplb_cli
from tests.cli.test_shard import DATA, assert_same
from tests.cli.tree import Rank, read_tree, write_json
from tests.support.published import EXPERTS, GATED, PUBLISHED, Published, read_rank, write_published

FIRST = [[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1], [1, 3, 0, 2, 1, 0], [2, 2, 3, 1, 0, 3]]
SECOND = [[0, 2, 1, 3, 3, 0], [2, 1, 0, 2, 3, 1], [3, 1, 2, 0, 0, 1], [1, 0, 2, 3, 2, 2]]
LINEAR = [0, 1, 2, 3, 0, 1]
"""What MTP layers have, which no map names: the experts in order, then the first ones again."""

ENGINES = [
    ("sglang", "deepseek-v3"),
    ("sglang", "deepseek-v3.2"),
    ("sglang", "glm-4.5"),
    ("sglang", "glm-4.6"),
    ("sglang", "kimi-k2"),
    ("sglang", "qwen3-30b-a3b"),
    ("sglang", "mixtral"),
    ("vllm", "deepseek-v3"),
    ("vllm", "glm-4.5"),
    ("vllm", "glm-4.6"),
    ("vllm", "kimi-k2"),
    ("vllm", "mixtral"),
    ("vllm", "qwen3-30b-a3b"),
]


@pytest.fixture(params=PUBLISHED)
def model(request) -> Published:
    """Each of them."""
    return PUBLISHED[request.param]()


def map_of(path: Path, model: Published, rows: list[list[int]]) -> Path:
    """A map as vLLM has it: a row for each MoE layer but the MTP layers, and no word on ranks."""
    return write_json(path, rows[: len(model.layers)])


def on_ranks(model: Published, rows: list[list[int]], num_ranks: int) -> list[Rank]:
    """What each rank holds under a map."""
    table = dict(zip(model.layers, rows, strict=False)) | dict.fromkeys(model.mtp, LINEAR)
    size = len(LINEAR) // num_ranks
    return [
        model.on_rank({layer: row[size * rank : size * (rank + 1)] for layer, row in table.items()})
        for rank in range(num_ranks)
    ]


def assert_holds(path: Path, expected: list[Rank]) -> None:
    """Every rank has these tensors and no others, as the safetensors library reads them."""
    for rank, tensors in enumerate(expected):
        found = read_rank(path, rank)
        assert found.keys() == tensors.keys()
        assert [key for key in found if found[key] != tensors[key]] == []
    assert not list(path.glob(f"model-rank-{len(expected)}-*"))


def test_there_and_back(tmp_path, model):
    """To 2 ranks, from there to 3 under another map, and back: each row is the expert that the map says."""
    hf = write_published(tmp_path / "hf", model)
    two, three = (eplb_cli.PlacementOptions(num_ranks=ranks) for ranks in (2, 3))
    first = map_of(tmp_path / "first.json", model, FIRST)
    second = map_of(tmp_path / "second.json", model, SECOND)
    eplb_cli.shard(hf, tmp_path / "two", first, "huggingface", two)
    assert_holds(tmp_path / "two", on_ranks(model, FIRST, 2))
    moved = eplb_cli.Request(
        tmp_path / "two", tmp_path / "three", new=str(second), placements=three, backend="file"
    )
    eplb_cli.reshard(moved)
    assert_holds(tmp_path / "three", on_ranks(model, SECOND, 3))
    for source in ("two", "three"):
        eplb_cli.merge(tmp_path / source, tmp_path / f"merged-{source}")
        assert_same(hf, tmp_path / f"merged-{source}")


@pytest.mark.parametrize(("engine", "name"), ENGINES)
def test_an_engine_knows_every_tensor(tmp_path, engine, name):
    """All of them are found again, byte for byte, in the shards of the ranks that need them."""
    model = PUBLISHED[name]()
    hf = write_published(tmp_path / "hf", model)
    linear = eplb_cli.PlacementOptions(num_ranks=2)
    eplb_cli.shard(hf, tmp_path / "dst", "linear", engine, linear)
    for rank in range(2):
        found = read_rank(tmp_path / "dst", rank)
        for layer in (*model.layers, *model.mtp):
            for row in range(2):
                assert_expert(found, layer, row, model.expert(layer, 2 * rank + row))
        contents = [at.data for at in found.values()]
        lost = [key for key, at in model.others().items() if not any(at.data in data for data in contents)]
        assert lost == []
    eplb_cli.merge(tmp_path / "dst", tmp_path / "merged")
    assert_same(hf, tmp_path / "merged")


def assert_expert(found: Rank, layer: str, row: int, expert: Rank) -> None:
    """A row of the stacked tensors is gate and up, and down, of an expert; likewise their scales."""
    numbered = any(name.startswith("w1") for name in expert)
    gate, up, down = ("w1", "w3", "w2") if numbered else GATED
    for kind in sorted({name.partition(".")[2] for name in expert}):
        for target, parts in (("w13", (gate, up)), ("w2", (down,))):
            keys = [key for key in found if key.startswith(f"{layer}.") and key.endswith(f".{target}_{kind}")]
            assert len(keys) == 1, f"{layer} has {keys} for {target}_{kind}"
            at = found[keys[0]]
            nbytes = len(at.data) // at.shape[0]
            whole = b"".join(expert[f"{part}.{kind}"].data for part in parts)
            assert at.data[row * nbytes : (row + 1) * nbytes] == whole


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_what_is_left_out_is_refused(tmp_path, engine):
    """Models for which an engine's names are not certain: EP224, before anything is written."""
    mapped = {name for known, name in ENGINES if known == engine}
    for name in PUBLISHED.keys() - mapped:
        hf = write_published(tmp_path / name, PUBLISHED[name]())
        with pytest.raises(eplb_cli.CheckpointError) as caught:
            eplb_cli.shard(hf, tmp_path / "dst", "linear", engine, eplb_cli.PlacementOptions(num_ranks=2))
        assert caught.value.code == "EP224", name
        assert not (tmp_path / "dst").exists()


def test_the_names_of_glm_are_those_that_vllm_wrote(tmp_path):
    """Real shards of its family have them, but for biases that their model lacks; and the same constants."""
    real = next(iter(read_tree(DATA / "eplb-replicas" / "src").values()))
    hf = write_published(tmp_path / "hf", PUBLISHED["glm-4.6"]())
    eplb_cli.shard(hf, tmp_path / "dst", "linear", "vllm", eplb_cli.PlacementOptions(num_ranks=2))
    found = read_rank(tmp_path / "dst", 1)
    for layer in range(3):
        names = {key for key in found if f"layers.{layer}." in key and not key.endswith("qkv_proj.bias")}
        assert names == {key for key in real if f"layers.{layer}." in key}
    scales = {key: at for key, at in found.items() if not at.shape and "layers.3." not in key}
    assert scales == {key: real[key] for key in scales}
    assert len(scales) == 12


def test_all_layers_of_maps_are_told_apart():
    """Were two rows of the maps alike, layers could change places unseen."""
    assert len({tuple(row) for row in FIRST + SECOND}) == len(FIRST + SECOND)
    assert all(set(row) == set(range(EXPERTS)) for row in [*FIRST, *SECOND, LINEAR])
