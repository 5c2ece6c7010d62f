"""Words that stand for a placement, for the command line to list before anything heavy is imported."""

from __future__ import annotations

NAMED_MAPS = ("linear", "round_robin", "trivial")
"""Maps that have a name instead of a file."""
