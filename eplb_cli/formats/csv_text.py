"""Tables of comma-separated numbers, with names for the columns or without."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.formats.budget import WORD_NBYTES, Allowance, NotReadableError
from eplb_cli.values import dataclass

_NUMBER_NBYTES = 8


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: their names, empty without a first line of words.
        numbers: (rows, columns) float64.
    """

    columns: tuple[str, ...]
    numbers: NDArray[np.float64]


def parse_csv(data: bytes) -> Table:
    """The table in the content of a file; lines of nothing are passed over.

    Raises:
        NotReadableError: it is no UTF-8, a line has more or fewer fields than the first, or a word where
            numbers are, or there is more of it than is read.
    """
    lines = [(number, line) for number, line in enumerate(data.splitlines(), 1) if line.strip()]
    _require_budget(data, [line for _, line in lines])
    columns = _names(lines[0][1]) if lines else ()
    rows = [_numbers(line, number) for number, line in lines[bool(columns) :]]
    width = len(columns) or (len(rows[0]) if rows else 0)
    for (number, _), row in zip(lines[bool(columns) :], rows, strict=True):
        if len(row) != width:
            raise NotReadableError(f"not a table: {len(row):,} fields where others have {width:,}", number)
    return Table(columns, np.array(rows).reshape(len(rows), width))


def _require_budget(data: bytes, lines: list[bytes]) -> None:
    """Each line is cut into words, which become numbers before the next is."""
    allowance = Allowance.of(len(data))
    fields = data.count(b",") + len(lines)
    allowance.take_values(fields)
    longest = max((line.count(b",") + 1 for line in lines), default=0)
    allowance.take_memory(2 * fields * _NUMBER_NBYTES + longest * WORD_NBYTES)


def _names(line: bytes) -> tuple[str, ...]:
    """The fields of a first line that is no numbers, else none."""
    try:
        words = tuple(word.strip() for word in line.decode("utf-8-sig").split(","))
    except UnicodeDecodeError as error:
        raise NotReadableError("not UTF-8 text", 1) from error
    return words if any(word and word[0].isalpha() for word in words) else ()


def _numbers(line: bytes, number: int) -> NDArray[np.float64]:
    try:
        return np.array(line.removeprefix(b"\xef\xbb\xbf").split(b","), dtype=np.bytes_).astype(np.float64)
    except ValueError as error:
        raise NotReadableError("not a table of numbers", number) from error
