"""Write docs/errors.md, what `eplb explain` says of each code: `python -m scripts.errors_page`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from eplb_cli.render.explanation import exit_words
from eplb_cli.report.explanation import Explanation, explanations

HEAD = """\
# Errors and findings

Each message of eplb has a code, which never changes its meaning. `eplb explain EP106` says the same as this
page, without any network. Made by `scripts/docs` from `eplb_cli/report/explanations`; every example with a
command is run by the tests.

| code | what is wrong |
|---|---|
"""

FAMILIES = {
    "EP0": "The command line",
    "EP1": "Placements, and findings of `validate`",
    "EP2": "Checkpoints",
    "EP3": "Plans",
    "EP4": "Workers",
    "EP5": "Bytes",
    "EP6": "Output",
}


def page() -> str:
    """The whole page."""
    found = explanations()
    lines = [f"| [{code}](#{code.lower()}) | {each.title} |" for code, each in found.items()]
    parts = [HEAD + "\n".join(lines) + "\n"]
    for family, title in FAMILIES.items():
        parts.append(f"## {title}\n")
        for code, each in found.items():
            if code.startswith(family):
                parts += section(each)
    return "\n".join(parts)


def section(found: Explanation) -> Iterator[str]:
    """A code, below its heading: that is the code alone, so that a link to it never breaks."""
    yield f"### {found.code}\n"
    yield f"*{found.title[:1].upper()}{found.title[1:]}.* {found.means}\n"
    yield f"{found.example}\n"
    for name, content in found.files.items():
        yield f"`{name}`:\n\n```\n{content.strip()}\n```\n"
    if found.run:
        yield f"```\n{found.run}\n```\n"
    stop = "" if found.remedy.endswith("?") else "."
    yield f"What to do: {found.remedy}{stop} Exit code: {exit_words(found)}.\n"


if __name__ == "__main__":
    sys.stdout.write(page())
