"""`scripts/bench COMMAND`: a command is a module of this package with `main(arguments) -> int`."""

from __future__ import annotations

import importlib
import importlib.util
import sys

COMMANDS = (
    *("start", "plan", "senders", "balance", "reshard", "cores", "direct", "exchange", "hosts", "faults"),
)


def main(arguments: list[str]) -> int:
    """Hand the rest of the command line to the module that its first word names."""
    available = [name for name in COMMANDS if importlib.util.find_spec(f"{__package__}.{name}")]
    if not arguments or arguments[0] not in available:
        print(f"usage: scripts/bench {'|'.join(available)} [OPTIONS]", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"{__package__}.{arguments[0]}").main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
