"""Files beside the tensors that name single experts: what is left out of quantization, or how each is stored.

When experts get other numbers, names of single ones get them too. What is about all experts alike is right in
any order; a pattern over some of them says nothing that could be renumbered, and is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from eplb_cli.checkpoint.beside import FileBeside
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.budget import MAX_FILE_NBYTES
from eplb_cli.formats.json_text import with_strings
from eplb_cli.formats.reading import json_value
from eplb_cli.huggingface.routers import unbakeable

_SINGLE = re.compile(r"(?<!shared_)experts\\*\.(?:[A-Za-z_]\w*\\*\.)?(?:[0-9]|\(|\[(?!0-9\][+*]))")
"""A number, or a choice of numbers; patterns that are about all experts alike name none of them."""

NewName = Callable[[str], str | None]
"""What a tensor or module is called afterwards; None for a name that no tensor has."""


def renumbered(carried: Mapping[str, FileBeside], new_name: NewName) -> dict[str, bytes]:
    """The new content of the files that name single experts, by the names of those files.

    Raises:
        CheckpointError: EP226, one names experts in a way that nothing can be made of.
    """
    lists = [name for name in carried if name == "config.json" or "quant" in name]
    texts = {name: carried[name].read(MAX_FILE_NBYTES) for name in lists}
    found = {name: _renumbered(name, text, new_name) for name, text in texts.items()}
    return {name: text for name, text in found.items() if text != texts[name]}


def _renumbered(name: str, text: bytes, new_name: NewName) -> bytes:
    """The text with every string of it renamed, and otherwise as it was."""

    def renamed(word: str) -> str:
        if not _SINGLE.search(word):
            return word
        new = new_name(word)
        if new is None:
            raise unbakeable(
                f"{name} names single experts in {word[:200]!r}, which would have other numbers",
                "names of tensors and modules of this checkpoint are renumbered; patterns over some experts "
                "cannot be",
            )
        return new

    if _is_json(text):
        return with_strings(text, renamed)
    for word in text.decode("utf-8", "replace").split():
        if _SINGLE.search(word):
            raise unbakeable(f"{name} names single experts in {word[:200]!r}, and is no JSON")
    return text


def _is_json(text: bytes) -> bool:
    try:
        json_value(text, MAX_FILE_NBYTES, _no_json)
    except CheckpointError:
        return False
    return True


def _no_json(reason: str) -> CheckpointError:
    return unbakeable(reason)
