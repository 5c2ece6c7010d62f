"""`eplb.json` and the digests beside it: what a tree written by `eplb` says about itself."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import CheckpointError
from eplb_cli.files import read_small_file
from eplb_cli.placement import Placement
from eplb_cli.placement_file import placement_from_json

FORMAT = "eplb-checkpoint/1"
MANIFEST_NAME = "eplb.json"
DIGEST_NBYTES = 16
MAX_MANIFEST_NBYTES = 1 << 28
_NPY_HEADER_LIMIT = 4096


@dataclass(frozen=True)
class Manifest:
    """The content of `eplb.json`.

    Attributes:
        placement, source_placement: NEW and OLD in the `eplb-placement/1` form.
        layout: the layout, as `Layout.as_json` gives it.
        expert_tensors: the templates of the K expert tensors.
        files: per shard file, its bytes, the sha256 of its header, and xxh3-128 of its other tensors.
        carried: per carried file, its bytes and xxh3-128.
        options: what was switched off: digests, verify, fsync.
        serving: how each engine loads the tree.
    """

    tool: str
    placement: Mapping[str, Any]
    source_placement: Mapping[str, Any]
    senders: str
    layout: Mapping[str, Any]
    plan_digest: str
    expert_tensors: list[str]
    files: Mapping[str, Mapping[str, Any]]
    carried: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, bool]
    serving: list[str]

    def to_bytes(self) -> bytes:
        """The manifest as a file holds it."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode() + b"\n"

    def read_placement(self, where: Path) -> Placement:
        """The placement of the tree. Raises PlacementError."""
        return placement_from_json(dict(self.placement), str(where / MANIFEST_NAME))

    def read_source_placement(self, where: Path) -> Placement:
        """The placement of the tree it was made from. Raises PlacementError."""
        return placement_from_json(dict(self.source_placement), str(where / MANIFEST_NAME))


def digest_file(rank: int) -> str:
    """The name of a rank's row digests."""
    return f"eplb-digests-rank-{rank}.npy"


def is_digest_file(name: str) -> bool:
    """Whether `name` is one that `digest_file` gives."""
    return re.fullmatch(r"eplb-digests-rank-[0-9]+\.npy", name) is not None


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a tree, None where it has none.

    Raises:
        CheckpointError: EP214, it is malformed, or names a file outside its directory.
    """
    where = path / MANIFEST_NAME
    if not where.exists():
        return None
    try:
        raw = json.loads(read_small_file(where, MAX_MANIFEST_NBYTES))
        if raw.pop("format") != FORMAT:
            raise _malformed(where, f"its format is not {FORMAT}")
        manifest = Manifest(**raw)
        _check(manifest, where)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _malformed(where, str(error)[:300]) from error
    return manifest


def _check(manifest: Manifest, where: Path) -> None:
    expected = {"tool": str, "senders": str, "plan_digest": str, "expert_tensors": list, "serving": list}
    mappings = dict.fromkeys(("placement", "source_placement", "layout", "files", "carried", "options"), dict)
    for key, kind in {**expected, **mappings}.items():
        if not isinstance(getattr(manifest, key), kind):
            raise _malformed(where, f"{key} is not a {kind.__name__}")
    if not all(isinstance(name, str) for name in manifest.expert_tensors):
        raise _malformed(where, "expert_tensors is not a list of strings")
    for name, file in {**manifest.files, **manifest.carried}.items():
        if "/" in name or name in ("", ".", "..") or "\0" in name:
            raise _malformed(where, f"{name!r} is not the name of a file beside it")
        if not isinstance(file, dict) or type(file.get("nbytes")) is not int:
            raise _malformed(where, f"{name!r} has no nbytes")
    for name, file in manifest.files.items():
        others = file.get("others")
        if not isinstance(others, dict) or not isinstance(file.get("header_digest"), str):
            raise _malformed(where, f"{name!r} has no header_digest or others")


def read_digests(path: Path, rank: int, shape: tuple[int, int, int]) -> NDArray[np.uint8] | None:
    """The row digests (L, K, S, 16) of a rank, None where the file is not there.

    Raises:
        CheckpointError: EP214, it is not an array of that shape.
    """
    where = path / digest_file(rank)
    if not where.exists():
        return None
    nbytes = int(np.prod(shape)) * DIGEST_NBYTES
    try:
        content = read_small_file(where, nbytes + _NPY_HEADER_LIMIT)
        digests = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _malformed(where, str(error)[:300]) from error
    if digests.dtype != np.uint8 or digests.shape != (*shape, DIGEST_NBYTES):
        raise _malformed(where, f"it is not a uint8 array of shape {(*shape, DIGEST_NBYTES)}")
    return np.asarray(digests, np.uint8)


def npy_bytes(array: NDArray[np.uint8]) -> bytes:
    """An array as a .npy file holds it."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _malformed(where: Path, reason: str) -> CheckpointError:
    return CheckpointError("EP214", f"{where} cannot be used: {reason}", "remove it to go on without it")
