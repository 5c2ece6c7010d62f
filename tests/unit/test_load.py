"""Load dumps of the engines, read into one form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eplb_cli.errors import PlacementError
from eplb_cli.models.load import read_load
from eplb_cli.models.model import Model
from eplb_cli.report.load import load_json, summarize_load

MODEL = Model("two of three", 3, (1, 2), num_logical_experts=4)
COUNTS = [[5, 0, 1, 2], [4, 4, 4, 0]]
RECORD = {
    "record_type": "eplb_load_stats",
    "version": 1,
    "step": 7,
    "num_ranks": 2,
    "expert_load": [[3, 0, 1, 2, 2], [4, 4, 2, 2, 0]],
    "p2l_map": [[0, 1, 2, 3, 0], [1, 0, 2, 2, 3]],
}


@pytest.fixture
def dump(tmp_path):
    """A file of one of the forms."""

    def write(name: str, value: object) -> str:
        path = tmp_path / name
        if path.suffix == ".pt":
            pytest.importorskip("torch").save(value, path)
        elif path.suffix == ".npy":
            np.save(path, np.array(value))
        elif path.suffix == ".jsonl" and isinstance(value, list):
            path.write_text("\n".join(map(json.dumps, value)))
        else:
            path.write_text(json.dumps(value))
        return str(path)

    return write


def test_the_recorder_of_sglang(dump):
    """All hidden layers, step by step; the model says which are MoE layers."""
    counts = pytest.importorskip("torch").tensor([[[0] * 4, *COUNTS], [[0] * 4, *COUNTS]])
    name = dump("load.pt", {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": 0.5})
    for model in (MODEL, None):
        load = read_load(name, model)
        assert load.form == "sglang"
        assert load.counts.shape == (2, 2, 4)
        assert load.total.tolist() == (2 * np.array(COUNTS)).tolist()
        assert load.layer_ids is not None
        assert load.layer_ids.tolist() == [1, 2]
        assert bool(load.notes) == (model is None)


def test_the_records_of_vllm(dump):
    """Slots are added up by the expert they held at that step; other records are passed over."""
    moved = {**RECORD, "step": 8, "p2l_map": [[3, 2, 1, 0, -1], [1, 0, 2, 2, 3]]}
    load = read_load(dump("load.jsonl", [{"record_type": "eplb_load_meta"}, RECORD, moved]), MODEL)
    assert load.form == "vllm"
    assert load.counts.tolist() == [
        [[5, 0, 1, 2], [4, 4, 4, 0]],
        [[2, 1, 0, 3], [4, 4, 4, 0]],
    ]
    assert load.layer_ids is not None
    assert load.layer_ids.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["load.npy", "load.pt", "load.json"])
def test_counts_as_arrays(dump, name):
    """(L, E), as DeepSeek's weights are, in any file."""
    value = pytest.importorskip("torch").tensor(COUNTS) if name == "load.pt" else COUNTS
    load = read_load(dump(name, value))
    assert load.form == "array"
    assert load.counts.tolist() == [COUNTS]
    assert load.layer_ids is None


def test_what_inspect_tells(dump):
    """Per layer: tokens, the busiest expert, how far it is above the mean, and who got none."""
    described = load_json(summarize_load(Path("x"), read_load(dump("load.json", COUNTS), MODEL)))
    assert described["tokens"] == 20
    assert described["layers"] == [
        {"layer": 1, "tokens": 8, "busiest_expert": 0, "busiest_over_mean": 2.5, "idle_experts": 1},
        {"layer": 2, "tokens": 12, "busiest_expert": 0, "busiest_over_mean": 1.3333, "idle_experts": 1},
    ]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("l.json", {"physical_to_logical_map": [[0]]}, "it is a placement"),
        ("l.json", [1, 2], "the shape"),
        ("l.json", [[1], [2, 3]], "no rectangle"),
        ("l.json", [["a"]], "no rectangle"),
        ("l.json", [[-1, 2]], "negative"),
        ("l.json", [[float("nan"), 2]], "negative, or no number"),
        ("l.json", [[]], "the shape"),
        ("l.json", [[1, 2, 3, 4]] * 3, "two of three has 2 MoE layers of 4 experts"),
        ("l.json", {"logical_count": [[1, 2, 3, 4]] * 2}, "two of three has 3 hidden layers"),
        ("l.jsonl", [{**RECORD, "p2l_map": [[0]]}], "does not say the expert of each slot"),
        ("l.jsonl", [{**RECORD, "p2l_map": None}], "a p2l_map does not say"),
        ("l.jsonl", [{**RECORD, "p2l_map": [[9] * 5] * 2}], "an expert beyond 4"),
        ("l.jsonl", [{"record_type": "eplb_load_stats"}], "a p2l_map does not say"),
        ("l.jsonl", [RECORD, {**RECORD, "expert_load": [[1]], "p2l_map": [[0]]}], "differ in layers"),
        ("l.npy", {}, "not an array"),
    ],
)
def test_what_is_no_load(dump, name, value, says):
    """EP119 says why."""
    with pytest.raises(PlacementError, match=says) as caught:
        read_load(dump(name, value), MODEL)
    assert caught.value.code == "EP119"


def test_a_load_without_tokens(dump):
    """SGLang's form without a model and without a token says nothing of layers."""
    with pytest.raises(PlacementError, match="no layer counted a token"):
        read_load(dump("l.json", {"logical_count": [[0, 0]]}))
