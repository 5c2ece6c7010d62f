"""Which files are meant by what `validate` is given: files, directories of them, and stdin.

Of a directory count, in it and in all directories below, the files that

- end in .json, .jsonl, .yaml or .yml, and neither are nor lie in anything that begins with a dot, and
- hold a placement of any dialect, or nothing that can be read: a broken placement must not be passed over.

Whatever else has one of these endings is skipped, and listed. A file that is named is always checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from eplb_cli.errors import PlacementError
from eplb_cli.formats.budget import NotReadableError
from eplb_cli.formats.document import parse_document
from eplb_cli.formats.reading import read_bytes
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.dialects.registry import NAMES, dialect_called
from eplb_cli.placements.keys import FORMAT_OF_SHARDS, MAP
from eplb_cli.values import dataclass

STDIN = "-"

SUFFIXES = (".json", ".jsonl", ".yaml", ".yml")
"""Of files in directories; arrays and tensors may be anything, and are named one by one."""

_OUR_PLACEMENTS = ("eplb-placement/", FORMAT_OF_SHARDS)


@dataclass(frozen=True)
class Found:
    """What is to be checked, and what is not.

    Attributes:
        files: names as they were given, each once, with the files of directories in their place, ascending.
        skipped: files of directories that hold something else.
    """

    files: tuple[str, ...]
    skipped: tuple[str, ...]


def find_files(names: Sequence[str]) -> Found:
    """The files that names mean.

    Raises:
        PlacementError: EP128, a directory has no placement in it; EP101, it cannot be read.
        UsageError: EP002, a file in it is YAML, and yaml is not installed.
    """
    files: list[str] = []
    skipped: list[str] = []
    for name in names:
        if name in NAMED_MAPS or not os.path.isdir(name):  # noqa: PTH112 - a name, as it is everywhere here
            files.append(name)
            continue
        inside = [(path, _counts(path)) for path in sorted(_walked(name))]
        files += (path for path, counts in inside if counts)
        skipped += (path for path, counts in inside if not counts)
        if not any(counts for _, counts in inside):
            ends = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            beside = f", and {len(inside):,} files of other content" if inside else ""
            raise PlacementError("EP128", f"{name}: no placement in a file that ends in {ends}{beside}")
    return Found(tuple(dict.fromkeys(files)), tuple(dict.fromkeys(skipped)))


def _walked(directory: str) -> Iterator[str]:
    """Files with one of the endings in a directory and below; no links to directories are followed."""

    def refuse(error: OSError) -> None:
        raise PlacementError("EP101", f"{error.filename} cannot be read: {error.strerror}")

    for folder, folders, files in os.walk(directory, onerror=refuse):
        folders[:] = (each for each in folders if not each.startswith("."))
        for file in files:
            if not file.startswith(".") and file.lower().endswith(SUFFIXES):
                yield os.path.normpath(os.path.join(folder, file))  # noqa: PTH118 - the name as it was given


def _counts(path: str) -> bool:
    """Whether a file of a directory is to be checked. Raises EP101."""
    try:
        value = parse_document(path, read_bytes(path)).value
    except NotReadableError:
        return True
    if isinstance(value, Mapping) and MAP not in value:
        said = value.get("format")
        if isinstance(said, str) and said.startswith("eplb-"):  # plans, reports and findings are ours too
            return said.startswith(_OUR_PLACEMENTS)
    return any(dialect_called(name).fits(value) for name in NAMES)
