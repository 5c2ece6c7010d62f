"""What the loader is told, by its extra config and by the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eplb_cli.errors import UsageError
from eplb_cli.files import require_replaceable
from eplb_cli.values import dataclass

VERIFY = "EPLB_VERIFY"
CURRENT_MAP = "current_map"


@dataclass(frozen=True)
class Options:
    """What is asked for besides loading.

    Attributes:
        verify: compare digests while loading.
        current_map: the file that has the map as it is now; None for none.
    """

    verify: bool = False
    current_map: Path | None = None


def read_options(extra: Mapping[str, Any], environment: Mapping[str, str]) -> Options:
    """The options in the loader's extra config and in the environment.

    Raises:
        UsageError: EP001, something in them is not known, or no word for on or off.
        OutputError: EP604, the file for the map cannot be written.
    """
    unknown = sorted(set(extra) - {CURRENT_MAP})
    if unknown:
        hint = f'--model-loader-extra-config \'{{"{CURRENT_MAP}": "FILE"}}\' is all there is'
        raise UsageError("EP001", f"--load-format eplb knows no {unknown[0]!r}", hint)
    name = extra.get(CURRENT_MAP)
    if name is not None and (not isinstance(name, str) or not name):
        raise UsageError("EP001", f"{CURRENT_MAP} is no name of a file: {name!r}")
    path = None if name is None else Path(name).absolute()
    if path is not None:
        require_replaceable(path, replace=True)
    return Options(_is_on(environment.get(VERIFY, "")), path)


def _is_on(word: str) -> bool:
    if word not in {"", "0", "1"}:
        raise UsageError("EP001", f"{VERIFY} is {word!r}", f"{VERIFY}=1 compares digests, 0 does not")
    return word == "1"
