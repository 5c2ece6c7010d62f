"""Ranks are lost with their files: the others, and what `shard --only` fetches, make shards of any NEW."""

from __future__ import annotations

import json
import shutil

import pytest

from eplb_cli.balance.repair import repair
from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.read import read_placement
from tests.cli.case import assert_error
from tests.cli.tree import fingerprint, placement, read_tree, tensor, write_json, write_shard
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint
from tests.support.published import PUBLISHED, write_published

OLD = placement([[3, 0, 0, 1, 2, 2, 1, 2], [0, 1, 2, 3, 3, 1, 2, 0]], 4, layer_ids=list(MOE_LAYERS))
LOST = (0, 3)
"""With them go expert 3 of layer 1 and expert 0 of layer 2."""

ENGINES = ["sglang", "huggingface"]

HIDDEN = 3
"""Layers of the small DeepSeek-V3 that config.json counts."""


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def home(tmp_path, eplb, engine):
    """A checkpoint, its shards under OLD without those of two ranks, and NEW for the ranks that are left."""
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    write_json(tmp_path / "old.json", OLD)
    done = eplb(
        "shard", tmp_path / "hf", tmp_path / "src", "--placement", tmp_path / "old.json", "--engine", engine
    )
    assert done.code == 0, done.err
    lose(tmp_path / "src", LOST)
    old, _ = read_placement(tmp_path / "old.json")
    (tmp_path / "new.json").write_text(format_placement(repair(old, LOST).new))
    return tmp_path


def layers_of(tree):
    return json.loads((tree / "eplb.json").read_text())["placement"]["layer_ids"]


def lose(tree, ranks):
    """Remove the files of some ranks."""
    for rank in ranks:
        for file in tree.glob(f"*rank-{rank}-*"):
            file.unlink()


def patched(eplb, home, engine, *options, lost=LOST):
    """What `shard --only` fetches."""
    ranks = ",".join(map(str, lost))
    arguments = ("--placement", home / "old.json", "--engine", engine, "--only", ranks, *options)
    done = eplb("shard", home / "hf", home / "patch", *arguments)
    assert done.code == 0, done.err
    return home / "patch"


def resharded(eplb, home, *options, dst="dst"):
    arguments = ("--new", home / "new.json", "--lost-ranks", "0,3", "--backend", "file", *options)
    return eplb("reshard", home / "src", home / dst, *arguments)


def test_it_is_what_the_checkpoint_gives(eplb, home, engine):
    """Byte by byte the shards that `shard` makes of the whole checkpoint for NEW; it can be proved again."""
    patch = patched(eplb, home, engine)
    before = fingerprint(home / "src"), fingerprint(patch)
    done = resharded(eplb, home, "--missing-from", patch, "--format", "json")
    assert done.code == 0, done.err
    assert before == (fingerprint(home / "src"), fingerprint(patch))
    arguments = ("--placement", home / "new.json", "--engine", engine)
    assert eplb("shard", home / "hf", home / "want", *arguments).code == 0
    assert read_tree(home / "dst") == read_tree(home / "want")
    for against in ((), ("--against", home / "hf")):
        again = eplb("verify", home / "dst", *against)
        assert again.code == 0, again.err
    written, wanted = (json.loads((home / tree / "eplb.json").read_text()) for tree in ("dst", "want"))
    assert written["placement"] == wanted["placement"]
    assert (written["engine"], written["serving"]) == (wanted["engine"], wanted["serving"])


def test_what_moves(eplb, home, engine):
    """Only the experts that were lost, each once, from the patch; ranks keep their rows, and close up."""
    done = resharded(
        eplb, home, "--missing-from", patched(eplb, home, engine), "--format", "json", "--dry-run"
    )
    totals = done.json["totals"]
    assert (totals["remote_rows"], totals["local_rows"], totals["unchanged_rows"]) == (2, 0, 6)
    assert {old for old, *_ in done.json["traffic"]} == {2}
    assert "ranks close up: of OLD, rank 1 is 0, 2 is 1" in done.err
    assert "rank 2 of OLD is" in done.err
    assert not (home / "dst").exists()


def test_nothing_but_what_is_lost_is_fetched(eplb, home, engine):
    """One rank with one row a layer, whose experts are the two; no other tensor; it proves itself."""
    patch = patched(eplb, home, engine)
    manifest = json.loads((patch / "eplb.json").read_text())
    assert manifest["placement"]["physical_to_logical_map"] == [[3], [0]]
    assert (manifest["placement"]["num_ranks"], manifest["engine"]) == (1, engine)
    (tensors,) = read_tree(patch).values()
    assert all("mlp.experts" in key for key in tensors)
    assert not (patch / "eplb-huggingface.json").exists()
    assert eplb("verify", patch).code == 0


def test_without_the_manifest_of_src(eplb, home, engine):
    """OLD comes from --old then, and the names of tensors have to be those of the patch."""
    patch = patched(eplb, home, engine)
    (home / "src" / "eplb.json").unlink()
    done = resharded(eplb, home, "--missing-from", patch, "--old", home / "old.json")
    assert done.code == 0, done.err
    assert "inspect SRC --identify HF_DIR" in done.err
    assert_error(resharded(eplb, home, "--missing-from", patch, dst="x"), "EP216", "nothing says what OLD is")


class TestOneEngine:
    """What names of tensors make no difference to."""

    @pytest.fixture
    def engine(self):
        return "sglang"

    @pytest.mark.parametrize("lost", [(1,), (2,), (0, 1), (1, 2), (2, 3), (0, 1, 2), (1, 3)])
    def test_any_ranks(self, eplb, home, engine, lost):
        """Also where nothing is missing, and where the ranks that are left need more slots."""
        shutil.rmtree(home / "src")
        eplb("shard", home / "hf", home / "src", "--placement", home / "old.json", "--engine", engine)
        lose(home / "src", lost)
        old, _ = read_placement(home / "old.json")
        done = repair(old, lost, num_redundant_experts=0 if len(lost) == 3 else None)
        (home / "new.json").write_text(format_placement(done.new))
        options = ["--new", home / "new.json", "--lost-ranks", ",".join(map(str, lost)), "--backend", "file"]
        if done.survivors.num_lost:
            options += ["--missing-from", patched(eplb, home, engine, lost=lost)]
        moved = eplb("reshard", home / "src", home / "dst", *options)
        assert moved.code == 0, moved.err
        assert (
            eplb(
                "shard", home / "hf", home / "want", "--placement", home / "new.json", "--engine", engine
            ).code
            == 0
        )
        assert read_tree(home / "dst") == read_tree(home / "want")

    @pytest.mark.parametrize("mtp", ["linear", "skip"])
    def test_layers_that_no_map_names(self, eplb, tmp_path, mtp):
        """MTP's experts lie in order over the ranks of OLD, so some are lost too, and come back in order."""
        write_published(tmp_path / "hf", PUBLISHED["deepseek-v3"]())
        common = ("--engine", "sglang", "--mtp", mtp)
        linear = (tmp_path / "hf", tmp_path / "src", "--placement", "linear", "--num-ranks", 4, *common)
        assert eplb("shard", *linear).code == 0
        lose(tmp_path / "src", [1])
        layers = [number for number in layers_of(tmp_path / "src") if number < HIDDEN]
        write_json(tmp_path / "new.json", placement([[0, 1, 2, 3, 1, 0]] * len(layers), 3, layer_ids=layers))
        fetched = eplb("shard", linear[0], tmp_path / "patch", *linear[2:], "--only", 1)
        assert fetched.code == 0, fetched.err
        sources = ("--lost-ranks", 1, "--missing-from", tmp_path / "patch", "--backend", "file")
        moved = eplb("reshard", tmp_path / "src", tmp_path / "dst", "--new", tmp_path / "new.json", *sources)
        assert moved.code == 0, moved.err
        assert (
            eplb("shard", linear[0], tmp_path / "want", "--placement", tmp_path / "new.json", *common).code
            == 0
        )
        assert read_tree(tmp_path / "dst") == read_tree(tmp_path / "want")
        assert (len(layers_of(tmp_path / "dst")) > len(layers)) == (mtp == "linear")

    @pytest.mark.parametrize("old", ["old.json", None])
    def test_relabelled(self, eplb, home, engine, old):
        """NEW by other names moves no more than what was lost."""
        content = json.loads((home / "new.json").read_text())
        content["physical_to_logical_map"] = [row[2:] + row[:2] for row in content["physical_to_logical_map"]]
        write_json(home / "new.json", content)
        options = [
            "--missing-from",
            patched(eplb, home, engine),
            "--relabel",
            "ranks",
            "--out-new",
            home / "r.json",
        ]
        options += [] if old is None else ["--old", home / old]
        done = resharded(eplb, home, *options, "--format", "json")
        assert done.code == 0, done.err
        assert done.json["totals"]["remote_rows"] == 2 < done.json["relabelled"]["remote_rows_before"]


class TestRefused:
    """Before a byte moves, with what to do."""

    @pytest.fixture
    def engine(self):
        return "sglang"

    def refuse(self, eplb, home, code, *says, options=(), exit_code=3):
        before = fingerprint(home)
        assert_error(resharded(eplb, home, *options), code, *says, exit_code=exit_code)
        assert fingerprint(home) == before

    def test_nothing_has_the_experts(self, eplb, home):
        """The message has the command that fetches them."""
        says = (
            "2 experts had no replica but on ranks 0, 3",
            "layer 1, expert 3",
            "shard HF_DIR PATCH",
            "--only 0,3",
        )
        self.refuse(eplb, home, "EP202", *says)

    def test_a_patch_for_other_ranks(self, eplb, home, engine):
        """It has not the experts that are lost."""
        patch = patched(eplb, home, engine, lost=(0, 1))
        self.refuse(eplb, home, "EP215", "other experts than were lost", options=("--missing-from", patch))

    def test_a_patch_for_another_engine(self, eplb, home):
        """Its tensors have other names."""
        patch = patched(eplb, home, "vllm")
        self.refuse(eplb, home, "EP206", "--engine", options=("--missing-from", patch))

    def test_what_is_no_patch(self, eplb, home):
        """The checkpoint itself is none, and shards of more ranks are none."""
        for wrong in ("hf", "src"):
            options = ("--missing-from", home / wrong)
            self.refuse(eplb, home, "EP202", "is not what `eplb shard --only` writes", options=options)

    def test_files_of_a_lost_rank(self, eplb, home):
        """Are they lost, or not: nobody guesses."""
        shutil.copy(
            home / "src" / "model-rank-1-part-0.safetensors", home / "src" / "model-rank-3-part-0.safetensors"
        )
        self.refuse(eplb, home, "EP202", "rank 3 is said to be lost")

    @pytest.mark.parametrize("tree", ["src", "patch"])
    def test_a_row_that_is_not_what_was_written(self, eplb, home, engine, tree):
        """The digests beside the shards that are left, and beside the patch, are compared as ever."""
        patch = patched(eplb, home, engine)
        file = (
            home
            / tree
            / ("model-rank-2-part-0.safetensors" if tree == "src" else "model-rank-0-part-0.safetensors")
        )
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        done = resharded(eplb, home, "--missing-from", patch)
        assert_error(done, "EP506", tree, exit_code=5)
        assert not (home / "dst").exists()

    def test_another_rank_is_missing(self, eplb, home):
        """All that are lost have to be named."""
        lose(home / "src", [1])
        self.refuse(eplb, home, "EP202", "rank 1 is missing as well")

    def test_a_changed_shard(self, eplb, home, engine):
        """The headers of those that are left are compared with the manifest all the same."""
        patch = patched(eplb, home, engine)
        write_shard(home / "src" / "model-rank-1-part-0.safetensors", {"a": tensor("U8", (1,), "a")})
        options = ("--missing-from", patch)
        self.refuse(eplb, home, "EP506", "model-rank-1-part-0", options=options, exit_code=5)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--rank-scalars", "max"), "--rank-scalars"),
            (("--lost-ranks", "x"), "no list of ranks"),
            (("--lost-ranks", ""), "no list of ranks"),
        ],
    )
    def test_options(self, eplb, home, options, says):
        """What cannot be with lost ranks, and what is no list of them."""
        self.refuse(eplb, home, "EP001", says, options=options, exit_code=2)

    def test_a_patch_without_lost_ranks(self, eplb, home):
        """It says whose experts it has."""
        arguments = ("--new", home / "new.json", "--missing-from", home / "hf", "--backend", "file")
        assert_error(
            eplb("reshard", home / "src", home / "dst", *arguments), "EP001", "--lost-ranks", exit_code=2
        )

    def test_nothing_is_lost_with_them(self, eplb, home):
        """`shard --only` says so."""
        arguments = ("--placement", home / "old.json", "--engine", "sglang", "--only", "1")
        done = eplb("shard", home / "hf", home / "patch", *arguments)
        assert_error(done, "EP001", "have every expert", exit_code=2)
