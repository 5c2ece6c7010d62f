"""A code explained: what it means, what causes it, what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import partial
from typing import Any

from eplb_cli.errors import CODES, EXIT_FINDINGS, HINTS, UsageError, error_of
from eplb_cli.formats.reading import read_toml
from eplb_cli.report.explanations import FAMILIES
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Explanation:
    """What is known of a code.

    Attributes:
        title: what is wrong, in a few words.
        means: the same in sentences.
        example: what causes it, in words; it ends with a colon where `run` follows.
        run: a command that causes it; empty where it takes more than a command line.
        files: what that command reads, by name.
        remedy: what to do about it.
        exit_code: of a command that ends with it; where `validate` finds it in a file, that ends with 1.
    """

    code: str
    title: str
    means: str
    example: str
    run: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""
    exit_code: int = EXIT_FINDINGS


def explanation_of(word: str) -> Explanation:
    """What is known of a code, in letters of any size. Raises EP001 where there is none of that name."""
    code = word.strip().upper()
    if code not in CODES:
        raise UsageError("EP001", f"{word[:40]!r} is no code", "`eplb explain` lists all codes")
    return explanations()[code]


def explanations() -> dict[str, Explanation]:
    """All codes, in their order."""
    said: dict[str, dict[str, Any]] = {}
    for name in FAMILIES.names:
        said |= read_toml(FAMILIES.path(name), partial(error_of, "EP401"))
    return {
        code: Explanation(
            code, title, **said[code], remedy=HINTS[code], exit_code=error_of(code, "").exit_code
        )
        for code, title in CODES.items()
    }


def explanation_json(found: Explanation) -> dict[str, Any]:
    """A code as `--format json` has it."""
    return {
        "code": found.code,
        "title": found.title,
        "means": found.means,
        "example": {"says": found.example, "run": found.run, "files": dict(found.files)},
        "remedy": found.remedy,
        "exit_code": found.exit_code,
    }
