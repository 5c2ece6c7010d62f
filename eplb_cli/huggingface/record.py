"""`eplb-huggingface.json`: what `merge` needs to make the Hugging Face checkpoint again, byte for byte.

It lies beside the shards and travels along when they are resharded. It has the beginning of every file, the
names that the shards were given, and the digests of all rows and other tensors, in the order of its places.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.manifest import Manifest, file_beside
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.checkpoint.staged import refuse_staging
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.formats.reading import json_value
from eplb_cli.huggingface.engine import Names, names_from_json
from eplb_cli.huggingface.joined import Joined, join
from eplb_cli.huggingface.one_rank import as_one_rank
from eplb_cli.huggingface.parts import in_layer_order
from eplb_cli.huggingface.source import ORIGIN_NAME, HuggingFace, file_from_start
from eplb_cli.values import dataclass

FORMAT = "eplb-huggingface/1"
MAX_ORIGIN_NBYTES = 1 << 28
"""Of more than a million tensors."""


@dataclass(frozen=True, eq=False)
class Origin:
    """A Hugging Face checkpoint without its data.

    Attributes:
        tree: its files; `carried` names those beside them, wherever they are now.
        names: what the engine calls its tensors.
        skipped: in words, the MTP layers whose tensors are not in the shards.
        digests: (X, 16) xxh3-128 of every row (L, K, E), then of every other tensor by its key.
    """

    tree: HuggingFace
    names: Names
    skipped: tuple[str, ...]
    digests: NDArray[np.uint8]


def origin_bytes(
    tree: HuggingFace, names: Names, skipped: Sequence[str], digests: NDArray[np.uint8]
) -> bytes:
    """The content of the record."""
    content = {
        "format": FORMAT,
        "names": names.as_json(),
        "skipped": list(skipped),
        "index_name": tree.index_name,
        "index": tree.index.decode("latin-1"),
        "carried": sorted(tree.carried),
        "files": [{"name": file.name, "start": file.start.decode("latin-1")} for file in tree.files],
        "digests": digests.tobytes().hex(),
    }
    return json.dumps(content).encode() + b"\n"


def read_origin(path: Path, manifest: Manifest | None = None) -> Origin:
    """The record beside shards, whose manifest may have its digest.

    Raises:
        BytesError: EP506, it is not what the manifest says.
        CheckpointError: EP225, it is malformed.
    """
    where = path / ORIGIN_NAME
    text = file_beside(path, ORIGIN_NAME, manifest).read(MAX_ORIGIN_NBYTES)
    raw = json_value(text, MAX_ORIGIN_NBYTES, partial(_damaged, where))
    try:
        if raw["format"] != FORMAT:
            raise _damaged(where, f"its format is not {FORMAT}")
        names = names_from_json(raw["names"])
        skipped = tuple(map(str, raw.get("skipped", ())))
        index_name, index = raw["index_name"], raw["index"].encode("latin-1")
        sources = tuple(
            file_from_start(_plain_name(file["name"]), file["start"].encode("latin-1"))
            for file in raw["files"]
        )
        digests = np.frombuffer(bytes.fromhex(raw["digests"]), np.uint8).reshape(-1, DIGEST_NBYTES)
        carried = {name: file_beside(path, _plain_name(name), manifest) for name in raw["carried"]}
        index_name = None if index_name is None else _plain_name(index_name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(where, f"{type(error).__name__}: {str(error)[:200]}") from error
    return Origin(HuggingFace(path, sources, index_name, index, carried), names, skipped, digests)


def unlike_origin(what: str, more: str = "") -> BytesError:
    """EP506 for what has not the digest that the record has of it."""
    return BytesError("EP506", f"{what} is not what `shard` had read{more}")


def _plain_name(name: str) -> str:
    if "/" in name or name in {"", ".", ".."} or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file beside it")
    return name


def _damaged(where: Path, problem: str) -> CheckpointError:
    return CheckpointError("EP225", f"{where} cannot be used: {problem}")


def open_sharded(source: Path) -> tuple[Origin, ShardedCheckpoint, Joined]:
    """The record beside shards that `shard` wrote, or a reshard since, these, and both forms of them.

    Raises:
        BytesError: EP506, something is not what the manifest says.
        CheckpointError: EP225, there is no record, nothing says what the rows are, or tensors were left out;
            EP233, a run has not finished them; what `bind` and `join` raise.
    """
    refuse_staging(source)
    if not (source / ORIGIN_NAME).is_file():
        raise CheckpointError("EP225", f"{source} has no {ORIGIN_NAME}")
    shards = open_shards(source)
    if shards.manifest is None:
        raise CheckpointError("EP225", f"{source} has no eplb.json, so nothing says what its rows are")
    origin = read_origin(source, shards.manifest)
    if origin.skipped:
        raise CheckpointError(
            "EP225",
            f"{source} was made with --mtp skip: it has no tensor of layer {origin.skipped[0]}",
            "make shards with `eplb shard` without --mtp skip, and merge those",
        )
    engine = bind(shards, in_layer_order(shards.manifest.read_placement(source)))
    return origin, engine, join(as_one_rank(origin.tree, shards.config, origin.names.keys), origin.names)
