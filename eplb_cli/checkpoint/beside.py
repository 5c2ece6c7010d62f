"""Small files beside tensors: read in one place, and compared there with what a manifest says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eplb_cli.errors import BytesError
from eplb_cli.files import read_small_file
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class FileBeside:
    """A file that is no shard.

    Attributes:
        path: where it is.
        recorded: its `nbytes` and `digest` in the manifest of its tree; None where that has none.
    """

    path: Path
    recorded: Mapping[str, Any] | None = None

    def read(self, limit: int) -> bytes:
        """The content, of at most `limit` bytes.

        Raises:
            BytesError: EP506, it is not what the manifest says.
            CheckpointError: EP201, EP204 or EP220, it cannot be read.
        """
        content = read_small_file(self.path, limit)
        self.require(file_entry(content))
        return content

    def require(self, found: Mapping[str, object]) -> None:
        """EP506 where an entry, made of all that was read of the file, is not that of the manifest."""
        if self.recorded is None:
            return
        if any(found[key] != self.recorded.get(key) for key in ("nbytes", "digest")):
            raise BytesError("EP506", f"{self.path} is not what eplb.json says")


def file_entry(content: bytes) -> dict[str, object]:
    """What a manifest says of a small file: its bytes and their xxh3-128."""
    import xxhash

    return {"nbytes": len(content), "digest": xxhash.xxh3_128_hexdigest(content)}
