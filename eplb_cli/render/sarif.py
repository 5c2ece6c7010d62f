"""Findings as SARIF 2.1.0, which code scanning and editors collect.

docs.oasis-open.org/sarif/sarif/v2.1.0: sections 3.13 (log), 3.14 (run), 3.19 (tool), 3.27 (result), 3.30
(region) and 3.49 (rule).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from eplb_cli import __version__
from eplb_cli.errors import CODES, HINTS
from eplb_cli.render.text import printable

if TYPE_CHECKING:
    from eplb_cli.placements.findings import Finding
    from eplb_cli.report.findings import FindingsReport

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(report: FindingsReport) -> dict[str, Any]:
    """The log of one run, with a rule for each code that was found. Its columns count characters."""
    codes = sorted({finding.code for finding in report.findings})
    driver = {"name": "eplb", "version": __version__, "rules": [_rule(code) for code in codes]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "artifacts": [{"location": {"uri": _uri(name)}} for name in dict.fromkeys(report.files)],
        "results": [_result(finding, codes) for finding in report.findings],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: str) -> dict[str, Any]:
    return {
        "id": code,
        "shortDescription": {"text": CODES[code]},
        "help": {"text": f"{HINTS[code]}\n`eplb explain {code}` says more."},
    }


def _result(finding: Finding, codes: list[str]) -> dict[str, Any]:
    text = finding.message + (f"\nhint: {finding.hint}" if finding.hint else "")
    known = {"layer": finding.layer, "slot": finding.slot, "rank": finding.rank}
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": finding.severity,
        "message": {"text": "\n".join(map(printable, text.splitlines()))},
        "properties": {key: value for key, value in known.items() if value is not None},
    }
    if finding.file is not None:
        result["locations"] = [{"physicalLocation": _location(finding, finding.file)}]
    return result


def _location(finding: Finding, file: str) -> dict[str, Any]:
    region = {"startLine": finding.line, "startColumn": finding.column}
    known = {key: value for key, value in region.items() if value is not None}
    return {"artifactLocation": {"uri": _uri(file)}} | ({"region": known} if known else {})


def _uri(name: str) -> str:
    """A file as a reference: a relative name stays relative, so that collectors find it in the repository."""
    path = quote(name.encode(errors="surrogateescape"))
    if name.startswith("/"):
        return f"file://{path}"
    return path.removeprefix("./")
