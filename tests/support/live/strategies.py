"""Rearrangements of live tensors, at random."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.support.live.problems import DEFAULT_BUFFER_NBYTES, Problem, Rows, Table

EMPTY = -1
NUM_EXPERTS = 6

shapes = st.sampled_from([(), (1,), (3,), (16,), (2, 5), (4, 3, 2)])
buffer_sizes = st.sampled_from([300, 2000, DEFAULT_BUFFER_NBYTES])


@st.composite
def rows(draw: st.DrawFn, dtypes: Sequence[str], *, empty: bool = False) -> Rows:
    """A tensor: contiguous, or with unused elements before and between its rows."""
    shape = draw(shapes | st.just((0,)) if empty else shapes)
    unused = st.just((0, 0)) | st.tuples(st.integers(0, 5), st.integers(0, 5))
    return Rows(draw(st.sampled_from(dtypes)), shape, *draw(unused))


@st.composite
def problems(
    draw: st.DrawFn, sizes: Sequence[int], dtypes: Sequence[str], *, layers_differ: bool = False
) -> Problem:
    """Any OLD with replicas and empty slots, and any NEW of experts in it.

    Args:
        sizes: numbers of ranks.
        layers_differ: tensors of each layer are its own, and replicas are equal; otherwise all layers
            are alike, and every row has its own bytes.
    """
    num_ranks, num_layers = draw(st.sampled_from(sizes)), draw(st.integers(1, 3))
    num_slots = num_ranks * draw(st.integers(1, 4))
    old = draw(_tables([list(range(NUM_EXPERTS))] * num_layers, num_slots))
    new = draw(_tables([_held(row) for row in old], num_slots))
    return Problem(
        num_ranks,
        old,
        new,
        draw(_layers(dtypes, num_layers, differ=layers_differ)),
        draw(buffer_sizes),
        replicas_differ=not layers_differ,
    )


@st.composite
def mapped(draw: st.DrawFn, sizes: Sequence[int], dtypes: Sequence[str]) -> Problem:
    """OLD over fewer ranks than the group, or more, or NEW over fewer, and where each rank goes."""
    num_ranks, num_layers = draw(st.sampled_from(sizes)), draw(st.integers(1, 2))
    num_rows = draw(st.integers(1, 3))
    everything = [list(range(NUM_EXPERTS))] * num_layers
    if draw(st.booleans()):
        old_ranks = draw(st.integers(1, num_ranks + 1).filter(lambda count: count != num_ranks))
        mapping = draw(injections(old_ranks, num_ranks))
        old = draw(_tables(everything, old_ranks * num_rows))
        stays = [[row[slot] for slot in range(len(row)) if mapping[slot // num_rows] != EMPTY] for row in old]
        new = draw(_tables([_held(row) for row in stays], num_ranks * num_rows))
    else:
        new_ranks = draw(st.integers(1, num_ranks))
        mapping = draw(injections(num_ranks, new_ranks, onto=True))
        old = draw(_tables(everything, num_ranks * num_rows))
        new = draw(_tables([_held(row) for row in old], new_ranks * num_rows))
    layers = draw(_layers(dtypes, num_layers, differ=False))
    return Problem(num_ranks, old, new, layers, rank_mapping=mapping, replicas_differ=True)


@st.composite
def injections(draw: st.DrawFn, num_old: int, num_new: int, *, onto: bool = False) -> dict[int, int]:
    """Old ranks to different new ranks, -1 for those that leave; at least one stays."""
    most = min(num_old, num_new)
    count = num_new if onto else draw(st.integers(1, most))
    staying = draw(st.permutations(range(num_old)))[:count]
    targets = draw(st.permutations(range(num_new)))[:count]
    known = dict(zip(staying, targets, strict=True))
    return {rank: known.get(rank, EMPTY) for rank in range(num_old)}


@st.composite
def shuffles(draw: st.DrawFn, sizes: Sequence[int], dtypes: Sequence[str]) -> Problem:
    """OLD and NEW without empty slots, of the same experts, so that there is a way back."""
    num_ranks, num_layers = draw(st.sampled_from(sizes)), draw(st.integers(1, 3))
    num_slots = num_ranks * draw(st.integers(1, 4))
    old: list[tuple[int, ...]] = []
    new: list[tuple[int, ...]] = []
    for _ in range(num_layers):
        present = range(draw(st.integers(1, min(num_slots, NUM_EXPERTS))))
        for side in (old, new):
            rest = draw(
                st.lists(
                    st.sampled_from(present),
                    min_size=num_slots - len(present),
                    max_size=num_slots - len(present),
                )
            )
            side.append(tuple(draw(st.permutations([*present, *rest]))))
    layers = draw(_layers(dtypes, num_layers, differ=True))
    return Problem(num_ranks, tuple(old), tuple(new), layers, draw(buffer_sizes))


def _layers(
    dtypes: Sequence[str], num_layers: int, *, differ: bool
) -> st.SearchStrategy[tuple[tuple[Rows, ...], ...]]:
    """1 to 8 tensors for each layer, or 0 to 8 where layers differ."""
    if differ:
        layer = st.lists(rows(dtypes, empty=True), max_size=8).map(tuple)
        return st.tuples(*[layer] * num_layers)
    return st.lists(rows(dtypes), min_size=1, max_size=8).map(lambda layer: (tuple(layer),) * num_layers)


def _tables(experts: Sequence[Sequence[int]], num_slots: int) -> st.SearchStrategy[Table]:
    """(L, P) of the experts of each layer, and empty slots."""
    return st.tuples(
        *(
            st.lists(st.sampled_from([*of_layer, EMPTY]), min_size=num_slots, max_size=num_slots).map(tuple)
            for of_layer in experts
        )
    )


def _held(row: Sequence[int]) -> list[int]:
    return sorted(set(row) - {EMPTY})
