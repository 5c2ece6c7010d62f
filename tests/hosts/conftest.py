"""Hosts for tests, and where they cannot be had a reason."""

from __future__ import annotations

import contextlib

import pytest

from tests.support import machines


@pytest.fixture
def hosts(tmp_path):
    """Call it for some hosts, which are there until the test ends: `machines.hosts` without `base`."""
    with contextlib.ExitStack() as stack:
        yield lambda count, **options: stack.enter_context(
            machines.hosts(count, tmp_path / "hosts", **options)
        )
