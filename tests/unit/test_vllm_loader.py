"""What the loader for vLLM reads and refuses, decided on plain values: vLLM is not there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import eplb_cli
from eplb_cli.checkpoint.manifest import read_manifest
from eplb_cli.checkpoint.staged import WORK
from eplb_cli.engines.vllm.admit import admit, require_mapped
from eplb_cli.engines.vllm.current import CurrentMap
from eplb_cli.engines.vllm.engine import Engine, Layer, Parameter
from eplb_cli.engines.vllm.options import Options, read_options
from eplb_cli.engines.vllm.reading import KnownDigests, read_tensors
from eplb_cli.engines.vllm.tree import open_tree
from eplb_cli.errors import CODES, EplbError
from tests.cli.tree import NEW, OLD, placement, read_tree, stacked, tensor, write_json
from tests.support.vllm_trees import CONFIG, EMBED, FOUR, LINEAR, PLACED, ROWS, make, part_of

EMPTY = placement([[0, 1, 2, 3, -1, 1], [3, 2, 1, 0, 2, 3]])
MTP = placement([[3, 0, 2, 1], [0, 2, 1, 3], [1, 0, 3, 2]])


def engine_of(tree, rank=0, **changes):
    """What vLLM builds where all is well; changes to it, and to its layers."""
    content = tree.placement
    of_layer = {key: changes.pop(key) for key in list(changes) if key in Layer._fields}
    hidden, rows = tree.shards.config.num_hidden_layers, int(content.slots_per_rank[rank])
    numbers = [number for number in content.layer_ids.tolist() if number < hidden]
    fields = (content.num_ranks, rank, content.num_slots, content.num_logical_experts, rows)
    layers = [Layer(f"model.layers.{number}.mlp.experts", *fields)._replace(**of_layer) for number in numbers]
    beside = tuple(f"model.layers.{number}." for number in content.layer_ids.tolist() if number >= hidden)
    main = [(key, at) for key, at in tree.shards.tensors[rank].items() if not key.startswith(beside)]
    parameters = tuple(Parameter((key,), at.entry.dtype, at.entry.shape) for key, at in main)
    return replace(Engine(tuple(layers), parameters, CONFIG), **changes)


def refused(code, call, *arguments):
    """The error of a call that has to have one."""
    with pytest.raises(EplbError) as caught:
        call(*arguments)
    assert caught.value.code == code, caught.value
    assert code in CODES
    assert caught.value.hint
    return caught.value


@pytest.fixture
def tree(tmp_path):
    return open_tree(make(tmp_path))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_own_shard(tree, rank):
    """Every tensor of it once, in the order of the file, with the bytes that are there."""
    admitted = admit(tree, engine_of(tree, rank))
    assert admitted.rank == rank
    assert admitted.must_map
    assert admitted.table.tolist() == PLACED["physical_to_logical_map"]
    assert all(first.at.offset <= second.at.offset for first, second in pairwise(admitted.wanted))
    known = KnownDigests(tree, rank)
    found = {each.key: bytes(content) for each, content in read_tensors(tree, admitted.wanted, known)}
    there = read_tree(tree.shards.path)[f"model-rank-{rank}"]
    assert found == {key: at.data for key, at in there.items()}


def test_the_order_that_vllm_has_by_itself_needs_no_map(tmp_path):
    """So that kernels are no concern; with EPLB it is handed over nevertheless."""
    tree = open_tree(make(tmp_path, LINEAR))
    assert not admit(tree, engine_of(tree, why_not="monolithic")).must_map
    assert admit(tree, engine_of(tree, has_eplb=True)).must_map


def test_replicas(tmp_path):
    """They need EPLB with as many slots."""
    tree = open_tree(make(tmp_path, NEW))
    assert admit(tree, engine_of(tree, has_eplb=True)).must_map
    error = refused("EP234", admit, tree, engine_of(tree, num_slots=4, num_rows=2))
    assert """--enable-eplb --eplb-config '{"num_redundant_experts": 2}'""" in error.hint


@pytest.mark.parametrize(
    ("code", "says", "changes"),
    [
        ("EP234", "2 ranks, and vLLM was started with 4 expert-parallel ranks", {"num_ranks": 4}),
        ("EP234", "2 ranks, and vLLM was started with 1 ", {"num_ranks": 1}),
        ("EP234", "4 experts, and vLLM was started with 5", {"num_experts": 5}),
        ("EP234", "4 slots a layer, and vLLM was started with 6", {"num_slots": 6}),
        ("EP234", "rank 0, has 2 slots a layer, and vLLM was started with 3", {"num_rows": 3}),
        ("EP234", "2 pipeline stages", {"num_stages": 2}),
        ("EP235", "place experts by round_robin", {"strategy": "round_robin"}),
        ("EP235", "model.layers.3.mlp.experts: monolithic", {"why_not": "monolithic"}),
        ("EP235", "elastic", {"is_elastic": True}),
        ("EP235", "does not know such a model", {"has_eplb": True, "can_have_eplb": False}),
        ("EP236", "without experts", {"layers": ()}),
        (
            "EP212",
            "no experts for vLLM's layer 'model.layers.7.mlp.experts'",
            {"name": "model.layers.7.mlp.experts"},
        ),
        ("EP236", "config with num_hidden_layers 6", {"config": {**CONFIG, "num_hidden_layers": 6}}),
        ("EP236", "config with num_logical_experts 8", {"config": {**CONFIG, "n_routed_experts": 8}}),
    ],
)
def test_what_does_not_fit(tree, code, says, changes):
    """Is refused before a weight is read, by what vLLM has built alone."""
    assert says in refused(code, admit, tree, engine_of(tree, **changes)).message


def test_expert_parallelism_that_is_off(tree):
    """Is what one rank instead of several means."""
    assert "--enable-expert-parallel" in refused("EP234", admit, tree, engine_of(tree, num_ranks=1)).hint


def test_an_empty_slot(tmp_path):
    """VLLM has no word for it."""
    tree = open_tree(make(tmp_path, EMPTY))
    error = refused("EP235", admit, tree, engine_of(tree, has_eplb=True))
    assert "layer 3, slot 4 is empty" in error.message


def test_a_layer_without_a_map(tmp_path):
    """Of two layers the placement names one."""
    one = placement([[0, 1, 2, 3]])
    tree = open_tree(make(tmp_path, one, one, ranks=stacked(LINEAR)))
    layers = tuple(Layer(f"model.layers.{number}.mlp.experts", 2, 0, 4, 4, 2) for number in (3, 4))
    assert (
        "no map for vLLM's layer 'model.layers.4.mlp.experts'"
        in refused("EP212", admit, tree, engine_of(tree, layers=layers)).message
    )


def test_a_kernel_that_is_chosen_late(tree):
    """Is asked again."""
    layer = engine_of(tree).layers[0]
    require_mapped(layer)
    refused("EP235", require_mapped, layer._replace(why_not="its kernel routes by itself"))


def changed(engine, key, **changes):
    """A parameter that is otherwise."""
    parameters = [each._replace(**changes) if key in each.names else each for each in engine.parameters]
    return replace(engine, parameters=tuple(parameters))


def test_tensors_have_to_be_those_of_the_model(tree):
    """None is missing, none is left over, and shapes and dtypes are the same."""
    good = engine_of(tree)
    lost = replace(good, parameters=tuple(each for each in good.parameters if EMBED not in each.names))
    assert "the model has no such tensor" in refused("EP236", admit, tree, lost).message
    more = replace(good, parameters=(*good.parameters, Parameter(("lm_head.weight",), "BF16", (8, 3))))
    assert "'lm_head.weight' of the model is not in" in refused("EP236", admit, tree, more).message
    assert "wants BF16 [4, 3]" in refused("EP236", admit, tree, changed(good, EMBED, shape=(4, 3))).message
    assert "wants I8" in refused("EP236", admit, tree, changed(good, EMBED, dtype="I8")).message
    refused("EP236", admit, tree, changed(good, ROWS, shape=(2, 3, 2), has_loader=True))
    assert "quantise" in refused("EP236", admit, tree, changed(good, EMBED, is_real=False)).message


def test_names_and_dtypes_that_are_as_good(tree):
    """A tensor of two names is read once; vLLM may keep plain numbers as another dtype."""
    engine = changed(engine_of(tree), EMBED, names=("lm_head.weight", EMBED), dtype="F32")
    assert EMBED in {each.key for each in admit(tree, engine).wanted}


def test_whole_tensors_are_cut_by_vllm(tree):
    """Where the parameter can do that: tensor parallelism besides expert parallelism."""
    engine = changed(engine_of(tree), EMBED, shape=(4, 3), has_loader=True)
    whole = {each.key for each in admit(tree, engine).wanted if each.is_whole}
    assert whole == {EMBED}


def test_slices_are_not_cut_again(tmp_path):
    """Each rank has half of the vocabulary: only the tensor parallelism that it was saved with loads it."""
    ranks = stacked(LINEAR)
    for rank in ranks:
        rank[EMBED] = tensor("BF16", (4, 3), "half")
    tree = open_tree(make(tmp_path, PLACED, LINEAR, ranks=ranks))
    admit(tree, engine_of(tree))
    refused("EP236", admit, tree, changed(engine_of(tree), EMBED, shape=(2, 3), has_loader=True))


def test_layers_of_mtp(tmp_path):
    """They are in DST and in its map, and not the main model's."""
    old = placement([[0, 1, 2, 3]] * 3)
    ranks = stacked(old)
    for rank in ranks:
        rank["model.layers.5.eh_proj.weight"] = tensor("BF16", (3, 6), "eh")
    tree = open_tree(make(tmp_path, MTP, old, ranks=ranks))
    admitted = admit(tree, engine_of(tree))
    assert admitted.layers == (0, 1)
    assert not any(".5." in each.key for each in admitted.wanted)


def flip(path, key):
    """Change the last byte of a tensor."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + json.loads(content[8:start])[key]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("key", "code", "says"), [(ROWS, "EP501", "row 1"), (EMBED, "EP504", EMBED)])
def test_digests_are_compared_while_loading(tmp_path, key, code, says):
    """What was changed since is named; without being asked nothing is compared."""
    dst = make(tmp_path)
    flip(dst / "model-rank-0-part-0.safetensors", key)
    tree = open_tree(dst)
    wanted = admit(tree, engine_of(tree)).wanted
    assert len(list(read_tensors(tree, wanted, None))) == len(wanted)
    assert says in refused(code, lambda: list(read_tensors(tree, wanted, KnownDigests(tree, 0)))).message


def test_there_have_to_be_digests_to_compare_with(tmp_path):
    """Being asked for a comparison that cannot be made is an error."""
    tree = open_tree(make(tmp_path, digests=False))
    refused("EP214", KnownDigests, tree, 0)


def test_a_file_that_changes_meanwhile(tree):
    """Is not the one whose header was read."""
    wanted = admit(tree, engine_of(tree)).wanted
    with (tree.shards.path / "model-rank-0-part-0.safetensors").open("ab") as file:
        file.write(b"x")
    refused("EP220", lambda: list(read_tensors(tree, wanted, None)))


def cut(dst, rank=1):
    path = dst / f"model-rank-{rank}-part-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def other_header(dst, rank=1):
    path = dst / f"model-rank-{rank}-part-0.safetensors"
    path.write_bytes(path.read_bytes().replace(f'"eplb.rank":"{rank}"'.encode(), b'"eplb.rank":"0"'))


def other_map(dst):
    """A manifest that is whole, with the map of another tree."""
    manifest = read_manifest(dst)
    assert manifest is not None
    (dst / "eplb.json").write_bytes(replace(manifest, placement=LINEAR).to_bytes())


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (cut, "EP203"),
        (other_header, "EP506"),
        (other_map, "EP506"),
        (lambda dst: write_json(dst / "config.json", {**CONFIG, "vocab_size": 9}), "EP506"),
        (lambda dst: (dst / "eplb.json").unlink(), "EP214"),
        (lambda dst: write_json(dst / "eplb.json", {"format": "eplb-baked/1"}), "EP214"),
        (lambda dst: (dst / "eplb.json").write_text("{}"), "EP214"),
        (shutil.rmtree, "EP201"),
    ],
)
def test_a_tree_that_does_not_fit_its_manifest(tmp_path, damage, code):
    """Names, sizes, headers, config.json and the manifest itself."""
    dst = make(tmp_path)
    damage(dst)
    refused(code, open_tree, dst)


class TestPart:
    """Of several hosts each has the shards of its own ranks; here those of ranks 2 and 3 of four."""

    @pytest.fixture
    def whole(self, tmp_path):
        big = [{**rank, "model.big.weight": tensor("U8", (1 << 20,), "big")} for rank in stacked(OLD)]
        dst = make(tmp_path, FOUR, ranks=big)
        assert len(list(dst.glob("model-rank-3-part-*"))) == 2
        return dst

    @pytest.fixture
    def part(self, whole, tmp_path):
        return part_of(whole, tmp_path / "host", {2, 3})

    @pytest.mark.parametrize("ranks", [{2, 3}, {0, 2}, {2}, {1, 2, 3}])
    def test_a_rank_reads_its_own_shard(self, whole, tmp_path, ranks):
        """As out of the whole tree, whatever other ranks are there."""
        trees = [open_tree(whole), open_tree(part_of(whole, tmp_path / "host", ranks))]
        engine = engine_of(trees[0], 2, has_eplb=True)
        read = []
        for tree in trees:
            admitted = admit(tree, engine)
            assert admitted.table.tolist() == FOUR["physical_to_logical_map"]
            known = KnownDigests(tree, 2)
            read.append({at.key: bytes(there) for at, there in read_tensors(tree, admitted.wanted, known)})
        assert read[0] == read[1]
        assert len(read[0]) == len(engine.parameters)

    @pytest.mark.parametrize(
        ("ranks", "rank", "says"),
        [({2, 3}, 1, "ranks 2-3 of 4"), ({0, 2}, 3, "ranks 0,2 of 4"), ({3}, 0, "rank 3 of 4")],
    )
    def test_a_rank_of_another_host(self, whole, tmp_path, ranks, rank, says):
        """Is told which ranks are here."""
        engine = engine_of(open_tree(whole), rank, has_eplb=True)
        tree = open_tree(part_of(whole, tmp_path / "host", ranks))
        error = refused("EP202", admit, tree, engine)
        assert error.message == f"{tree.shards.path} on this host has {says}, and this process is rank {rank}"
        assert "the DST of another host" in error.hint

    def test_other_numbers_than_all_ranks_have(self, part, whole):
        """Are refused as for the whole tree: the placement is that of all ranks."""
        engine = engine_of(open_tree(whole), 2, has_eplb=True, num_ranks=2)
        assert (
            "has 4 ranks, and vLLM was started with 2"
            in refused("EP234", admit, open_tree(part), engine).message
        )

    @pytest.mark.parametrize(("number", "code"), [(0, "EP202"), (1, "EP506")])
    def test_half_a_rank(self, part, number, code):
        """Is no part, whether its rows are gone or what it shares with other ranks."""
        (part / f"model-rank-3-part-{number}.safetensors").unlink()
        refused(code, open_tree, part)

    def test_no_shard(self, part):
        """A directory that has only what all hosts have."""
        refused("EP201", open_tree, part_of(part, part.parent / "none", ()))

    def test_what_says_which_ranks_there_are(self, part, whole, tmp_path):
        """Without eplb.json nothing does."""
        (part / "eplb.json").unlink()
        refused("EP202", open_tree, part)
        first = part_of(whole, tmp_path / "first", {0, 1})
        (first / "eplb.json").unlink()
        refused("EP214", open_tree, first)

    def test_a_run_that_is_not_finished(self, part):
        """A host that was lost after the agreement has its part in staging still."""
        (part / WORK).mkdir()
        refused("EP233", open_tree, part)

    @pytest.mark.parametrize(
        ("damage", "code"),
        [
            (lambda dst: (dst / "eplb.json").write_text("{}"), "EP214"),
            (lambda dst: write_json(dst / "config.json", {**CONFIG, "vocab_size": 9}), "EP506"),
            (lambda dst: other_header(dst, 2), "EP506"),
            (other_map, "EP506"),
            (lambda dst: cut(dst, 3), "EP203"),
            (
                lambda dst: shutil.copy(
                    dst / "model-rank-3-part-0.safetensors", dst / "model-rank-4-part-0.safetensors"
                ),
                "EP506",
            ),
        ],
    )
    def test_files_that_are_not_those_of_the_manifest(self, part, damage, code):
        """What is there is compared as in a whole tree."""
        damage(part)
        refused(code, open_tree, part)

    @pytest.mark.parametrize(("number", "key", "code"), [(0, ROWS, "EP501"), (1, EMBED, "EP504")])
    def test_digests(self, part, whole, number, key, code):
        """Of the rank itself, though all ranks that are there have closed up."""
        engine = engine_of(open_tree(whole), 3, has_eplb=True)
        flip(part / f"model-rank-3-part-{number}.safetensors", key)
        tree = open_tree(part)
        wanted = admit(tree, engine).wanted
        refused(code, lambda: list(read_tensors(tree, wanted, KnownDigests(tree, 3))))

    def test_slices_are_not_cut_again(self, tmp_path):
        """Those of one rank do not show it: all ranks together have the vocabulary."""
        old = placement([[0, 1, 2, 3]] * 2, 4)
        ranks = stacked(old)
        for rank in ranks:
            rank[EMBED] = tensor("BF16", (2, 3), "a fourth")
        engine = engine_of(open_tree(whole := make(tmp_path, old, old, ranks=ranks)), 3)
        tree = open_tree(part_of(whole, tmp_path / "host", {3}))
        admit(tree, engine)
        refused("EP236", admit, tree, changed(engine, EMBED, shape=(1, 3), has_loader=True))


def test_staging_is_not_dst(tmp_path):
    """Whatever is in it: it may be gone, or be DST, at any moment."""
    dst = make(tmp_path)
    staging = dst.rename(tmp_path / ".dst.eplb-staging")
    assert "staging directory" in refused("EP214", open_tree, staging).message


def test_options(tmp_path):
    """A file for the map, and a variable; whatever else is said is a mistake."""
    assert read_options({}, {}) == Options()
    path = tmp_path / "now.json"
    assert read_options({"current_map": str(path)}, {"EPLB_VERIFY": "1"}) == Options(True, path)
    assert "no 'pattern'" in refused("EP001", read_options, {"pattern": "x"}, {}).message
    refused("EP001", read_options, {"current_map": 1}, {})
    refused("EP001", read_options, {}, {"EPLB_VERIFY": "yes"})
    refused("EP604", read_options, {"current_map": str(tmp_path)}, {})


def test_the_current_map(tmp_path):
    """EPLB reads it as any placement; layers that vLLM does not have stay as they are in DST."""
    old = placement([[0, 1, 2, 3]] * 3)
    tree = open_tree(make(tmp_path, MTP, old))
    current = CurrentMap(tmp_path / "now.json", tree.placement, (0, 1))

    def written():
        current.write()
        found, warnings = eplb_cli.read_placement(tmp_path / "now.json")
        assert [found.layer_number(index) for index in range(3)] == [3, 4, 5]
        assert not warnings
        return found.physical_to_logical.tolist()

    assert written() == MTP["physical_to_logical_map"]
    current.rearrange(np.array([[0, 1, 2, 3], [3, 2, 1, 0]]))
    assert written() == [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]]
    current.rearrange(np.array([[2, 3, 0, 1]]), slice(1, 2))
    assert written() == [[0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2]]
