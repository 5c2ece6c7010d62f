"""How a check tells of the bytes it reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from eplb_cli.progress import ProgressBar, telling


@contextlib.contextmanager
def reading(
    progress: ProgressBar, description: str, *trees: Path, nbytes: int = 0
) -> Iterator[Callable[[int], None]]:
    """What is told of the bytes read from some trees; at the end all are, headers included.

    Args:
        nbytes: of what is read besides.
    """
    total_nbytes = nbytes + sum(map(_shard_nbytes, trees))
    with progress(total_nbytes, description) as show:
        with telling(show) as advance:
            yield advance
        show(total_nbytes)


def _shard_nbytes(tree: Path) -> int:
    """Bytes of the shards in a directory, 0 where it cannot be read: whoever opens it will say why."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in tree.glob("*.safetensors"))
    return 0
