"""Pairs of measurements, and the table they end in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

HEAD = (
    "what",
    "against",
    "unit",
    "what: min / median / max",
    "against: min / median / max",
    "ratio: min / median / max",
    "bar",
    "",
)


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        values, others: what was measured and what it is held against, in pairs; `others` may be empty.
        limit: the most that the median ratio may be, or the least; None where there is no bar.
        digits: behind the point.
        note: why there is nothing to show.
    """

    what: str
    against: str = ""
    values: Sequence[float] = ()
    others: Sequence[float] = ()
    unit: str = "s"
    limit: float | None = None
    digits: int = 2
    note: str = ""
    at_least: bool = False

    @property
    def ratios(self) -> list[float]:
        """Pair by pair."""
        return [value / other for value, other in zip(self.values, self.others, strict=False)]

    @property
    def verdict(self) -> str:
        """Whether the bar is reached."""
        if self.note:
            return self.note
        if self.limit is None or not self.ratios:
            return ""
        found = median(self.ratios)
        return "reached" if (found >= self.limit if self.at_least else found <= self.limit) else "MISSED"

    def cells(self) -> tuple[str, ...]:
        """One string for each column of `HEAD`."""
        return (
            self.what,
            self.against,
            self.unit,
            spread(self.values, self.digits),
            spread(self.others, self.digits),
            spread(self.ratios, 3),
            "" if self.limit is None else f"{'≥' if self.at_least else '≤'} {self.limit:g}",
            self.verdict,
        )


def spread(values: Sequence[float], digits: int) -> str:
    """The least, the median and the most of some numbers."""
    if not values:
        return ""
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def render(lines: Sequence[Line]) -> str:
    """The table, as wide as it must be."""
    rows = [HEAD, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
