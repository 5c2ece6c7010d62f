"""Whole transfers of whole trees, through a loopback: the output is what the weight function says."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.output.prepared import Prepared, prepare
from eplb_cli.output.prove import prove, row_view
from eplb_cli.output.shard_files import create_files
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.moves import DUPLICATE
from eplb_cli.transfer import file_ends, reading, staying, threads, trees
from eplb_cli.transfer.digest_table import DigestTable
from eplb_cli.transfer.traffic import TransferOptions, cross_host_nbytes
from eplb_cli.transfer.transfer import TransferResult, transfer
from tests.support.checkpoints import Model, Style, assert_tree, write_tree
from tests.support.hostings import hostings
from tests.support.loopback import Loopback
from tests.support.models import models
from tests.support.pairs import Pair, pairs
from tests.support.scratch import scratch
from tests.support.weights import expert_row


class Way(NamedTuple):
    """One way to move the bytes; the result must not depend on it.

    Attributes:
        hosting: who hosts which rank, over all hosts.
        buffer_nbytes: down to 1, where a row travels in as many chunks as it has bytes.
        lazy: messages travel only when somebody waits for them.
        backwards: a pool does what it is given last first.
        block_nbytes, task_nbytes: what a thread reads at once, and does as one task.
    """

    hosting: Hosting
    buffer_nbytes: int
    digests: bool
    verify: bool
    lazy: bool
    backwards: bool
    block_nbytes: int
    task_nbytes: int


class Case(NamedTuple):
    """A checkpoint, a pair of placements for it, and the ways to go from one to the other."""

    pair: Pair
    model: Model
    num_parts: int
    senders: Senders
    ranks_per_node: int | None
    part_nbytes: int
    shares: bool
    ways: list[Way]


SENDERS: st.SearchStrategy[Senders] = st.sampled_from(("balanced", "vllm"))
BUFFERS = (1, 7, 64, 150, 300, 500, 1000, 2000, 4000, 9000, 1 << 20)
MAX_CHUNKS = 150


def buffers(model: Model) -> list[int]:
    """Sizes that do not take too many chunks: down to 1 byte where rows are small."""
    nbytes = sum(model.expert_nbytes(layer) for layer in model.layers)
    return [size for size in BUFFERS if nbytes <= MAX_CHUNKS * max(size // 4 // 4 - 15, 1)]


@st.composite
def cases(draw: st.DrawFn, style: Style) -> Case:
    pair = draw(pairs(max_layers=2, max_experts=5, max_ranks=4, max_slots=3, once_per_rank=style == "expert"))
    model = draw(models(pair, style))
    tiny = st.sampled_from((5, 17, 64, 1 << 20))
    sizes = st.sampled_from(buffers(model))
    way = st.builds(
        Way, hostings(pair[0].num_ranks, pair[1].num_ranks), sizes, *[st.booleans()] * 4, tiny, tiny
    )
    return Case(
        pair,
        model,
        draw(st.integers(1, 3)),
        draw(SENDERS),
        draw(st.none() | st.integers(1, 3)),
        draw(st.sampled_from([1, 200, 5 << 30])),
        draw(st.booleans()),
        draw(st.lists(way, min_size=2, max_size=6)),
    )


def prepared_for(path: Path, case: Case, way: Way) -> Prepared:
    """A plan for SRC, for the hosts of a way; other tensors that are alike are written once a host."""
    hosts, ranks_per_node = way.hosting, case.ranks_per_node
    nodes = hosts.nodes if ranks_per_node is None else None
    alike = {other.key for other in case.model.others if not (other.own or other.rows)}
    shared = frozenset(alike if case.shares else ())
    shards = open_shards(path)
    return prepare(shards, *case.pair, case.senders, ranks_per_node, shared, nodes=nodes, hosts=hosts)


def moved(prepared: Prepared, staging: Path, way: Way) -> list[TransferResult]:
    """Carry a plan out in one of the ways, and check what the workers say they did."""
    staging.mkdir()
    create_files(staging, prepared.output, range(len(prepared.output.files)))
    options = TransferOptions(way.buffer_nbytes, 2, 3, way.digests, way.verify, durable=False)
    loopback = Loopback(way.hosting.num_workers, lazy=way.lazy)
    advances: list[int] = []
    with adversary(way) as fed, openings() as opened:

        def work(worker: int) -> TransferResult:
            opened.here.worker = worker
            return transfer(prepared, staging, options, worker, loopback.link, advances.append)

        results = loopback.run(work)
    assert set(fed.values()) <= {1}
    require_own_files(prepared, opened)
    passes = way.digests and way.verify
    read_back = int(prepared.new_places.nbytes.sum()) if passes else 0
    assert sum(advances) == int(prepared.pieces.nbytes.sum()) + read_back
    wire_nbytes = sum(result.wire_nbytes for result in results)
    assert wire_nbytes == expected_wire_nbytes(prepared) <= loopback.num_bytes
    nodes = way.hosting.node.tolist()
    crossed = cross_host_nbytes(prepared.pieces, way.hosting)
    assert int(crossed.sum()) == expected_wire_nbytes(prepared, nodes)
    return results


@contextlib.contextmanager
def adversary(way: Way) -> Iterator[Counter[tuple[int, int]]]:
    """Small blocks and tasks, done in an order nobody may rely on.

    Yields how often the digest of each place was begun, by (table, place): twice would be a race.
    """
    begun: Counter[tuple[int, int]] = Counter()
    tables: list[DigestTable] = []  # kept, so that no two of them have one id
    feed, share = DigestTable.feed, file_ends.FileEnds.share

    def counting_feed(table: DigestTable, place: int, view: memoryview, *, first: bool, last: bool) -> None:
        if first:
            tables.append(table)
            begun[id(table), place] += 1
        feed(table, place, view, first=first, last=last)

    def backwards(
        ends: file_ends.FileEnds, call: Callable[[slice], None], tasks: Iterable[slice]
    ) -> threads.Tasks:
        return share(ends, call, list(tasks)[::-1])

    with (
        mock.patch.multiple(reading, LEAST_BLOCK_NBYTES=way.block_nbytes, MOST_BLOCK_NBYTES=way.block_nbytes),
        mock.patch.object(staying, "SMALL_NBYTES", way.block_nbytes // 2),
        mock.patch.object(threads, "TASK_NBYTES", way.task_nbytes),
        mock.patch.object(DigestTable, "feed", counting_feed),
        mock.patch.object(file_ends.FileEnds, "share", backwards if way.backwards else share),
    ):
        yield begun


class Openings:
    """Which files workers open: (worker, whether it is of SRC, number)."""

    def __init__(self) -> None:
        self.here = threading.local()
        self.found: set[tuple[int, bool, int]] = set()


@contextlib.contextmanager
def openings() -> Iterator[Openings]:
    """Watch which files are opened, by the trees that each worker makes in its own thread."""
    opened, init, opening = Openings(), trees.Tree.__init__, trees.Tree._opening
    owners: dict[int, int] = {}

    def made(tree: trees.Tree, *args: Any, **options: Any) -> None:
        owners[id(tree)] = opened.here.worker
        init(tree, *args, **options)

    def opens(tree: trees.Tree, number: int) -> contextlib.AbstractContextManager[int]:
        opened.found.add((owners[id(tree)], tree._stamps is not None, number))
        return opening(tree, number)

    with mock.patch.object(trees.Tree, "__init__", made), mock.patch.object(trees.Tree, "_opening", opens):
        yield opened


def require_own_files(prepared: Prepared, opened: Openings) -> None:
    """A worker opens files of ranks that it hosts, or its host does, and no others: they may not be there."""
    hosting = prepared.hosting
    for worker, is_source, number in opened.found:
        if not is_source:
            assert hosting.of_new[prepared.output.files[number].rank] == worker
        elif not hosting.reads_all:
            owner = hosting.of_old[prepared.checkpoint.shards.files[number].name.rank]
            assert owner == worker or (hosting.num_nodes > 1 and hosting.node[owner] == hosting.node[worker])


def expected_wire_nbytes(prepared: Prepared, place: Sequence[int] | None = None) -> int:
    """Rows but DUPLICATEs, and other tensors, whose two ranks are on different workers.

    Args:
        place: of each worker; only what goes from one to another is counted then.
    """
    plan, sizes, hosting = prepared.plan, prepared.checkpoint.expert_nbytes, prepared.hosting
    if place is None:  # of several hosts nothing travels inside one
        place = hosting.node.tolist() if hosting.num_nodes > 1 else range(hosting.num_workers)

    def travels(src_rank: int, dst_rank: int) -> bool:
        ends = hosting.of_old[src_rank], hosting.of_new[dst_rank]
        return not hosting.reads_all and place[ends[0]] != place[ends[1]]

    rows_nbytes = sum(
        int(sizes[layer])
        for layer, src, dst, kind in zip(
            plan.moves.layer, plan.src_rank, plan.dst_rank, plan.moves.kind, strict=True
        )
        if kind != DUPLICATE and travels(src, dst)
    )
    return rows_nbytes + sum(
        copy.source.entry.nbytes for copy in prepared.output.others if travels(copy.src_rank, copy.dst_rank)
    )


def require_digests(prepared: Prepared, model: Model, results: list[TransferResult], way: Way) -> None:
    """Every filled row of SRC, moved or not, has the digest of its bytes; and the proof holds."""
    old_digests = np.bitwise_or.reduce([result.old_digests for result in results])
    new_digests = np.bitwise_or.reduce([result.new_digests for result in results])
    if not way.digests:
        assert not old_digests.any()
        return
    checkpoint, old = prepared.checkpoint, prepared.plan.old
    found = row_view(old_digests, checkpoint.row_nbytes.shape, old.num_slots)
    for index, slot in np.argwhere(old.physical_to_logical >= 0).tolist():
        layer, expert = old.layer_number(index), int(old.physical_to_logical[index, slot])
        for tensor in model.layers[layer]:
            row = expert_row(layer, expert, tensor.name, tensor.row_nbytes)
            names = [name for _, name in checkpoint.expert_tensors]
            expected = xxhash.xxh3_128_digest(row) if row else bytes(16)
            assert found[index, names.index(tensor.name), slot].tobytes() == expected
    if way.verify:
        prove(prepared, old_digests, new_digests)


def require_transfers(case: Case) -> None:
    """Every byte of every file is the same whatever the way, and right; SRC is as it was."""
    with scratch() as path, mock.patch("eplb_cli.output.tree.MAX_PART_NBYTES", case.part_nbytes):
        src = path / "src"
        src.mkdir()
        write_tree(src, case.model, case.pair[0], case.num_parts)
        before = contents(src)
        written = []
        for number, way in enumerate(case.ways):
            staging = path / f"dst-{number}"
            prepared = prepared_for(src, case, way)
            results = moved(prepared, staging, way)
            require_digests(prepared, case.model, results, way)
            require_links_on_one_host(prepared)
            written.append(contents(staging))
        assert_tree(path / "dst-0", case.model, case.pair[1])
        assert all(tree == written[0] for tree in written)
        assert contents(src) == before


def require_links_on_one_host(prepared: Prepared) -> None:
    """A file is linked to the first of its host: what is shared is written once on each."""
    output, node = prepared.output.files, prepared.hosting.node_of_new
    for file in output:
        if file.same_as is not None:
            first = output[file.same_as]
            assert first.same_as is None
            assert node[first.rank] == node[file.rank]
    shared = [(node[file.rank], file.header) for file in output if b'"eplb.rank":"all"' in file.header]
    own = [
        (node[file.rank], file.header)
        for file in output
        if b'"eplb.rank":"all"' in file.header and file.same_as is None
    ]
    assert len(own) == len(set(own)) == len(set(shared))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@settings(max_examples=150)
@given(cases("stacked"))
def test_stacked_rows_arrive(case):
    """Keys that carry the layer only: dim 0 is the row, and empty rows are zeros."""
    require_transfers(case)


@settings(max_examples=70)
@given(cases("row"))
def test_one_tensor_per_row_arrives(case):
    """Keys that carry the row on its rank: empty rows are there, as zeros."""
    require_transfers(case)


@settings(max_examples=80)
@given(cases("expert"))
def test_one_tensor_per_expert_arrives(case):
    """Keys that carry the expert's number are renamed to what NEW says; an empty row has no key."""
    require_transfers(case)
