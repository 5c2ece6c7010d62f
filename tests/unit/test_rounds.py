"""How the messages of a chunk are posted: bounded batches, cut alike on both sides."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from eplb_cli.exchange.transport import MAX_OFFSETS_PER_ROUND, rounds


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 64, 65, 130])
def test_both_sides_of_a_pair_meet_in_the_same_round(num_workers):
    """Every sender and receiver, once, in one and the same round."""
    sends: dict[tuple[int, int], int] = {}
    receives: dict[tuple[int, int], int] = {}
    for me in range(num_workers):
        for number, pairs in enumerate(rounds(me, num_workers)):
            for to, origin in pairs:
                assert sends.setdefault((me, to), number) == number
                assert receives.setdefault((origin, me), number) == number
    assert sends == receives
    assert len(sends) == num_workers**2


@pytest.mark.parametrize("num_workers", [1, 64, 65, 1000])
def test_a_round_is_bounded(num_workers):
    """At most 64 peers, so at most 128 operations, and each peer once over all rounds."""
    per_round = list(rounds(num_workers // 2, num_workers))
    assert max(len(pairs) for pairs in per_round) <= MAX_OFFSETS_PER_ROUND == 64
    for side in (0, 1):
        assert sorted(pair[side] for pairs in per_round for pair in pairs) == list(range(num_workers))
