"""Placements with more beside the map, in further forms, and files that are something else."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from eplb_cli.errors import PlacementError
from eplb_cli.models.model import Model
from eplb_cli.placements.convert import convert_text
from eplb_cli.placements.dialects.inverse import inverse
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import parse_placement, read_placement

ROWS = [[2, 0, 1, 0], [1, 1, 0, 2]]
NAMED = {"physical_to_logical_map": ROWS}
TWO_RANKS = Hints(num_ranks=2)
FOUR_RANKS = Hints(num_ranks=4)
OF_VLLM = Hints(num_ranks=2, num_logical_experts=3, dialect="vllm")
DENSE_FIRST = Model("two of three", 3, (1, 2), (3,), num_logical_experts=3)
"""Hidden layers 0 to 2, of which 0 is dense, and an MTP layer 3."""

OF_MODEL = Hints(num_ranks=2, num_logical_experts=3, model=DENSE_FIRST)


def file_of(value: object, suffix: str) -> bytes:
    """The content of a file with a value in it."""
    if suffix == ".json":
        return json.dumps(value).encode()
    stream = io.BytesIO()
    if suffix == ".npy":
        np.save(stream, np.array(value))
    else:
        pytest.importorskip("torch").save(value, stream)
    return stream.getvalue()


def read(value: object, hints: Hints, suffix: str = ".json") -> tuple[Placement, list[Finding]]:
    """The placement in a file, and warnings."""
    placement, findings = parse_placement(file_of(value, suffix), f"p{suffix}", hints)
    assert placement is not None, findings
    return placement, findings


def refusal(data: object, hints: Hints = TWO_RANKS, suffix: str = ".json") -> Finding:
    """The only finding about a file that is no placement."""
    content = data if isinstance(data, bytes) else file_of(data, suffix)
    placement, findings = parse_placement(content, f"p{suffix}", hints)
    assert placement is None
    [error] = [finding for finding in findings if finding.severity == "error"]
    return error


def by_rank(placement: Placement, layer: int = 0) -> list[list[int]]:
    """The experts of each rank in one layer."""
    row = placement.physical_to_logical[layer]
    return [rank.tolist() for rank in np.split(row, placement.first_slot[1:-1])]


class TestKeysBesideTheMap:
    @pytest.mark.parametrize("dialect", ["vllm", None])
    def test_other_keys_are_ignored_with_one_warning(self, dialect):
        """A comment, notes and counts: each is named, and the map is read."""
        value = {**NAMED, "comment": "x", "validated": {"tp_size": 8}, "logical_count": [[1, 2, 3]] * 2}
        hints = Hints(2, None, 3, num_layers=2, dialect=dialect)
        placement, findings = read(value, hints)
        assert placement.physical_to_logical.tolist() == ROWS
        [(code, severity, message)] = [(f.code, f.severity, f.message) for f in findings]
        assert (code, severity) == ("EP103", "warning")
        assert message == 'ignored beside the map: "comment", "validated", "logical_count"'

    def test_rows_of_sglang_are_found_by_their_number(self):
        """Keys beside the map change nothing of that."""
        placement, _ = read({"physical_to_logical_map": [ROWS[0], *ROWS], "note": 1}, OF_MODEL)
        assert placement.physical_to_logical.tolist() == ROWS
        assert placement.layer_ids is not None
        assert placement.layer_ids.tolist() == [1, 2]

    def test_and_without_a_number_they_are_ambiguous(self):
        """EP116, as for the map alone."""
        error = refusal({**NAMED, "comment": "x"})
        assert error.code == "EP116"
        assert "2 rows under" in error.message

    def test_the_state_of_vllm(self):
        """What follows from the map agrees with it, and says how many experts there are."""
        torch = pytest.importorskip("torch")
        slots, counts = inverse(np.array(ROWS), 3)
        state = {
            "current_step": 7,
            "physical_to_logical_map": torch.tensor(ROWS),
            "logical_to_physical_map": torch.from_numpy(slots).flip(-1),
            "logical_replica_count": torch.from_numpy(counts),
            "num_layers": 2,
            "num_logical_experts": 3,
            "num_physical_experts": 4,
            "ep_size": 2,
        }
        placement, findings = read(state, Hints(dialect="vllm"), ".pt")
        assert by_rank(placement) == [[2, 0], [1, 0]]
        assert placement.num_logical_experts == 3
        assert [finding.message for finding in findings] == ['ignored beside the map: "current_step"']

    @pytest.mark.parametrize(
        ("beside", "says"),
        [
            ({"num_layers": 3}, "num_layers is 3, and the map has 2"),
            ({"num_physical_experts": 5}, "num_physical_experts is 5, and the map has 4"),
            ({"num_replicas": 5}, "num_replicas is 5"),
            (
                {"num_logical_experts": 3, "num_redundant_experts": 2},
                "num_logical_experts is 3 by num_logical_experts, and 2 by num_redundant_experts",
            ),
            ({"ep_size": 2, "num_gpus": 4}, "num_ranks is 2 by ep_size, and 4 by num_gpus"),
            ({"logical_replica_count": [[2, 1, 1], [2, 1, 1]]}, "logical_replica_count is not what follows"),
            ({"logical_to_all_physical_map": [[[0], [1], [2]]] * 2}, "is not what follows from"),
            (
                {"logical_replica_count": [[2, 1, 1], [1, 2, 1]], "num_logical_experts": 4},
                "num_logical_experts is 4 by num_logical_experts, and 3 by logical_replica_count",
            ),
            ({"logical_replica_count": "x"}, "none of integers"),
            ({"num_redundant_experts": "1"}, 'num_redundant_experts is "1", not an integer'),
        ],
    )
    def test_a_key_that_contradicts_the_map(self, beside, says):
        """EP103: one of the two is wrong."""
        error = refusal({**NAMED, **beside}, Hints(2, None, None, num_layers=2))
        assert error.code == "EP103"
        assert says in error.message

    @pytest.mark.parametrize(
        ("beside", "hints", "code"),
        [
            ({"num_redundant_experts": 2}, Hints(2, dialect="vllm"), "EP105"),
            ({"num_logical_experts": 4}, OF_VLLM, "EP109"),
            ({"num_logical_experts": "3"}, Hints(2, dialect="vllm"), "EP103"),
            ({"ep_size": 4}, OF_VLLM, "EP108"),
        ],
    )
    def test_numbers_beside_the_map_are_those_of_the_placement(self, beside, hints, code):
        """Compared with its ids, and with what the command line says."""
        placement, findings = parse_placement(file_of({**NAMED, **beside}, ".json"), "p.json", hints)
        assert placement is None
        assert code in {finding.code for finding in findings}

    @pytest.mark.parametrize(
        "value",
        [
            {"phy2log": ROWS, "logcnt": [[2, 1, 1], [1, 2, 1]], "num_replicas": 4, "note": 1},
            {"expert_to_ep_rank": [0, 1, 0], "note": 1},
            {
                "moe_layer_count": 1,
                "layer_list": [
                    {
                        "layer_id": 0,
                        "device_count": 2,
                        "device_list": [{"device_id": d, "device_expert": [d, 2]} for d in (0, 1)],
                    }
                ],
                "note": 1,
            },
        ],
        ids=["deepseek", "vllm", "ascend"],
    )
    def test_every_dialect_names_what_it_ignores(self, value):
        """But for those whose engines reject it."""
        _, findings = read(value, Hints(2, None, 3))
        assert [finding.message for finding in findings] == ['ignored beside the map: "note"']

    def test_two_maps_in_one_object(self):
        """Nothing says which of them is meant."""
        error = refusal({**NAMED, "phy2log": ROWS}, OF_MODEL)
        assert (error.code, "vllm or sglang or deepseek" in error.message) == ("EP116", True)
        value = {**NAMED, "phy2log": ROWS[::-1]}
        for dialect, rows in (("vllm", ROWS), ("deepseek", ROWS[::-1])):
            placement, findings = read(value, Hints(2, None, 3, dialect=dialect))
            assert placement.physical_to_logical.tolist() == rows
            assert [finding.code for finding in findings] == ["EP103"]

    def test_a_key_that_says_nothing(self):
        """None is no number."""
        assert read({**NAMED, "num_logical_experts": None, "ep_size": None}, OF_VLLM)[1] == []

    def test_layer_ids_without_a_format_are_not_ignored(self):
        """Whoever writes them means eplb's own dialect."""
        assert '"format" is missing' in refusal({**NAMED, "layer_ids": [3, 4]}).message


class TestFurtherForms:
    @pytest.mark.parametrize("suffix", [".pt", ".json"])
    def test_expert_maps_of_vllm(self, suffix):
        """(layers, ranks, experts): the row of an expert on a rank, or -1. It says everything."""
        layer = [[1, 0, -1, -1, 2], [-1, -1, 1, 0, 2]]
        value: Any = [layer, [[0, 1, -1, 2, -1], [-1, -1, 2, 0, 1]]]
        value = pytest.importorskip("torch").tensor(value) if suffix == ".pt" else value
        placement, findings = read(value, Hints(), suffix)
        assert findings == []
        assert by_rank(placement, 0) == [[1, 0, 4], [3, 2, 4]]
        assert by_rank(placement, 1) == [[0, 1, 3], [3, 4, 2]]
        assert placement.num_logical_experts == 5

    def test_expert_maps_as_wide_as_there_are_slots(self):
        """The recipe of #14544 pads them: what no rank holds is no expert."""
        layer = [[0, -1, 1, -1], [-1, 0, 1, -1]]
        placement, [finding] = read([layer], Hints())
        assert by_rank(placement) == [[0, 2], [1, 2]]
        assert finding.code == "EP111"

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ([[[0, 2], [-1, 0]]], "MoE layer 0, rank 0: its rows are not 0, 1, ..."),
            ([[[0, 0], [-1, 0]]], "its rows are not 0, 1, ..."),
            ([[[0, -1], [-1, 0]], [[0, 1], [-1, -1]]], "MoE layer 1, rank 0: other numbers of experts"),
        ],
    )
    def test_expert_maps_that_leave_a_row_out(self, value, says):
        """An expert twice on a rank has one number only."""
        assert says in refusal(value, Hints()).message

    @pytest.mark.parametrize(("ranks", "kind"), [(2, np.int32), (3, np.float64)])
    def test_patterns_of_omniplacement(self, ranks, kind):
        """(ranks, layers, experts) of ones: the experts of a rank in ascending order, as it loads them."""
        pattern = np.zeros((ranks, 2, 6), kind)
        for rank in range(ranks):
            pattern[rank, 0, [rank + 2, rank, 5 - rank]] = 1
            pattern[rank, 1, [rank, rank + 1, rank + 3]] = 1
        placement, findings = read(pattern, Hints(), ".npy")
        assert findings == []
        assert by_rank(placement, 0) == [sorted({r + 2, r, 5 - r}) for r in range(ranks)]
        assert by_rank(placement, 1) == [[r, r + 1, r + 3] for r in range(ranks)]
        assert placement.num_logical_experts == 6

    def test_a_pattern_of_other_ranks(self):
        """EP108, as for every file with ranks in it."""
        assert refusal([[[1, 0]], [[0, 1]]], FOUR_RANKS).code == "EP108"

    def test_ranks_of_experts(self):
        """VLLM's proposal: each rank has its experts in ascending order, in all layers."""
        value = {"expert_to_ep_rank": [1, 0, 1, 3, 0]}
        placement, findings = read(value, Hints(num_layers=2))
        assert findings == []
        assert [by_rank(placement, layer) for layer in (0, 1)] == [[[1, 4], [0, 2], [], [3]]] * 2
        assert placement.num_logical_experts == 5
        assert read(value, Hints(num_ranks=5))[0].num_ranks == 5

    @pytest.mark.parametrize("ranks", [[0, -1], [0, "1"], [0, True], [0, 10**9], [], 4])
    def test_ranks_that_are_none(self, ranks):
        """EP103, with the expert."""
        error = refusal({"expert_to_ep_rank": ranks}, Hints())
        assert (error.code, "no rank" in error.message or "not a rank" in error.message) == ("EP103", True)

    def test_a_bare_row_that_may_be_ranks(self):
        """So few ids that all are ranks: EP116, unless something says what they are."""
        row = [0, 0, 1, 1, 2, 2]
        error = refusal(row, FOUR_RANKS)
        assert error.code == "EP116"
        assert "--from vllm" in error.hint
        for hints in (Hints(2, None, 3), Hints(3, dialect="vllm")):
            assert read(row, hints)[0].physical_to_logical.tolist() == [row]
        assert read([0, 3, 1, 2], TWO_RANKS)[0].physical_to_logical.tolist() == [[0, 3, 1, 2]]

    def test_what_rebalance_experts_returns(self):
        """All of it, or the map alone in a tuple; found without `--from`."""
        slots, counts = inverse(np.array(ROWS), 3)
        torch = pytest.importorskip("torch")
        arrays = (torch.tensor(ROWS), torch.from_numpy(slots), torch.from_numpy(counts))
        for value in (arrays, arrays[:1]):
            placement, _ = read(value, TWO_RANKS, ".pt")
            assert placement.physical_to_logical.tolist() == ROWS


class TestTensorRT:
    ASSIGNED = "initial_global_assignments:\n      1: [2, 0, 1, 0]\n      2: [1, 1, 0, 2]\n"

    @pytest.mark.parametrize(
        "text",
        [
            "attention: true\nmoe_config:\n  backend: WIDEEP\n  load_balancer:\n    num_slots: 4\n    {}",
            "moe_load_balancer:\n    {}",
            "pytorch_backend_config:\n  moe_load_balancer:\n    {}",
        ],
    )
    def test_the_map_inside_the_options(self, text):
        """Wherever versions of the engine have it."""
        data = text.format(self.ASSIGNED).encode()
        placement, findings = parse_placement(data, "p.yaml", Hints(2, None, 3))
        assert placement is not None, findings
        assert placement.physical_to_logical.tolist() == ROWS
        assert placement.layer_ids is not None
        assert placement.layer_ids.tolist() == [1, 2]

    def test_the_ranks_of_the_options(self):
        """They are compared with the command line's."""
        text = "moe_expert_parallel_size: 4\nmoe_load_balancer:\n    " + self.ASSIGNED
        assert refusal(text.encode(), Hints(2, None, 3), ".yaml").code == "EP108"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("num_slots: 4\nlayer_updates_per_iter: 1\n", "an online load balancer of tensorrt-llm"),
            ("moe_config:\n  load_balancer:\n    num_slots: 4\n", "an online load balancer of tensorrt-llm"),
            (
                "moe_config:\n  load_balancer: ./b.yaml\n",
                'moe_config.load_balancer names one that has it: "./b.yaml"',
            ),
            ("moe_load_balancer: b.yaml\n", 'moe_load_balancer names one that has it: "b.yaml"'),
        ],
    )
    def test_options_without_a_map(self, text, says):
        """What they are, and which file is the one to give."""
        error = refusal(text.encode(), suffix=".yaml")
        assert error.code == "EP103"
        assert says in error.message

    @pytest.mark.parametrize("to", ["vllm", "sglang", "ascend", "deepseek", "tensorrt-llm", "eplb"])
    def test_rows_of_mtp_layers(self, tmp_path, to):
        """Read; and written, or left out with a warning where the dialect has none."""
        rows = [[2, 0, 1, 0], [1, 2, 0, 2], [0, 1, 2, 1]]
        path = tmp_path / "p.yaml"
        lines = "".join(f"  {layer}: {row}\n" for layer, row in enumerate(rows, 1))
        path.write_text(f"initial_global_assignments:\n{lines}")
        assert read_placement(path, OF_MODEL)[0].physical_to_logical.tolist() == rows
        written, warnings, text = convert_text(path, None, to, OF_MODEL)
        has_mtp = to in {"tensorrt-llm", "eplb"}
        assert written.physical_to_logical.tolist() == (rows if has_mtp else rows[:2])
        left_out = (
            [] if has_mtp else [("EP117", "warning", f"left out: MTP layer 3, for which {to} has no row")]
        )
        found = [(f.code, f.severity, f.message) for f in warnings if f.code == "EP117"]
        assert found == left_out
        assert ("0, 1, 2, 1" in text) == has_mtp


class TestStrangers:
    @pytest.mark.parametrize(
        ("value", "says", "hint"),
        [
            ({"logical_count": [[5, 9, 1]]}, "a load dump", "eplb inspect"),
            ({"records": [], "last_physical_to_logical_map": [[0]]}, "a load dump", "eplb inspect"),
            (
                {"record_type": "eplb_load_stats", "expert_load": 1, "p2l_map": 1},
                "a load dump",
                "eplb inspect",
            ),
            ({"num_experts": 6, "num_experts_per_token": 2}, "a load dump", "eplb inspect"),
            ({"model_type": "x", "architectures": []}, "the config.json of a model", "--model"),
            ({"weight_map": {}}, "the index of a checkpoint", "directory"),
            ({"a": 1, "b": 2}, 'an object with "a", "b"', "docs/dialects.md"),
            ({}, "an object with no key", "docs/dialects.md"),
            ([{"a": 1}], 'an object with "a"', "docs/dialects.md"),
            ([[[0, 1, 2]], [[2, 1, 0]]], "2 x 1 x 3 numbers, which are neither", "docs/dialects.md"),
            ([[[0.5]], [[0.5]]], "a list instead of an object", "docs/dialects.md"),
            ([0.5], "a list instead of an object", "docs/dialects.md"),
            (7, "7 instead of an object", "docs/dialects.md"),
            (
                {"maps": {"main": {"physical_to_logical_map": ROWS}, "draft": {"phy2log": ROWS}}},
                'its maps are further inside, in "maps.main", "maps.draft"',
                "`jq .maps.main FILE > map.json`",
            ),
            ({"a b": {"layer_list": []}}, 'its maps are further inside, in "a b"', "a file of its own"),
        ],
    )
    def test_a_file_is_called_what_it_is(self, value, says, hint):
        """With what to do about it, and with what is read; its format is never asked for."""
        for hints, code in ((TWO_RANKS, "EP103"), (OF_VLLM, "EP116")):
            error = refusal(value, hints)
            assert (error.code, says in error.message) == (code, True)
            assert hint in error.hint
            assert "read are placements of eplb, vllm, sglang, tensorrt-llm, ascend, deepseek" in error.hint
            assert "format" not in error.message

    def test_a_table_is_no_placement(self):
        """Rows of experts and rows of counts look alike."""
        error = refusal(b"0,1\n1,0\n", suffix=".csv")
        assert "a table of comma-separated values" in error.message
        assert "eplb inspect" in error.hint

    def test_the_object_that_was_taken_out_is_read(self):
        """The way that the hint shows goes on."""
        placement, findings = read({**NAMED, "num_redundant_experts": 1}, Hints(2, dialect="vllm"))
        assert findings == []
        assert placement.num_logical_experts == 3


def test_trivial_needs_as_many_slots_on_every_rank():
    """SGLang has no others."""
    with pytest.raises(PlacementError, match="do not divide over 4 ranks"):
        read_placement("trivial", Hints(4, None, 6))
