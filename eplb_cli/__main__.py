"""`python -m eplb_cli`."""

from eplb_cli.cli import main

main()
