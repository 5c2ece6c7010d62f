"""What a check found, in the words of whoever asked: a person, a script or GitHub."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TextIO

from eplb_cli.render.messages import message_text, print_json
from eplb_cli.render.text import plural, printable, severity_tag, write

if TYPE_CHECKING:
    from eplb_cli.placements.findings import Finding
    from eplb_cli.report.balance import Balances

FindingsFormat = Literal["text", "json", "github"]

MAX_ANNOTATIONS = 9
"""GitHub shows ten annotations of a step and drops the others; the tenth says how many there are."""

_COMMAND_ESCAPES = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY_ESCAPES = _COMMAND_ESCAPES | str.maketrans({":": "%3A", ",": "%2C"})


def print_findings(
    findings: Sequence[Finding],
    checked: Sequence[str],
    output_format: FindingsFormat = "text",
    load: Balances | None = None,
) -> None:
    """Print the findings in the `checked` files to stdout, and how evenly they spread a load.

    As annotations for GitHub the summary goes to stderr, because every line of stdout is a command.
    """
    if output_format == "json":
        print_json(_json(findings, checked, load))
    elif output_format == "github":
        write(sys.stdout, "".join(f"{line}\n" for line in github_commands(findings)))
        write(sys.stderr, summary(findings, checked) + "\n")
    else:
        write(sys.stdout, findings_text(findings, checked, sys.stdout))
        if load is not None and load.placements:
            _print_load(load)
        write(sys.stdout, summary(findings, checked) + "\n")


def _json(findings: Sequence[Finding], checked: Sequence[str], load: Balances | None) -> dict[str, Any]:
    """Findings as `--format json` shows them; "load" is there only where one is given."""
    entries = [asdict(finding) for finding in findings]
    result: dict[str, Any] = {"format": "eplb-findings/1", "files": list(checked), "findings": entries}
    if load is not None:
        from eplb_cli.report.balance import balances_json

        result["load"] = balances_json(load)
    return result


def _print_load(load: Balances) -> None:
    """A paragraph of its own."""
    from eplb_cli.render.balance import show_balances
    from eplb_cli.render.page import page

    with page(sys.stdout) as console:
        show_balances(console, load)
        console.print()


def summary(findings: Sequence[Finding], checked: Sequence[str]) -> str:
    """`3 files checked: 2 errors, 1 warning`."""
    errors = sum(finding.severity == "error" for finding in findings)
    counts = [plural(errors, "error")] if errors else []
    if errors < len(findings):
        counts.append(plural(len(findings) - errors, "warning"))
    return f"{plural(len(checked), 'file')} checked: {', '.join(counts) or 'no findings'}"


def findings_text(findings: Sequence[Finding], checked: Sequence[str], stream: TextIO) -> str:
    """One paragraph per file, in the order of `checked`; what belongs to no single file comes last."""
    by_file: dict[str | None, list[Finding]] = {name: [] for name in checked}
    for finding in findings:
        by_file.setdefault(finding.file, []).append(finding)
    return "".join(_paragraph(name, found, stream) for name, found in by_file.items())


def _paragraph(name: str | None, findings: Iterable[Finding], stream: TextIO) -> str:
    lines = [line for finding in findings for line in _lines(finding, stream)]
    heading = "all files together" if name is None else printable(name)
    if not lines:
        return f"{heading}: {severity_tag(stream, 'OK')}\n"
    return f"{heading}:\n" + "".join(f"  {line}\n" for line in lines)


def _lines(finding: Finding, stream: TextIO) -> list[str]:
    place = "" if finding.line is None else f"line {finding.line}: "
    tag = severity_tag(stream, finding.severity, finding.code)
    return message_text(tag, place + finding.message, finding.hint).splitlines()


def github_commands(findings: Sequence[Finding]) -> list[str]:
    """Annotations by workflow commands: errors first, `MAX_ANNOTATIONS` at most, and one for the rest."""
    in_order = sorted(findings, key=lambda finding: finding.severity != "error")
    commands = [_annotation(finding) for finding in in_order[:MAX_ANNOTATIONS]]
    rest = in_order[MAX_ANNOTATIONS:]
    if rest:
        text = f"{len(rest):,} more: `eplb validate` without `--format github` lists all of them"
        commands.append(_command(rest[0].severity, {"title": "eplb"}, text))
    return commands


def _annotation(finding: Finding) -> str:
    line = None if finding.line is None else str(finding.line)
    properties = {"file": finding.file, "line": line, "title": finding.code}
    text = finding.message + (f"\nhint: {finding.hint}" if finding.hint else "")
    return _command(finding.severity, properties, text)


def _command(severity: str, properties: dict[str, str | None], text: str) -> str:
    """`::error file=a.json,title=EP106::text`; GitHub turns the escapes back, newlines included."""
    given = [f"{key}={value.translate(_PROPERTY_ESCAPES)}" for key, value in properties.items() if value]
    return f"::{severity} {','.join(given)}::{text.translate(_COMMAND_ESCAPES)}"
