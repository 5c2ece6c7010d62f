"""Findings as JUnit's XML, in the form that Jenkins's schema describes and other collectors read too.

github.com/jenkinsci/xunit-plugin, `junit-10.xsd`: a suite for each file; in it a case for each finding, of
which errors are failures, and where there is none of those, one that passed.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from eplb_cli.render.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplb_cli.placements.findings import Finding
    from eplb_cli.report.findings import FindingsReport


def junit(report: FindingsReport) -> str:
    """The document. It has no times: what it says is the same whenever it is said."""
    suites = [_suite(name or "all files together", found) for name, found in report.by_file.items()]
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>", *suites, "</testsuites>", ""])


def _suite(name: str, findings: Sequence[Finding]) -> str:
    failures = sum(finding.severity == "error" for finding in findings)
    cases = [_case(name, finding) for finding in findings]
    if not failures:
        cases.insert(0, f"  <testcase {_attributes(classname=name, name='placement')}/>")
    counts = _attributes(name=name, tests=len(cases), failures=failures, errors=0, skipped=0)
    return "\n".join([f" <testsuite {counts}>", *cases, " </testsuite>"])


def _case(name: str, finding: Finding) -> str:
    head = _attributes(classname=name, name=f"{finding.code}: {finding.message}")
    line = "" if finding.line is None else f"line {finding.line}: "
    hint = f"\nhint: {finding.hint}" if finding.hint else ""
    lines = f"{finding.severity}[{finding.code}]: {line}{finding.message}{hint}".splitlines()
    text = escape("\n".join(map(printable, lines)))
    if finding.severity != "error":
        return f"  <testcase {head}>\n   <system-out>{text}</system-out>\n  </testcase>"
    kind = _attributes(type=finding.code, message=finding.message)
    return f"  <testcase {head}>\n   <failure {kind}>{text}</failure>\n  </testcase>"


def _attributes(**values: object) -> str:
    return " ".join(f'{key}="{escape(printable(value))}"' for key, value in values.items())
