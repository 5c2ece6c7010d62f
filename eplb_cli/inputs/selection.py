"""Which findings count, and how much: `--select`, `--ignore` and `--strict`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eplb_cli.errors import CODES, UsageError
from eplb_cli.placements.findings import Finding
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Selection:
    """Findings by the beginning of their codes.

    Attributes:
        select: those that are kept; all where it is empty.
        ignore: those of them that are dropped.
        is_strict: warnings are errors.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    is_strict: bool = False

    def of(self, findings: Iterable[Finding]) -> list[Finding]:
        """The findings that count, with the severity that they have then."""
        kept = [finding for finding in findings if self._keeps(finding.code)]
        if not self.is_strict:
            return kept
        return [replace(each, severity="error") if each.severity == "warning" else each for each in kept]

    def _keeps(self, code: str) -> bool:
        return code.startswith(self.select or ("",)) and not code.startswith(self.ignore)


def codes_in(option: str, words: Sequence[str]) -> tuple[str, ...]:
    """Codes, or how some begin, in values like `EP112` and `EP11,EP2`. Raises EP001 where none does."""
    parts = tuple(part.strip().upper() for word in words for part in word.split(","))
    for part in parts:
        if not part or not any(code.startswith(part) for code in CODES):
            hint = "`eplb explain` lists all codes"
            raise UsageError("EP001", f"{option}: no code begins with {part[:40]!r}", hint)
    return parts
