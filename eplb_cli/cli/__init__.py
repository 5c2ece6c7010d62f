"""The command line."""

from eplb_cli.cli.entry import main

__all__ = ["main"]
