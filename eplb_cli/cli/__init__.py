"""The command line."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Without a package that it is made of, as typer, that is an error like others."""
    try:
        from eplb_cli.cli import entry
    except ImportError as error:
        from eplb_cli.machine import not_imported
        from eplb_cli.render import print_error

        missing = not_imported(error, str(error.name), "eplb")
        print_error(missing)
        sys.exit(missing.exit_code)
    entry.main()
