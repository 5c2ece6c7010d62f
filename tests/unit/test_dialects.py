"""Placements as the engines write them: read, written, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb_cli.errors import PlacementError, UsageError
from eplb_cli.formats.document import parse_document
from eplb_cli.models.model import Model
from eplb_cli.placements.dialects.registry import NAMES, OWN, dialect_called
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import parse_placement, read_placement
from tests.support.placements import placement

GOLDEN = Path(__file__).parents[1] / "data" / "dialects"
ROWS = [[0, 1, 2, 3, 0, 1], [0, 2, 0, 1, 0, 3]]
MODEL = Model("two of three", 3, (1, 2), num_logical_experts=4)
"""Three hidden layers, the first of which is dense."""

TWO_RANKS = Hints(num_ranks=2, num_logical_experts=4)
OF_MODEL = Hints(num_ranks=2, num_logical_experts=4, model=MODEL)


def read(name: str, value: object, hints: Hints) -> tuple[Placement | None, list[tuple[str, str]]]:
    """The placement in a JSON file, and code and message of each finding."""
    result, findings = parse_placement(json.dumps(value).encode(), name, hints)
    return result, [(finding.code, finding.message) for finding in findings]


def written(dialect: str, result: Placement, hints: Hints, suffix: str = "") -> Any:
    """The value of the text that a dialect writes."""
    suffix = suffix or dialect_called(dialect).suffixes[0]
    text = dialect_called(dialect).write(result, hints, suffix)
    return parse_document(f"x{suffix}", text.encode()).value


def test_the_manifest_of_shards():
    """Its placement is read; one without, or with what is none, is refused as any other file."""
    own = {"format": "eplb-placement/1", "num_ranks": 2, "num_logical_experts": 4}
    own["physical_to_logical_map"] = ROWS
    manifest = {"carried": {}, "format": "eplb-checkpoint/1", "placement": own}
    result, findings = read("eplb.json", manifest, Hints())
    assert findings == []
    assert result is not None
    assert result.digest == placement(ROWS, 2).digest
    for wrong in (None, "x", [[0, 1]], {"format": "eplb-checkpoint/1", "placement": own}):
        result, findings = read("eplb.json", {**manifest, "placement": wrong}, Hints())
        assert result is None
        assert {code for code, _ in findings} == {"EP103"}
    assert read("eplb.json", {"format": "eplb-checkpoint/1"}, Hints())[0] is None


def test_a_directory_is_no_placement(tmp_path):
    """Shards have theirs in a file."""
    with pytest.raises(PlacementError) as caught:
        read_placement(tmp_path)
    assert (caught.value.code, caught.value.hint) == (
        "EP101",
        "of a directory of shards, name the eplb.json in it",
    )


EXAMPLES = [
    ("vllm.json", "vllm", TWO_RANKS, placement(ROWS, 2)),
    ("vllm.jsonl", "vllm", Hints(num_ranks=2), placement([[0, 1, 2, 0], [1, 2, 0, 1]], 2)),
    ("sglang.json", "sglang", OF_MODEL, placement(ROWS, 2, layer_ids=[1, 2])),
    ("tensorrt-llm.yaml", "tensorrt-llm", TWO_RANKS, placement(ROWS, 2, layer_ids=[3, 4])),
    ("ascend.json", "ascend", Hints(), placement([[7, 2, 0, 3, 5, 6, 1, 4, 7, 2]], 2)),
    ("deepseek.json", "deepseek", Hints(num_ranks=2), placement(ROWS, 2)),
]
"""A file in `tests/data/dialects`, its dialect, what the file leaves out, and the placement that it says."""


class TestGolden:
    """The literal examples of each format."""

    def test_every_dialect_has_an_example(self):
        """Written down by hand; eplb's own is everywhere."""
        assert {dialect for _, dialect, *_ in EXAMPLES} == {*NAMES} - {OWN}

    @pytest.mark.parametrize(
        ("name", "dialect", "hints", "expected"),
        EXAMPLES,
    )
    def test_a_literal_example_is_read_and_written(self, name, dialect, hints, expected):
        """Found by content, without a finding; and what is written says the same as the example."""
        result, findings = read_placement(str(GOLDEN / name), hints)
        assert {finding.code for finding in findings} <= ({"EP111"} if name == "ascend.json" else set())
        assert result.digest == expected.digest
        example = parse_document(name, (GOLDEN / name).read_bytes()).value
        suffix = Path(name).suffix
        text = written(dialect, expected, hints, suffix)
        assert text == (example if suffix == ".jsonl" or not isinstance(example, list) else ROWS)
        again, _ = read_placement(str(GOLDEN / name), Hints(**{**vars(hints), "dialect": dialect}))
        assert again.digest == expected.digest

    def test_a_record_is_one_line(self):
        """VLLM reads its records line by line."""
        text = dialect_called("vllm").write(placement([[0, 1, 2, 0]], 2), TWO_RANKS, ".jsonl")
        assert text.count("\n") == 1
        assert json.loads(text) == {
            "record_type": "eplb_initial_mapping",
            "version": 1,
            "num_redundant_experts": 1,
            "num_slots": 4,
            "initial_global_assignments": {"0": [0, 1, 2, 0]},
        }

    def test_dense_layers_are_written_as_the_default(self):
        """SGLang starts a layer at slot i = expert i % E; it has exactly one key."""
        value = written("sglang", placement(ROWS, 2, layer_ids=[1, 2]), OF_MODEL)
        assert value == {"physical_to_logical_map": [[0, 1, 2, 3, 0, 1], *ROWS]}

    def test_one_row_is_for_all_layers(self):
        """`initial_expert_map_path` may be a single list."""
        result, findings = read("p.json", ROWS[0], OF_MODEL)
        assert findings == []
        assert result is not None
        assert result.physical_to_logical.tolist() == [ROWS[0], ROWS[0]]
        assert result.layer_ids is not None
        assert result.layer_ids.tolist() == [1, 2]

    def test_the_arrays_of_deepseek_may_stand_alone(self):
        """`phy2log` by itself, bare or named, and the triple that `rebalance_experts` returns."""
        triple = list(json.loads((GOLDEN / "deepseek.json").read_text()).values())
        for value in (ROWS, {"phy2log": ROWS}, triple):
            result, findings = read("p.json", value, Hints(2, None, 4, dialect="deepseek"))
            assert findings == []
            assert result is not None
            assert result.physical_to_logical.tolist() == ROWS


class TestLayers:
    """Each dialect numbers layers in its own way; a model says how they belong together."""

    @pytest.mark.parametrize(
        ("rows", "hints", "layers"),
        [
            (2, OF_MODEL, [1, 2]),
            (3, OF_MODEL, [1, 2]),
            (2, Hints(2, None, 4, np.array([5, 9])), [5, 9]),
            (10, Hints(2, None, 4, np.array([5, 9])), [5, 9]),
            (10, Hints(2, None, 4, np.array([5, 9, 10]), dialect="sglang"), [5, 9]),
            (2, Hints(2, None, 4, np.array([1, 2, 3]), model=Model("mtp", 3, (1, 2), (3,))), [1, 2]),
        ],
    )
    def test_a_model_tells_moe_layers_from_hidden_ones(self, rows, hints, layers):
        """A map of as many rows as MoE layers is vLLM's, one of all hidden layers is SGLang's."""
        table = [[number % 4, *range(1, 4), 0, 0] for number in range(rows)]
        result, _ = read("p.json", {"physical_to_logical_map": table}, hints)
        assert result is not None
        assert result.layer_ids is not None
        assert result.layer_ids.tolist() == layers
        of_sglang = rows != len(layers)
        expected = [(layer if of_sglang else row) % 4 for row, layer in enumerate(layers)]
        assert result.physical_to_logical[:, 0].tolist() == expected

    @pytest.mark.parametrize(
        ("hints", "code", "says"),
        [
            (TWO_RANKS, "EP116", "2 rows under"),
            (Hints(2, None, 4, dialect="sglang"), "EP116", "which of them have experts nothing says"),
            (Hints(2, None, 4, model=Model("m", 5, (1, 2, 3))), "EP109", "2 rows, for 3 MoE or 5 hidden"),
            (Hints(2, None, 4, model=Model("m", 5, (1, 2)), dialect="sglang"), "EP109", "2 rows for the 5"),
            (Hints(2, None, 4, np.array([1, 2, 3])), "EP109", "the map has 2 rows, for 3 MoE layers"),
            (Hints(2, None, 4, np.array([2])), "EP109", "the map has 2 rows, for 1 MoE layers"),
            (Hints(2, None, 4, np.array([0, 3]), dialect="sglang"), "EP109", "none for layer 3"),
            (Hints(2, None, 4, dialect="ascend"), "EP116", "it looks like one of vllm or sglang"),
        ],
    )
    def test_a_map_of_two_meanings_is_an_error(self, hints, code, says):
        """Without a model, or with one of another number of layers."""
        result, [(found, message)] = read("p.json", {"physical_to_logical_map": ROWS}, hints)
        assert result is None
        assert found == code
        assert says in message

    def test_from_decides(self):
        """`--from` is enough where rows are MoE layers."""
        value = {"physical_to_logical_map": ROWS}
        result, findings = read("p.json", value, Hints(2, None, 4, dialect="vllm"))
        assert findings == []
        assert result is not None
        assert result.layer_ids is None

    def test_a_dialect_that_is_none(self):
        """EP001 for a program that names it; the command line has told its user before."""
        with pytest.raises(UsageError, match="'dialect' is no dialect"):
            read("p.json", ROWS, Hints(2, None, 4, dialect="dialect"))

    def test_devices_of_ascend_are_ranks(self):
        """The file has them, and an id that contradicts its position is a warning."""
        value = json.loads((GOLDEN / "ascend.json").read_text())
        value["layer_list"][0]["device_list"].reverse()
        result, findings = read("p.json", value, Hints(num_logical_experts=8))
        assert [code for code, _ in findings] == ["EP103", "EP103"]
        assert "device_id is 1 at position 0" in findings[0][1]
        assert result is not None
        assert result.physical_to_logical[0, :5].tolist() == [6, 1, 4, 7, 2]

    def test_the_ranks_of_ascend_are_compared(self):
        """--num-ranks may not contradict them."""
        value = json.loads((GOLDEN / "ascend.json").read_text())
        _, [(code, _)] = read("p.json", value, Hints(5, None, 8))
        assert code == "EP108"


RECORD = json.loads((GOLDEN / "vllm.jsonl").read_text())
ASCEND = json.loads((GOLDEN / "ascend.json").read_text())
DEEPSEEK = json.loads((GOLDEN / "deepseek.json").read_text())
ASSIGNED = {"initial_global_assignments": {"3": ROWS[0]}, "num_slots": 6}


class TestBadFiles:
    @pytest.mark.parametrize(
        ("value", "code", "says"),
        [
            ([[0, 1], [0]], "EP104", "layer 1 has 1 slots"),
            ([[0, 9]], "EP105", "9 is not an expert"),
            ([[0, 1.5]], "EP104", "1.5 is not an integer"),
            ({**RECORD, "version": 2}, "EP103", "'version' in a record"),
            ({**RECORD, "note": 1}, "EP103", "'note' in a record"),
            ({**RECORD, "num_slots": 5}, "EP103", "num_slots is 5"),
            ({**RECORD, "num_slots": None}, "EP103", "a number of slots none"),
            ({**RECORD, "initial_global_assignments": {"1": [0]}}, "EP103", "do not count MoE layers from 0"),
            ({**RECORD, "initial_global_assignments": [[0]]}, "EP103", "is no object"),
            ([RECORD, RECORD], "EP103", "2 records"),
            ({**ASSIGNED, "num_slots": 7}, "EP103", "num_slots is 7"),
            ({**ASSIGNED, "layer_updates": 0}, "EP103", '"layer_updates" is unknown'),
            ({"initial_global_assignments": {}}, "EP103", "no map from layers to slots"),
            ({"initial_global_assignments": {"x": [0]}}, "EP103", '"x" is no layer number'),
            ({"initial_global_assignments": {"-1": [0]}}, "EP103", '"-1" is no layer number'),
            ({"initial_global_assignments": {"3": [0], "03": [0]}}, "EP103", "more than once"),
            ({"initial_global_assignments": {"3": 0}}, "EP104", "layer 3 is 0 instead of a list"),
            ({**ASCEND, "moe_layer_count": 2}, "EP103", "moe_layer_count is 2 for 1 entries"),
            ({"moe_layer_count": 1, "layer_list": [{}]}, "EP103", "layer 0 has no device_list"),
            ({"moe_layer_count": 0, "layer_list": []}, "EP103", "the file has no layer_list"),
            (
                {"moe_layer_count": 1, "layer_list": [{"device_count": 1, "device_list": [{}]}]},
                "EP103",
                "layer 0, device 0 has no list device_expert",
            ),
            ({**DEEPSEEK, "logcnt": [[2, 2, 1, 1], [3, 1, 2, 1]]}, "EP103", "logcnt is not what follows"),
            ({**DEEPSEEK, "log2phy": DEEPSEEK["log2phy"][::-1]}, "EP103", "log2phy is not what follows"),
            ({**DEEPSEEK, "logcnt": "x"}, "EP103", "none of integers"),
            ({**DEEPSEEK, "phy2log": [[0, 1, 2, 4, 0, 1]] * 2}, "EP103", "does not number the experts"),
        ],
    )
    def test_what_is_not_well_formed_has_a_code(self, value, code, says):
        """Each with what is wrong in it."""
        hints = Hints(num_ranks=None if "layer_list" in value else 1, num_logical_experts=4)
        result, findings = read("p.json", value, hints)
        assert result is None
        errors = [(found, message) for found, message in findings if "position" not in message]
        assert errors[0][0] == code
        assert says in errors[0][1]

    def test_layers_of_ascend_are_alike(self):
        """Every layer has the same devices with as many experts."""
        layer = {"layer_id": 1, "device_count": 1, "device_list": [{"device_id": 0, "device_expert": [0]}]}
        value = {"moe_layer_count": 2, "layer_list": [*ASCEND["layer_list"], layer]}
        _, [(code, message)] = read("p.json", value, Hints())
        assert (code, "other numbers of experts" in message) == ("EP103", True)

    def test_repeated_keys_are_found_in_every_dialect(self):
        """Which of two maps counts is nobody's guess."""
        data = b'{"physical_to_logical_map": [[0]], "physical_to_logical_map": [[0]]}'
        _, findings = parse_placement(data, "p.json", OF_MODEL)
        codes = {finding.code for finding in findings}
        assert codes & {"EP102", "EP109"}

    @pytest.mark.parametrize("depth", [3, 40, 900])
    def test_deep_nesting_is_no_crash(self, depth):
        """Whatever it looks like at its top."""
        data = b'{"phy2log": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}"
        result, findings = parse_placement(data, "p.json", TWO_RANKS)
        assert result is None
        assert findings[0].code in {"EP102", "EP104"}


class TestWhatCannotBeSaid:
    @pytest.mark.parametrize("dialect", [name for name in NAMES if name != OWN])
    @pytest.mark.parametrize(
        ("rows", "slots", "says"),
        [
            ([[0, 1, 2], [2, 1, 0]], [2, 1], "rank 0 has 2 slots and rank 1 has 1"),
            ([[0, 1, 2, -1], [2, 1, 0, 0]], [2, 2], "layer 1, slot 3 is empty"),
        ],
    )
    def test_uneven_ranks_and_empty_slots(self, dialect, rows, slots, says):
        """Only eplb's own dialect has them."""
        result = placement(rows, None, 3, [1, 2], slots)
        with pytest.raises(PlacementError, match=says) as caught:
            dialect_called(dialect).write(result, Hints(model=MODEL), dialect_called(dialect).suffixes[0])
        assert caught.value.code == "EP117"
        assert caught.value.message.startswith(dialect)

    def test_an_expert_twice_on_a_device(self):
        """Ascend cannot hold it."""
        result = placement([[0, 1, 2, 3], [0, 1, 3, 3], [2, 0, 1, 1]], 2, 4)
        with pytest.raises(PlacementError, match="layer 1, rank 1 holds expert 3 twice"):
            dialect_called("ascend").write(result, Hints(), ".json")

    @pytest.mark.parametrize("dialect", ["vllm", "ascend", "deepseek"])
    @pytest.mark.parametrize(
        ("layer_ids", "hints", "says"),
        [
            ([1, 3], Hints(), "layer 2 is between the others"),
            ([1, 3], Hints(model=Model("m", 4, (1, 2, 3))), "MoE layer 2 has no row"),
            ([1, 3], Hints(model=Model("m", 3, (1,), (3,))), "layer 3, which is none of the model's counted"),
        ],
    )
    def test_rows_that_are_not_the_moe_layers(self, dialect, layer_ids, hints, says):
        """Where rows are counted, each MoE layer has one and nothing else has."""
        result = placement([[0, 1], [1, 0]], 2, 2, layer_ids)
        with pytest.raises(PlacementError, match=says):
            dialect_called(dialect).write(result, hints, dialect_called(dialect).suffixes[0])

    def test_every_second_layer_needs_a_model(self):
        """Llama 4 Maverick: a preset says that the layers between are dense."""
        from eplb_cli.models.preset import find_model

        model = find_model("llama4-maverick")
        result = placement([[*range(128)]] * 24, 8, 128, [*range(1, 48, 2)])
        assert len(written("vllm", result, Hints(model=model))) == 24
        with pytest.raises(PlacementError, match="layer 2 is between"):
            dialect_called("vllm").write(result, Hints(), ".json")

    @pytest.mark.parametrize("dialect", ["sglang", "tensorrt-llm"])
    def test_layer_numbers_that_nothing_says(self, dialect):
        """They come from the file or from a model."""
        result = placement(ROWS, 2, 4)
        with pytest.raises(PlacementError, match=r"nothing says|needs the model's own number") as caught:
            dialect_called(dialect).write(result, Hints(), dialect_called(dialect).suffixes[0])
        assert caught.value.code == "EP117"
        assert written(dialect, result, OF_MODEL)

    def test_rows_are_written_in_the_order_of_layers(self):
        """Whatever order the placement has them in."""
        result = placement([[0, 1], [1, 0]], 2, 2, [2, 1])
        assert written("vllm", result, OF_MODEL) == [[1, 0], [0, 1]]
        assert written("sglang", result, OF_MODEL)["physical_to_logical_map"] == [[0, 1], [1, 0], [0, 1]]
