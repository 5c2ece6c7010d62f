"""`eplb shard` of checkpoints with experts in several modules: a layer is a module and a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.case import assert_error
from tests.cli.test_shard import assert_same
from tests.cli.tree import Rank, placement, tensor, write_json
from tests.support.huggingface import write_checkpoint
from tests.support.published import EXPERTS, PUBLISHED, read_rank, write_published

ROWS = [[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [0, 2, 1, 3]]
IN_ORDER = [0, 1, 2, 3]


def experts(module: str, layer: int, num_experts: int = EXPERTS, home: str = "mlp.experts") -> Rank:
    """The experts of a layer, of two tensors each."""
    keys = [
        f"{module}.{layer}.{home}.{expert}.{name}.weight"
        for expert in range(num_experts)
        for name in ("up_proj", "down_proj")
    ]
    return {key: tensor("BF16", (2, 3), key) for key in keys}


def two_towers(num_layers: int = 3) -> Rank:
    """A model that talks: each tower has layers 0 and 1, and the first one more."""
    thinker = {key: at for layer in range(num_layers) for key, at in experts("model.layers", layer).items()}
    talker = {key: at for layer in range(2) for key, at in experts("talker.layers", layer).items()}
    gate = "talker.layers.0.mlp.gate.weight"
    return {**thinker, **talker, gate: tensor("BF16", (EXPERTS, 3), gate)}


def held(path: Path, tensors: Rank, prefix: str) -> list[int]:
    """Which expert each row of a layer is, rank by rank, told by the bytes of one tensor."""
    number = {
        at.data: int(key.split(".experts.")[1].split(".")[0])
        for key, at in tensors.items()
        if ".experts." in key
    }
    found = []
    for rank in range(2):
        rows = {key: at for key, at in read_rank(path, rank).items() if key.startswith(f"{prefix}.")}
        ups = {key: at for key, at in rows.items() if key.endswith("up_proj.weight") and ".experts." in key}
        found += [number[ups[key].data] for key in sorted(ups)]
    return found


@pytest.fixture
def home(tmp_path):
    """A model of two towers, and a map of the first one."""
    write_checkpoint(tmp_path / "hf", two_towers(), "qwen3_omni_moe")
    write_json(tmp_path / "map.json", placement(ROWS[:3], layer_ids=[0, 1, 2]))
    return tmp_path


def shard(eplb, home, *options, name="map.json"):
    """The result of `shard`, names kept."""
    arguments = ["--placement", home / name, "--engine", "huggingface"]
    return eplb("shard", home / "hf", home / "dst", *arguments, *options)


def test_a_map_is_of_the_main_module(eplb, home):
    """The talker's layer 0 does not follow the map of the thinker's: its experts stay in order."""
    result = shard(eplb, home)
    assert result.code == 0, result.err
    dst = home / "dst"
    for layer in range(3):
        assert held(dst, two_towers(), f"model.layers.{layer}") == ROWS[layer]
    assert held(dst, two_towers(), "talker.layers.0") == IN_ORDER
    assert held(dst, two_towers(), "talker.layers.1") == IN_ORDER
    assert "layer 3 (talker.layers.0.mlp.experts): experts in order" in result.out
    assert json.loads((dst / "eplb.json").read_text())["decisions"] == {"layers_in_order": [3, 4]}
    for check in (["verify", dst], ["verify", dst, "--against", home / "hf"], ["inspect", dst, "--deep"]):
        assert eplb(*check).code == 0
    assert eplb("merge", dst, home / "merged").code == 0
    assert_same(home / "hf", home / "merged")


def test_identify_tells_the_layers_of_modules_apart(eplb, home):
    """Each row is looked for among the experts of its own layer."""
    assert shard(eplb, home).code == 0
    (home / "dst" / "eplb.json").unlink()
    found = home / "found.json"
    result = eplb("inspect", home / "dst", "--identify", home / "hf", "--out", found)
    assert result.code == 0, result.err
    said = json.loads(found.read_text())
    assert said["layer_ids"] == [0, 1, 2, 3, 4]
    assert said["physical_to_logical_map"] == [*ROWS[:3], IN_ORDER, IN_ORDER]


def test_a_map_that_names_layers_of_other_modules_is_obeyed(eplb, home):
    """By the numbers that the report and `inspect` give them."""
    write_json(home / "all.json", placement([*ROWS, ROWS[0]], layer_ids=[4, 3, 2, 1, 0]))
    result = shard(eplb, home, name="all.json")
    assert result.code == 0, result.err
    assert held(home / "dst", two_towers(), "talker.layers.1") == ROWS[0]
    assert held(home / "dst", two_towers(), "talker.layers.0") == ROWS[1]
    assert held(home / "dst", two_towers(), "model.layers.0") == ROWS[0]
    assert "not in the placement" not in result.out


@pytest.mark.parametrize(
    ("layer_ids", "says"),
    [([0, 2], "does not name layer 1"), ([0, 1], "does not name layer 2"), ([0, 1, 7], "has 7")],
)
def test_layers_that_are_missing_or_unknown_are_named(eplb, home, layer_ids, says):
    """EP109 with the number."""
    write_json(home / "map.json", placement(ROWS[: len(layer_ids)], layer_ids=layer_ids))
    assert_error(shard(eplb, home), "EP109", says)
    assert not (home / "dst").exists()


def test_another_number_of_experts_in_a_module(eplb, home):
    """A placement has one number of them; the tensor is named."""
    write_checkpoint(home / "other" / "hf", {**two_towers(), **experts("draft.layers", 0, 2)}, "qwen3_moe")
    write_json(home / "other" / "map.json", placement(ROWS[:3], layer_ids=[0, 1, 2]))
    result = shard(eplb, home / "other")
    assert_error(result, "EP209", "'draft.layers.0.mlp.experts.", "is of 2 experts, and the model has 4")


def test_another_number_of_experts_than_config_says(eplb, home):
    """Files are missing, or config.json is of another model."""
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 3, "num_experts": 8}
    write_json(home / "hf" / "config.json", config)
    assert_error(shard(eplb, home), "EP209", "is of 4 experts, and config.json says 8")


def test_a_config_of_another_model(eplb, home):
    """All experts are in layers that it does not have."""
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 1}
    write_checkpoint(home / "other" / "hf", experts("model.layers", 1), "qwen3_moe")
    write_json(home / "other" / "hf" / "config.json", config)
    write_json(home / "other" / "map.json", placement(ROWS[:2], layer_ids=[1, 2]))
    assert_error(shard(eplb, home / "other"), "EP212", "config.json says 1 hidden layers", "layer 1")


def test_which_module_is_the_main_one_can_be_said(eplb, tmp_path):
    """EP212 where two have as many layers; what its hint says helps, and the shards remember it."""
    write_checkpoint(tmp_path / "hf", two_towers(2), "qwen3_omni_moe")
    write_json(tmp_path / "map.json", placement(ROWS[:2], layer_ids=[0, 1]))
    assert_error(shard(eplb, tmp_path), "EP212", "'model.layers' and 'talker.layers'", 'main = "MODULE"')
    toml = (
        'format = "eplb-layout/1"\nname = "talker"\nfiles = ["{rank}.safetensors"]\nmain = "talker.layers"\n'
    )
    (tmp_path / "main.toml").write_text(toml)
    result = shard(eplb, tmp_path, "--layout", tmp_path / "main.toml")
    assert result.code == 0, result.err
    assert held(tmp_path / "dst", two_towers(), "talker.layers.0") == ROWS[0]
    assert held(tmp_path / "dst", two_towers(), "model.layers.0") == IN_ORDER
    write_json(tmp_path / "new.json", placement(ROWS[2:], layer_ids=[0, 1]))
    moved = eplb(
        "reshard", tmp_path / "dst", tmp_path / "new", "--new", tmp_path / "new.json", "--backend", "file"
    )
    assert moved.code == 0, moved.err
    assert held(tmp_path / "new", two_towers(), "talker.layers.1") == ROWS[3]
    assert held(tmp_path / "new", two_towers(), "model.layers.1") == IN_ORDER
    assert eplb("verify", tmp_path / "new", "--against", tmp_path / "hf").code == 0
    assert eplb("merge", tmp_path / "new", tmp_path / "merged").code == 0
    assert_same(tmp_path / "hf", tmp_path / "merged")


class TestMtp:
    """Layers that predict further tokens, which no engine's map names."""

    @pytest.fixture(params=["deepseek-v3", "deepseek-v4", "qwen3-next", "qwen3.5"])
    def model(self, request, tmp_path):
        """One that goes on counting, and ones with a module for it; the last with numbers there only."""
        found = PUBLISHED[request.param]()
        write_published(tmp_path / "hf", found)
        write_json(tmp_path / "map.json", ROWS[: len(found.layers)])
        return found

    def test_left_out(self, eplb, tmp_path, model):
        """No tensor of MTP is in the shards, and that is said; the rest is as ever."""
        options = ["--num-ranks", 2, "--mtp", "skip"]
        result = shard(eplb, tmp_path, *options)
        assert result.code == 0, result.err
        assert "left out" in result.out
        said = json.loads((tmp_path / "dst" / "eplb.json").read_text())["decisions"]
        assert len(said["layers_left_out"]) == 1
        of_mtp = {key for key in model.tensors if key.startswith(("mtp.", *model.mtp))}
        assert of_mtp
        for rank in range(2):
            rows = dict(zip(model.layers, ROWS, strict=False))
            expected = model.on_rank({layer: row[2 * rank : 2 * rank + 2] for layer, row in rows.items()})
            expected = {key: at for key, at in expected.items() if not key.startswith(("mtp.", *model.mtp))}
            assert read_rank(tmp_path / "dst", rank) == expected
        assert eplb("verify", tmp_path / "dst", "--against", tmp_path / "hf").code == 0

    def test_what_was_left_out_cannot_be_merged(self, eplb, tmp_path, model):
        """EP225, after a reshard too, and for a baked checkpoint."""
        assert shard(eplb, tmp_path, "--num-ranks", 2, "--mtp", "skip").code == 0
        new = write_json(tmp_path / "new.json", ROWS[: len(model.layers)][::-1])
        arguments = ["--new", new, "--num-ranks", 2, "--backend", "file"]
        assert eplb("reshard", tmp_path / "dst", tmp_path / "moved", *arguments).code == 0
        for source in ("dst", "moved"):
            for options in ([], ["--bake"]):
                result = eplb("merge", tmp_path / source, tmp_path / "merged", *options)
                assert_error(result, "EP225", "made with --mtp skip", "it has no tensor of layer")

    def test_a_placement_that_names_them_is_obeyed(self, eplb, tmp_path, model):
        """By the number that they have behind all others; and then it is not said that they are in order."""
        hidden = model.config.get("text_config", model.config)["num_hidden_layers"]
        first = hidden - len(model.layers)
        rows = [*ROWS[: len(model.layers)], [1, 3, 0, 2]]
        content = placement(rows, layer_ids=list(range(first, hidden + 1)))
        write_json(tmp_path / "map.json", content)
        result = shard(eplb, tmp_path, "--format", "json")
        assert result.code == 0, result.err
        assert result.json["beside"] == []
        table = dict(zip((*model.layers, *model.mtp), rows, strict=True))
        for rank in range(2):
            expected = model.on_rank({layer: row[2 * rank : 2 * rank + 2] for layer, row in table.items()})
            assert read_rank(tmp_path / "dst", rank) == expected
        assert eplb("merge", tmp_path / "dst", tmp_path / "merged").code == 0
        assert_same(tmp_path / "hf", tmp_path / "merged")

    def test_the_hint_of_inspect_is_followed(self, eplb, tmp_path, model):
        """`inspect` of such a directory names `eplb shard`, and that does it."""
        assert_error(eplb("inspect", tmp_path / "hf"), "EP206", "`eplb shard` makes shards of it")
        assert shard(eplb, tmp_path, "--num-ranks", 2).code == 0
        assert eplb("inspect", tmp_path / "dst").code == 0
        assert model.mtp

    def test_it_is_said_through_links(self, eplb, tmp_path, model):
        """A cache of Hugging Face is all links; the config.json behind one says which layers are hidden."""
        cache = tmp_path / "cache" / "hf"
        cache.mkdir(parents=True)
        blobs = tmp_path / "blobs"
        (tmp_path / "hf").rename(blobs)
        for number, file in enumerate(sorted(blobs.iterdir())):
            file.rename(blobs / f"{number:x}")
            (cache / file.name).symlink_to(blobs / f"{number:x}")
        write_json(cache.parent / "map.json", ROWS[: len(model.layers)])
        result = shard(eplb, cache.parent, "--num-ranks", 2, "--format", "json")
        assert result.code == 0, result.err
        assert ["in order" in note for note in result.json["beside"]] == [True]

    def test_a_placement_that_names_what_is_left_out(self, eplb, tmp_path, model):
        """It cannot be both."""
        hidden = model.config.get("text_config", model.config)["num_hidden_layers"]
        first = hidden - len(model.layers)
        rows = [*ROWS[: len(model.layers)], [1, 3, 0, 2]]
        write_json(tmp_path / "map.json", placement(rows, layer_ids=list(range(first, hidden + 1))))
        assert_error(shard(eplb, tmp_path, "--mtp", "skip"), "EP109", f"has {hidden}")


def test_engines_are_not_promised_what_they_do_not_load(eplb, tmp_path):
    """The main model has no MTP layer, and a loader that meets one of its tensors stops."""
    write_published(tmp_path / "hf", PUBLISHED["deepseek-v3"]())
    arguments = ["--placement", "linear", "--num-ranks", 2, "--engine", "sglang", "--format", "json"]
    result = eplb("shard", tmp_path / "hf", tmp_path / "with", *arguments)
    assert result.json["serving"] == [
        "SGLang: its loader of shards stops at tensors of MTP; `shard --mtp skip` leaves them out"
    ]
    assert result.json["beside"] == ["layer 3: experts in order, as engines place them"]
    result = eplb("shard", tmp_path / "hf", tmp_path / "without", *arguments, "--mtp", "skip")
    assert "--load-format sharded_state" in result.json["serving"][0]
    assert result.json["beside"] == ["layer 3: left out"]
    assert not [key for key in read_rank(tmp_path / "without", 0) if "layers.3." in key]


def test_another_word_for_mtp(eplb, home):
    """The two are listed."""
    result = shard(eplb, home, "--mtp", "none")
    assert result.code == 2
    assert "'linear', 'skip'" in result.err


@pytest.mark.parametrize(
    ("key", "code", "says"),
    [
        (
            "model.experts.3.up_proj.weight",
            "EP207",
            "'model.experts.3.up_proj.weight' looks like an expert's",
        ),
        ("model.layers.1.experts", "EP207", "'model.layers.1.experts' looks like an expert's"),
        ("model.layers.1.mlp.experts.{expert}.up", "EP207", "experts.{expert}.up' looks like an expert's"),
    ],
)
def test_experts_of_no_layer_are_named(eplb, home, key, code, says):
    """Never "no experts" where some are that nothing is known of; with the way on."""
    write_checkpoint(home / "other" / "hf", {**two_towers(), key: tensor("BF16", (4, 2), key)}, "qwen3_moe")
    write_json(home / "other" / "map.json", placement(ROWS[:3], layer_ids=[0, 1, 2]))
    assert_error(shard(eplb, home / "other"), code, says, "--layout")
    alone = {key: tensor("BF16", (4, 2), key)}
    write_checkpoint(home / "alone" / "hf", alone, "qwen3_moe")
    write_json(home / "alone" / "map.json", placement(ROWS[:1], layer_ids=[0]))
    assert_error(shard(eplb, home / "alone"), code, says)


def test_names_that_look_like_templates_are_names(eplb, home):
    """Whatever a key holds, it is the same key in the shards and in the checkpoint again."""
    odd = [
        "model.layers.{layer}.norm",
        "model.layers.1.{layer}.norm",
        "mtp.{row}",
        f"model.layers.{'7' * 200}.norm",
        "model.layers.01.norm",
        "model.layers.٣.norm",
    ]
    tensors = two_towers() | {key: tensor("BF16", (), key) for key in odd}
    write_checkpoint(home / "odd" / "hf", tensors, "qwen3_moe")
    write_json(home / "odd" / "map.json", placement(ROWS[:3], layer_ids=[0, 1, 2]))
    result = shard(eplb, home / "odd")
    assert result.code == 0, result.err
    for rank in range(2):
        found = read_rank(home / "odd" / "dst", rank)
        assert {key: found[key] for key in odd} == {key: tensors[key] for key in odd}
    assert eplb("merge", home / "odd" / "dst", home / "merged").code == 0
    assert_same(home / "odd" / "hf", home / "merged")
