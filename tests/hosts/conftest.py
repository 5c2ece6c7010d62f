"""Hosts for tests, and where they cannot be had a reason."""

from __future__ import annotations

import contextlib

import pytest

from tests.support import machines
from tests.support.spread import Spread


@pytest.fixture
def hosts(tmp_path):
    """Call it for some hosts, which are there until the test ends: `machines.hosts` without `base`."""
    with contextlib.ExitStack() as stack:
        yield lambda count, **options: stack.enter_context(
            machines.hosts(count, tmp_path / "hosts", **options)
        )


@pytest.fixture
def spread(hosts, tmp_path, monkeypatch):
    """Call it with the old ranks of each host: hosts with their shards, as `Spread` has it.

    Even small tensors are worth a file that ranks share, as in all commands that are forked.
    """
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)

    def make(ranks_of, num_new=4, link=None, **options):
        common = any(name.startswith("common") for name in options)
        found = hosts(len(ranks_of), shared=common, link=link)
        return Spread(found, tmp_path / "spread", ranks_of, num_new, **options)

    return make
