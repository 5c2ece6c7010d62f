"""`python -m eplb_cli`."""

# `-m` puts the current directory first on the path, and whatever lies there is no part of this program:
# before anything else is imported, that is taken back, but for the directory that the package came from.
import os
import sys

if not sys.flags.safe_path:
    _root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - as above
    del sys.path[0]
    if _root not in sys.path:
        sys.path.append(_root)

from eplb_cli.cli import main

main()
