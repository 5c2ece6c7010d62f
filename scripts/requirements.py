"""Print what the quick tests need, one requirement a line: all but torch, and what only develops eplb.

Usage: requirements.py newest|oldest

`newest` is what pyproject.toml says, for pip to take the newest of; `oldest` is its lower bounds, exactly.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

BOUNDED = re.compile(r"(?P<name>[a-z-]+)>=(?P<lower>[0-9.]+),<[0-9.]+")


def quick(project: dict[str, list[str]], extras: dict[str, list[str]]) -> list[str]:
    """The requirements of the quick tests, as pyproject.toml has them."""
    listed = [*project["dependencies"], *extras["html"], *extras["test"]]
    return [requirement for requirement in listed if not requirement.startswith("torch>=")]


def lowest(requirement: str) -> str:
    """The lower bound of a requirement, and nothing else."""
    bounds = BOUNDED.fullmatch(requirement)
    if not bounds:
        sys.exit(f"requirements: {requirement!r} in pyproject.toml is not of the form name>=lower,<upper")
    return f"{bounds['name']}=={bounds['lower']}"


def main(which: str) -> None:
    """Print one requirement a line."""
    path = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    newest = quick(project, project["optional-dependencies"])
    print("\n".join({"newest": newest, "oldest": [lowest(requirement) for requirement in newest]}[which]))


if __name__ == "__main__":
    main(*sys.argv[1:])
