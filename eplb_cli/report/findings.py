"""What `validate` shows: findings, and what they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from eplb_cli.placements.findings import Finding
from eplb_cli.report.balance import Balances
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class FindingsReport:
    """What a check of placements comes to.

    Attributes:
        findings: those that count, in the order of the files.
        files: what was checked.
        skipped: files of directories that hold something else.
        num_ignored: findings that were asked not to count.
        load: all placements without errors under a load; None without one.
    """

    findings: Sequence[Finding]
    files: Sequence[str]
    skipped: Sequence[str] = ()
    num_ignored: int = 0
    load: Balances | None = None

    @property
    def counts(self) -> Counter[str]:
        """How many findings there are of each severity."""
        return Counter(finding.severity for finding in self.findings)

    @property
    def by_file(self) -> dict[str | None, list[Finding]]:
        """Those of each file, in the order of `files`; what belongs to none of them comes last."""
        found: dict[str | None, list[Finding]] = {name: [] for name in self.files}
        for finding in self.findings:
            found.setdefault(finding.file, []).append(finding)
        return found
