"""Trees of two or four ranks and four experts that `reshard` has written, for vLLM to load."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import eplb_cli
from tests.cli.tree import OLD, placement, stacked, write_json, write_tree

LINEAR = placement([[0, 1, 2, 3]] * 2)
PLACED = placement([[3, 0, 2, 1], [0, 2, 1, 3]])
FOUR = placement([[3, 0, 0, 1, 2, 1, 0, 3], [0, 1, 2, 3, 3, 1, 2, 0]], 4)
"""Four ranks of two slots."""
CONFIG = {"model_type": "test", "num_hidden_layers": 5, "n_routed_experts": 4, "vocab_size": 8}
EMBED, ROWS = "model.embed_tokens.weight", "model.layers.3.mlp.experts.w2_weight"


def make(home: Path, new=PLACED, old=OLD, *, config=CONFIG, digests=True, ranks=None) -> Path:
    """A tree under NEW."""
    src = write_tree(home / "src", stacked(old) if ranks is None else ranks)
    write_json(src / "config.json", config)
    files = [write_json(home / f"{name}.json", content) for name, content in (("old", old), ("new", new))]
    request = eplb_cli.Request(
        src,
        home / "dst",
        new=str(files[1]),
        old=str(files[0]),
        backend="file",
        copy=True,
        digests=digests,
        verify=digests,
    )
    eplb_cli.reshard(request)
    return home / "dst"


def part_of(dst: Path, home: Path, ranks: Collection[int]) -> Path:
    """The same tree as a host has it that hosts these ranks."""
    shutil.copytree(dst, home)
    for file in home.glob("model-rank-*"):
        if int(file.name.split("-")[2]) not in ranks:
            file.unlink()
    return home
