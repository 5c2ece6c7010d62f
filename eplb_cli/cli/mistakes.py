"""Calls that are not understood: what click says of them, what was probably meant, and who said it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import typer

from eplb_cli.errors import EplbError, UsageError, did_you_mean

Mistake: type[Exception] = typer.BadParameter.__bases__[0]
"""What click raises for a call that it does not understand; not all versions of typer have a name for it."""

_CHOICE = re.compile(r"'(?P<word>.*)' is not one of ", re.DOTALL)
_MAX_WORD = 80
"""Characters that are quoted of a value which no command line shows."""


def say_what_was_meant(error: Any) -> None:  # noqa: ANN401 - a Mistake
    """Add to the message of a mistake which option, or which of a few words, it looks like."""
    if meant := getattr(error, "possibilities", None):  # of an option that is none
        error.message = f"{error.message}. Did you mean {' or '.join(meant[:2])}?"
        error.possibilities = None
    choices = getattr(getattr(getattr(error, "param", None), "type", None), "choices", ())
    if choices and (match := _CHOICE.match(error.message)):
        words = [str(getattr(choice, "value", choice)) for choice in choices]
        error.message = f"{error.message} {did_you_mean(match['word'], words).capitalize()}".rstrip()


def as_error_of(source: str, word: object, error: Any) -> UsageError:  # noqa: ANN401 - a Mistake
    """EP001 for a value that the command line does not show.

    Args:
        source: the variable, or the file and the key in it.
    """
    shown = repr(str(word)[:_MAX_WORD])
    problem = error.message.replace(repr(word), shown, 1)
    return UsageError("EP001", f"{source}: {problem}", "correct it there, or say another on the command line")


def add_sources(error: EplbError, sources: Mapping[str, str]) -> None:
    """Let the hint of an error say of the options in its message where they came from.

    Args:
        sources: of options that were not set on the command line.
    """
    named = [
        f"{option} comes from {source}"
        for option, source in sources.items()
        if re.search(rf"{option}(?![\w-])", error.message)
    ]
    error.hint = "; ".join(filter(None, [error.hint, *named]))
