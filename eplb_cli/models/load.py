"""How many tokens each expert got: the dumps of the engines, read into one form.

::

    sglang          the recorder's .pt: logical_count (steps, hidden layers, E), or without steps; its records
                    by slot; before May 2025 a .csv
    vllm            JSON lines of record_type eplb_load_stats: expert_load and p2l_map, (MoE layers, P) each
    tensorrt-llm    a directory of statistics
    mindspeed-rl    .json, layer by layer and expert by expert
    msit            .csv, (MoE layers, E)
    array           .npy, .pt or JSON: (MoE layers, E) or (steps, MoE layers, E)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.errors import PlacementError
from eplb_cli.formats.budget import NotReadableError
from eplb_cli.formats.csv_text import Table
from eplb_cli.formats.document import parse_document
from eplb_cli.formats.json_text import shown_keys
from eplb_cli.formats.reading import read_bytes
from eplb_cli.models.counted import Load, counts_of, no_load, of_hidden_layers, of_moe_layers
from eplb_cli.models.load_records import SGLANG_MAP, read_sglang_records, read_vllm_records, vllm_records
from eplb_cli.models.load_statistics import META, read_statistics
from eplb_cli.models.load_tables import is_nested, read_nested, read_table
from eplb_cli.models.model import Model

_READ = "logical_count, records of SGLang or vLLM, an array of counts, a table, or statistics of TensorRT-LLM"
_MAPS = (
    "physical_to_logical_map",
    "phy2log",
    "initial_global_assignments",
    "layer_list",
    "expert_to_ep_rank",
)
_BY_SLOT = (
    "is it of this model? counts by slot are no load without the map: vLLM's records eplb_load_stats have "
    "it, as p2l_map"
)
_TOLD = "--model says how many experts there are"


def is_load(path: Path) -> bool:
    """Whether a path is a file, or a directory of statistics: no directory of shards."""
    return path.is_file() or (path / META).is_file()


def read_load(name: str, model: Model | None = None) -> Load:
    """The load in a file, or in a directory of TensorRT-LLM's statistics.

    Args:
        model: says which hidden layers are MoE layers, and what the rows of the others are.

    Raises:
        PlacementError: EP101 or EP119, the file cannot be read or holds no load.
        CheckpointError: EP201, EP203 or EP204, a file in the directory cannot be read.
    """
    if (Path(name) / META).is_file():
        return read_statistics(name, model)
    try:
        value = parse_document(name, read_bytes(name)).value
    except NotReadableError as error:
        raise no_load(name, error.message) from error
    if records := vllm_records(value):
        return of_moe_layers(name, "vllm", read_vllm_records(name, records, model), model)
    if isinstance(value, Table):
        return read_table(name, value, model)
    if isinstance(value, list | np.ndarray):
        notes = () if model is not None else (f"each column is taken for an expert, not a slot: {_TOLD}",)
        return of_moe_layers(name, "array", counts_of(name, value), model, notes, hint=_BY_SLOT)
    if isinstance(value, dict):
        return _of_keys(name, value, model)
    raise no_load(name, f"neither {_READ}")


def _of_keys(name: str, value: dict[str, Any], model: Model | None) -> Load:
    if "logical_count" in value:
        return of_hidden_layers(name, counts_of(name, value["logical_count"]), model)
    if "records" in value and SGLANG_MAP in value:
        return read_sglang_records(name, value, model)
    if is_nested(value):
        return read_nested(name, value, model)
    raise _stranger(name, value)


def _stranger(name: str, value: dict[str, Any]) -> PlacementError:
    """EP119 for an object that is something else."""
    if any(key in value for key in _MAPS):
        return no_load(name, "it is a placement", "`eplb validate FILE` looks at it")
    if "model_type" in value:
        return no_load(name, "it is the config.json of a model", "give it with --model")
    return no_load(name, f"an object with {shown_keys(list(value)) or 'no key'}, and neither {_READ}")
