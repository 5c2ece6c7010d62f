"""Loads by slot, as text, and as a directory: by expert, or refused by what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb_cli.errors import CheckpointError, PlacementError
from eplb_cli.formats.budget import NotReadableError
from eplb_cli.formats.csv_text import parse_csv
from eplb_cli.models.load import is_load, read_load
from eplb_cli.models.model import Model
from tests.cli.tree import Tensor, write_shard

MODEL = Model("two of three", 3, (1, 2), (3,), num_logical_experts=4)
COUNTS = [[5, 0, 1, 2], [4, 4, 4, 0]]
MAP = [[0, 1, 2, 3, 0], [1, 0, 2, 2, 3], [3, 0, 2, 1, 0]]
"""Of all hidden layers; 5 slots."""


def refusal(name: Path, model: Model | None = MODEL) -> PlacementError:
    """EP119 for a file that is no load."""
    with pytest.raises(PlacementError) as caught:
        read_load(str(name), model)
    assert caught.value.code == "EP119"
    return caught.value


class TestRecordsOfSglang:
    """The modes per_pass and per_token: a file for each rank, counted by slot."""

    def dump(self, path: Path, records: list[dict[str, Any]], table: Any = MAP) -> Path:
        """A file as the recorder writes it."""
        torch = pytest.importorskip("torch")
        whole = [
            {"forward_pass_id": n, "rank": 3, "gatherer_key": "primary", **r} for n, r in enumerate(records)
        ]
        tensors = [
            {key: torch.tensor(v) if isinstance(v, list) else v for key, v in r.items()} for r in whole
        ]
        torch.save({"records": tensors, "last_physical_to_logical_map": torch.tensor(table)}, path / "r.pt")
        return path / "r.pt"

    @pytest.mark.parametrize("model", [MODEL, None])
    def test_passes(self, tmp_path, model):
        """Counts of slots are added up by the experts that the slots hold, step by step."""
        first = [[0] * 5, [1, 2, 4, 8, 16], [1, 0, 0, 0, 2]]
        name = self.dump(tmp_path, [{"global_physical_count": first}, {"global_physical_count": first[::-1]}])
        load = read_load(str(name), model)
        assert load.form == "sglang"
        expected = [[[2, 1, 12, 16], [2, 0, 0, 1]], [[2, 1, 12, 16], [0, 0, 0, 0]]]
        dense = 0 if model is not None else 1  # without a model, layer 0 counted something in the second step
        assert load.counts[:, dense:].tolist() == expected
        assert load.counts.shape == (2, 2 + dense, 4)
        assert "the records of rank 3 alone" in load.notes[0]
        assert "the map at the end" in load.notes[1]

    def test_tokens(self, tmp_path):
        """Their topk ids are slots, and -1 is none."""
        ids = [[[-1, -1], [-1, -1]], [[0, 4], [3, 4]], [[2, -1], [2, 0]]]
        load = read_load(str(self.dump(tmp_path, [{"input_ids": [7, 8], "topk_ids_of_layer": ids}])), MODEL)
        assert load.counts.tolist() == [[[0, 1, 1, 2], [0, 0, 2, 1]]]

    @pytest.mark.parametrize(
        ("records", "table", "says"),
        [
            ([], MAP, "it has no records"),
            ([{}], MAP, "neither global_physical_count nor topk_ids_of_layer"),
            ([{"global_physical_count": [[1] * 5] * 2}], MAP, "does not say the expert of each slot"),
            ([{"global_physical_count": [[[1] * 5] * 3] * 2}], MAP, "the expert of each slot"),
            ([{"topk_ids_of_layer": [[[0, 5]]] * 3}], MAP, "a slot beyond the 5 of the map"),
            ([{"topk_ids_of_layer": [[0, 5]] * 3}], MAP, "has the shape (3, 2)"),
            ([{"topk_ids_of_layer": [[[0.5]]] * 3}], MAP, "does not say experts or slots"),
            ([{"global_physical_count": [[1] * 5] * 3}], MAP[0], "it has the shape (5,)"),
            ([{"global_physical_count": [[1] * 5] * 3}], [[9] * 5] * 3, "an expert beyond 4"),
            ([{"global_physical_count": [[1] * 5] * 4}], [*MAP, MAP[0]], "has 3 hidden layers of 4 experts"),
        ],
    )
    def test_what_they_cannot_be(self, tmp_path, records, table, says):
        """Whatever cannot be by expert is refused."""
        assert says in refusal(self.dump(tmp_path, records, table)).message

    def test_a_map_that_takes_any_memory(self, tmp_path):
        """A few numbers may name a million experts in each of many layers."""
        record = {"record_type": "eplb_load_stats", "expert_load": [[1]] * 99, "p2l_map": [[999_999]] * 99}
        (tmp_path / "l.json").write_text(json.dumps(record))
        assert "99 layers and 1,000,000 experts" in refusal(tmp_path / "l.json", None).message


class TestTables:
    def test_triples_of_sglang(self, tmp_path):
        """A line for each expert that got tokens, by hidden layer."""
        text = "layer_id,expert_id,count\n1,0,5\n1,3,2\n1,2,1\r\n\n2,0,4\n2,2,4\n2,1,4\n"
        (tmp_path / "l.csv").write_text(text)
        load = read_load(str(tmp_path / "l.csv"), MODEL)
        assert (load.form, load.counts.tolist(), len(load.notes)) == ("sglang", [COUNTS], 1)
        load = read_load(str(tmp_path / "l.csv"))
        assert load.counts.tolist() == [COUNTS]
        assert load.layer_ids is not None
        assert load.layer_ids.tolist() == [1, 2]
        assert "taken to be 4" in load.notes[1]

    def test_a_line_for_each_layer(self, tmp_path):
        """As msit has it; only a model tells experts from the slots of one rank."""
        (tmp_path / "l.csv").write_text("5,0,1,2\n4,4,4,0\n")
        load = read_load(str(tmp_path / "l.csv"), MODEL)
        assert (load.form, load.counts.tolist(), load.notes) == ("msit", [COUNTS], ())
        assert "the slots of rank N alone" in read_load(str(tmp_path / "l.csv")).notes[0]
        (tmp_path / "decode_0.csv").write_text("5,0\n4,4\n")
        error = refusal(tmp_path / "decode_0.csv")
        assert "it counts 2 layers of 2 experts" in error.message
        assert "the slots of rank N alone" in error.hint

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "the shape"),
            ("layer_id,expert_id,count\n", "the shape"),
            ("expert,count\n1,2\n", "its columns are expert, count"),
            ("1,2\n3\n", "1 fields where others have 2"),
            ("1,2\n3,x\n", "not a table of numbers"),
            ("1,2\n3,nan\n", "negative, or no number"),
            ("layer_id,expert_id,count\n1,0,5\n1,0,6\n", "more than once"),
            ("layer_id,expert_id,count\n1,0.5,5\n", "no integers"),
            ("layer_id,expert_id,count\n1,4,5\n", "of 5 experts"),
            ("layer_id,expert_id,count\n9,0,5\n", "10 layers"),
            ("layer_id,expert_id,count\n9999,999999,5\n", "10,000 layers and 1,000,000 experts"),
        ],
    )
    def test_tables_that_are_no_load(self, tmp_path, text, says):
        """With the reason, and a line where there is one."""
        (tmp_path / "l.csv").write_text(text)
        assert says in refusal(tmp_path / "l.csv").message

    def test_a_line_is_named(self):
        """Empty lines count."""
        with pytest.raises(NotReadableError) as caught:
            parse_csv(b"\xef\xbb\xbf1,2\n\n3\n")
        assert caught.value.line == 3

    def test_objects_of_mindspeed(self, tmp_path):
        """MoE layers from 0, each expert with its tokens, in any order."""
        value = {str(layer): {str(e): row[e] for e in (3, 0, 2, 1)} for layer, row in enumerate(COUNTS)}
        (tmp_path / "l.json").write_text(json.dumps(dict(reversed(value.items()))))
        load = read_load(str(tmp_path / "l.json"), MODEL)
        assert (load.form, load.counts.tolist()) == ("mindspeed-rl", [COUNTS])
        assert "one rank alone" in load.notes[0]

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ({"1": {"0": 1}}, "not numbered from 0"),
            ({"0": {"0": 1}, "00": {"0": 1}}, "not numbered from 0"),
            ({"0": {"0": 1, "00": 1}}, "more than once"),
            ({"0": {"0": "x"}}, "no rectangle of numbers"),
            ({"0": {"0": -1}}, "negative"),
            ({"0": {}}, 'an object with "0", and neither'),
            ({"0": {"0": 1}}, "two of three has 2 MoE layers of 4 experts"),
            ({str(n): {"999999": 1} for n in range(99)}, "99 layers and 1,000,000 experts"),
        ],
    )
    def test_objects_that_are_no_load(self, tmp_path, value, says):
        """Numbers all the way down are not enough."""
        (tmp_path / "l.json").write_text(json.dumps(value))
        assert says in refusal(tmp_path / "l.json").message


class TestStatistics:
    """TensorRT-LLM's directory: a file of tensors for each rank."""

    def write(self, path: Path, ranks: list[dict[str, Any]], meta: object = None) -> Path:
        """A directory of statistics."""
        meta = {"num_experts": 4, "num_experts_per_token": 2} if meta is None else meta
        (path / "meta_info.json").write_text(json.dumps(meta))
        for rank, tensors in enumerate(ranks):
            shard = {k: Tensor("I64", (len(v),), np.array(v, "<i8").tobytes()) for k, v in tensors.items()}
            write_shard(path / f"rank{rank}.safetensors", shard)
        (path / "rank0_raw.safetensors").write_bytes(b"something else")
        return path

    def test_ranks_are_added_up(self, tmp_path):
        """By iteration, and by the model's own layer; what has other names is passed over."""
        first = {"9_1": COUNTS[0], "10_1": COUNTS[1], "9_2": COUNTS[1], "10_3": [1, 1, 1, 1]}
        path = self.write(tmp_path, [first, {"9_1": COUNTS[0], "10_2": COUNTS[0]}])
        assert is_load(path)
        load = read_load(str(path))
        assert load.form == "tensorrt-llm"
        none = [0] * 4
        twice = (2 * np.array(COUNTS[0])).tolist()
        assert load.counts.tolist() == [[twice, COUNTS[1], none], [COUNTS[1], COUNTS[0], [1] * 4]]
        assert load.layer_ids is not None
        assert load.layer_ids.tolist() == [1, 2, 3]
        of_model = read_load(str(path), MODEL)
        assert of_model.counts.tolist() == load.counts[:, :2].tolist()
        assert of_model.notes == ("left out: MTP layer 3",)

    @pytest.mark.parametrize(
        ("ranks", "meta", "says"),
        [
            ([], None, "no rankR.safetensors"),
            ([{"9_1": [1, 2, 3]}], None, "rank0.safetensors: '9_1' [3] is no ITERATION_LAYER of 4 experts"),
            ([{"a": [1, 2, 3, 4]}], None, "'a' [4] is no ITERATION_LAYER"),
            ([{"9_1": [-1, 2, 3, 4]}], None, "negative"),
            ([{"9_1": COUNTS[0]}], None, "layer 2 is counted and no MoE layer of two of three"),
            ([{"9_1": [1]}], {"num_experts": 1}, "it counts 1 experts; two of three has 4"),
            ([], {"num_experts": 0}, "has no num_experts"),
            ([], [], "has no num_experts"),
        ],
    )
    def test_what_they_cannot_be(self, tmp_path, ranks, meta, says):
        """Each file with its name."""
        assert says in refusal(self.write(tmp_path, ranks, meta)).message

    @pytest.mark.parametrize("data", [b"", b"\xff" * 9, bytes(7) + b"\1", b"\2" + bytes(7) + b"{}x"])
    def test_a_broken_file(self, tmp_path, data):
        """EP203, as for every file of tensors."""
        (self.write(tmp_path, []) / "rank0.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            read_load(str(tmp_path))
        assert caught.value.code == "EP203"

    def test_tensors_of_no_integers(self, tmp_path):
        """EP203 names the tensor."""
        write_shard(self.write(tmp_path, []) / "rank0.safetensors", {"9_1": Tensor("F32", (1,), bytes(4))})
        with pytest.raises(CheckpointError, match="'9_1' is of F32"):
            read_load(str(tmp_path))


class TestStrangers:
    def test_counts_by_slot_without_the_map(self, tmp_path):
        """What is missing, and where it would be; without a model only a note can say it."""
        np.save(tmp_path / "l.npy", np.ones((2, 5), int))
        error = refusal(tmp_path / "l.npy")
        assert "it counts 2 layers of 5 experts" in error.message
        assert error.hint.startswith("is it of this model? counts by slot are no load without the map")
        assert "taken for an expert, not a slot" in read_load(str(tmp_path / "l.npy")).notes[0]

    @pytest.mark.parametrize(
        ("value", "says", "hint"),
        [
            ({"physical_to_logical_map": [[0]]}, "it is a placement", "eplb validate"),
            ({"layer_list": [], "moe_layer_count": 0}, "it is a placement", "eplb validate"),
            ({"model_type": "x"}, "it is the config.json of a model", "--model"),
            ({"a": 1}, 'an object with "a", and neither logical_count', "docs/dialects.md"),
            ("x", "neither logical_count", "docs/dialects.md"),
        ],
    )
    def test_a_file_is_called_what_it_is(self, tmp_path, value, says, hint):
        """With what to do about it."""
        (tmp_path / "l.json").write_text(json.dumps(value))
        error = refusal(tmp_path / "l.json")
        assert says in error.message
        assert hint in error.hint
