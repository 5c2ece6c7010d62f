"""The pool of ranks that all tests of live tensors share.

`EPLB_TEST_RANKS_PER_DEVICE=2` puts as many on each CUDA device: then one device is enough for nccl.
"""

from __future__ import annotations

import os
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
    on_devices = devices * int(os.environ.get("EPLB_TEST_RANKS_PER_DEVICE", "1"))
    size, backend = (on_devices, "nccl") if on_devices > 1 else (NUM_RANKS, "gloo")
    pool = Ranks(tmp_path_factory.mktemp("ranks"), size, backend)
    yield pool
    pool.stop()
