"""The pool of ranks that all tests of live tensors share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ranks import Ranks

NUM_RANKS = 4
"""Of the pool on a CPU."""


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> Iterator[Ranks]:
    """The pool: nccl where there are two devices, gloo elsewhere."""
    import torch

    devices = torch.cuda.device_count()
    size, backend = (devices, "nccl") if devices >= 2 else (NUM_RANKS, "gloo")
    pool = Ranks(tmp_path_factory.mktemp("ranks"), size, backend)
    yield pool
    pool.stop()
