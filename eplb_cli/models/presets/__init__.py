"""Models that eplb knows by name: a file each."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.formats.shipped import Shipped

PRESETS = Shipped(Path(__file__).parent)
