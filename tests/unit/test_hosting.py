"""Who hosts which rank, on one host and over several."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.nodes import Nodes
from tests.support.hostings import hostings, nodes


def seen(*hosts: str) -> np.ndarray:
    """(N, R) from one word a host, `x` for each old rank whose files it sees."""
    return np.array([[letter == "x" for letter in host] for host in hosts])


def test_workers_of_one_host_take_turns():
    """As long as there was one host only: rank % W, one node, one directory."""
    hosting = Hosting.one_host(5, 3, 2)
    assert hosting.of_old.tolist() == [0, 1, 0, 1, 0]
    assert hosting.of_new.tolist() == [0, 1, 0]
    assert hosting.nodes is None
    assert not hosting.node_of_new.any()


@pytest.mark.parametrize(
    ("hosts", "num_new", "workers", "of_old", "of_new"),
    [
        (("xx..", "..xx"), 4, (2, 2), [0, 1, 2, 3], [0, 1, 2, 3]),
        (("xx..", "..xx"), 8, (2, 2), [0, 0, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]),
        (("..xx", "xx.."), 4, (2, 2), [2, 3, 0, 1], [0, 1, 2, 3]),
        (("xxxx", "xxxx"), 4, (1, 1), [0, 0, 1, 1], [0, 0, 1, 1]),
        (("xxxxxx", "xxxxxx"), 2, (1, 1), [0, 1, 0, 1, 0, 1], [0, 1]),
        (("xxx", "...", "..x"), 3, (1, 1, 1), [0, 0, 2], [0, 1, 2]),
        (("xxxx", "...."), 1, (2, 2), [0, 1, 0, 1], [3]),
    ],
    ids=[
        "as they lie",
        "more ranks",
        "swapped",
        "shared",
        "fewer ranks",
        "a host without",
        "none of its own",
    ],
)
def test_ranks_are_where_their_files_are(hosts, num_new, workers, of_old, of_new):
    """New ranks in blocks; an old one with the new one of its number, or else where there are fewest."""
    hosting = Hosting.over_hosts(seen(*hosts), num_new, workers)
    assert (hosting.of_old.tolist(), hosting.of_new.tolist()) == (of_old, of_new)


@given(st.data(), st.integers(1, 9), st.integers(1, 9))
def test_every_rank_has_a_host_that_sees_it(data, num_old, num_new):
    """Whatever the hosts see, new ranks are spread over all workers in order, to within one."""
    workers = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    sees = np.array(
        [data.draw(st.lists(st.booleans(), min_size=num_old, max_size=num_old)) for _ in workers]
    ).reshape(len(workers), num_old)
    sees[-1] |= ~sees.any(axis=0)
    hosting = Hosting.over_hosts(sees, num_new, workers)
    assert sees[hosting.node_of_old, np.arange(num_old)].all()
    count = np.bincount(hosting.of_new, minlength=sum(workers))
    assert count.max() - count.min() <= 1
    assert hosting.of_new.tolist() == [
        worker
        for worker in range(sum(workers))
        for _ in range(worker * num_new // sum(workers), (worker + 1) * num_new // sum(workers))
    ]
    for rank in range(min(num_old, num_new)):
        if sees[hosting.node_of_new[rank], rank]:
            assert hosting.of_old[rank] == hosting.of_new[rank]


@given(st.data(), st.integers(1, 5), st.integers(1, 5))
def test_a_job_file_holds_it(data, num_old, num_new):
    """All columns come back, and so do those of nodes."""
    hosting = data.draw(hostings(num_old, num_new))
    again = Hosting.from_json(json.loads(json.dumps(hosting.to_json())))
    assert again.to_json() == hosting.to_json()
    assert again.node_of_old.tolist() == hosting.node_of_old.tolist()
    own = data.draw(nodes(num_old, num_new))
    if own is not None:
        assert Nodes.from_json(json.loads(json.dumps(own.to_json()))).to_json() == own.to_json()


@pytest.mark.parametrize(
    ("of_old", "of_new", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 2),
        ([0, 0, 1, 1], [0, 0, 1], 2),
        ([0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1], None),
        ([0, 1, 0, 1], [0, 1, 0, 1], None),
        ([1, 1], [1, 1], None),
        ([0, 0], [0, 0, 0], 3),
    ],
)
def test_blocks_of_one_size_have_a_number(of_old, of_new, expected):
    """`ranks_per_node` where it says the same as the node of each rank."""
    assert Nodes(np.array(of_old), np.array(of_new)).ranks_per_node == expected
