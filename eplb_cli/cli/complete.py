"""What a shell is offered for a value that is not one of a few words: names, and beside them files.

Without an answer a shell offers files, so where a value is a name or a file both are offered together.
Modules that have names are imported when a shell asks, and none of them imports numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_HARMLESS = re.compile(r"[\w.,+@%=][\w.,+@%=-]*", re.ASCII)
"""Files that are offered: zsh evaluates what typer prints for it, and a name may hold a command."""


def _with_files(names: Iterable[str], begun: str) -> list[str]:
    """The names that begin so, and if there are any the files that do and that no shell can misread."""
    found = [name for name in names if name.startswith(begun)]
    if not found:
        return []
    files = sorted(path for path in Path().glob(f"{begun}*") if _HARMLESS.fullmatch(path.name))
    return [*found, *(f"{path.name}{'/' * path.is_dir()}" for path in files)]


def maps(incomplete: str) -> list[str]:
    """A placement: a named map, or a file."""
    from eplb_cli.placements.choice import NAMED_MAPS

    return _with_files(NAMED_MAPS, incomplete)


def models(incomplete: str) -> list[str]:
    """A preset, or a config.json."""
    from eplb_cli.models.presets import PRESETS

    return _with_files(PRESETS.names, incomplete)


def layouts(incomplete: str) -> list[str]:
    """A layout by its name, or a file that describes one."""
    from eplb_cli.checkpoint.layouts import LAYOUTS

    return _with_files(["auto", *LAYOUTS.names], incomplete)


def engines(incomplete: str) -> list[str]:
    """An engine that `shard` writes for."""
    from eplb_cli.huggingface.engines import engine_names

    return [name for name in engine_names() if name.startswith(incomplete)]


def codes(incomplete: str) -> list[str]:
    """A code of a message, or the last of several with commas between."""
    from eplb_cli.errors import CODES

    before, comma, begun = incomplete.rpartition(",")
    return [before + comma + code for code in CODES if code.startswith(begun)]
