"""Rows that are pushed into the memory of ranks nearby, where there are devices."""

from __future__ import annotations

import pytest

from tests.support.ranks import RankError, Ranks

pytestmark = pytest.mark.distributed

PART = 100
NUM_PARTS = 3


@pytest.fixture(autouse=True)
def devices(ranks) -> None:
    """What has no device has nothing to push with; tests/property/test_pushes.py is for that."""
    if ranks.backend != "nccl":
        pytest.skip("needs CUDA devices, two or with EPLB_TEST_RANKS_PER_DEVICE=2 one")


def test_ranks_of_one_host_push(ranks):
    """And say so."""
    assert ranks.run(ranks.size, "live.pushes.transport", []) == ["push"] * ranks.size


def test_ranks_of_several_hosts_do_not(ranks):
    """Ranks on hosts of their own have nobody to push to."""
    apart = list(range(ranks.size))
    assert ranks.run(ranks.size, "live.pushes.transport", apart) == ["nccl"] * ranks.size


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_byte_arrives(ranks, part):
    """Hundreds of random placements, with any step late; all of all tensors is compared."""
    seeds = range(part * PART, (part + 1) * PART)
    assert ranks.run(ranks.size, "live.pushes.random_rearrangements", seeds, [], "") == [0] * ranks.size


def test_several_hosts(ranks):
    """Pushed inside a host, by nccl between hosts, in one plan."""
    if ranks.size < 4:
        pytest.skip("needs four ranks: EPLB_TEST_RANKS_PER_DEVICE=2 or 4")
    hosts = [rank * 2 // ranks.size for rank in range(ranks.size)]
    assert ranks.run(ranks.size, "live.pushes.transport", hosts) == ["push+nccl"] * ranks.size
    found = ranks.run(ranks.size, "live.pushes.random_rearrangements", range(60), hosts, "")
    assert found == [0] * ranks.size


@pytest.mark.parametrize("mistake", ["own buffer", "rows overwritten"])
def test_mistakes_are_seen(ranks, mistake):
    """What the test of every byte is worth."""
    found = ranks.run(ranks.size, "live.pushes.random_rearrangements", range(PART), [], mistake)
    assert sum(found) > 0


@pytest.mark.parametrize(("how", "own"), [("raises", "ValueError"), ("is interrupted", "KeyboardInterrupt")])
def test_a_rank_that_raises(ranks: Ranks, how, own):
    """All ranks raise, soon, and what they do next is right."""
    found = ranks.run(2, "live.pushes.failing", how)
    (code, message, _, right), (own_code, _, _, own_right) = found
    assert (own_code, code) == (own, "EP401")
    assert "rank 1" in message
    assert right
    assert own_right
    assert max(seconds for _, _, seconds, _ in found) < 10


def test_a_rank_that_dies(ranks: Ranks):
    """The others hear of it: they do not wait for what never comes."""
    with pytest.raises(RankError, match="EP402: rank 1: its process ended"):
        ranks.run(2, "live.pushes.failing", "dies")
    assert ranks.run(2, "live.pushes.transport", []) == ["push"] * 2


def test_groups_that_end(ranks: Ranks):
    """Nobody tells us, no process ends by it, and the memory comes back."""
    for free in ranks.run(2, "live.pushes.groups_that_end", 6):
        assert free[-1] >= free[1] - (64 << 20)
