"""`--senders vllm` against vLLM's rearrangement itself, operation by operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.placements.placement import Placement
from eplb_cli.plan.moves import DUPLICATE, LOCAL, REMOTE, UNCHANGED, ReshardPlan
from eplb_cli.plan.plan import plan_reshard
from tests.support.pairs import Pair, pairs
from tests.support.plans import moves_of, rank_and_row
from tests.support.reference import SEED, Reference, Sent, load_reference

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(not SEED.exists(), reason="the reference, shared/seed, is not beside the repository"),
]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(load_reference())


def sent_rows(plan: ReshardPlan) -> list[Sent]:
    """What the table sends, in the words of the reference's operations."""
    found = []
    for move in moves_of(plan):
        if move.kind == REMOTE:
            sender, source_row = rank_and_row(plan.old, move.src_slot)
            receiver, destination_row = rank_and_row(plan.new, move.dst_slot)
            found.append(Sent(move.layer, sender, receiver, move.expert, source_row, destination_row))
    return found


def require_same(reference: Reference, pair: Pair, old: np.ndarray, new: np.ndarray, num_ranks: int) -> None:
    """Compare a plan for `pair` with what the reference does with the maps it would be given."""
    plan = plan_reshard(*pair, "vllm")
    sent: list[Sent] = []
    for layer in range(plan.new.num_layers):
        operations, landed = reference.run_layer(layer, old[layer], new[layer], num_ranks)
        sent += operations
        expected = list(range(len(landed)))  # an empty row of NEW is left as it is
        for move in moves_of(plan):
            if move.layer == layer:
                expected[move.dst_slot] = move.src_slot
        assert landed == expected
    assert sorted(sent) == sorted(sent_rows(plan))
    require_order(sent, sent_rows(plan))


def require_order(theirs: list[Sent], ours: list[Sent]) -> None:
    """Per pair of ranks and layer both send ascending experts, which is why no tag is needed."""
    for operations in (theirs, ours):
        for key in {(sent.layer, sent.sender, sent.receiver) for sent in operations}:
            experts = [sent.expert for sent in operations if sent[:3] == key]
            assert experts == sorted(set(experts))


@settings(max_examples=250)
@given(pairs(max_ranks=6, same_shape=True))
def test_the_same_rows_go_from_the_same_senders(reference, pair):
    """Each operation, and where each row of NEW comes from in the end: local and duplicate rows too."""
    old, new = pair
    require_same(reference, pair, old.physical_to_logical, new.physical_to_logical, old.num_ranks)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_large_placements_agree_too(reference, seed):
    """Many replicas over 9 to 24 ranks, so that senders have whole shares of receivers and remainders."""
    generator = np.random.default_rng(seed)
    num_ranks, num_rows = int(generator.integers(9, 25)), int(generator.integers(1, 5))
    num_slots = num_ranks * num_rows
    num_experts = int(generator.integers(1, min(num_slots, 12)))

    def layer() -> np.ndarray:
        rest = generator.choice(np.arange(-1, num_experts), num_slots - num_experts)
        return generator.permutation(np.r_[np.arange(num_experts), rest])

    first_slot = np.arange(num_ranks + 1) * num_rows
    old, new = (Placement(layer()[None, :].astype(np.int64), first_slot, num_experts) for _ in range(2))
    require_same(reference, (old, new), old.physical_to_logical, new.physical_to_logical, num_ranks)


@settings(max_examples=80)
@given(pairs(max_ranks=6, same_shape=True), st.integers(1, 3), st.booleans())
def test_other_ranks_are_what_rank_mapping_makes_of_them(reference, pair, more, up):
    """A rank that joins had nothing, a rank that leaves gets nothing: the reference fills up with -1."""
    smaller, other = pair
    num_ranks, rows = smaller.num_ranks, int(smaller.slots_per_rank[0])
    # The larger side: the other map, with the ranks that only it has full of replicas.
    extra = np.repeat(other.physical_to_logical[:, :1], more * rows, axis=1)
    table = np.concatenate([other.physical_to_logical, extra], axis=1)
    larger = Placement(table, np.arange(num_ranks + more + 1) * rows, other.num_logical_experts)
    old_ranks = range(num_ranks if up else num_ranks + more)
    mapping = {rank: rank if rank < num_ranks else -1 for rank in old_ranks}
    maps = reference.module
    small = torch.from_numpy(smaller.physical_to_logical.copy())
    if up:
        expanded = maps._map_old_expert_indices_with_rank_mapping(small, mapping, num_ranks + more)
        arguments = (smaller, larger), expanded.numpy(), larger.physical_to_logical
    else:
        expanded = maps._map_new_expert_indices_with_rank_mapping(small, mapping)
        arguments = (larger, smaller), larger.physical_to_logical, expanded.numpy()
    require_same(reference, *arguments, num_ranks + more)


def test_every_kind_of_move_is_compared(reference):
    """One layer that has them all, written out: rank 0 (slots 0-2), rank 1 (3-5)."""
    old = Placement(np.array([[0, 1, 2, 3, 4, -1]]), np.array([0, 3, 6]), 5)
    new = Placement(np.array([[0, 2, 3, 1, 1, 4]]), np.array([0, 3, 6]), 5)
    moves = {move.dst_slot: (move.kind, move.src_slot) for move in moves_of(plan_reshard(old, new, "vllm"))}
    assert moves == {
        0: (UNCHANGED, 0),
        1: (LOCAL, 2),
        2: (REMOTE, 3),
        3: (REMOTE, 1),
        4: (DUPLICATE, 1),
        5: (LOCAL, 4),
    }
    sent, landed = reference.run_layer(0, old.physical_to_logical[0], new.physical_to_logical[0], 2)
    assert landed == [0, 2, 3, 1, 1, 4]
    assert sorted(sent) == [Sent(0, 0, 1, 1, 1, 0), Sent(0, 1, 0, 3, 0, 2)]
