"""`eplb.json` and the digests beside it: what a tree written by `eplb` says about itself."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from functools import partial
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.beside import FileBeside
from eplb_cli.checkpoint.staged import refuse_staging
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import CheckpointError
from eplb_cli.files import read_small_file
from eplb_cli.formats.reading import json_value, npy_value
from eplb_cli.models.model import MAX_EXPERTS
from eplb_cli.placements.keys import FORMAT_OF_SHARDS as FORMAT
from eplb_cli.placements.own_format import placement_from_json
from eplb_cli.placements.placement import MAX_RANKS, Placement
from eplb_cli.plan.choice import RankScalars, Senders, is_rank_scalars, is_senders
from eplb_cli.plan.nodes import Nodes
from eplb_cli.values import dataclass

MANIFEST_NAME = "eplb.json"
BAKED_FORMAT = "eplb-baked/1"
"""What `bake` leaves under the same name in a Hugging Face checkpoint: a placement, and no digest."""

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

MAX_MANIFEST_NBYTES = 1 << 28
_NPY_HEADER_LIMIT = 4096
_LATER: dict[str, object] = {"decisions": {}, "engine": ""}
"""What manifests of older versions lack, and what stands for it."""
_ENCODER = json.JSONEncoder(indent=1, sort_keys=True)


@dataclass(frozen=True)
class Manifest:
    """The content of `eplb.json`.

    Attributes:
        placement, source_placement: NEW and OLD in the `eplb-placement/1` form.
        senders, ranks_per_node: with both placements, all that the plan follows from.
        layout: the layout, as `Layout.as_json` gives it.
        plan_digest: hexadecimal sha256 of that plan.
        expert_tensors: the templates of the K expert tensors.
        files: per shard file, its bytes, the sha256 of its header, and xxh3-128 of its other tensors.
        carried: per carried file, its bytes and xxh3-128.
        digests: per file of row digests, likewise; empty without them.
        options: what was switched off: digests, verify, fsync.
        serving: how each engine loads the tree.
        decisions: what had to be decided, because neither SRC nor the placements say it.
        engine: whose names `shard` gave the tensors; empty for shards that come from elsewhere.
    """

    tool: str
    placement: Mapping[str, Any]
    source_placement: Mapping[str, Any]
    senders: str
    ranks_per_node: int | None
    layout: Mapping[str, Any]
    plan_digest: str
    expert_tensors: list[str]
    files: Mapping[str, Mapping[str, Any]]
    carried: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, bool]
    serving: list[str]
    decisions: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""

    def to_bytes(self) -> bytes:
        """The manifest as a file holds it, with a digest of everything else in it."""
        content = {"format": FORMAT, **asdict(self)}
        return _ENCODER.encode({**content, "digest": _digest(content)}).encode() + b"\n"

    def read_placement(self, where: Path) -> Placement:
        """The placement of the tree. Raises PlacementError."""
        return placement_from_json(dict(self.placement), str(where / MANIFEST_NAME))

    def read_source_placement(self, where: Path) -> Placement:
        """The placement of the tree it was made from. Raises PlacementError."""
        return placement_from_json(dict(self.source_placement), str(where / MANIFEST_NAME))

    def read_rank_scalars(self, where: Path) -> RankScalars | None:
        """What was done with numbers of ranks. Raises EP214 for what this version does not know."""
        rule = self.decisions.get("rank_scalars")
        if rule is not None and not is_rank_scalars(rule):
            raise _malformed(where / MANIFEST_NAME, f"there is no rule {rule!r} for rank_scalars")
        return rule

    def read_nodes(self, where: Path) -> Nodes | None:
        """The node of each rank, where `ranks_per_node` does not say it. Raises EP214 where it is none."""
        nodes = self.decisions.get("nodes")
        if nodes is None:
            return None
        ranks = {"old": self.source_placement.get("num_ranks"), "new": self.placement.get("num_ranks")}
        if not isinstance(nodes, dict) or not all(_are_nodes(nodes.get(side), ranks[side]) for side in ranks):
            raise _malformed(where / MANIFEST_NAME, "its nodes are not numbers, one for each rank")
        return Nodes.from_json(nodes)

    def read_senders(self, where: Path) -> Senders:
        """Who sent what several ranks held. Raises EP214 for a word that this version does not know."""
        if not is_senders(self.senders):
            raise _malformed(where / MANIFEST_NAME, f"there are no senders {self.senders!r}")
        return self.senders


def _are_nodes(nodes: object, num_ranks: object) -> bool:
    """Whether it is a list of the node of each of so many ranks, of which there are no more than ranks."""
    return (
        isinstance(nodes, list)
        and len(nodes) == num_ranks
        and all(type(node) is int and 0 <= node < MAX_RANKS for node in nodes)
    )


def _digest(content: Mapping[str, Any], end: bytes = b"") -> str:
    """Hexadecimal sha256 of an object as a manifest writes it, which is never there as a whole."""
    sha = hashlib.sha256()
    for part in _ENCODER.iterencode(content):
        sha.update(part.encode())
    sha.update(end)
    return sha.hexdigest()


def digest_file(rank: int) -> str:
    """The name of a rank's row digests."""
    return f"eplb-digests-rank-{rank}.npy"


def is_digest_file(name: str) -> bool:
    """Whether `name` is one that `digest_file` gives."""
    return re.fullmatch(r"eplb-digests-rank-[0-9]+\.npy", name) is not None


def read_manifest(path: Path, *, exact: bool = False, unfinished: bool = False) -> Manifest | None:
    """The manifest of a tree, None where it has none. Keys it does not know are left to those who do.

    Args:
        exact: refuse other spaces and another order of keys, too, than eplb writes.
        unfinished: read that of a tree that has not its name yet, too.

    Raises:
        CheckpointError: EP214, it is malformed, was changed, or names a file outside its directory;
            EP233, the tree is not finished.
    """
    if not unfinished:
        refuse_staging(path)
    where = path / MANIFEST_NAME
    if not os.path.lexists(where):
        return None
    return manifest_of(read_small_file(where, MAX_MANIFEST_NBYTES), where, exact=exact)


def manifest_of(text: bytes, where: Path, *, exact: bool = False) -> Manifest:
    """The manifest that a file of such a content is. Raises EP214, as `read_manifest`."""
    raw = _parse(text, where)
    digest = _digest({key: value for key, value in raw.items() if key != "digest"})
    is_as_written = not exact or hashlib.sha256(text).hexdigest() == _digest(raw, b"\n")
    if raw.get("digest") != digest or not is_as_written:
        raise _malformed(where, "it was changed or damaged after it was written")
    return Manifest(**{each.name: raw[each.name] for each in fields(Manifest) if each.name in raw})


def file_beside(tree: Path, name: str, manifest: Manifest | None) -> FileBeside:
    """A small file of a tree, with what its manifest says of it."""
    if manifest is None:
        return FileBeside(tree / name)
    return FileBeside(tree / name, manifest.carried.get(name) or manifest.digests.get(name))


def is_baked(path: Path) -> bool:
    """Whether the `eplb.json` of a directory is of a baked checkpoint. Raises EP214, it is no JSON; EP233."""
    refuse_staging(path)
    where = path / MANIFEST_NAME
    if not os.path.lexists(where):
        return False
    text = read_small_file(where, MAX_MANIFEST_NBYTES)
    raw = json_value(text, MAX_MANIFEST_NBYTES, partial(_malformed, where))
    return isinstance(raw, dict) and raw.get("format") == BAKED_FORMAT


def _parse(text: bytes, where: Path) -> dict[str, Any]:
    """The checked content of a manifest whose digest is not yet compared."""
    raw = json_value(text, MAX_MANIFEST_NBYTES, partial(_malformed, where))
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise _malformed(where, f"its format is not {FORMAT}")
    _check(raw, where)
    return raw


def _check(raw: Mapping[str, Any], where: Path) -> None:
    """EP214 unless every key is there and of the right form."""
    kinds: dict[str, tuple[type | UnionType, str]] = {
        **dict.fromkeys(("tool", "senders", "plan_digest", "engine"), (str, "a string")),
        **dict.fromkeys(("expert_tensors", "serving"), (list, "a list")),
        "ranks_per_node": (int | None, "a number"),
    }
    for each in fields(Manifest):
        kind, name = kinds.get(each.name, (dict, "an object"))
        value = raw.get(each.name, _LATER.get(each.name))
        if each.name not in {**raw, **_LATER} or not isinstance(value, kind):
            raise _malformed(where, f'"{each.name}" is not there, or not {name}')
    if not all(isinstance(name, str) for name in raw["expert_tensors"]):
        raise _malformed(where, "expert_tensors is not a list of strings")
    nodes = raw["ranks_per_node"]
    if nodes is not None and (type(nodes) is not int or not 1 <= nodes <= MAX_EXPERTS):
        raise _malformed(where, f'"ranks_per_node" is not there, or not a number from 1 to {MAX_EXPERTS:,}')
    _check_files(raw, where)


def _check_files(raw: Mapping[str, Any], where: Path) -> None:
    """EP214 unless every file is one beside the manifest, with what has to be known of it."""
    for name, file in chain.from_iterable(raw[key].items() for key in ("files", "carried", "digests")):
        if not is_file_name(name):
            raise _malformed(where, f"{name!r} is not the name of a file beside it")
        if not isinstance(file, dict) or type(file.get("nbytes")) is not int or file["nbytes"] < 0:
            raise _malformed(where, f"{name!r} has no nbytes")
    for name, file in raw["files"].items():
        others = file.get("others")
        if not isinstance(others, dict) or not isinstance(file.get("header_digest"), str):
            raise _malformed(where, f"{name!r} has no header_digest or others")
        if not all(digest == "" or _is_digest(digest) for digest in others.values()):
            raise _malformed(where, f"{name!r} has others whose digests are none")


def is_file_name(name: str) -> bool:
    """Whether the system can have a file of that name in a directory."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return "/" not in name and "\0" not in name and name not in ("", ".", "..")


def _is_digest(value: object) -> bool:
    """Whether it is the xxh3-128 of another tensor, as a manifest holds it."""
    return isinstance(value, str) and len(value) == 2 * DIGEST_NBYTES and set(value) <= _HEX_DIGITS


def read_digests(
    path: Path, rank: int, shape: tuple[int, int, int], manifest: Manifest | None = None
) -> NDArray[np.uint8] | None:
    """The row digests (L, K, S, 16) of a rank, None where the file is not there.

    Raises:
        BytesError: EP506, they are not those that the manifest names.
        CheckpointError: EP214, it is not an array of that shape.
    """
    where = path / digest_file(rank)
    if not os.path.lexists(where):
        return None
    return digests_of(file_beside(path, where.name, manifest), shape)


def digests_of(file: FileBeside, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The row digests (L, K, S, 16) that a file has. Raises as `read_digests`."""
    where = file.path
    content = file.read(math.prod(shape) * DIGEST_NBYTES + _NPY_HEADER_LIMIT)
    digests = npy_value(content, partial(_malformed, where))
    if digests.dtype != np.uint8 or digests.shape != (*shape, DIGEST_NBYTES):
        raise _malformed(where, f"it is not a uint8 array of shape {(*shape, DIGEST_NBYTES)}")
    return np.asarray(digests, np.uint8)


def npy_bytes(array: NDArray[np.uint8]) -> bytes:
    """An array as a .npy file holds it."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _malformed(where: Path, reason: str) -> CheckpointError:
    problem = f"{where} cannot be used: {reason[:300]}"
    return CheckpointError("EP214", problem, "remove it to go on without it")
