"""A tree that is not finished: what is in it says so, whatever it is called.

While a run writes a tree, and for as long as one that was ended can go on, there is a directory `WORK` in it.
It is the last thing that goes before the tree gets its name (`output/staging`), so no finished tree has one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import CheckpointError, EplbError
from eplb_cli.formats.reading import json_value

WORK = ".eplb"
OWNER = "owner.json"
"""In `WORK`: who writes the tree, and with what command."""

HOST_WORK = "host-"
"""In `WORK`: before the number of a host, the directory of what is of that host's processes alone."""

MAX_OWNER_NBYTES = 1 << 20


def staging_of(job: Path) -> Path:
    """The staging directory that a file of `WORK`, or of the directory of a host in it, is in."""
    return next(path.parent for path in job.parents if path.name == WORK)


def refuse_staging(path: Path) -> None:
    """Refuse to take for a checkpoint what a run has written so far.

    Raises:
        CheckpointError: EP233, with the command that goes on with it.
    """
    with files.calls:
        is_staging = (path / WORK).is_dir()
    if is_staging:
        command = command_of(path)
        hint = f"`{command}` goes on with it" if command else ""
        raise CheckpointError("EP233", f"{path} is what a run has written so far, and no checkpoint", hint)


def command_of(path: Path) -> str:
    """The command that goes on with a tree, in words of a shell; empty where nothing says it.

    Whoever made the tree wrote it. Quoted, it can be a command of eplb and nothing else.
    """
    owner = path / WORK / OWNER
    try:
        content = files.read_small_file(owner, MAX_OWNER_NBYTES)
        words = json_value(content, MAX_OWNER_NBYTES, partial(CheckpointError, "EP233"))["command"]
        return going_on(words) if all(isinstance(word, str) for word in words) else ""
    except (EplbError, KeyError, TypeError):
        return ""


def going_on(words: list[str]) -> str:
    """The command of these words, without `eplb`, with --resume; empty where there are none."""
    import shlex

    return shlex.join(["eplb", *words, *([] if "--resume" in words else ["--resume"])]) if words else ""
