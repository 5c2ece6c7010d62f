"""A tree as several hosts see it: each has a directory, with some of the files, linked or copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from eplb_cli.checkpoint.pooled import Pool, pool, provide
from eplb_cli.checkpoint.seen import Seen, look


def split(tree: Path, goal: Path, names: Sequence[Sequence[str]], copied: bool = False) -> list[Path]:
    """The directories of hosts: each has the files that it is to have, hard links or copies of the tree's."""
    paths = []
    for node, of_host in enumerate(names):
        path = goal / f"host-{node}" / "src"
        paths.append(path)
        for name in of_host:
            path.mkdir(parents=True, exist_ok=True)
            (shutil.copy if copied else os.link)(tree / name, path / name)
    return paths


def pooled(paths: Sequence[Path], node: int | None = None) -> list[Pool]:
    """What each host has in the end, told as hosts tell each other; of one host only where that is named."""
    names = [f"node-{number}" for number in range(len(paths))]
    told = [look(path).to_bytes() for path in paths]
    seens = [Seen.from_bytes(content) for content in told]
    pools = [pool(path, seens, number, names) for number, path in enumerate(paths)]
    said = [provide(found) for found in pools]
    wanted = range(len(paths)) if node is None else [node]
    return [pools[number].with_contents(said) for number in wanted]


def by_rank(tree: Path, ranks_of: Mapping[int, Sequence[int]], num_hosts: int) -> list[list[str]]:
    """The names of the shards of each host, from the ranks that it has."""
    files = sorted(file.name for file in tree.iterdir() if file.name.endswith(".safetensors"))
    return [
        [name for name in files if any(f"rank-{rank}-" in name for rank in ranks_of.get(node, ()))]
        for node in range(num_hosts)
    ]
