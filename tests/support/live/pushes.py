"""What ranks do to each other's memory on CUDA devices: late, on several hosts, and when one of them goes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from eplb_cli import live as rearrange
from eplb_cli.errors import EplbError
from eplb_cli.exchange.loop import Pending
from eplb_cli.exchange.transport import Done
from eplb_cli.live import connection, link
from eplb_cli.live.lanes import Lane
from eplb_cli.live.rearrange import Planned
from tests.support.live.weights import Group

_MOST_LATE_CYCLES = 400_000
"""About 0.2 ms."""

GROUP_TIMEOUT_S = 30


def transport(group: Group, device: torch.device, hosts: Sequence[int]) -> str:
    """How a rearrangement travels."""
    with on_hosts(group, hosts):
        return _planned(group, device, 0)[0].transport


def random_rearrangements(
    group: Group, device: torch.device, seeds: Sequence[int], hosts: Sequence[int], mistake: str
) -> int:
    """How many of some random rearrangements leave a wrong byte on this rank, where any step may be late.

    Args:
        hosts: which ranks are to take themselves for one host.
        mistake: what is left out, "" for nothing.
    """
    wrong = 0
    late = random.Random(group.rank())
    run = Lane.run

    def run_late(lane: Lane, step: Callable[[], Pending | None], after: Sequence[Pending]) -> Pending:
        def late_step() -> Pending | None:
            if late.random() < 0.4:
                torch.cuda._sleep(late.randrange(_MOST_LATE_CYCLES))
            return step()

        return run(lane, late_step, after)

    small_are_large = patch.object(link, "PUSHED_NBYTES", 1 << 12)
    with on_hosts(group, hosts), leaving_out(mistake), patch.object(Lane, "run", run_late), small_are_large:
        for seed in seeds:
            way, weights, expected = _planned(group, device, seed)
            way.run()
            wrong += not all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    return wrong


def _planned(
    group: Group, device: torch.device, seed: int
) -> tuple[rearrange.Rearrangement, list[torch.Tensor], list[torch.Tensor]]:
    """A rearrangement by chance, its tensors, and what they have to be afterwards."""
    rng = np.random.default_rng(seed)
    num_layers, num_rows = int(rng.integers(1, 5)), int(rng.integers(1, 9))
    num_slots = num_rows * group.size()
    num_experts = int(rng.integers(num_slots // 2, num_slots)) + 1
    old, new = (
        np.stack(
            [
                rng.permutation(
                    np.r_[np.arange(num_experts), rng.integers(0, num_experts, num_slots - num_experts)]
                )
                for _ in range(num_layers)
            ]
        )
        for _ in range(2)
    )
    widths = rng.choice([3, 16, 100, 2048, 4096, 40_000, 300_000], (num_layers, int(rng.integers(1, 4))))
    mine = slice(group.rank() * num_rows, (group.rank() + 1) * num_rows)

    def made(table: np.ndarray) -> list[list[torch.Tensor]]:
        return [
            [
                _rows(torch.from_numpy(table[layer, mine]).to(device), int(width), 7 * layer + tensor)
                for tensor, width in enumerate(row)
            ]
            for layer, row in enumerate(widths)
        ]

    weights, expected = made(old), made(new)
    buffer_size = int(rng.choice([100_000, 3_000_000, 64_000_000]))
    way = rearrange.Rearrangement(
        torch.from_numpy(old), torch.from_numpy(new), weights, group, buffer_size=buffer_size
    )
    flat = [[tensor for layer in layers for tensor in layer] for layers in (weights, expected)]
    return way, flat[0], flat[1]


def _rows(experts: torch.Tensor, width: int, salt: int) -> torch.Tensor:
    column = torch.arange(width, device=experts.device)
    return ((experts[:, None] * 37 + column * 11 + salt * 53) % 251).to(torch.uint8)


@contextmanager
def on_hosts(group: Group, hosts: Sequence[int]) -> Iterator[None]:
    """Let ranks take themselves for ranks of several hosts; none are given where they are on one."""
    found = connection._host()
    if not hosts:
        yield
        return
    connection.disconnect(group, torch.device("cuda", torch.cuda.current_device()))
    found["host"] += f" {hosts[group.rank()]}"
    with patch.object(connection, "_host", lambda: found):
        yield
    connection.disconnect(group, torch.device("cuda", torch.cuda.current_device()))


@contextmanager
def leaving_out(mistake: str) -> Iterator[None]:
    """An order that is not kept."""
    hold = link.Near.hold

    def without_own(near: link.Near, chunk: int) -> None:
        near._neighbours.ranks, ranks = near._others, near._neighbours.ranks
        hold(near, chunk)
        near._neighbours.ranks = ranks

    if not mistake:
        yield
    elif mistake == "own buffer":
        with patch.object(link.Near, "hold", without_own):
            yield
    elif mistake == "rows overwritten":
        with patch.object(link.Link, "left", lambda _link, _chunk: Done()):
            yield
    else:
        raise ValueError(mistake)


def failing(group: Group, device: torch.device, how: str) -> tuple[str, str, float, bool]:
    """One rank goes in the middle of a rearrangement.

    Returns:
        The code and message of what each rank gets, the seconds until it does, and whether a rearrangement
        that follows is right.
    """
    num_rows, width = 8, 1 << 20
    slots = num_rows * group.size()
    old = torch.arange(slots).repeat(16, 1)
    new = old.roll(num_rows, dims=1)
    weights = [[torch.zeros((num_rows, width), dtype=torch.uint8, device=device)] for _ in range(16)]
    rearrange.rearrange_expert_weights_inplace(old, new, weights, group)
    rows, parts = Planned.rows, []

    def rows_or_not(planned: Planned, part: slice, way: connection.Connection) -> object:
        parts.append(part)
        if len(parts) == 2 and group.rank() == 1:
            if how == "dies":
                time.sleep(0.2)
                os._exit(9)
            raise KeyboardInterrupt if how == "is interrupted" else ValueError("a deliberate error")
        return rows(planned, part, way)

    began = time.monotonic()
    code, message = "", ""
    try:
        with patch.object(Planned, "rows", rows_or_not):
            rearrange.rearrange_expert_weights_inplace(old, new, weights, group)
    except EplbError as error:
        code, message = error.code, error.message
    except BaseException as error:  # noqa: BLE001 - what the rank itself raised
        code, message = type(error).__name__, str(error)
    seconds = time.monotonic() - began
    torch.cuda.synchronize()
    if how == "dies":
        raise AssertionError(f"{code}: {message}")  # the group cannot be used any more
    return code, message, seconds, random_rearrangements(group, device, range(3), [], "") == 0


def groups_that_end(group: Group, device: torch.device, rounds: int) -> list[int]:
    """Free memory of the device after groups have come and gone, of which nobody told us anything."""
    free = []
    for number in range(rounds):
        some = dist.new_group(list(range(group.size())), timeout=timedelta(seconds=GROUP_TIMEOUT_S))
        assert random_rearrangements(some, device, [number], [], "") == 0
        dist.barrier(group)
        dist.destroy_process_group(some)
        del some
        torch.cuda.synchronize()
        dist.barrier(group)
        free.append(torch.cuda.mem_get_info(device)[0])
    return free
