"""Small files beside tensors: read in one place, and compared there with what a manifest says of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eplb_cli import files
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class FileBeside:
    """A file that is no shard.

    Attributes:
        path: where it is.
        recorded: its `nbytes` and `digest` in the manifest of its tree; None where that has none.
        content: what another host says that it holds; None where it is here.
    """

    path: Path
    recorded: Mapping[str, Any] | None = None
    content: bytes | None = None

    @property
    def exists(self) -> bool:
        """Whether there is one, here or on another host."""
        return self.content is not None or os.path.lexists(self.path)

    def read(self, limit: int) -> bytes:
        """The content, of at most `limit` bytes.

        Raises:
            BytesError: EP506, it is not what the manifest says.
            CheckpointError: EP201, EP204 or EP220, it cannot be read.
        """
        content = files.read_small_file(self.path, limit) if self.content is None else self.content
        if len(content) > limit:
            problem = f"{self.path} has {len(content):,} bytes; more than {limit:,} are not read"
            raise CheckpointError("EP201", problem)
        self.require(file_entry(content))
        return content

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[int, Iterable[tuple[int, memoryview]]]]:
        """Its bytes, and its content in blocks that are valid until the next: where each begins, and it.

        Raises:
            CheckpointError: EP201, EP204 or EP220, it cannot be read.
        """
        if self.content is not None:
            yield len(self.content), [(0, memoryview(self.content))]
            return
        with files.opened_source(self.path) as source:
            nbytes = os.fstat(source).st_size
            yield nbytes, files.read_blocks(source, nbytes, self.path)

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


def read_entry(blocks: Iterable[tuple[int, memoryview]]) -> dict[str, object]:
    """What a manifest says of a file of this content."""
    import xxhash

    nbytes, digest = 0, xxhash.xxh3_128()
    for _, view in blocks:
        nbytes += len(view)
        digest.update(view)
    return {"nbytes": nbytes, "digest": digest.hexdigest()}
