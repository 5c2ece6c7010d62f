"""What `explain` says: one code on a screen, or all of them as a list."""

from __future__ import annotations

import shutil
from textwrap import fill
from typing import TYPE_CHECKING

from eplb_cli.errors import CODES, EXIT_FINDINGS

if TYPE_CHECKING:
    from eplb_cli.report.explanation import Explanation

_MOST_COLUMNS = 100
"""Beyond it lines are too long to read."""


def explanation_text(found: Explanation) -> str:
    """A code in paragraphs; its files are as they can be pasted into a file."""
    columns = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)

    def paragraph(text: str, indent: str = "") -> str:
        return fill(text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

    parts = [
        paragraph(f"{found.code}: {found.title}"),
        paragraph(found.means),
        paragraph(f"Example: {found.example}"),
    ]
    parts += (f"  {name}:\n{_indented(content)}" for name, content in found.files.items())
    if found.run:
        parts.append(f"  $ {found.run}")
    parts += [paragraph(f"What to do: {found.remedy}"), paragraph(f"Exit code: {exit_words(found)}")]
    return "\n\n".join(parts) + "\n"


def exit_words(found: Explanation) -> str:
    """What a command ends with."""
    if not found.code.startswith("EP1"):
        return f"{found.exit_code}"
    return f"{found.exit_code}, and {EXIT_FINDINGS} where `validate` finds it in what it checks"


def list_text() -> str:
    """A line for each code."""
    return "".join(f"{code}  {title}\n" for code, title in CODES.items())


def _indented(content: str) -> str:
    return "\n".join(f"    {line}" for line in content.splitlines())
