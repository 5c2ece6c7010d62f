"""`eplb bake` and `eplb merge --bake`: a placement written into a plain checkpoint."""

from __future__ import annotations

import json
import os

import pytest

from eplb_cli import files
from tests.cli.case import assert_error
from tests.cli.test_shard import assert_same, names
from tests.cli.tree import (
    Tensor,
    file_bytes,
    fingerprint,
    header_of,
    placement,
    read_shard,
    read_tree,
    tensor,
    write_json,
    write_shard,
)
from tests.support.huggingface import EXPERTS, MOE_LAYERS, deepseek_v3, gpt_oss, write_checkpoint

ORDER = {1: [3, 2, 1, 0], 2: [1, 0, 3, 2]}
"""Within groups of two, and groups exchanged."""

PLACEMENT = placement(list(ORDER.values()), layer_ids=list(MOE_LAYERS))
ROUTERS = ("mlp.gate.weight", "mlp.gate.e_score_correction_bias", "mlp.router.weight", "mlp.router.bias")


def rows_in(at: Tensor, order: list[int]) -> Tensor:
    """A tensor with its rows in another order."""
    nbytes = len(at.data) // at.shape[0]
    data = b"".join(at.data[row * nbytes : (row + 1) * nbytes] for row in order)
    return at._replace(data=data)


def baked(source, orders):
    """What a baked checkpoint has to hold, from the plain definition: expert p is the order's p-th."""
    found = {}
    for key, at in source.items():
        parts = key.split(".")
        order = orders.get(int(parts[2])) if parts[1] == "layers" else None
        if order and parts[4] == "experts" and parts[5].isdecimal():
            parts[5] = str(order.index(int(parts[5])))
            found[".".join(parts)] = at
        elif order and (parts[4] == "experts" or key.endswith(ROUTERS)):
            found[key] = rows_in(at, order)
        else:
            found[key] = at
    return found


def read_files(path):
    """All tensors of a checkpoint, and the file of each."""
    trees = read_tree(path)
    where = {key: f"{name}" for name, tensors in trees.items() for key in tensors}
    return {key: at for tensors in trees.values() for key, at in tensors.items()}, where


@pytest.fixture
def home(tmp_path):
    """A checkpoint of DeepSeek-V3's family, with two expert groups."""
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 3, "n_group": 2}
    write_json(tmp_path / "hf" / "config.json", config)
    write_json(tmp_path / "new.json", PLACEMENT)
    return tmp_path


@pytest.fixture
def bake(eplb, home):
    """The baked checkpoint."""

    def run(*options):
        result = eplb("bake", home / "hf", home / "out", "--placement", home / "new.json", *options)
        assert result.code == 0, result.err
        return home / "out"

    return run


def test_experts_and_routers_are_permuted_together(bake, home):
    """Expert p of the result is the expert of slot p, and so is row p of the router and of its bias."""
    tensors, where = read_files(bake())
    assert tensors == baked(deepseek_v3(), ORDER)
    index = json.loads((home / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == where
    assert index["metadata"] == {"total_size": 1}
    assert names(home / "out") == sorted([*names(home / "hf"), "eplb.json"])
    assert (home / "out" / "tokenizer.json").read_bytes() == (home / "hf" / "tokenizer.json").read_bytes()


def test_an_order_that_changes_nothing(eplb, home):
    """The files are the same but for eplb.json."""
    result = eplb("bake", home / "hf", home / "out", "--placement", "linear", "--num-ranks", 2)
    assert result.code == 0, result.err
    tensors, where = read_files(home / "out")
    assert (tensors, where) == read_files(home / "hf")


def test_stacked_experts(eplb, tmp_path):
    """gpt-oss: rows of every stacked tensor, of the router and of its bias."""
    write_checkpoint(tmp_path / "hf", gpt_oss(), "gpt_oss", 1)
    orders = {0: [2, 0, 3, 1], 1: [0, 1, 3, 2]}
    write_json(tmp_path / "new.json", placement(list(orders.values()), layer_ids=[0, 1]))
    result = eplb("bake", tmp_path / "hf", tmp_path / "out", "--placement", tmp_path / "new.json")
    assert result.code == 0, result.err
    assert read_files(tmp_path / "out")[0] == baked(gpt_oss(), orders)


def test_layers_that_are_not_named_stay(eplb, home):
    """MTP layers, say."""
    write_json(home / "one.json", placement([ORDER[1]], layer_ids=[1]))
    result = eplb("bake", home / "hf", home / "out", "--placement", home / "one.json")
    assert result.code == 0, result.err
    assert read_files(home / "out")[0] == baked(deepseek_v3(), {1: ORDER[1]})


def test_longer_names_move_the_data_by_whole_pages(eplb, tmp_path):
    """With 12 experts, names in a file get longer; the header grows by a page where it must."""
    source = {
        **{
            f"model.layers.0.mlp.experts.{e}.up_proj.weight": tensor("BF16", (2, 2), f"{e}")
            for e in range(12)
        },
        "model.layers.0.mlp.gate.weight": tensor("BF16", (12, 2), "gate"),
    }
    hf = write_checkpoint(tmp_path / "hf", source, "qwen3_moe", 3)
    for file in hf.glob("*.safetensors"):  # as the library writes them: without a space to spare
        tensors = read_shard(file)
        text = json.dumps(header_of(tensors), separators=(",", ":")).encode()
        file.write_bytes(file_bytes(text, b"".join(at.data for at in tensors.values())))
    order = [*range(11, -1, -1)]
    write_json(tmp_path / "new.json", placement([order], layer_ids=[0]))
    result = eplb("bake", hf, tmp_path / "out", "--placement", tmp_path / "new.json")
    assert result.code == 0, result.err
    assert read_files(tmp_path / "out")[0] == baked(source, {0: order})
    grown = [
        (tmp_path / "out" / name).stat().st_size - (hf / name).stat().st_size
        for name in names(hf)
        if name.endswith(".safetensors")
    ]
    assert set(grown) == {0, 4096}


def test_shards_are_baked_as_they_lie(eplb, bake, home):
    """`merge --bake` of shards under a placement is `bake` of the checkpoint with it."""
    shard = ["shard", home / "hf", home / "dst", "--placement", home / "new.json", "--engine", "sglang"]
    assert eplb(*shard).code == 0
    result = eplb("merge", home / "dst", home / "merged", "--bake")
    assert result.code == 0, result.err
    assert_same(bake(), home / "merged")


def test_a_damaged_row_is_not_baked(eplb, home):
    """What `shard` had read is known by its digests."""
    shard = ["shard", home / "hf", home / "dst", "--placement", home / "new.json", "--engine", "sglang"]
    assert eplb(*shard).code == 0
    path = home / "dst" / "model-rank-0-part-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert_error(eplb("merge", home / "dst", home / "merged", "--bake"), "EP506", exit_code=5)
    assert not (home / "merged").exists()


def test_files_are_shared_where_that_is_possible(bake, home, monkeypatch):
    """Only router rows are written then: all experts stay where they are."""
    written = []

    def clone(source, destination, nbytes, src_offset, dst_offset, path):
        assert src_offset % 4096 == dst_offset % 4096 == 0
        os.pwrite(destination, os.pread(source, nbytes, src_offset), dst_offset)
        return True

    real = files.write_from

    def write_from(descriptor, buffer, offset, path):
        if path.suffix == ".safetensors":  # and no journal
            written.append((len(buffer), offset))
        real(descriptor, buffer, offset, path)

    monkeypatch.setattr(files, "clone_range", clone)
    monkeypatch.setattr(files, "write_from", write_from)
    assert read_files(bake())[0] == baked(deepseek_v3(), ORDER)
    router_rows = [nbytes for nbytes, offset in written if nbytes in {8, 4} and offset]
    others = [nbytes for nbytes, offset in written if nbytes not in {8, 4} and offset]
    assert len(router_rows) == len(MOE_LAYERS) * 2 * EXPERTS
    assert others == []


def test_a_load_is_mapped_back(eplb, bake, home):
    """What the baked model counts for expert p is of the model's own expert in slot p."""
    write_json(home / "load.json", [[10, 20, 30, 40], [1, 2, 3, 4]])
    result = eplb("inspect", home / "load.json", "--baked", bake(), "--format", "json")
    assert result.code == 0, result.err
    busiest = [layer["busiest_expert"] for layer in result.json["layers"]]
    assert busiest == [ORDER[1][3], ORDER[2][3]]
    write_json(home / "load.json", [[1, 2, 3]])
    assert_error(eplb("inspect", home / "load.json", "--baked", home / "out"), "EP109")
    assert_error(eplb("inspect", home / "load.json", "--baked", home / "hf"), "EP201")


class TestRefused:
    @pytest.fixture
    def refuse(self, eplb, home):
        def run(*says, code="EP226", name="new.json"):
            before = fingerprint(home)
            result = eplb("bake", home / "hf", home / "out", "--placement", home / name)
            assert_error(result, code, *says)
            assert fingerprint(home) == before

        return run

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (placement([[0, 1, 2, 3, 0, 1]] * 2, layer_ids=[1, 2]), "6 slots for 4 experts"),
            (
                placement([[0, 1, 2, -1]] * 2, layer_ids=[1, 2], num_logical_experts=4),
                "4 slots for 4 experts",
            ),
            (
                placement([[0, 1, 2, 3]] * 2, None, layer_ids=[1, 2], slots_per_rank=[3, 1]),
                "other numbers of slots",
            ),
            (
                placement([[0, 1, 2, 3], [2, 1, 0, 3]], layer_ids=[1, 2]),
                "layer 2: the slots of expert group 0",
            ),
        ],
    )
    def test_a_placement_that_is_no_order(self, refuse, home, content, says):
        """Replicas, empty slots, ranks of other sizes, and groups that are torn apart."""
        write_json(home / "bad.json", content)
        refuse(says, name="bad.json")

    def test_groups_may_be_free(self, eplb, home):
        """Without groups in the config, any order will do."""
        write_json(home / "hf" / "config.json", {"model_type": "deepseek_v3", "num_hidden_layers": 3})
        write_json(home / "new.json", placement([[2, 1, 0, 3]] * 2, layer_ids=[1, 2]))
        result = eplb("bake", home / "hf", home / "out", "--placement", home / "new.json")
        assert result.code == 0, result.err

    def test_a_family_whose_router_is_not_known(self, refuse, home):
        """Nobody has looked at what else names its experts."""
        write_json(home / "hf" / "config.json", {"model_type": "qwen9_moe", "num_hidden_layers": 3})
        refuse("the router of models of type 'qwen9_moe' is not known")

    @pytest.mark.parametrize(
        ("key", "says"),
        [
            (
                "model.layers.1.mlp.gate.tid2eid",
                "'model.layers.1.mlp.gate.tid2eid' holds the experts of each",
            ),
            (
                "model.layers.1.mlp.experts.e_score_correction_bias",
                "e_score_correction_bias' may name experts",
            ),
            ("model.layers.1.mlp.experts.gate.weight", "'model.layers.1.mlp.experts.gate.weight' may name"),
            ("model.layers.1.mlp.expert_bias", "'model.layers.1.mlp.expert_bias' may name experts"),
            ("talker.layers.1.mlp.experts.3.up_proj.weight", "is of experts with another router"),
            ("talker.layers.1.mlp.experts.gate_up_proj", "is of experts with another router"),
            ("mtp.layers.1.mlp.experts.0.up_proj.weight", "is of experts with another router"),
            ("model.draft.layers.2.mlp.experts.0.up_proj.weight", "is of experts with another router"),
            ("model.layers.1.mlp.draft.experts.0.up_proj.weight", "is of experts with another router"),
            ("model.layers.1.mtp_block.mlp.experts.0.up_proj.weight", "is of experts with another router"),
        ],
    )
    def test_a_tensor_beside_the_experts_that_nobody_knows(self, refuse, home, key, says):
        """A table whose values are expert ids would go on naming the old ones."""
        for path in (home / "hf").glob("model*"):
            path.unlink()
        tensors = {**deepseek_v3(), key: tensor("I64", (8,), "table")}
        write_shard(home / "hf" / "model.safetensors", tensors)
        refuse(says)

    @pytest.mark.parametrize(
        ("key", "dtype", "shape"),
        [
            ("model.layers.1.mlp.gate.e_score_correction_bias", "F4", (4,)),
            ("model.layers.2.mlp.gate.weight", "F4", (4, 3)),
            ("model.layers.2.mlp.gate.weight", "F6_E2M3", (4, 2)),
        ],
    )
    def test_router_rows_that_are_no_whole_bytes(self, refuse, home, key, dtype, shape):
        """EP209 with the name: rows of half a byte would become none, and those of a byte and a half one."""
        for path in (home / "hf").glob("model*"):
            path.unlink()
        write_shard(home / "hf" / "model.safetensors", {**deepseek_v3(), key: tensor(dtype, shape, key)})
        refuse(repr(key), "is no number of whole bytes", code="EP209")

    def test_a_layer_without_a_router(self, refuse, home):
        """Or with one of another size."""
        for path in (home / "hf").glob("model*"):
            path.unlink()
        tensors = deepseek_v3()
        tensors["model.layers.2.mlp.gate.weight"] = tensor("BF16", (3, 4), "gate")
        write_shard(home / "hf" / "model.safetensors", tensors)
        refuse("'model.layers.2.mlp.gate.weight' has the shape [3, 4]")
        del tensors["model.layers.2.mlp.gate.weight"]
        write_shard(home / "hf" / "model.safetensors", tensors)
        refuse("there is no 'model.layers.2.mlp.gate.weight'")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", {"quantization_config": {"ignore": [r"re:.*experts\.[0-9]\.up_proj"]}}),
            ("hf_quant_config.json", {"exclude_modules": ["model.layers.2.mlp.experts.0*"]}),
        ],
    )
    def test_lists_that_name_experts(self, refuse, home, name, content):
        """What is left out of quantization, expert by expert."""
        path = home / "hf" / name
        known = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, {**known, **content})
        refuse(f"{name} names single experts")

    def test_lists_that_name_all_experts(self, eplb, home):
        """Patterns about all of them, or about shared ones, are right in any order; in kimi_k2 too."""
        ignored = ["re:.*shared_experts.*", "re:.*experts.*", r"re:.*experts\.[0-9]+\.up", "lm_head"]
        config = {"model_type": "kimi_k2", "num_hidden_layers": 3, "n_group": 1}
        write_json(home / "hf" / "config.json", {**config, "quantization_config": {"ignore": ignored}})
        result = eplb("bake", home / "hf", home / "out", "--placement", home / "new.json")
        assert result.code == 0, result.err
        assert read_files(home / "out")[0] == baked(deepseek_v3(), ORDER)

    def test_a_checkpoint_that_was_baked(self, eplb, bake, home):
        """Twice would leave an eplb.json that says half of it."""
        result = eplb("bake", bake(), home / "twice", "--placement", home / "new.json")
        assert_error(result, "EP226", "was baked already")


def test_rows_of_four_bits_that_are_whole_bytes(eplb, home):
    """An even number of them is moved like any other row."""
    tensors = deepseek_v3()
    key = "model.layers.1.mlp.gate.weight"
    tensors[key] = tensor("F4", (4, 6), key)
    for path in (home / "hf").glob("model*"):
        path.unlink()
    write_shard(home / "hf" / "model.safetensors", tensors)
    result = eplb("bake", home / "hf", home / "out", "--placement", home / "new.json")
    assert result.code == 0, result.err
    assert read_files(home / "out")[0] == baked(tensors, ORDER)


def test_stacked_rows_that_are_no_whole_bytes(eplb, tmp_path):
    """EP209 with the name, for `shard` as for `bake`."""
    key = "model.layers.0.mlp.experts.down_proj_bias"
    write_checkpoint(tmp_path / "hf", {**gpt_oss(), key: tensor("F4", (4, 3), key)}, "gpt_oss", 1)
    for command, *options in (("bake",), ("shard", "--engine", "huggingface")):
        arguments = (tmp_path / "hf", tmp_path / "out", "--placement", "linear", "--num-ranks", 2)
        result = eplb(command, *arguments, *options)
        assert_error(result, "EP209", "down_proj_bias", "is no number of whole bytes")
        assert not (tmp_path / "out").exists()
