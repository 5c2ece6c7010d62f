"""SGLang's `presharded` directories: files by content, and `checksum.json`, which says what each rank reads.

Read in the loader of SGLang 0.5.23 (`PreshardedModelLoader`). A tensor is in a file under the hash of its
content, once for all ranks that have it; `rank_to_reads` gives it the names of the model. They are those of a
`sharded_state`, after post-processing as there, but a tensor with two names has both here and one there::

    {"version": 1, "world_size": 2, "rank_to_reads": {"0": [{"filename": "model-00000-common.safetensor",
     "stored_key": "9a3f...", "name": "model.norm.weight", "is_extra": false}, ...], "1": [...]}}

The directory's name is a digest of SGLang's options, with that of the map's file in it: under another map
SGLang does not look into it. What was left on a module beside its parameters is an "extra". Only a presharded
directory can give it back, and eplb writes sharded_state: shards with extras are refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from eplb_cli.errors import CheckpointError
from eplb_cli.formats.reading import read_json

INDEX_NAME = "checksum.json"
READY_NAME = "READY"
SUFFIX = ".safetensor"
SERIES = "model-rank-{rank}-part-{part}.safetensors"
"""What the shards that are made of one are called: SGLang's sharded_state."""

_MAX_NBYTES = 1 << 28
_VERSION = 1
_HINT = "let SGLang write it again, under the new --init-expert-location"


class Read(NamedTuple):
    """A tensor that a rank reads: where it is, and what it is there."""

    file: str
    stored_key: str
    name: str


def is_presharded(names: list[str]) -> bool:
    """Whether a directory of such files is one."""
    return INDEX_NAME in names and any(name.endswith(SUFFIX) for name in names)


def read_index(path: Path) -> list[list[Read]]:
    """What each rank reads.

    Raises:
        CheckpointError: EP206, it is not understood, or has what cannot be resharded; EP201, EP204 or EP220.
    """
    where = path / INDEX_NAME
    raw = read_json(where, _MAX_NBYTES, partial(_unusable, where))
    if not isinstance(raw, dict) or raw.get("version") != _VERSION:
        raise _unusable(where, f"its version is not {_VERSION}")
    reads, world = raw.get("rank_to_reads"), raw.get("world_size")
    if type(world) is not int or not isinstance(reads, dict) or reads.keys() != {*map(str, range(world))}:
        raise _unusable(where, "world_size and rank_to_reads do not name the same ranks")
    return [[_read(where, rank, one) for one in _listed(where, reads[str(rank)])] for rank in range(world)]


def _listed(where: Path, reads: object) -> list[Any]:
    if not isinstance(reads, list):
        raise _unusable(where, "what a rank reads is no list")
    return reads


def _read(where: Path, rank: int, raw: object) -> Read:
    fields = ("filename", "stored_key", "name")
    if not isinstance(raw, dict) or not all(isinstance(raw.get(field), str) for field in fields):
        raise _unusable(where, f"a tensor of rank {rank} has no {', '.join(fields)}")
    if raw.get("is_extra", False) is not False:
        problem = (
            f"{raw['name']!r} of rank {rank} is kept beside the parameters, which no sharded_state can hold"
        )
        raise _unusable(where, problem)
    return Read(*(raw[field] for field in fields))


def _unusable(where: Path, reason: str) -> CheckpointError:
    return CheckpointError("EP206", f"{where} cannot be resharded: {reason[:300]}", _HINT)
