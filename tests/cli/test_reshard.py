"""`eplb reshard` on good input: what comes out, whatever the layout and the placements."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.cli.tree import (
    KINDS,
    NEW,
    OLD,
    STACKED_NAME,
    Kinds,
    fingerprint,
    placement,
    read_shard,
    read_tree,
    singles,
    stacked,
    tensor,
    write_shard,
    write_tree,
)

DATA = Path(__file__).parent.parent / "data"
REPORT_KEYS = ["format", "totals", "ranks", "traffic"]
KINDS_OF_MOVES = ("unchanged", "local", "remote", "duplicate", "empty")
RUN_KEYS = [
    *("backend", "wire_bytes", "seconds", "stage_bytes", "bound_by", "busy", "exchange_hidden"),
    *("buffer_bytes", "threads", "peak_rss_bytes", "peak_anonymous_bytes", "linked_bytes"),
    *("verified", "output", "serving", "misread", "warnings"),
]


def ranks_of(path):
    """The tensors of each rank of a tree."""
    return list(read_tree(path).values())


def rotated(num_ranks, num_slots):
    """4 experts over any number of slots and ranks, another order in each layer."""
    rows = [[(slot + layer) % 4 for slot in range(num_slots)] for layer in (1, 3)]
    return placement(rows, num_ranks)


class TestPlacements:
    def test_the_shards_are_those_of_the_new_placement(self, case):
        """Every tensor of every rank is what it would have been under NEW from the start."""
        before = fingerprint(case.src)
        case.reshard()
        assert ranks_of(case.dst) == stacked(NEW)
        assert fingerprint(case.src) == before

    @pytest.mark.parametrize(
        "new",
        [rotated(1, 4), rotated(1, 6), rotated(2, 4), rotated(3, 6), rotated(4, 4), rotated(6, 12)],
        ids=lambda new: f"{new['num_ranks']} ranks, {len(new['physical_to_logical_map'][0])} slots",
    )
    def test_other_ranks_and_slots(self, case, new):
        """Ranks and slots per rank may both change, up and down, trap 11 of the reference."""
        case.new(new)
        case.reshard()
        assert ranks_of(case.dst) == stacked(new)

    def test_empty_slots(self, case):
        """Zeros, in every tensor; an empty slot of OLD is never a source."""
        old = placement([[0, 1, 2, 3, -1, 1], [3, -1, 1, 0, 2, 3]])
        new = placement([[-1, 0, 1, -1, 2, 3], [0, 1, 2, 3, -1, -1]])
        case.write(stacked(old))
        case.old(old)
        case.new(new)
        case.reshard()
        assert ranks_of(case.dst) == stacked(new)

    def test_uneven_ranks(self, case):
        """From equal ranks to unequal ones, one of them without a slot, and back."""
        uneven = {**NEW, "num_ranks": 3, "slots_per_rank": [4, 0, 2]}
        case.new(uneven)
        case.reshard()
        assert ranks_of(case.dst) == stacked(uneven)
        case.reshard(src=case.dst, dst=case.home / "back", old=None, new=case.old(OLD))
        assert ranks_of(case.home / "back") == stacked(OLD)

    def test_an_embedding_without_a_dimension(self, case):
        """A tensor may be called anything: one number, where others have the embedding of every token."""
        ranks = stacked(OLD)
        for tensors in ranks:
            tensors["model.embed_tokens.weight"] = tensor("BF16", (), "embed")
        case.write(ranks)
        (case.src / "config.json").write_text(json.dumps({"model_type": "test", "vocab_size": 8}))
        case.reshard()

    def test_named_maps(self, case):
        """`linear` and `round_robin` take ranks, experts and layers from the shards."""
        linear = placement([[0, 1, 2, 3, 4, 5]] * 2)
        robin = placement([[0, 2, 4, 1, 3, 5]] * 2)
        case.write(stacked(linear))
        case.reshard(old="linear", new="round_robin")
        assert ranks_of(case.dst) == stacked(robin)
        case.reshard("--num-ranks", 3, src=case.dst, dst=case.home / "third", old=None, new="linear")
        assert ranks_of(case.home / "third") == stacked(placement([[0, 1, 2, 3, 4, 5]] * 2, 3))

    def test_a_named_map_with_redundant_experts(self, case):
        """VLLM's own start: as OLD, and as NEW from a map without."""
        redundant = placement([[0, 1, 2, 3, 0, 1]] * 2)
        plain = placement([[0, 1, 2, 3]] * 2)
        case.write(stacked(redundant))
        case.new(plain)
        case.reshard("--num-redundant-experts", 2, old="linear")
        assert ranks_of(case.dst) == stacked(plain)
        options = ("--num-redundant-experts", 2)
        case.reshard(*options, src=case.dst, dst=case.home / "again", old=None, new="linear")
        assert ranks_of(case.home / "again") == stacked(redundant)
        both = ("--num-logical-experts", 4, *options)
        case.reshard(*both, src=case.dst, dst=case.home / "both", old="linear", new="linear")
        assert ranks_of(case.home / "both") == stacked(redundant)

    def test_there_and_back(self, case):
        """eplb.json says OLD the second time, and the rows come back byte for byte."""
        case.reshard()
        case.new(rotated(4, 8))
        case.reshard(src=case.dst, dst=case.home / "second", old=None)
        case.reshard(src=case.home / "second", dst=case.home / "third", old=None, new=case.old(OLD))
        assert ranks_of(case.home / "third") == ranks_of(case.src) == stacked(OLD)

    def test_the_senders_do_not_change_the_bytes(self, case):
        """`--senders vllm` and `balanced` give the same files; only the manifest says which it was."""
        case.reshard()
        case.reshard("--senders", "vllm", "--ranks-per-node", 1, dst=case.home / "other")
        first, second = fingerprint(case.dst), fingerprint(case.home / "other")
        assert {name for name in first if first[name][2] != second[name][2]} == {"eplb.json"}


class TestTensors:
    def test_layers_that_differ(self, case):
        """Another dtype, size or tensor in a later layer, trap 5 of the reference."""
        later_kinds: Kinds = {"w13_weight": ("BF16", (4, 3)), "w2_weight": ("I64", (70, 100))}

        def shards(content):
            ranks = stacked({**content, "layer_ids": [3], **layer(content, 0)}, KINDS)
            later = stacked({**content, "layer_ids": [4], **layer(content, 1)}, later_kinds)
            return [{**a, **b} for a, b in zip(ranks, later, strict=True)]

        def layer(content, number):
            return {"physical_to_logical_map": [content["physical_to_logical_map"][number]]}

        case.write(shards(OLD))
        case.reshard()
        assert ranks_of(case.dst) == shards(NEW)

    @pytest.mark.parametrize("dtype", ["F4", "BOOL", "U8", "F8_E4M3", "I64"])
    def test_any_dtype(self, case, dtype):
        """Bytes are moved and never looked at."""
        kinds = {"w13_weight": (dtype, (2, 6)), "w2_weight": (dtype, (2,))}
        case.write(stacked(OLD, kinds))
        case.reshard()
        assert ranks_of(case.dst) == stacked(NEW, kinds)

    def test_unplaced_layers_stay(self, case):
        """An MTP layer that the placements do not name stays where it is while ranks and slots do."""
        mtp = placement([*OLD["physical_to_logical_map"], [0, 1, 2, 3, 2, 1]], layer_ids=[3, 4, 61])
        case.write(stacked(mtp))
        case.reshard()
        expected = stacked(
            {**mtp, "physical_to_logical_map": [*NEW["physical_to_logical_map"], [0, 1, 2, 3, 2, 1]]}
        )
        assert ranks_of(case.dst) == expected

    def test_input_scales(self, case):
        """Moved with one value for each row, left with one value that all ranks have alike."""
        rows = {**KINDS, "w13_input_scale": ("F32", ())}
        left = "model.layers.3.mlp.experts.w2_input_scale"

        def shards(content):
            ranks = stacked(content, rows)
            for tensors in ranks:
                tensors[left] = tensor("F32", (), "scale of all ranks")
            return ranks

        case.write(shards(OLD))
        case.reshard()
        assert ranks_of(case.dst) == shards(NEW)

    def test_newer_names(self, case):
        """`.routed_experts.`, other blocks and a language model's prefix."""
        for number, prefix in enumerate(
            [
                "model.layers.{layer}.mlp.experts.routed_experts",
                "language_model.model.layers.{layer}.feed_forward.experts",
                "model.layers.{layer}.block_sparse_moe.experts",
            ]
        ):
            case.write(stacked(OLD, prefix=prefix))
            case.reshard(dst=case.home / str(number))
            assert ranks_of(case.home / str(number)) == stacked(NEW, prefix=prefix)

    def test_each_rank_keeps_its_own(self, case):
        """With as many ranks as before, other tensors may differ from rank to rank."""
        case.write(stacked(OLD, shared=False))
        case.reshard()
        assert ranks_of(case.dst) == stacked(NEW, shared=False)


class TestLayouts:
    KINDS = {"w1.weight": ("BF16", (2, 3)), "w1.scale": ("F32", (1, 1)), "w2.weight": ("U8", (5,))}  # noqa: RUF012
    ROW_KINDS = {  # noqa: RUF012
        "w1.weight": ("BF16", (2, 3)),
        "w1.input_scale": ("F32", ()),
        "w2.weight": ("U8", (5,)),
    }

    def test_the_key_has_the_row(self, case):
        """per-row: keys stay, bytes move."""
        key = "model.layers.{layer}.mlp.experts.{row}.{tensor}"
        case.write(singles(OLD, self.ROW_KINDS, key))
        case.reshard()
        assert ranks_of(case.dst) == singles(NEW, self.ROW_KINDS, key)

    def test_the_key_has_the_expert(self, case):
        """deepseek: keys are renamed to what NEW says, empty slots have none, and files have the new R."""
        key = "layers.{layer}.ffn.experts.{expert}.{tensor}"
        name = "model{rank}-mp{world}.safetensors"
        old, new = (
            placement([[0, 1, 2, 3], [3, 2, 1, 0]]),
            placement([[3, 2, -1, 1, 0, -1], [0, 1, 2, -1, 3, 0]], 3),
        )
        case.write(singles(old, self.KINDS, key), name=name)
        case.old(old)
        case.new(new)
        case.reshard()
        assert ranks_of(case.dst) == singles(new, self.KINDS, key)
        assert [file.name for file in sorted(case.dst.glob("*.safetensors"))] == [
            f"model{rank}-mp3.safetensors" for rank in range(3)
        ]

    def test_a_layout_file(self, case):
        """A layout of one's own; the tree says it itself afterwards."""
        layout = case.home / "mine.toml"
        layout.write_text("""
format = "eplb-layout/1"
name = "mine"
files = ["shard_{rank}.safetensors"]
experts = ["blocks.{layer}.moe.{tensor}"]
tensors = ["up", "down"]
others = ["router.*"]
""")
        kinds = {"up": ("U8", (2,)), "down": ("U8", (3,))}
        case.write(stacked(OLD, kinds, prefix="blocks.{layer}.moe"), name="shard_{rank}.safetensors")
        for file in case.src.glob("*.safetensors"):
            tensors = {key: at for key, at in read_shard(file).items() if "experts" not in key}
            write_shard(file, tensors | {"blocks.3.moe.router.bias": tensor("F32", (4,), "")})
        case.reshard("--layout", layout)
        layout.unlink()
        assert case.eplb("verify", case.dst, "--against", case.src).code == 0
        case.reshard(src=case.dst, dst=case.home / "back", old=None, new=case.old(OLD))
        assert ranks_of(case.home / "back") == ranks_of(case.src)

    def test_a_layout_by_name(self, case):
        """As with auto."""
        case.reshard("--layout", "sharded-state")
        assert ranks_of(case.dst) == stacked(NEW)

    def test_stages_of_a_pipeline(self, case):
        """`model-pp-...` files: each stage has its layers on every rank, and keeps its files."""
        name = "model-pp-{stage}-tp-{rank}-part-0.safetensors"
        for rank, tensors in enumerate(stacked(OLD)):
            case.file(rank).unlink()
            for stage, layer in enumerate(("layers.3.", "layers.4.")):
                mine = {
                    key: at
                    for key, at in tensors.items()
                    if (layer in key) or (not stage and "layers" not in key)
                }
                write_tree(case.src, [mine], name=name.format(stage=stage, rank=rank))
        case.reshard()
        assert {file.name for file in case.dst.glob("*.safetensors")} == {
            name.format(stage=stage, rank=rank) for stage in (0, 1) for rank in (0, 1)
        }
        merged = [
            {key: at for file in case.dst.glob(f"*-tp-{rank}-*") for key, at in read_shard(file).items()}
            for rank in (0, 1)
        ]
        assert merged == stacked(NEW)


class TestFiles:
    def test_several_parts(self, case):
        """All parts of a shard belong together; so little needs one part in DST."""
        case.write(stacked(OLD), parts=4)
        case.reshard()
        assert ranks_of(case.dst) == stacked(NEW)
        assert len(list(case.dst.glob("*.safetensors"))) == 2

    def test_large_shards_are_split(self, case, monkeypatch):
        """A new part starts where a file would grow too large, if the layout's names have parts."""
        monkeypatch.setattr("eplb_cli.output.tree.MAX_PART_NBYTES", 100)
        case.reshard()
        assert len(list(case.dst.glob("*.safetensors"))) > 4
        assert ranks_of(case.dst) == stacked(NEW)
        assert case.eplb("verify", case.dst, "--against", case.src).code == 0

    def test_large_shards_of_a_layout_without_parts(self, case, monkeypatch):
        """Each rank has one file however large, because its name has no room for a part."""
        monkeypatch.setattr("eplb_cli.output.tree.MAX_PART_NBYTES", 10)
        kinds, key = TestLayouts.KINDS, "layers.{layer}.ffn.experts.{expert}.{tensor}"
        old, new = placement([[0, 1, 2, 3], [3, 2, 1, 0]]), placement([[3, 2, 1, 0], [0, 1, 2, 3]])
        case.write(singles(old, kinds, key), name="model{rank}-mp{world}.safetensors")
        case.old(old)
        case.new(new)
        case.reshard()
        assert ranks_of(case.dst) == singles(new, kinds, key)

    def test_what_is_carried_along(self, case):
        """Config and tokenizer files, byte for byte; but no index, and no hidden files or folders."""
        carried = {"tokenizer.json": os.urandom(3 << 20), "tokenizer_config.json": b"", "merges.txt": b"a b"}
        for name, content in carried.items():
            (case.src / name).write_bytes(content)
        (case.src / "model.safetensors.index.json").write_text("{}")
        (case.src / ".hidden").touch()
        (case.src / "folder").mkdir()
        case.reshard()
        for name, content in carried.items():
            assert (case.dst / name).read_bytes() == content
        assert sorted(file.name for file in case.dst.iterdir()) == sorted(
            [
                *carried,
                "config.json",
                "eplb.json",
                *(f"eplb-digests-rank-{rank}.npy" for rank in (0, 1)),
                *(STACKED_NAME.format(rank=rank, part=0) for rank in (0, 1)),
            ]
        )
        case.reshard("--copy", src=case.dst, dst=case.home / "again", old=None)
        assert (case.home / "again" / "tokenizer.json").read_bytes() == carried["tokenizer.json"]

    @pytest.mark.parametrize(
        ("mask", "file_mode", "directory_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
    )
    def test_modes_are_what_the_umask_says(self, case, mask, file_mode, directory_mode):
        """For every file and the directory itself."""
        before = os.umask(mask)
        try:
            case.reshard()
        finally:
            os.umask(before)
        assert {stat.S_IMODE(file.stat().st_mode) for file in case.dst.iterdir()} == {file_mode}
        assert stat.S_IMODE(case.dst.stat().st_mode) == directory_mode

    def test_the_safetensors_library_reads_them(self, case):
        """Data starts on a page, and the metadata says rank and placement."""
        case.reshard()
        for rank in (0, 1):
            file = case.dst / STACKED_NAME.format(rank=rank, part=0)
            with safe_open(file, "numpy") as opened:
                assert set(opened.keys()) == set(stacked(NEW)[rank])
                assert opened.metadata()["eplb.rank"] == str(rank)
                expected = stacked(NEW)[rank]["model.layers.3.mlp.experts.w2_weight_scale_inv"].data
                assert (
                    opened.get_tensor("model.layers.3.mlp.experts.w2_weight_scale_inv").tobytes() == expected
                )
            assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 4096 == 0

    def test_a_row_of_no_bytes(self, case):
        """A tensor without bytes is written, with as many rows as NEW says."""
        kinds = {**KINDS, "w13_bias": ("BF16", (0,))}
        case.write(stacked(OLD, kinds))
        case.new(rotated(2, 8))
        case.reshard()
        assert ranks_of(case.dst) == stacked(rotated(2, 8), kinds)


class TestManifest:
    def test_its_keys(self, case):
        """The design's keys, and what was added: carried and digest files, options, its own digest."""
        case.reshard("--no-fsync")
        content = json.loads((case.dst / "eplb.json").read_text())
        design = (
            "format tool placement source_placement senders layout plan_digest expert_tensors files serving"
        )
        assert set(content) == {
            *design.split(),
            "ranks_per_node",
            "carried",
            "digests",
            "options",
            "engine",
            "decisions",
            "digest",
        }
        assert content["decisions"] == {}
        assert content["format"] == "eplb-checkpoint/1"
        assert content["placement"]["physical_to_logical_map"] == NEW["physical_to_logical_map"]
        assert content["source_placement"]["physical_to_logical_map"] == OLD["physical_to_logical_map"]
        assert content["options"] == {"digests": True, "verified": True, "fsync": False}
        file = content["files"]["model-rank-0-part-0.safetensors"]
        assert set(file) == {"nbytes", "header_digest", "others"}
        header = (case.dst / "model-rank-0-part-0.safetensors").read_bytes()[:4096]
        assert file["header_digest"] == hashlib.sha256(header).hexdigest()

    def test_row_digests(self, case):
        """uint8 (L, K, S, 16) for each rank; replicas have one digest."""
        case.reshard()
        digests = np.load(case.dst / "eplb-digests-rank-0.npy", allow_pickle=False)
        assert (digests.dtype, digests.shape) == (np.uint8, (2, 4, 3, 16))
        assert (digests[0, :, 1] == digests[0, :, 2]).all()
        assert (digests[0, :, 0] != digests[0, :, 1]).any()

    def test_what_was_switched_off(self, case):
        """Recorded, and not verified."""
        result = case.reshard("--no-verify", "--format", "json")
        assert result.json["verified"] is False
        result = case.reshard("--no-digest", "--format", "json", dst=case.home / "other")
        assert result.json["verified"] is False
        options = json.loads((case.home / "other" / "eplb.json").read_text())["options"]
        assert options == {"digests": False, "verified": False, "fsync": True}


class TestReport:
    def test_the_keys_of_a_run(self, case):
        """Those of the design, in its order."""
        found = case.reshard("--format", "json").json
        assert list(found) == REPORT_KEYS + RUN_KEYS
        assert found["format"] == "eplb-report/1"
        assert list(found["totals"]) == [
            *(f"{kind}_bytes" for kind in (*KINDS_OF_MOVES, "cross_node", "other", "output")),
            *(f"{kind}_rows" for kind in KINDS_OF_MOVES),
            "busiest_sender_bytes",
            "busiest_sender_bound_bytes",
            "cross_node_bound_bytes",
        ]  # fmt: skip
        assert list(found["ranks"][0]) == [
            "rank",
            *(f"{kind}_bytes" for kind in ("sent", "received", "local", "duplicate", "unchanged")),
            "sent_rows",
            "received_rows",
        ]
        assert (found["backend"], found["wire_bytes"], found["verified"]) == ("file", 0, True)
        assert found["output"] == str(case.dst)
        assert found["seconds"]["total"] > 0
        assert len(found["peak_rss_bytes"]) == 1

    def test_the_numbers_of_a_run(self, case):
        """They add up, and to what is on disk."""
        found = case.reshard("--format", "json").json
        totals, row_nbytes, kinds = found["totals"], 24 + 8 + 12 + 4, KINDS_OF_MOVES
        assert sum(totals[f"{kind}_rows"] for kind in kinds) == 12
        assert all(totals[f"{kind}_bytes"] == totals[f"{kind}_rows"] * row_nbytes for kind in kinds)
        assert totals["output_bytes"] == sum(file.stat().st_size for file in case.dst.glob("*.safetensors"))
        assert totals["other_bytes"] == 244
        for rank in (0, 1):
            sent = [entry[2] for entry in found["traffic"] if entry[0] == rank]
            assert sum(sent) == found["ranks"][rank]["sent_bytes"]

    def test_a_dry_run_writes_nothing(self, case):
        """The report of a plan, with sizes; DST is checked all the same."""
        before = fingerprint(case.home)
        found = case.reshard("--dry-run", "--format", "json").json
        assert list(found) == REPORT_KEYS
        assert fingerprint(case.home) == before
        run = case.reshard("--format", "json").json
        assert {key: run[key] for key in REPORT_KEYS} == found
        case.refuse("EP601", exit_code=6, options=("--dry-run",))

    def test_a_plan_with_the_checkpoint_says_the_same(self, case):
        """`eplb plan --checkpoint` and `reshard --dry-run` are one plan."""
        plan = case.eplb(
            "plan",
            case.home / "old.json",
            case.home / "new.json",
            "--checkpoint",
            case.src,
            "--format",
            "json",
        )
        assert plan.json == case.reshard("--dry-run", "--format", "json").json

    def test_stdout_is_the_result_and_nothing_else(self, case):
        """Progress and warnings are on stderr."""
        result = case.reshard("--format", "json")
        assert json.loads(result.out)
        assert result.err.startswith("file: ")

    def test_the_page(self, case):
        """Proof, serving, and what an engine would misread are said in words."""
        out = " ".join(case.reshard().out.split())
        assert "12 of 12 rows proved against SRC" in out
        assert "--load-format eplb" in out
        assert "misread without an error - vLLM: --load-format sharded_state would load" in out


@pytest.mark.parametrize("name", ["eplb-replicas", "uneven-ranks"])
def test_shards_that_vllm_wrote(case, name):
    """Every tensor of every rank is as vLLM itself has it afterwards."""
    home = DATA / name
    case.reshard(src=home / "src", old=home / "old.json", new=home / "new.json")
    expected = json.loads((home / "expected.json").read_text())
    found = {
        str(rank): {
            key: {"dtype": at.dtype, "shape": list(at.shape), "sha256": hashlib.sha256(at.data).hexdigest()}
            for key, at in tensors.items()
        }
        for rank, tensors in enumerate(ranks_of(case.dst))
    }
    assert found == expected
    assert case.eplb("verify", case.dst, "--against", home / "src").code == 0


def test_rows_larger_than_a_block(case):
    """They are copied and hashed in parts."""
    kinds = {"w13_weight": ("U8", (3 << 20,)), "w2_weight": ("U8", (1,))}
    case.write(stacked(OLD, kinds))
    case.reshard()
    first = read_tree(case.dst)["model-rank-0"]["model.layers.3.mlp.experts.w13_weight"]
    assert first == stacked(NEW, kinds)[0]["model.layers.3.mlp.experts.w13_weight"]
