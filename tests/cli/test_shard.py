"""`eplb shard` and `eplb merge`: a Hugging Face checkpoint to shards and back, byte for byte."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import pytest

from eplb_cli import files
from tests.cli.case import assert_error
from tests.cli.tree import Tensor, fingerprint, placement, read_tree, reseal, tensor, write_json, write_shard
from tests.support.huggingface import (
    EXPERTS,
    MOE_LAYERS,
    deepseek_in_sglang,
    deepseek_v3,
    gpt_oss,
    joined,
    qwen3_moe,
    write_checkpoint,
)

DATA = Path(__file__).parents[1] / "data"

REPLICAS = placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1]], layer_ids=list(MOE_LAYERS))
THREE_RANKS = placement([[3, 0, 1, 2, 2, 0], [0, 1, 2, 3, 3, 1]], 3, layer_ids=list(MOE_LAYERS))
UNEVEN = placement(
    [[3, 0, -1, 1, 2], [0, 1, 2, 3, -1]], None, slots_per_rank=[2, 2, 1], layer_ids=list(MOE_LAYERS)
)


def names(path: Path) -> list[str]:
    """What a directory holds."""
    return sorted(file.name for file in path.iterdir())


def assert_same(first: Path, second: Path) -> None:
    """Two directories of the same files with the same bytes."""
    assert names(first) == names(second)
    _, differing, missing = filecmp.cmpfiles(first, second, names(first), shallow=False)
    assert (differing, missing) == ([], [])


def one_more(hf: Path, key: str) -> None:
    """One more file, with one tensor."""
    write_shard(hf / "more.safetensors", {key: tensor("U8", (1,), key)})


@pytest.fixture
def home(tmp_path):
    """A checkpoint of DeepSeek-V3's family in two files, and placements for it."""
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    write_json(tmp_path / "replicas.json", REPLICAS)
    write_json(tmp_path / "three.json", THREE_RANKS)
    write_json(tmp_path / "uneven.json", UNEVEN)
    return tmp_path


def sharded(eplb, home, engine="sglang", name="replicas.json"):
    """The shards of the checkpoint."""
    result = eplb("shard", home / "hf", home / "dst", "--placement", home / name, "--engine", engine)
    assert result.code == 0, result.err
    return home / "dst"


def test_the_shards_hold_what_the_engine_expects(eplb, home):
    """Gate and up joined in each row, q and kv joined; the rest under its own name; on every rank."""
    ranks = read_tree(sharded(eplb, home))
    rows = REPLICAS["physical_to_logical_map"]
    for rank in range(2):
        held = {layer: rows[index][3 * rank : 3 * rank + 3] for index, layer in enumerate(MOE_LAYERS)}
        assert ranks[f"model-rank-{rank}"] == deepseek_in_sglang(deepseek_v3(), held)


def test_what_is_written_is_proved_again(eplb, home):
    """It is a tree like any other: `verify`, `inspect --deep` and `reshard` take it."""
    dst = sharded(eplb, home)
    assert eplb("verify", dst).code == 0
    assert eplb("inspect", dst, "--deep").code == 0
    moved = eplb("reshard", dst, home / "three", "--new", home / "three.json", "--backend", "file")
    assert moved.code == 0, moved.err
    rows = THREE_RANKS["physical_to_logical_map"]
    ranks = read_tree(home / "three")
    for rank in range(3):
        held = {layer: rows[index][2 * rank : 2 * rank + 2] for index, layer in enumerate(MOE_LAYERS)}
        assert ranks[f"model-rank-{rank}"] == deepseek_in_sglang(deepseek_v3(), held)


@pytest.mark.parametrize("engine", ["sglang", "huggingface"])
@pytest.mark.parametrize("num_files", [1, 2, 3])
def test_there_and_back(eplb, tmp_path, engine, num_files):
    """Sharded, resharded to other ranks, to uneven ones with empty slots, and merged: the same files."""
    hf = write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3", num_files)
    for name, content in (("replicas", REPLICAS), ("three", THREE_RANKS), ("uneven", UNEVEN)):
        write_json(tmp_path / f"{name}.json", content)
    sharded(eplb, tmp_path, engine)
    for source, name in (("dst", "three"), ("three", "uneven")):
        new = tmp_path / f"{name}.json"
        result = eplb("reshard", tmp_path / source, tmp_path / name, "--new", new, "--backend", "file")
        assert result.code == 0, result.err
    for source in ("dst", "three", "uneven"):
        result = eplb("merge", tmp_path / source, tmp_path / f"merged-{source}")
        assert result.code == 0, result.err
        assert_same(hf, tmp_path / f"merged-{source}")


@pytest.mark.parametrize("num_files", [1, 2])
def test_stacked_experts(eplb, tmp_path, num_files):
    """gpt-oss has all experts in one tensor: a rank gets its rows of it."""
    layers = {"layer_ids": [0, 1]}
    hf = write_checkpoint(tmp_path / "hf", gpt_oss(), "gpt_oss", num_files)
    write_json(tmp_path / "replicas.json", {**REPLICAS, **layers})
    dst = sharded(eplb, tmp_path, "huggingface")
    assert eplb("verify", dst).code == 0
    key = "model.layers.1.mlp.experts.gate_up_proj_blocks"
    source = gpt_oss()[key]
    nbytes = len(source.data) // EXPERTS
    rows = REPLICAS["physical_to_logical_map"][1]
    for rank, tensors in enumerate(read_tree(dst).values()):
        data = b"".join(
            source.data[expert * nbytes : (expert + 1) * nbytes] for expert in rows[3 * rank : 3 * rank + 3]
        )
        assert tensors[key] == Tensor("U8", (3, *source.shape[1:]), data)
    assert eplb("merge", dst, tmp_path / "merged").code == 0
    assert_same(hf, tmp_path / "merged")


def test_a_model_inside_another(eplb, tmp_path):
    """Llama 4: a prefix before the layers, some of them dense, and a vision tower with layers of its own."""
    base = "language_model.model.layers.1.feed_forward"
    source = {
        f"{base}.experts.gate_up_proj": tensor("BF16", (4, 3, 8), "gate up"),
        f"{base}.experts.down_proj": tensor("BF16", (4, 4, 3), "down"),
        f"{base}.router.weight": tensor("BF16", (4, 3), "router"),
        "language_model.model.layers.0.feed_forward.up_proj.weight": tensor("BF16", (2, 3), "dense"),
        "vision_model.model.layers.1.mlp.fc1.weight": tensor("BF16", (2, 3), "vision"),
    }
    hf = write_checkpoint(tmp_path / "hf", source, "llama4")
    write_json(tmp_path / "replicas.json", placement([[3, 0, 0, 1, 2, 2]], layer_ids=[1]))
    dst = sharded(eplb, tmp_path, "huggingface")
    at = source[f"{base}.experts.down_proj"]
    rows = [at.data[24 * expert : 24 * expert + 24] for expert in (1, 2, 2)]
    found = read_tree(dst)["model-rank-1"][f"{base}.experts.down_proj"]
    assert found == Tensor("BF16", (3, 4, 3), b"".join(rows))
    assert eplb("merge", dst, tmp_path / "merged").code == 0
    assert_same(hf, tmp_path / "merged")


def test_a_cache_of_links_is_followed(eplb, home):
    """Hugging Face keeps snapshots of links; what they lead to is what is read and carried along."""
    cache = home / "snapshot"
    cache.mkdir()
    for name in names(home / "hf"):
        (cache / name).symlink_to(f"../hf/{name}")
    result = eplb("shard", cache, home / "dst", "--placement", home / "three.json", "--engine", "sglang")
    assert result.code == 0, result.err
    assert eplb("merge", home / "dst", home / "merged").code == 0
    assert_same(home / "hf", home / "merged")


def test_a_map_of_sglang_is_enough(eplb, home):
    """The checkpoint's own config says which of its rows are MoE layers."""
    dense = [0, 1, 2, 3, 0, 1]
    rows = [dense, *REPLICAS["physical_to_logical_map"]]
    write_json(home / "map.json", {"physical_to_logical_map": rows})
    arguments = ["--placement", home / "map.json", "--num-ranks", 2, "--engine", "sglang"]
    result = eplb("shard", home / "hf", home / "from-map", *arguments)
    assert result.code == 0, result.err
    sharded(eplb, home)
    assert read_tree(home / "from-map") == read_tree(home / "dst")


def test_the_serving_note_is_of_the_engine(eplb, home):
    """SGLang loads any even placement without empty slots; nothing is said of vLLM."""
    sharded(eplb, home)
    manifest = json.loads((home / "dst" / "eplb.json").read_text())
    assert manifest["engine"] == "sglang"
    line, misread = manifest["serving"]
    assert line.startswith("SGLang: --load-format sharded_state --tp-size 2 --attn-dp-size 2 --ep-size 2")
    assert "--ep-num-redundant-experts 2 --init-expert-location FILE" in line
    assert "without --init-expert-location" in misread
    arguments = ["--placement", home / "uneven.json", "--engine", "sglang", "--format", "json"]
    result = eplb("shard", home / "hf", home / "uneven", *arguments)
    assert result.json["serving"] == ["SGLang: nothing loads this placement from shards; see docs/serving.md"]
    assert result.json["rows_proved"] == 8


def test_dense_tensors_are_written_once(eplb, home):
    """All ranks have one file of them, under as many names."""
    dst = sharded(eplb, home, name="three.json")
    common = [path.stat() for path in sorted(dst.glob("model-rank-*-part-1.safetensors"))]
    assert len(common) == 3
    assert len({status.st_ino for status in common}) == 1


def test_the_names_of_vllm_are_those_that_it_wrote(eplb, tmp_path):
    """Real shards, of another family with the same attention, have them; and the same scales of 1.0."""
    real = next(iter(read_tree(DATA / "eplb-replicas" / "src").values()))
    hf = write_checkpoint(tmp_path / "hf", qwen3_moe(), "qwen3_moe")
    arguments = ["--placement", "linear", "--num-ranks", 2, "--engine", "vllm"]
    result = eplb("shard", hf, tmp_path / "dst", *arguments)
    assert result.code == 0, result.err
    tensors = read_tree(tmp_path / "dst")["model-rank-1"]
    own = {"model.layers.1.mlp.experts.gate.weight"}  # Glm4Moe has its router elsewhere
    assert tensors.keys() - own <= real.keys()
    assert {key for key in real if "layers.0." in key} == {key for key in tensors if "layers.0." in key}
    scales = {key: at for key, at in tensors.items() if key.endswith("_scale")}
    assert scales == {key: real[key] for key in scales}
    assert len(scales) == 8
    source = qwen3_moe()
    parts = [source[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert tensors["model.layers.1.self_attn.qkv_proj.weight"] == joined(parts)
    w13 = [
        source[f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight"]
        for expert in (2, 3)
        for name in ("gate", "up")
    ]
    found = tensors["model.layers.1.mlp.experts.routed_experts.w13_weight"]
    assert found.data == joined(w13).data
    assert found.shape == (2, 12, 4)
    assert eplb("verify", tmp_path / "dst").code == 0
    assert eplb("merge", tmp_path / "dst", tmp_path / "merged").code == 0
    assert_same(hf, tmp_path / "merged")


@pytest.mark.parametrize(("name", "loads"), [("linear", True), ("round_robin", False), ("map.json", False)])
def test_vllm_is_not_promised_what_it_does_not_load(eplb, tmp_path, name, loads):
    """Stock vLLM loads its default and no other: round_robin is linear to it without groups of experts."""
    hf = write_checkpoint(tmp_path / "hf", qwen3_moe(), "qwen3_moe")
    write_json(tmp_path / "map.json", [[3, 0, 1, 2]])
    placement = tmp_path / name if name == "map.json" else name
    arguments = ["--placement", placement, "--num-ranks", 2, "--engine", "vllm", "--format", "json"]
    result = eplb("shard", hf, tmp_path / "dst", *arguments)
    stock = [line for line in result.json["serving"] if "--load-format sharded_state" in line]
    assert (len(stock), len(result.json["misread"])) == ((1, 0) if loads else (0, 1))
    assert result.json["warnings"] == result.json["misread"]
    assert ("warning: vLLM: --load-format sharded_state would load" in result.err) != loads


def test_reshard_says_what_shard_says(eplb, tmp_path):
    """Of the same placement, by the same table: the manifest remembers whose names they are."""
    hf = write_checkpoint(tmp_path / "hf", qwen3_moe(), "qwen3_moe")
    write_json(tmp_path / "map.json", placement([[3, 0, 1, 2]], 2, layer_ids=[1]))
    options = ["--num-ranks", 2, "--engine", "vllm", "--format", "json"]
    sharded = eplb("shard", hf, tmp_path / "placed", "--placement", tmp_path / "map.json", *options).json
    assert eplb("shard", hf, tmp_path / "linear", "--placement", "linear", *options).code == 0
    arguments = ["--new", tmp_path / "map.json", "--backend", "file", "--format", "json"]
    moved = eplb("reshard", tmp_path / "linear", tmp_path / "moved", *arguments).json
    for key in ("serving", "misread"):
        assert moved[key] == sharded[key] != []
    assert moved["warnings"] == sharded["warnings"] == sharded["misread"]
    both = [json.loads((tmp_path / name / "eplb.json").read_text()) for name in ("placed", "moved")]
    assert both[0]["engine"] == both[1]["engine"] == "vllm"
    assert both[0]["serving"] == both[1]["serving"]


class TestRefused:
    """A coded error, no output, and nothing left behind."""

    @pytest.fixture
    def refuse(self, eplb, home):
        def run(code, *says, engine="sglang", name="replicas.json", exit_code=3, options=()):
            before = fingerprint(home)
            arguments = ["--placement", home / name, "--engine", engine, *options]
            result = eplb("shard", home / "hf", home / "dst", *arguments)
            assert_error(result, code, *says, exit_code=exit_code)
            assert fingerprint(home) == before

        return run

    def rewrite(self, home, change):
        """Change the tensors of the checkpoint, in a single file."""
        tensors = deepseek_v3()
        change(tensors)
        for path in (home / "hf").glob("model*"):
            path.unlink()
        write_shard(home / "hf" / "model.safetensors", tensors)

    def test_a_family_without_names(self, refuse, home):
        """A model whose dense tensors nobody has mapped is not guessed at."""
        (home / "hf" / "config.json").write_text('{"model_type": "bert"}')
        refuse("EP224", "no names of sglang are known for models of type 'bert'", "huggingface")

    def test_an_unknown_engine(self, refuse):
        """The known ones are listed."""
        refuse("EP224", "'vlm' is no engine", "huggingface, sglang, vllm", engine="vlm")

    def test_a_tensor_without_a_name(self, refuse, home):
        """Nothing is passed on because nobody asked."""
        self.rewrite(home, lambda t: t.update({"model.layers.0.self_attn.sinks": tensor("BF16", (4,), "s")}))
        refuse("EP224", "'model.layers.0.self_attn.sinks' in model.safetensors: no tensor of sglang")

    @pytest.mark.parametrize(
        ("key", "code", "says"),
        [
            (
                "model.layers.1.mlp.experts.2.up_proj.weight",
                "EP209",
                "'model.layers.1.mlp.experts.2.up_proj.weight'",
            ),
            (
                "model.layers.1.mlp.experts.3.up_proj.weight",
                "EP209",
                "up_proj.weight' is of 3 experts, and the model has 4",
            ),
            ("model.layers.1.self_attn.q_a_proj.weight", "EP224", "one of its parts is missing"),
        ],
    )
    def test_a_tensor_that_is_missing(self, refuse, home, key, code, says):
        """An expert, or a part of a joined tensor."""
        self.rewrite(home, lambda t: t.pop(key))
        refuse(code, says)

    def test_all_scales_of_a_layer_are_missing(self, refuse, home):
        """A weight without its scale is the worst silent failure."""

        def drop(tensors):
            for key in [
                key for key in tensors if "layers.1.mlp.experts" in key and "down_proj.weight_s" in key
            ]:
                del tensors[key]

        self.rewrite(home, drop)
        refuse("EP210", "layer 1")

    @pytest.mark.parametrize(
        ("key", "kind", "code", "says"),
        [
            ("model.layers.1.mlp.experts.2.up_proj.weight", ("BF16", (6, 4)), "EP209", "the experts differ"),
            ("model.layers.0.mlp.up_proj.weight", ("BF16", (6, 4)), "EP224", "its parts differ"),
            ("model.layers.0.mlp.up_proj.weight", ("F8_E4M3", (6, 3)), "EP224", "its parts differ"),
        ],
    )
    def test_kinds_that_cannot_be_joined(self, refuse, home, key, kind, code, says):
        """Of another dtype, or another width."""
        self.rewrite(home, lambda t: t.update({key: tensor(kind[0], kind[1], key)}))
        refuse(code, says)

    def test_no_expert_at_all(self, refuse, home):
        """A dense model has nothing to place."""

        def drop(tensors):
            for key in [key for key in tensors if ".experts." in key]:
                del tensors[key]

        self.rewrite(home, drop)
        refuse("EP224", "no tensor of an expert")

    def test_layers_that_the_placement_does_not_name(self, refuse, home):
        """Their experts would have to be on every rank."""
        write_json(home / "one.json", placement([[0, 1, 2, 3]], layer_ids=[1]))
        refuse("EP109", "does not name layer 2", "from 1 to 2", name="one.json")

    def test_a_placement_of_other_experts(self, refuse, home):
        """Every expert of the checkpoint has a slot."""
        rows = [[0, 1, 2, 0], [0, 1, 2, 3]]
        write_json(home / "less.json", placement(rows, layer_ids=list(MOE_LAYERS)))
        refuse("EP107", "expert 3", name="less.json")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda hf: (hf / "model.safetensors.index.json").unlink(), "no index, and 2 files"),
            (lambda hf: (hf / "x.safetensors.index.json").write_text("{}"), "2 indices"),
            (lambda hf: (hf / "model.safetensors.index.json").write_text("{"), "is no index"),
            (lambda hf: (hf / "model.safetensors.index.json").write_text("[]"), "is no index"),
            (lambda hf: (hf / "config.json").write_text("[]"), "config.json cannot be read"),
            (lambda hf: one_more(hf, "x"), "'x' is in more.safetensors, and model.safetensors.index.json"),
            (lambda hf: one_more(hf, "model.norm.weight"), "'model.norm.weight' is in"),
            (lambda hf: (hf / "model-00001-of-00002.safetensors").unlink(), "is in no file, and"),
        ],
    )
    def test_a_directory_that_is_no_checkpoint(self, refuse, home, change, says):
        """Files and index say the same, or one of them is not to be trusted."""
        change(home / "hf")
        refuse("EP223", says)

    def test_a_named_map_without_ranks(self, eplb, home):
        """One rank would be a strange guess."""
        arguments = ["--placement", "linear", "--engine", "sglang"]
        assert_error(eplb("shard", home / "hf", home / "dst", *arguments), "EP114", "--num-ranks")

    def test_a_destination_that_is_taken(self, refuse, home):
        """As everywhere."""
        (home / "dst").mkdir()
        (home / "dst" / "x").touch()
        refuse("EP601", exit_code=6)


class TestMergeRefused:
    @pytest.fixture
    def refuse(self, eplb, home):
        sharded(eplb, home)

        def run(code, *says, exit_code=3):
            before = fingerprint(home)
            result = eplb("merge", home / "dst", home / "merged")
            assert_error(result, code, *says, exit_code=exit_code)
            assert fingerprint(home) == before

        return run

    def test_shards_that_were_not_made_by_shard(self, case):
        """Nothing says what the checkpoint was."""
        result = case.eplb("merge", case.src, case.dst)
        assert_error(result, "EP225", "has no eplb-huggingface.json")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda raw: raw.update(format="x"), "its format"),
            (lambda raw: raw.pop("names"), "KeyError"),
            (lambda raw: raw.update(digests="00"), "ValueError"),
            (lambda raw: raw["files"][0].update(name="../x"), "is not the name of a file"),
            (lambda raw: raw.update(carried=["/etc/passwd"]), "is not the name of a file"),
        ],
    )
    def test_a_record_that_was_changed(self, refuse, home, change, says):
        """Whatever it says is checked, even where the manifest has the digest of it."""
        path = home / "dst" / "eplb-huggingface.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))
        refuse("EP506", path.name, exit_code=5)
        reseal(home / "dst", path.name)
        refuse("EP225", says)

    def test_a_row_that_was_changed(self, refuse, home):
        """The record has the digest of every row that was read, so a damaged one is not merged."""
        path = next((home / "dst").glob("model-rank-0-part-0.safetensors"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        refuse("EP506", exit_code=5)

    def test_a_dense_tensor_that_was_changed(self, refuse, home):
        """Likewise."""
        path = next((home / "dst").glob("model-rank-0-part-1.safetensors"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        refuse("EP506", exit_code=5)


def test_a_write_that_goes_wrong_is_found(eplb, home, monkeypatch):
    """A bit that flips on its way to the disk is found when it is read back, and there is no DST."""
    flipped: list[int] = []

    def attempt(operation, call, *arguments):
        if operation == "write" and len(arguments[1]) == 24 and not flipped:
            flipped.append(1)
            damaged = bytearray(arguments[1])
            damaged[3] ^= 4
            arguments = (arguments[0], memoryview(damaged), *arguments[2:])
        return call(*arguments)

    monkeypatch.setattr(files, "attempt", attempt)
    arguments = ["--placement", home / "replicas.json", "--engine", "sglang"]
    result = eplb("shard", home / "hf", home / "dst", *arguments)
    assert flipped
    assert result.code == 5, result.err
    assert "error[EP50" in result.err
    assert names(home) == ["hf", "replicas.json", "three.json", "uneven.json"]


def test_every_byte_is_read_once(eplb, home, monkeypatch):
    """However many ranks need it: what is read of the checkpoint's data is its size, not a multiple of it."""
    read: dict[tuple[str, int], int] = {}

    def attempt(operation, call, *arguments):
        result = call(*arguments)
        if operation == "read" and len(arguments) == 3:
            target = str(Path(f"/proc/self/fd/{arguments[0]}").readlink())
            if target.endswith(".safetensors") and "/hf/" in target:
                read[target, arguments[2]] = read.get((target, arguments[2]), 0) + 1
        return result

    monkeypatch.setattr(files, "attempt", attempt)
    sharded(eplb, home, name="three.json")
    data = {place: count for place, count in read.items() if place[1] > 8}
    assert data
    assert set(data.values()) == {1}


@pytest.mark.parametrize("name", ["eplb.json", "eplb-huggingface.json", "eplb-digests-rank-0.npy"])
@pytest.mark.parametrize("command", ["shard", "bake"])
def test_names_that_eplb_writes_itself(eplb, home, command, name):
    """EP229 before anything is written: such a file could not travel along, and `merge` would lack it."""
    (home / "hf" / name).write_text("{}")
    engine = ["--engine", "sglang"] if command == "shard" else []
    before = fingerprint(home)
    linear = ["--placement", "linear", "--num-ranks", 2]
    result = eplb(command, home / "hf", home / "dst", *linear, *engine)
    code = "EP226" if (command, name) == ("bake", "eplb.json") else "EP229"
    assert_error(result, code, "eplb.json" if code == "EP226" else name)
    assert fingerprint(home) == before
