"""Compare a source archive and a wheel with this tree: every file that belongs there is there.

Usage: compare_wheel.py DIRECTORY

The directory holds one archive and one wheel. Exits 1 if a file of the tree is missing from either.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXTS = ("LICENSE", "constraints.txt", *(path.name for path in ROOT.glob("*.md")))


def files_of(*folders: str) -> set[str]:
    """The files of folders of the tree, but for what Python compiles."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


def main(directory: str) -> int:
    """Print what is missing, or how much was found."""
    (archive,) = Path(directory).glob("*.tar.gz")
    (wheel,) = Path(directory).glob("*.whl")
    with tarfile.open(archive) as opened:
        archived = {name.partition("/")[2] for name in opened.getnames()}
    with zipfile.ZipFile(wheel) as opened_wheel:
        packed = set(opened_wheel.namelist())
    package = files_of("eplb_cli")
    source = package | files_of("configs", "docs", "scripts", "tests") | {*TEXTS}
    missing = [f"{archive.name} lacks {name}" for name in sorted(source - archived)]
    missing += [f"{wheel.name} lacks {name}" for name in sorted(package - packed)]
    if not any(name.endswith(".data/data/share/man/man1/eplb.1") for name in packed):
        missing.append(f"{wheel.name} lacks the manual page")
    found = f"{wheel.name} has all {len(package)} files of eplb_cli, {archive.name} all {len(source)}"
    print("\n".join(missing) or found)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
