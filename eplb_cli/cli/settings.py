"""Options from a file: `eplb.toml`, or `[tool.eplb]` of pyproject.toml.

Whoever stands in a directory has not looked at what lies there. So a file may set only what FROM_FILES
names: nothing that names another file, takes a proof away, or says what a placement is. It has to belong to
whoever runs eplb, or to root, and nobody else may be able to write to it. Outside a repository only the
current directory is looked at; inside one, the directories up to its root, the nearest first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from eplb_cli.errors import UsageError, did_you_mean
from eplb_cli.values import dataclass

OWN_FILE, PROJECT_FILE = "eplb.toml", "pyproject.toml"
NO_FILE = "none"
"""What --config takes instead of a file."""

FROM_FILES = frozenset({
    "backend", "bandwidth", "buffer-size", "curve", "engine", "expert-bytes", "format", "from", "full",
    "layout", "max-imbalance", "max-moved-bytes", "model", "mtp", "nproc-per-node", "num-groups",
    "num-logical-experts", "num-ranks", "num-redundant-experts", "old-from", "old-num-ranks", "quiet",
    "ranks-per-node", "senders", "strict", "threads", "timeout", "to", "verbose",
})  # fmt: skip
"""The options that a file may set; all others are for the command line and for EPLB_* variables."""

MAX_NBYTES = 1 << 16
MAX_LOOKED_AT_NBYTES = 1 << 20
"""Of a pyproject.toml: above the first it may say nothing of eplb, above the second nobody looks whether."""

Kind = Literal["flag", "word", "words"]
"""What an option takes: nothing, one value, or as many as one likes."""

_WORD_BITS = 64
"""Of an integer, as TOML has them; Python does not write out longer ones that it has read."""

_LISTED = "docs/commands.md lists what a file may say"
_HEADER = b"tool.eplb"
"""What a pyproject.toml has to contain before its TOML is read: most are of other tools."""


@dataclass(frozen=True)
class Setting:
    """One value of a file, where it is (`[reshard] of eplb.toml`), and whether it is for all commands."""

    value: Any
    place: str
    is_general: bool


@dataclass(frozen=True)
class Settings:
    """What a file sets: for all commands, and for each by its name."""

    path: Path
    general: Mapping[str, Any]
    by_command: Mapping[str, Mapping[str, Any]]

    def for_command(self, command: str, kinds: Mapping[str, Kind]) -> dict[str, Setting]:
        """What it sets of a command's options.

        Args:
            kinds: of the command's options, which are without dashes.

        Raises:
            UsageError: EP001, the command has no such option, or it takes no such value.
        """
        own = self.by_command.get(command, {})
        for name in own.keys() - kinds.keys():
            raise UsageError("EP001", f"{command} has no --{name}, and {self._place(command)} sets it")
        found = {name: Setting(value, self._place(), True) for name, value in self.general.items()}
        found |= {name: Setting(value, self._place(command), False) for name, value in own.items()}
        return {
            name: replace(setting, value=_as_said(name, setting, kinds[name]))
            for name, setting in found.items()
            if name in kinds
        }

    def _place(self, command: str = "") -> str:
        if self.path.name == PROJECT_FILE:
            return f"[tool.eplb{'.' * bool(command)}{command}] of {self.path}"
        return f"[{command}] of {self.path}" if command else str(self.path)


def read_settings(
    named: str | None, commands: Collection[str], is_option: Callable[[str], bool]
) -> Settings | None:
    """What --config names, or what lies where somebody stands; None where there is nothing.

    Args:
        commands: the names of all commands.
        is_option: whether any of them has an option of this name.

    Raises:
        UsageError: EP001, the file is not to be trusted, no TOML, or says what a file may not say.
        CheckpointError: EP201 or EP204, it cannot be read.
    """
    if named == NO_FILE:
        return None
    paths = _candidates() if named is None else iter([Path(named)])
    for path in paths:
        if (table := _table(path, is_named=named is not None)) is not None:
            return _checked(path, table, commands, is_option)
    return None


def _candidates() -> Iterator[Path]:
    """The files that there are, the nearest first."""
    try:
        here = Path.cwd()
    except OSError:  # it is gone, and nothing lies in it
        return
    above = [here, *here.parents]
    roots = [number for number, folder in enumerate(above) if os.path.lexists(folder / ".git")]
    for folder in above[: roots[0] + 1 if roots else 1]:
        for name in (OWN_FILE, PROJECT_FILE):
            if os.path.lexists(folder / name):
                yield folder / name


def _table(path: Path, *, is_named: bool) -> dict[str, Any] | None:
    """The table that is eplb's in a file; None where it has none."""
    is_project = path.name == PROJECT_FILE
    if is_project and not is_named:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_size > MAX_LOOKED_AT_NBYTES:
            return None
    content = _content(path, is_project=is_project, is_named=is_named)
    if is_project and _HEADER not in content:
        return None
    from eplb_cli.formats.budget import NotReadableError
    from eplb_cli.formats.toml_text import parse_toml

    if len(content) > MAX_NBYTES:
        raise UsageError("EP001", f"{path} is too long to be read for [tool.eplb]", f"write an {OWN_FILE}")
    try:
        table = parse_toml(content)
    except NotReadableError as error:
        raise UsageError("EP001", f"{path}: {error.message}", "correct it, or say --config none") from error
    return table.get("tool", {}).get("eplb") if is_project else table


def _content(path: Path, *, is_project: bool, is_named: bool) -> bytes:
    """The bytes of a file that may say something. Raises EP001 where somebody else could have written it."""
    from eplb_cli import files

    limit = MAX_LOOKED_AT_NBYTES if is_project else MAX_NBYTES
    with files.opened_source(path, follow_links=is_named) as descriptor:
        status = os.fstat(descriptor)
        content = files.read_whole(descriptor, limit, path)
    is_ours = status.st_uid in {os.geteuid(), 0} and not status.st_mode & stat.S_IWOTH
    if not is_ours and not is_named and not (is_project and _HEADER not in content):
        problem = f"{path} would set options, and others than you can write to it"
        raise UsageError("EP001", problem, f"name it with --config {path}, or say --config none")
    return content


def _checked(
    path: Path, table: object, commands: Collection[str], is_option: Callable[[str], bool]
) -> Settings:
    """The settings in a table. Raises EP001 for whatever is no option that a file may set."""
    if not isinstance(table, dict):
        raise UsageError("EP001", f"{path}: tool.eplb is no table", "write [tool.eplb]")
    by_command = {key: value for key, value in table.items() if isinstance(value, dict)}
    if strange := by_command.keys() - commands:
        problem = f"{path}: {min(strange)[:80]!r} is no command"
        raise UsageError("EP001", problem, did_you_mean(min(strange), commands))
    general = {key: value for key, value in table.items() if key not in by_command}
    for name in sorted({*general}.union(*by_command.values()) - FROM_FILES):
        if is_option(name):
            hint = f"say it on the command line, or with its variable; {_LISTED}"
            raise UsageError("EP001", f"{path}: --{name} cannot be set in a file", hint)
        hint = did_you_mean(name, FROM_FILES, _LISTED)
        raise UsageError("EP001", f"{path}: {name[:80]!r} is no option", hint)
    return Settings(path, general, by_command)


def _as_said(name: str, setting: Setting, kind: Kind) -> bool | str | list[str]:
    """A value as the command line would have it. Raises EP001 for one that is of another kind."""
    value, where = setting.value, f"{name} in {setting.place}"
    if kind == "flag":
        if not isinstance(value, bool):
            raise UsageError("EP001", f"{where} is neither true nor false", "write it without quotes")
        return value
    words = value if isinstance(value, list) and kind == "words" else [value]
    if not all(map(_is_word, words)):
        several = ", or a list of them" if kind == "words" else ""
        raise UsageError("EP001", f"{where} is not what --{name} takes", f"it is a word or a number{several}")
    if kind == "words":
        return list(map(str, words))
    if name in _NAMES and value not in (names := _NAMES[name]()):
        problem = f"{where}: {str(value)[:80]!r} is no name that eplb knows, and a file may not name another"
        raise UsageError("EP001", problem, did_you_mean(str(value), names))
    return str(value)


def _is_word(value: object) -> bool:
    """Whether a value is a string, or a number that can be written as one."""
    return type(value) in {str, float} or (type(value) is int and value.bit_length() < _WORD_BITS)


def _layouts() -> list[str]:
    from eplb_cli.checkpoint.layouts import LAYOUTS

    return ["auto", *LAYOUTS.names]


def _presets() -> list[str]:
    from eplb_cli.models.presets import PRESETS

    return PRESETS.names


_NAMES = {"layout": _layouts, "model": _presets}
"""Options that take a name or a file: in a file they take a name."""
