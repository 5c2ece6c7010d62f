"""What is said of each code: one TOML file for a family of errors, which `explain` and docs/errors.md are made of."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.formats.shipped import Shipped

FAMILIES = Shipped(Path(__file__).parent)
