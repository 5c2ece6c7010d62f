"""What a check found, in the words of whoever asked: a person, a script, GitHub, another program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TextIO

from eplb_cli.render.messages import message_text, print_json
from eplb_cli.render.text import plural, printable, severity_tag, write

if TYPE_CHECKING:
    from eplb_cli.placements.findings import Finding, Severity
    from eplb_cli.report.balance import Balances
    from eplb_cli.report.findings import FindingsReport

FindingsFormat = Literal["text", "json", "github", "sarif", "junit"]

MAX_LISTED = 20
"""Findings of one kind and file that people get to read before the others are only counted."""

_MAX_SKIPPED = 5
"""Names of skipped files in a line for people."""


def print_findings(report: FindingsReport, output_format: FindingsFormat = "text") -> None:
    """Print findings to stdout, and how evenly the placements spread a load.

    Where stdout is for a program of another kind than ours, the summary goes to stderr. For GitHub the whole
    table goes to the summary of its step as well, if there is one. Raises EP603 or EP604 for that.
    """
    if output_format == "json":
        print_json(_json(report))
    elif output_format == "text":
        _print_text(report)
    else:
        if output_format == "github":
            from eplb_cli.render.github import print_for_github

            print_for_github(report, summary(report))
        elif output_format == "sarif":
            from eplb_cli.render.sarif import sarif

            write(sys.stdout, json.dumps(sarif(report), indent=1) + "\n")
        else:
            from eplb_cli.render.junit import junit

            write(sys.stdout, junit(report))
        write(sys.stderr, summary(report) + "\n")


def _json(report: FindingsReport) -> dict[str, Any]:
    """Findings as `--format json` shows them; "load" is there only where one is given."""
    result: dict[str, Any] = {
        "format": "eplb-findings/1",
        "files": list(report.files),
        "skipped": list(report.skipped),
        "num_ignored": report.num_ignored,
        "findings": [asdict(finding) for finding in report.findings],
    }
    if report.load is not None:
        from eplb_cli.report.balance import balances_json

        result["load"] = balances_json(report.load)
    return result


def _print_text(report: FindingsReport) -> None:
    """A paragraph for each file, one for the load, and the sum of it."""
    paragraphs = (_paragraph(name, found, sys.stdout) for name, found in report.by_file.items())
    write(sys.stdout, "".join(paragraphs))
    if report.load is not None and report.load.placements:
        _print_load(report.load)
    if report.skipped:
        more = (
            f" and {len(report.skipped) - _MAX_SKIPPED:,} more" if len(report.skipped) > _MAX_SKIPPED else ""
        )
        names = ", ".join(map(printable, report.skipped[:_MAX_SKIPPED]))
        write(sys.stdout, f"skipped, as no placements: {names}{more}\n")
    write(sys.stdout, summary(report) + "\n")


def _print_load(load: Balances) -> None:
    """A paragraph of its own."""
    from eplb_cli.render.balance import show_balances
    from eplb_cli.render.page import page

    with page(sys.stdout) as console:
        show_balances(console, load)
        console.print()


def summary(report: FindingsReport) -> str:
    """`3 files checked: 2 errors, 1 warning`."""
    counts = report.counts
    parts = [plural(counts[each], each) for each in ("error", "warning", "note") if counts[each]]
    parts = parts or ["no findings"]
    if report.num_ignored:
        parts.append(f"{report.num_ignored:,} ignored")
    return f"{plural(len(report.files), 'file')} checked: {', '.join(parts)}"


def _paragraph(name: str | None, findings: Sequence[Finding], stream: TextIO) -> str:
    lines = list(_listed(findings, stream))
    heading = "all files together" if name is None else printable(name)
    if not lines:
        return f"{heading}: {severity_tag(stream, 'OK')}\n"
    return f"{heading}:\n" + "".join(f"  {line}\n" for line in lines)


def _listed(findings: Sequence[Finding], stream: TextIO) -> Iterator[str]:
    """Kind by kind, and how many more there are of one that has more than `MAX_LISTED`."""
    kinds: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity, finding.code), []).append(finding)
    for kind, same in kinds.items():
        for finding in same[:MAX_LISTED]:
            yield from _lines(finding, stream)
        if len(same) > MAX_LISTED:
            more = f"and {len(same) - MAX_LISTED:,} more; `--format json` has all"
            yield f"{severity_tag(stream, *kind)}: {more}"


def _lines(finding: Finding, stream: TextIO) -> list[str]:
    place = "" if finding.line is None else f"line {finding.line}: "
    tag = severity_tag(stream, finding.severity, finding.code)
    return message_text(tag, place + finding.message, finding.hint).splitlines()
