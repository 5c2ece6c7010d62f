"""Layouts that come with eplb: a file each."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.formats.shipped import Shipped

LAYOUTS = Shipped(Path(__file__).parent)
