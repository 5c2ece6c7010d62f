"""`eplb inspect`: what shards hold, and with --deep what contradicts itself."""

from __future__ import annotations

import pytest

from tests.cli.case import assert_error
from tests.cli.test_verify import flip, offset_of
from tests.cli.tree import (
    KINDS,
    OLD,
    STACKED_NAME,
    fingerprint,
    placement,
    singles,
    stacked,
    tensor,
    write_tree,
)


def test_json(eplb, case):
    """All that the headers say."""
    result = eplb("inspect", case.src, "--format", "json")
    assert result.code == 0
    (guess,) = result.json.pop("findings")
    assert (guess["code"], guess["severity"]) == ("EP111", "warning")
    assert result.json == {
        "format": "eplb-inspection/1",
        "path": str(case.src),
        "layout": "sharded-state",
        "num_ranks": 2,
        "slots_per_rank": [3, 3],
        "layers": [3, 4],
        "further_layers": {},
        "expert_tensors": [
            {
                "name": f"model.layers.{{layer}}.mlp.experts.{name}",
                "dtype": dtype,
                "row_shape": list(shape),
                "row_bytes": shape[0] * shape[1] * (4 if dtype == "F32" else 1),
                "num_layers": 2,
            }
            for name, (dtype, shape) in KINDS.items()
        ],
        "others": {"count": 10, "bytes": 2 * (48 + 48 + 16 + 4 + 6)},
        "sharded_others": [],
        "files": 2,
        "bytes": sum(file.stat().st_size for file in case.src.glob("*.safetensors")),
        "placement": None,
        "distinct_rows": None,
    }


def test_text(eplb, case):
    """The same on a page; SRC is only read."""
    before = fingerprint(case.home)
    result = eplb("inspect", case.src)
    assert result.code == 0
    assert result.out.startswith("sharded-state: 2 ranks, 2 files,")
    assert "MoE layers      2 (3-4)" in result.out
    assert fingerprint(case.home) == before


def test_a_tree_of_eplb_says_its_placement(eplb, case):
    """The map is in the json, and on the page only its size."""
    case.reshard()
    assert eplb("inspect", case.dst, "--format", "json").json["placement"]["num_ranks"] == 2
    page = eplb("inspect", case.dst).out
    assert "2 layers × 6 slots" in page
    assert "[3, 0, 0, 1, 2, 2]" not in page


def test_deep_counts_distinct_rows(eplb, case):
    """As many as there are experts, where nothing says which slots are replicas."""
    result = eplb("inspect", case.src, "--deep", "--format", "json")
    assert (result.code, result.json["distinct_rows"]) == (0, [4, 4])


class TestDeepFindings:
    @pytest.fixture
    def tree(self, case):
        case.reshard()
        return case.dst

    def test_nothing(self, eplb, tree):
        """Exit code 0 for a tree as it was written."""
        result = eplb("inspect", "--deep", tree)
        assert result.code == 0
        assert "findings" not in result.out

    def test_replicas_that_differ(self, eplb, case):
        """EP503 and exit code 1: SRC was so already, and the digests know no other."""
        rows = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]]
        ranks = stacked(placement(rows))
        key = "model.layers.4.mlp.experts.w2_weight"
        ranks[1][key] = ranks[1][key]._replace(data=bytes(36))
        case.write(ranks)
        case.new(OLD)
        case.reshard("--copy")
        result = eplb("inspect", case.dst, "--deep", "--format", "json")
        assert result.code == 1
        assert [(found["code"], found["layer"]) for found in result.json["findings"]] == [("EP503", 4)] * 2

    @pytest.mark.parametrize(
        ("key", "code"),
        [("model.layers.4.mlp.experts.w2_weight", "EP501"), ("model.norm.weight", "EP504")],
    )
    def test_a_byte_that_changed(self, eplb, tree, key, code):
        """A finding with its code, and exit code 1."""
        file = tree / "model-rank-1-part-0.safetensors"
        flip(file, offset_of(file, key))
        result = eplb("inspect", "--deep", tree)
        assert result.code == 1
        assert f"error[{code}]" in result.out

    def test_a_carried_file_that_is_gone(self, eplb, tree):
        """EP505 and exit code 1."""
        (tree / "config.json").unlink()
        result = eplb("inspect", "--deep", tree)
        assert (result.code, "EP505" in result.out) == (1, True)


def test_other_tensors_that_look_sharded(eplb, case):
    """Named before anything is read."""
    ranks = stacked(OLD)
    ranks[0]["lm_head.weight"], ranks[1]["lm_head.weight"] = tensor("U8", (3,), ""), tensor("U8", (2,), "")
    case.write(ranks)
    assert eplb("inspect", case.src, "--format", "json").json["sharded_others"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("layout", "key", "name"),
    [
        ("per-row", "model.layers.{layer}.mlp.experts.{row}.{tensor}", STACKED_NAME),
        ("deepseek", "layers.{layer}.ffn.experts.{expert}.{tensor}", "model{rank}-mp{world}.safetensors"),
    ],
)  # fmt: skip
def test_one_tensor_per_expert(eplb, case, layout, key, name):
    """The layout is told from names alone; slots are counted by their keys."""
    kinds = {"w1.weight": ("BF16", (2, 3)), "w2.weight": ("BF16", (3, 2))}
    src = write_tree(case.home / layout, singles(placement([[0, 1, 2, 3], [3, 1, 0, 2]]), kinds, key), name)
    result = eplb("inspect", src, "--deep", "--format", "json")
    assert (result.json["layout"], result.json["slots_per_rank"]) == (layout, [2, 2])
    assert result.json["distinct_rows"] == [4, 4]
    assert result.json["expert_tensors"][0]["row_bytes"] == 12


def test_what_cannot_be_inspected(eplb, case):
    """The errors of the shards, with exit code 3."""
    assert_error(eplb("inspect", case.home / "nowhere"), "EP201", "nowhere")
    case.file(0).write_bytes(b"nothing")
    assert_error(eplb("inspect", case.src), "EP203", "model-rank-0-part-0.safetensors")
