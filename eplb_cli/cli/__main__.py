"""`python -m eplb_cli.cli`."""

from eplb_cli.cli import main

main()
