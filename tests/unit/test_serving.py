"""How an engine loads a tree, and how one would misread it: every line of the table."""

from __future__ import annotations

import re

import pytest

from eplb_cli.output.serving import NO_ENGINE, Served, serving
from tests.support.placements import placement

LINEAR = [[0, 1, 2, 3]] * 2
ROUND_ROBIN = [[0, 2, 1, 3]] * 2
PERMUTED = [[3, 1, 2, 0]] * 2
REPLICAS = [[0, 1, 2, 3, 1, 0]] * 2
LINEAR_REPLICAS = [[0, 1, 2, 3, 0, 1]] * 2


def said(rows, num_ranks=2, experts=None, slots=None, layout="sharded-state", engine="vllm", **more):
    """What is said of a placement."""
    made = placement(rows, num_ranks, experts, slots_per_rank=slots)
    return serving(Served(made, layout, engine, **more))


class TestVllm:
    """Stock vLLM has two maps, and the plugin takes any."""

    def test_the_default_placement(self):
        """Stock vLLM loads it, with a pattern of its own for each rank of data parallelism."""
        found = said(LINEAR, family="qwen3_moe", is_whole=True)
        plugin, stock = found.notes
        assert "--load-format eplb --enable-expert-parallel --data-parallel-size 2" in plugin
        assert "--load-format sharded_state --enable-expert-parallel --data-parallel-size 2" in stock
        assert '"pattern": "model-rank-RANK-part-{part}.safetensors"' in stock
        assert found.misread == ()

    @pytest.mark.parametrize("num_ranks", [2, 4])
    def test_only_ranks_that_exist(self, num_ranks):
        """RANK is explained by its range, and no number beyond it is printed."""
        (_, stock) = said(LINEAR, num_ranks, is_whole=True).notes
        assert f"each RANK from 0 to {num_ranks - 1}:" in stock
        assert "17" not in stock
        assert max(map(int, re.findall(r"\d+", stock))) == num_ranks

    def test_tensor_parallelism_needs_no_pattern(self):
        """Each rank reads the file of its own number by itself."""
        (plugin, stock) = said(LINEAR, is_whole=False).notes
        assert "--tensor-parallel-size 2" in stock
        assert "--tensor-parallel-size 2" in plugin
        assert "pattern" not in stock

    def test_where_nothing_says_what_a_rank_has(self):
        """Shards that vLLM saved, without a config.json: with the parallelism that they were saved with."""
        (_, stock) = said(LINEAR).notes
        tensor, data = stock.split("; where they were saved with data parallelism ")
        assert tensor.endswith("--tensor-parallel-size 2")
        assert data.startswith("--data-parallel-size 2 --data-parallel-rank RANK")

    def test_one_rank_has_no_expert_parallelism(self):
        """Nothing but the loader is said."""
        assert said(LINEAR, 1, is_whole=True).notes[1].endswith("--load-format sharded_state")

    def test_redundant_experts_are_counted(self):
        """With another number sizes differ: an error of vLLM's, or rows that nobody has filled."""
        for line in said(LINEAR_REPLICAS, family="qwen3_moe", is_whole=True).notes:
            assert """--enable-eplb --eplb-config '{"num_redundant_experts": 2}'""" in line
        assert said(LINEAR_REPLICAS, family="qwen3_moe").misread == ()

    @pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "gpt_oss"])
    def test_families_without_eplb_have_no_replicas(self, family):
        """VLLM has no slots for them."""
        found = said(LINEAR_REPLICAS, family=family)
        assert found.notes == (f"vLLM: it has no EPLB for {family}, and so no replicas",)

    def test_round_robin_where_vllm_grants_it(self):
        """To models with groups of experts; with data parallelism only for one backend."""
        found = said(ROUND_ROBIN, family="glm4_moe", num_groups=2, is_whole=False)
        stock = found.notes[1]
        assert found.misread == ()
        assert "--expert-placement-strategy round_robin" in stock
        assert "--all2all-backend" not in stock
        found = said(ROUND_ROBIN, family="glm4_moe", num_groups=2, is_whole=True)
        stock = found.notes[1]
        assert "another --all2all-backend" in found.misread[0]
        assert "--expert-placement-strategy round_robin --all2all-backend deepep_low_latency" in stock
        uneven = said([[0, 4, 8, 1, 5, 9, 2, 6, 3, 7]], None, 10, [3, 3, 2, 2], num_groups=2)
        assert "round_robin" in uneven.notes[1]

    @pytest.mark.parametrize("num_groups", [None, 1])
    def test_round_robin_where_vllm_falls_back_to_linear(self, num_groups):
        """A log line, and 1 of 144 tokens right: a warning, and no such option."""
        found = said(ROUND_ROBIN, family="qwen3_moe", num_groups=num_groups, is_whole=True)
        assert "round_robin" not in " ".join(found.notes)
        assert [line for line in found.notes if "sharded_state" in line] == []
        assert len(found.misread) == 1
        assert "without an error" in found.misread[0]

    @pytest.mark.parametrize("rows", [PERMUTED, [[0, 1, 2, 3], [0, 2, 1, 3]], REPLICAS, [[1, 1, 0, 2, 3, 0]]])
    def test_any_other_placement(self, rows):
        """The plugin loads it; stock vLLM would, too, and answer nonsense."""
        found = said(rows, family="qwen3_moe", num_groups=1)
        assert len(found.notes) == 1
        assert "--load-format eplb" in found.notes[0]
        assert found.misread[0].startswith("vLLM: --load-format sharded_state would load")

    def test_what_vllm_has_no_slots_for(self):
        """Empty slots, and ranks of other sizes than its own."""
        assert said([[0, 1, 2, -1]], 2).notes == (f"vLLM: {NO_ENGINE}",)
        assert said([[0, 1, 2, 3]], None, 4, [3, 1]).notes == (f"vLLM: {NO_ENGINE}",)
        assert said([[0, 1, 2, 3, 0]], None, 4, [3, 2]).notes == (f"vLLM: {NO_ENGINE}",)

    @pytest.mark.parametrize("slots", [[1, 1, 0], [2, 0]])
    def test_ranks_without_slots(self, slots):
        """Their stacked tensors have no element, and vLLM knows none of those."""
        assert said([[0, 1]], None, 2, slots).notes == (f"vLLM: {NO_ENGINE}",)


class TestSglang:
    """Any even map, for models that know of maps."""

    def test_the_default_needs_no_map(self):
        """Experts in order is where SGLang begins, with replicas too."""
        found = said(LINEAR, engine="sglang", family="deepseek_v3")
        assert "--init-expert-location" not in found.notes[0]
        assert found.misread == ()
        found = said(LINEAR_REPLICAS, engine="sglang", family="deepseek_v3")
        assert found.notes[0].endswith("--ep-num-redundant-experts 2")

    def test_any_other_needs_its_map(self):
        """And the number of replicas; without the map it would be misread."""
        found = said(REPLICAS, engine="sglang", family="deepseek_v3")
        assert "--ep-num-redundant-experts 2 --init-expert-location FILE" in found.notes[0]
        assert "--to sglang" in found.notes[0]
        assert "--attn-dp-size 2" in found.notes[0]
        assert "without --init-expert-location" in found.misread[0]

    @pytest.mark.parametrize(
        ("family", "rows"), [("mixtral", LINEAR), ("mixtral", PERMUTED), ("glm4_moe", REPLICAS)]
    )
    def test_families_that_take_no_map_or_no_replicas(self, family, rows):
        """No line that would not work."""
        assert said(rows, engine="sglang", family=family).notes == (f"SGLang: {NO_ENGINE}",)

    def test_a_family_that_nobody_has_looked_at(self):
        """It may take no map."""
        assert "Make sure" in said(PERMUTED, engine="sglang", family="bert").notes[0]

    def test_empty_slots_and_uneven_ranks(self):
        """No map of SGLang's says them."""
        assert said([[0, 1, 2, -1]], engine="sglang").notes == (f"SGLang: {NO_ENGINE}",)
        assert said([[0, 1, 2, 3]], None, 4, [3, 1], engine="sglang").notes == (f"SGLang: {NO_ENGINE}",)


class TestShardsOfAnyone:
    """Nothing says which engine they are for."""

    def test_both_are_named(self):
        """With what each would misread."""
        found = said(PERMUTED, engine="")
        assert [line.partition(":")[0].split()[0] for line in found.notes] == ["vLLM", "SGLang"]
        assert "as where SGLang saved these shards" in found.notes[1]
        assert len(found.misread) == 2

    @pytest.mark.parametrize("layout", ["deepseek", "per-row", "mine"])
    def test_other_layouts(self, layout):
        """Only who wrote their like knows."""
        expected = f"shards of layout {layout}: load them with the program that wrote their like"
        assert said(LINEAR, layout=layout, engine="").notes == (expected,)

    def test_names_of_hugging_face(self):
        """No engine of ours."""
        assert said(LINEAR, engine="huggingface").notes[0].startswith("shards with Hugging Face names")

    def test_tensors_of_mtp(self):
        """A loader stops at what its model lacks, so nothing is misread; the plugin leaves them alone."""
        plugin, stock = said(PERMUTED, has_mtp=True).notes
        assert "--load-format eplb" in plugin
        assert "--mtp skip" in stock
        assert "--mtp skip" in said(PERMUTED, engine="sglang", has_mtp=True).notes[0]
        assert said(PERMUTED, engine="", has_mtp=True).misread == ()


def test_maps_in_the_shards():
    """Releases that saved expert_map read it again; with replicas it does not say what is in a slot."""
    found = said(PERMUTED, engine="", has_maps=True)
    assert found.misread == ()
    assert "expert_map" in found.notes[0]
    assert "load-format eplb" not in found.notes[0]
    replicas = said(REPLICAS, engine="", has_maps=True)
    assert "--enable-eplb --eplb-config" in replicas.notes[0]
    assert len(replicas.misread) == 1
    assert said(LINEAR_REPLICAS, engine="", has_maps=True).misread == ()
