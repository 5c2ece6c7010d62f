"""JSON for scripts; errors and warnings for whoever reads stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from eplb_cli.errors import EplbError
from eplb_cli.progress import is_quiet
from eplb_cli.render.text import printable, severity_tag, write

if TYPE_CHECKING:
    from eplb_cli.placements.findings import Finding


def print_json(obj: Mapping[str, Any]) -> None:
    """Print one object to stdout: a line for each key, and for each element of a list."""
    entries = [f"{json.dumps(key)}: {_value(value)}" for key, value in obj.items()]
    write(sys.stdout, "{" + ",\n ".join(entries) + "}\n")


def _value(value: object) -> str:
    """JSON of one value; a list of lists or objects has one of them per line."""
    if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple | dict):
        text = json.dumps(value)
        if '"' not in text:  # numbers only, and perhaps a million of them: one call is five times as fast
            return "[\n  " + text[1:-1].replace("], [", "],\n  [") + "]"
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "]"
    return json.dumps(value)


def print_error(error: EplbError) -> None:
    """Print an error to stderr, with its code and what to do about it."""
    tag = severity_tag(sys.stderr, "error", error.code)
    write(sys.stderr, message_text(tag, "\n".join(_all_of(error)), error.hint))


def _all_of(error: EplbError) -> Iterator[str]:
    """An error's message, and those of the errors that were found with it."""
    yield error.message
    for further in error.further:
        yield f"{further.code}: {further.message}"
    if hidden := error.num_further - len(error.further):
        yield f"... and {hidden:,} more"
    if error.num_further:
        yield f"{error.num_further + 1:,} differences in all"


def print_json_error(error: EplbError) -> None:
    """Print an error to stdout, for a program, with what was found beside it; of much of that the number."""
    content = _error_json(error)
    if error.num_further:
        content |= {"num_further": error.num_further, "further": list(map(_error_json, error.further))}
    print_json({"error": content})


def _error_json(error: EplbError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "where": asdict(error.where),
    }


def print_note(note: str) -> None:
    """Print what is good to know before the work, and odd in no way, to stderr; nothing with `-q`."""
    if not is_quiet.get():
        write(sys.stderr, message_text("note", note))


def print_detail(kind: str, words: str) -> None:
    """Print what `-v` asks for, to stderr: an option and where it came from, a decision, a stage."""
    write(sys.stderr, message_text(kind, words))


def print_interrupted(come_of_it: str) -> None:
    """Print to stderr that the command was interrupted, and what is true of the output now."""
    write(sys.stderr, message_text("interrupted", come_of_it))


def print_warning(warning: Finding | str, *, is_grave: bool = False) -> None:
    """Print a warning to stderr, where it does not disturb the result; a grave one as red as an error.

    With `-q` there are only grave ones.
    """
    if is_quiet.get() and not is_grave:
        return
    if isinstance(warning, str):
        tag = severity_tag(sys.stderr, "warning", colour="error" if is_grave else "")
        write(sys.stderr, message_text(tag, warning))
    else:
        tag = severity_tag(sys.stderr, warning.severity, warning.code)
        place = f"{warning.place}: " if warning.place else ""
        write(sys.stderr, message_text(tag, place + warning.message, warning.hint))


def message_text(tag: str, message: str, hint: str = "") -> str:
    """A message as the design shows it.

    ::

        error[EP106]: layer 17, slot 203: expert 41 is in NEW but nowhere in OLD
          hint: was OLD written for another checkpoint?

    Further lines of a message or hint start with a bar, so that no file name can pose as a message.
    """
    text = f"{tag}: {_barred(message)}\n"
    return text + f"  hint: {_barred(hint)}\n" if hint else text


def _barred(text: str) -> str:
    return "\n  | ".join(map(printable, text.splitlines()))
