"""Numbers and untrusted words as text, and how text reaches a stream whatever its encoding."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

from eplb_cli.placements.spans import spans
from eplb_cli.progress import bytes_in_words

UNKNOWN = "unknown"
"""What stands for a number of bytes that nothing says."""

_MINUTE_S = 60
_HOUR_S = 3600
# No yellow, which cannot be read on a light theme.
_ANSI = {"error": "1;31", "warning": "1;35", "OK": "32"}
_ASCII = str.maketrans({"…": "...", "·": ".", "×": "x", "─": "-", "│": "|", "├": "+", "└": "+", "→": "->"})


def printable(text: object) -> str:
    r"""`text` on one line that a terminal shows and does not obey.

    Names of files and tensors come from outside: an escape character becomes `\x1b`.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def format_bytes(nbytes: float | None) -> str:
    """As `bytes_in_words` says them, or that they are unknown."""
    return UNKNOWN if nbytes is None else bytes_in_words(nbytes)


def format_rate(nbytes: float, seconds: float) -> str:
    """Bytes per second, or nothing where no time passed."""
    return f"{format_bytes(nbytes / seconds)}/s" if seconds > 0 else ""


def format_seconds(seconds: float) -> str:
    """`0.12 s`, `12.3 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"  # noqa: PLR2004
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"


def format_share(part: int, whole: int) -> str:
    """Percent without a fraction; only nothing is `0%` and only all is `100%`."""
    if part in {0, whole}:
        return "0%" if part == 0 else "100%"
    percent = round(100 * part / whole)
    return {0: "<1%", 100: ">99%"}.get(percent, f"{percent}%")


def format_ratio(ratio: float) -> str:
    """`1.043`: of loads, three digits behind the point."""
    return f"{ratio:.3f}"


def format_runs(numbers: Sequence[int]) -> str:
    """Ascending numbers, runs of them by their ends: `0, 3-60`."""
    return spans(numbers).replace(",", ", ")


def plural(count: int, noun: str) -> str:
    """`1 rank`, `2 ranks`, `1,160 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def severity_tag(stream: TextIO, severity: str, code: str = "", colour: str = "") -> str:
    """`error[EP106]`, in colour on a terminal that wants it: its own, or that of another severity."""
    tag = f"{severity}[{code}]" if code else severity
    in_colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{_ANSI[colour or severity]}m{tag}\x1b[0m" if in_colour else tag


def write(stream: TextIO, text: str) -> None:
    """Write and flush; a stream that cannot say a character gets an ASCII one or an escape instead.

    A closed pipe raises BrokenPipeError here, where the command line can still handle it.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)
    stream.flush()
