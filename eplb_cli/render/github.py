"""Findings where a pull request shows them: annotations of lines, and the summary of the step.

GitHub shows ten annotations of a step and drops the others, and takes 1 MiB of summary
(docs.github.com: "Workflow commands for GitHub Actions", "Usage limits").
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli.files import append, size_of
from eplb_cli.render.text import printable, write

if TYPE_CHECKING:
    from eplb_cli.errors import EplbError
    from eplb_cli.placements.findings import Finding
    from eplb_cli.report.findings import FindingsReport

MAX_ANNOTATIONS = 9
"""The tenth says how many more there are."""

MAX_SUMMARY_NBYTES = 1 << 20
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
_SEVERITIES = list(_COMMANDS)
_COMMAND_ESCAPES = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY_ESCAPES = _COMMAND_ESCAPES | str.maketrans({":": "%3A", ",": "%2C"})
_MARKDOWN_ESCAPES = str.maketrans({char: f"\\{char}" for char in "\\`*_[]|#~"} | {"<": "&lt;", "&": "&amp;"})
_HEAD = "| severity | code | place | finding |\n|---|---|---|---|\n"
_ROOM_FOR_THE_END = 200


def print_for_github(report: FindingsReport, title: str) -> None:
    """Annotations to stdout, and all findings to the summary of the step. Raises EP603 or EP604."""
    write(sys.stdout, "".join(f"{line}\n" for line in github_commands(report.findings)))
    if path := os.environ.get(SUMMARY_VARIABLE):
        room = MAX_SUMMARY_NBYTES - size_of(Path(path))
        append(Path(path), step_summary(report.findings, title, room).encode())


def error_command(error: EplbError) -> str:
    """An annotation of what ended the command."""
    line = None if error.where.line is None else str(error.where.line)
    properties = {"file": error.where.file, "line": line, "title": error.code}
    return _command("error", properties, _with_hint(error.message, error.hint))


def github_commands(findings: Sequence[Finding]) -> list[str]:
    """Annotations by workflow commands: errors first, `MAX_ANNOTATIONS` at most, and one for the rest."""
    in_order = _worst_first(findings)
    commands = [_annotation(finding) for finding in in_order[:MAX_ANNOTATIONS]]
    rest = in_order[MAX_ANNOTATIONS:]
    if rest:
        text = f"{len(rest):,} more: the summary of this step has all, as has `eplb validate --format json`"
        commands.append(_command(rest[0].severity, {"title": "eplb"}, text))
    return commands


def step_summary(findings: Sequence[Finding], title: str, room: int) -> str:
    """Markdown of at most `room` bytes in UTF-8: a table of all findings, or of as many as fit in."""
    head = f"### eplb validate: {_in_markdown(title)}\n\n" + (_HEAD if findings else "")
    rows = [_row(finding) for finding in _worst_first(findings)]
    ends = [*accumulate(len(row.encode()) for row in rows)]
    fitting = bisect_right(ends, room - len(head.encode()) - _ROOM_FOR_THE_END)
    if fitting < len(rows):
        rows[fitting:] = [f"\n{len(rows) - fitting:,} more have no room here.\n"]
    text = "".join([head, *rows, "\n"])
    return text if len(text.encode()) <= room else ""


def _worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


def _row(finding: Finding) -> str:
    text = _with_hint(finding.message, finding.hint)
    cells = (finding.severity, finding.code, finding.place, "<br>".join(map(_in_markdown, text.splitlines())))
    return f"| {cells[0]} | {cells[1]} | {_in_markdown(cells[2])} | {cells[3]} |\n"


def _in_markdown(text: str) -> str:
    return printable(text).translate(_MARKDOWN_ESCAPES)


def _with_hint(message: str, hint: str) -> str:
    return message + (f"\nhint: {hint}" if hint else "")


def _annotation(finding: Finding) -> str:
    line, column = (None if number is None else str(number) for number in (finding.line, finding.column))
    file = finding.file and finding.file.removeprefix("./")  # GitHub's names have no such beginning
    properties = {"file": file, "line": line, "col": column, "title": finding.code}
    return _command(finding.severity, properties, _with_hint(finding.message, finding.hint))


def _command(severity: str, properties: dict[str, str | None], text: str) -> str:
    """`::error file=a.json,title=EP106::text`; GitHub turns the escapes back, newlines included."""
    given = [f"{key}={value.translate(_PROPERTY_ESCAPES)}" for key, value in properties.items() if value]
    return f"::{_COMMANDS[severity]} {','.join(given)}::{text.translate(_COMMAND_ESCAPES)}"
