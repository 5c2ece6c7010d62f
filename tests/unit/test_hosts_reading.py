"""What several hosts read of SRC and of staging, each its own part, is what one host would read."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eplb_cli.checkpoint.pooled import Pool
from eplb_cli.checkpoint.sharded import bind
from eplb_cli.checkpoint.shards import open_pool, open_shards
from eplb_cli.checkpoint.staged import WORK
from eplb_cli.errors import CheckpointError, OutputError
from eplb_cli.hosts.hosts import ALONE
from eplb_cli.inputs.given import Given
from eplb_cli.inputs.sample import sample_digests
from eplb_cli.output.journal import write_written
from eplb_cli.output.prepared import prepare
from eplb_cli.output.staging import Staging
from eplb_cli.placements.own_format import placement_from_json
from eplb_cli.progress import silent
from eplb_cli.run.clock import Clock
from eplb_cli.run.dry_run import dry_run
from eplb_cli.run.preparing import prepare_given
from eplb_cli.run.request import Request
from eplb_cli.run.reshard import reshard
from eplb_cli.run.shared_others import find_alike
from eplb_cli.transfer.copies import copies_digests, require_alike
from eplb_cli.transfer.resume import known_before, written_before
from eplb_cli.transfer.transfer import transfer_here
from tests.cli.tree import NEW, OLD, placement, stacked, tensor, write_json, write_tree
from tests.support.leaders import in_memory, run_hosts
from tests.support.seen_by_hosts import by_rank, pooled, split

BIG = "model.big.weight"
NAME = "model-rank-{}-part-0.safetensors"


def of(content):
    return placement_from_json(content, "it")


def tree_of(path, content=OLD, *, alike=True):
    """A tree with one other tensor that is worth a file of its own, and is the same on all ranks or not."""
    ranks = stacked(content)
    for rank, tensors in enumerate(ranks):
        tensors[BIG] = tensor("U8", (2 << 20,), "all" if alike else f"rank {rank}")
    return write_tree(path, ranks, parts=2)


def halves(tree, goal):
    """The pools of two hosts with a rank each."""
    return pooled(split(tree, goal, by_rank(tree, {0: [0], 1: [1]}, 2)))


@pytest.mark.parametrize("where", [0, 1 << 20, 1 << 19, None])
def test_other_tensors_that_no_host_has_twice(tmp_path, where):
    """They are compared over hosts: alike, or not in a block that is a sample, or in one that is none."""
    tree = tree_of(tmp_path / "src")
    for name in ("model-rank-1-part-0.safetensors", "model-rank-1-part-1.safetensors"):
        at = open_shards(tree).tensors[1][BIG]
        if where is not None and open_shards(tree).files[at.file].path.name == name:
            content = bytearray((tree / name).read_bytes())
            content[at.offset + where] ^= 1
            (tree / name).write_bytes(content)
    pools = halves(tree, tmp_path)

    def work(hosts):
        checkpoint = bind(open_pool(pools[hosts.node]), of(OLD))
        return find_alike(checkpoint, of(NEW), 1, silent, hosts)

    found = run_hosts(in_memory(), work, work)
    one = find_alike(bind(open_shards(tree), of(OLD)), of(NEW), 1, silent)
    assert (BIG in one.keys) == (where is None)
    for each in found:
        assert not isinstance(each, BaseException), each
        assert each.keys == one.keys
        np.testing.assert_array_equal(each.digests, one.digests)


def test_an_error_of_one_host_ends_the_others(tmp_path):
    """A file that changes on one host is its error; the others do not wait for what it would have said."""
    tree = tree_of(tmp_path / "src")
    paths = split(tree, tmp_path, by_rank(tree, {0: [0], 1: [1]}, 2), copied=True)
    pools = pooled(paths)

    def work(hosts):
        checkpoint = bind(open_pool(pools[hosts.node]), of(OLD))
        if hosts.node == 1:
            for file in paths[1].iterdir():
                file.touch()
        return find_alike(checkpoint, of(NEW), 1, silent, hosts)

    first, second = run_hosts(in_memory(), work, work)
    assert first.code == second.code == "EP220"
    assert first.message.startswith("host 1 (")


def test_copies_with_other_bytes(tmp_path):
    """The same size and header, and one bit another: both hosts and the file are named, on all hosts."""
    tree = tree_of(tmp_path / "src")
    paths = split(tree, tmp_path, by_rank(tree, {0: [0, 1], 1: [1], 2: [1]}, 3), copied=True)
    said = [copies_digests(found) for found in pooled(paths)]
    assert [len(content) for content in said] == [2 * 16] * 3
    for found in pooled(paths):
        require_alike(found, said)
    file = paths[2] / "model-rank-1-part-1.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    pools = pooled(paths)
    said = [copies_digests(found) for found in pools]
    for found in pools:
        with pytest.raises(CheckpointError, match=r"host 0 \(node-0\).*host 2 \(node-2\)") as caught:
            require_alike(found, said)
        assert caught.value.code == "EP237"
        assert file.name in caught.value.message
    with pytest.raises(CheckpointError, match=r"host 1 \(node-1\)"):
        require_alike(pools[0], [said[0], said[1][:-1], said[2]])


def test_a_shared_file_is_read_once(tmp_path):
    """Files that several hosts see are read by one of them, in turn."""
    tree = tree_of(tmp_path / "src")
    names = by_rank(tree, {0: [0, 1], 1: [0, 1]}, 2)
    shards = [open_pool(found) for found in pooled(split(tree, tmp_path, names))]
    reads = np.array([each.is_read_here for each in shards])
    assert reads.sum(axis=0).tolist() == [1] * 4
    assert reads.sum(axis=1).tolist() == [2, 2]
    whole = sample_digests(open_shards(tree))
    assert sample_digests(shards[0]) | sample_digests(shards[1]) == whole


@pytest.mark.parametrize("is_slice", [False, True])
def test_slices_that_look_like_replicas(tmp_path, is_slice):
    """That no expert has the same bytes on two ranks is seen where these are on two hosts."""
    both, swapped = placement([[0, 1, 0, 1]]), placement([[1, 0, 0, 1]])
    ranks = stacked(both)
    if is_slice:
        for key, held in ranks[1].items():
            if "w13_weight" in key or "w2_weight" in key:
                ranks[1][key] = held._replace(data=tensor(held.dtype, held.shape, "another").data)
    pools = halves(write_tree(tmp_path / "src", ranks), tmp_path)

    def work(hosts):
        given = Given(open_pool(pools[hosts.node]), of(both), of(swapped), "balanced", None)
        prepare_given(given, 1, silent, Clock(), compare=False, hosts=hosts)

    found = run_hosts(in_memory(), work, work)
    assert [getattr(each, "code", None) for each in found] == ["EP232" if is_slice else None] * 2


@pytest.mark.parametrize("was_proved", [False, True])
def test_what_an_earlier_run_has_left_on_each_host(tmp_path, was_proved):
    """Each host reads its staging and its part of SRC: together they know what one host would."""
    tree, new = tree_of(tmp_path / "src", alike=False), write_json(tmp_path / "new.json", NEW)
    old = write_json(tmp_path / "old.json", OLD)
    reshard(Request(tree, tmp_path / "dst", new=str(new), old=str(old), backend="file"))
    pools = halves(tree, tmp_path)
    wrong = tmp_path / "dst" / NAME.format(1)
    content = bytearray(wrong.read_bytes())
    content[-1] ^= 1
    wrong.write_bytes(content)

    def known(shards, path, hosts, ranks):
        prepared = prepare(shards, of(OLD), of(NEW), "balanced", None)
        staged = np.array([file.rank in ranks for file in prepared.output.files])
        (path / WORK).mkdir(parents=True)
        for file, is_staged in zip(prepared.output.files, staged, strict=True):
            if is_staged:
                shutil.copy(tmp_path / "dst" / file.name, path / file.name)
        if not was_proved:
            write_written(path / WORK, np.arange(len(prepared.new_places.rank)) % 3 > 0, prepared.digest)
        stage = Staging(path, tmp_path / "dst", -1, durable=False, resumes=True)
        told = written_before(prepared, path, was_proved=was_proved, hosts=hosts, staged=staged)
        before = np.zeros((len(prepared.old_places.rank), 16), np.uint8)
        return known_before(prepared, stage, told, before, silent, hosts, staged)

    def work(hosts):
        shards = open_pool(Pool.from_bytes(pools[hosts.node].to_bytes()))
        return known(shards, tmp_path / f"stage-{hosts.node}", hosts, {hosts.node})

    found = run_hosts(in_memory(), work, work)
    one = known(open_shards(tree), tmp_path / "stage", ALONE, {0, 1})
    assert one.written.any()
    assert not one.written.all()
    for each in found:
        assert not isinstance(each, BaseException), each
        np.testing.assert_array_equal(each.written, one.written)
        np.testing.assert_array_equal(each.digests, one.digests)


def test_what_is_proved_on_one_host_is_so_there_alone(tmp_path):
    """A host that had proved all of its part says nothing of that of another, which has lost it."""
    tree = tree_of(tmp_path / "src", alike=False)
    pools = halves(tree, tmp_path)

    def work(hosts):
        prepared = prepare(open_pool(pools[hosts.node]), of(OLD), of(NEW), "balanced", None)
        staged = np.array([file.rank == hosts.node for file in prepared.output.files])
        told = written_before(
            prepared, tmp_path / "stage", was_proved=hosts.node == 0, hosts=hosts, staged=staged
        )
        return told.tolist(), (prepared.new_places.rank == 0).tolist()

    for found in run_hosts(in_memory(), work, work):
        assert not isinstance(found, BaseException), found
        assert found[0] == found[1]


@pytest.mark.parametrize("where", ["try_destination", "check_carried"])
def test_a_dry_run_says_on_all_hosts_what_one_of_them_lacks(tmp_path, monkeypatch, where):
    """Also the last that is looked at: a host has no report of a run that would not begin."""
    tree, new = tree_of(tmp_path / "src"), write_json(tmp_path / "new.json", NEW)
    old = write_json(tmp_path / "old.json", OLD)

    def lacks(*_, **__):
        if threading.current_thread().name == "host 1":
            raise OutputError("EP603", "no room")

    def run(node):
        threading.current_thread().name = f"host {node}"
        with pytest.raises(OutputError, match="no room"):
            dry_run(one_of_two(tree, tmp_path / "dst", new, old, node))

    monkeypatch.setattr(f"eplb_cli.run.dry_run.{where}", lacks)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


def one_of_two(tree, goal, new, old, node, **options):
    """What one of two hosts is asked for that share all storage."""
    return Request(
        tree,
        goal,
        new=str(new),
        old=str(old),
        backend="file",
        num_hosts=2,
        host=node,
        timeout_s=20.0,
        **options,
    )


def test_no_host_writes_before_the_one_that_holds_staging_has_cleared_its_journals(tmp_path, monkeypatch):
    """It takes away all but its own: that of a host that had begun meanwhile would go with them."""
    tree, new = tree_of(tmp_path / "src"), write_json(tmp_path / "new.json", NEW)
    old = write_json(tmp_path / "old.json", OLD)
    found = []

    def slow(*args):
        time.sleep(0.5)
        write_written(*args)

    def look(prepared, stage, *args):
        found.append((stage.work / "journal-launcher").exists())
        return transfer_here(prepared, stage, *args)

    monkeypatch.setattr("eplb_cli.run.move.write_written", slow)
    monkeypatch.setattr("eplb_cli.run.move.transfer_here", look)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda node: reshard(one_of_two(tree, tmp_path / "dst", new, old, node)), range(2)))
    assert found == [True, True]


def test_what_was_proved_in_shared_staging_is_taken_over_for_all_hosts(tmp_path, monkeypatch):
    """Not for the one alone that holds it."""
    tree, new = tree_of(tmp_path / "src"), write_json(tmp_path / "new.json", NEW)
    old = write_json(tmp_path / "old.json", OLD)

    def fails(_):
        raise OutputError("EP604", "not now")

    def run(**options):
        def work(node):
            return reshard(one_of_two(tree, tmp_path / "dst", new, old, node, **options))

        with ThreadPoolExecutor(2) as pool:
            return [pool.submit(work, node) for node in range(2)]

    with monkeypatch.context() as patched:
        patched.setattr("eplb_cli.output.staging.files.sync_directory", fails)  # WORK is gone by then
        for ended in run():
            with pytest.raises(OutputError, match="not now"):
                ended.result()
    for ended in run(resume=True):
        (note,) = ended.result().run.notes
        done, whole = note.removesuffix(" taken over, read again").split(" of ")
        assert done == whole, note
