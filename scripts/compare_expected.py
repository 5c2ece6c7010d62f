"""Compare resharded shards with the digests that came with the test data.

Usage: compare_expected.py DST expected.json

`expected.json` says rank -> tensor -> dtype, shape and sha256 of the tensor's bytes. The shards of a rank
are read as plain files, without eplb and without the safetensors library, so that neither can hide a
mistake of its own. Exits 1 if any tensor is missing, unexpected or different.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

Facts = dict[str, Any]  # dtype, shape, sha256
SHARD_NAME = re.compile(r"model-rank-(\d+)-part-\d+\.safetensors")


def read_shard(path: Path) -> dict[str, Facts]:
    """Each tensor of one file, by name: an 8-byte length, a JSON header, then the data."""
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data_start])
    header.pop("__metadata__", None)
    return {name: facts_of(entry, content[data_start:]) for name, entry in header.items()}


def facts_of(entry: dict[str, Any], data: bytes) -> Facts:
    """What `expected.json` would say about one tensor."""
    begin, end = entry["data_offsets"]
    return {
        "dtype": entry["dtype"],
        "shape": entry["shape"],
        "sha256": hashlib.sha256(data[begin:end]).hexdigest(),
    }


def read_ranks(folder: Path) -> dict[str, dict[str, Facts]]:
    """All tensors of all ranks, whatever part file they are in."""
    ranks: dict[str, dict[str, Facts]] = {}
    for path in sorted(folder.iterdir()):
        match = SHARD_NAME.fullmatch(path.name)
        if match:
            ranks.setdefault(match[1], {}).update(read_shard(path))
    return ranks


def differences(found: dict[str, dict[str, Facts]], expected: dict[str, dict[str, Facts]]) -> list[str]:
    """One line for each tensor that is not as expected."""
    lines: list[str] = []
    for rank in sorted(found.keys() | expected.keys(), key=int):
        here, there = found.get(rank, {}), expected.get(rank, {})
        lines += [
            f"rank {rank}: {name}: found {here.get(name)}, expected {there.get(name)}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
    return lines


def main(folder: str, expected_file: str) -> int:
    """Print what differs, or how much was found to be equal."""
    expected = json.loads(Path(expected_file).read_text(encoding="utf-8"))
    lines = differences(read_ranks(Path(folder)), expected)
    if lines:
        print("\n".join(lines))
        return 1
    print(f"{sum(map(len, expected.values()))} tensors on {len(expected)} ranks are exactly as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
