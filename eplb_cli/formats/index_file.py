"""The index of a Hugging Face checkpoint: which file has which tensor."""

from __future__ import annotations

from typing import Any

from eplb_cli.formats.budget import Fault
from eplb_cli.formats.reading import json_value

INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_NBYTES = 1 << 28


def index_json(index: bytes, fault: Fault) -> dict[str, Any]:
    """The content of an index, whose "weight_map" says the file of each key. Raises `fault`."""
    content = json_value(index, MAX_INDEX_NBYTES, fault)
    said = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(said, dict) or not all(isinstance(file, str) for file in said.values()):
        raise fault('it has no "weight_map" of keys and files')
    return dict(content)
