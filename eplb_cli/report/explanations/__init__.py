"""What `explain` and docs/errors.md say of each code: a TOML file for each family of errors."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.formats.shipped import Shipped

FAMILIES = Shipped(Path(__file__).parent)
