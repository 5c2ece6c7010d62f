"""A program that calls the command line again and again has one judge, not one for each call."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os
from eplb_cli.run import judge
judge.go_on_judged(60, "")
first = os.getpid()
judge.go_on_judged(60, "")
print(os.getpid() == first)
"""


def test_a_child_that_is_judged_goes_on_itself():
    """Each call would leave a process that looks after the next one."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
