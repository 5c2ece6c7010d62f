"""Rows pushed into the memory of other ranks, with every step of every lane late at random.

On a CPU: lanes are threads (`tests/support/live/threads.py`), so that a step which forgets to wait for
another is seen where no device is.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="live tensors need torch")

from eplb_cli.exchange.transport import Done  # noqa: E402
from eplb_cli.live import link as link_module  # noqa: E402 - after torch
from eplb_cli.live.agreement import plan_of  # noqa: E402
from eplb_cli.live.link import Near  # noqa: E402
from eplb_cli.live.plan import plan_live  # noqa: E402
from eplb_cli.live.room import chunk_room  # noqa: E402
from eplb_cli.live.tensors import row_nbytes  # noqa: E402
from tests.support.live.threads import Host, move, neighbours  # noqa: E402

NUM_CASES = 120
LATE_S = 0.002


@pytest.fixture(autouse=True)
def small_rows_are_large(monkeypatch):
    """Rows of 40 bytes are pushed, and smaller ones gathered."""
    monkeypatch.setattr(link_module, "PUSHED_NBYTES", 40)


def run_case(seed: int) -> None:
    """Two rearrangements in a row of random tables, among 2 to 4 ranks; every byte is compared."""
    rng = np.random.default_rng(seed)
    num_ranks, num_layers, num_rows = rng.integers(2, 5), rng.integers(1, 4), rng.integers(1, 7)
    num_slots = int(num_ranks * num_rows)
    num_experts = int(rng.integers(max(num_slots // 2, 1), num_slots + 1))
    tables = [random_table(rng, int(num_layers), num_slots, num_experts) for _ in range(3)]
    sizes = rng.integers(1, 200, (num_layers, rng.integers(1, 4)))
    weights = [
        [
            [
                torch.from_numpy(rows_of(tables[0][layer], rank, int(num_rows), layer, tensor, int(size)))
                for tensor, size in enumerate(row)
            ]
            for layer, row in enumerate(sizes)
        ]
        for rank in range(num_ranks)
    ]
    plans = [plan_of(old, new, weights[0], int(num_ranks)) for old, new in pairwise(tables)]
    chunk = int(rng.integers(16 * num_slots, 64 * num_slots + 2000))
    host = Host(int(num_ranks), int(rng.choice([2, 4])), chunk, seed, LATE_S)
    with neighbours(host) as made:
        move(plans, weights, made, chunk)
    for rank, layers in enumerate(weights):
        for layer, tensors in enumerate(layers):
            for tensor, found in enumerate(tensors):
                size = int(sizes[layer, tensor])
                expected = rows_of(tables[-1][layer], rank, int(num_rows), layer, tensor, size)
                assert np.array_equal(found.numpy(), expected), (seed, rank, layer, tensor)


def random_table(rng: np.random.Generator, num_layers: int, num_slots: int, num_experts: int) -> np.ndarray:
    """(L, P) tables in which each expert has a slot."""
    rows = []
    for _ in range(num_layers):
        more = rng.integers(0, num_experts, num_slots - num_experts)
        rows.append(rng.permutation(np.r_[np.arange(num_experts), more]))
    return np.array(rows, np.int64)


def rows_of(table: np.ndarray, rank: int, num_rows: int, layer: int, tensor: int, size: int) -> np.ndarray:
    """(S, size) bytes that say which expert, layer, tensor and column they are."""
    experts = table[rank * num_rows : (rank + 1) * num_rows]
    column = np.arange(size)
    return (experts[:, None] * 37 + column[None, :] * 11 + layer * 101 + tensor * 53).astype(np.uint8)


def run_all(begin: int = 0, end: int = NUM_CASES) -> None:
    """Some of the cases."""
    for seed in range(begin, end):
        run_case(seed)


@pytest.mark.parametrize("part", range(4))
def test_every_byte_arrives(part):
    """Whichever step is late."""
    run_all(part * NUM_CASES // 4, (part + 1) * NUM_CASES // 4)


def own_buffer_is_forgotten(monkeypatch):
    """Own rows go into the receive buffer while it still has an older chunk."""
    hold = Near.hold

    def held(near, chunk):
        near._neighbours.ranks, ranks = near._others, near._neighbours.ranks
        hold(near, chunk)
        near._neighbours.ranks = ranks

    monkeypatch.setattr(Near, "hold", held)


def buffers_are_never_full(monkeypatch):
    """Nobody waits until a buffer is free."""
    monkeypatch.setattr(Near, "hold", lambda _near, _chunk: None)


def rows_are_overwritten_early(monkeypatch):
    """Rows that are still being pushed are overwritten."""
    monkeypatch.setattr(link_module.Link, "left", lambda _link, _chunk: Done())


def others_are_not_awaited(monkeypatch):
    """A chunk is scattered before it has arrived."""
    monkeypatch.setattr(Near, "arrival", lambda _near, _chunk: Done())


def small_rows_are_not_awaited(monkeypatch):
    """A chunk is said to be there before its small rows are."""
    push = Near.push
    monkeypatch.setattr(Near, "push", lambda near, chunk, _filled: push(near, chunk, Done()))


@pytest.mark.parametrize(
    "mistake",
    [
        own_buffer_is_forgotten,
        buffers_are_never_full,
        rows_are_overwritten_early,
        others_are_not_awaited,
        small_rows_are_not_awaited,
    ],
)
def test_mistakes_are_seen(monkeypatch, mistake):
    """What the test above is worth: each of these is an order that the code must keep, left out."""
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        run_all()


def test_buffers_have_room_for_every_chunk():
    """Of any rank, in the whole of a plan and in each of its layers, however small the buffers are."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        num_ranks, num_rows = int(rng.integers(1, 6)), int(rng.integers(1, 7))
        tables = [
            random_table(rng, 3, num_ranks * num_rows, max(num_ranks * num_rows - 2, 1)) for _ in range(2)
        ]
        layers = [[torch.zeros(num_rows, int(rng.integers(1, 5000)), dtype=torch.uint8)] for _ in range(3)]
        plan = plan_of(tables[0], tables[1], layers, num_ranks)
        buffer_nbytes = int(rng.choice([1, 300, 5000, 1 << 20, 1 << 31]))
        room = chunk_room(plan, row_nbytes(layers), buffer_nbytes)
        parts = [slice(0, 3), *(slice(layer, layer + 1) for layer in range(3))]
        needed = [
            plan_live(plan.of_layers(part), row_nbytes(layers[part]), rank, buffer_nbytes).schedule
            for part in parts
            for rank in range(num_ranks)
        ]
        assert max(schedule.receives.buffer_nbytes for schedule in needed) <= room, seed
