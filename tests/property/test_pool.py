"""A checkpoint over several hosts, whoever has which of its files: all of them plan what one host plans."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.checkpoint.pooled import Pool
from eplb_cli.checkpoint.shards import Shards, open_pool, open_shards
from eplb_cli.hosts.hosts import ALONE, Hosts
from eplb_cli.output.prepared import Prepared, bind_and_plan
from eplb_cli.output.tree import plan_output
from eplb_cli.placements.placement import Placement
from eplb_cli.progress import silent
from eplb_cli.run.shared_others import Alike, find_alike
from eplb_cli.transfer.copies import copies_digests, require_alike
from tests.support.checkpoints import Model, Style, write_tree
from tests.support.leaders import in_memory, run_hosts
from tests.support.models import models
from tests.support.pairs import pairs
from tests.support.scratch import scratch
from tests.support.seen_by_hosts import pooled


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Placement, Placement, Model]:
    style: Style = draw(st.sampled_from(["stacked", "row", "expert"]))
    pair = draw(pairs(max_layers=2, max_ranks=4, max_slots=3, once_per_rank=style == "expert"))
    return (*pair, draw(models(pair, style)))


def spread(draw: st.DrawFn, tree: Path, goal: Path, num_hosts: int) -> list[Path]:
    """Each file comes to one host or several: the file itself, or copies of it, or some of each."""
    hosts = [goal / f"host-{node}" for node in range(num_hosts)]
    for file in sorted(tree.iterdir()):
        for path in draw(st.lists(st.sampled_from(hosts), min_size=1, unique=True)):
            path.mkdir(exist_ok=True)
            (shutil.copy2 if draw(st.booleans()) else os.link)(file, path / file.name)
    return hosts


def prepared_by(shards: Shards, old: Placement, new: Placement, hosts: Hosts) -> tuple[Prepared, Alike]:
    checkpoint, plan = bind_and_plan(shards, old, new, "balanced", None)
    alike = find_alike(checkpoint, new, 1, silent, hosts)
    return Prepared(checkpoint, plan, plan_output(checkpoint, new, alike.keys)), alike


@settings(max_examples=40)
@given(checkpoints(), st.integers(1, 3), st.integers(1, 4), st.data())
def test_all_hosts_plan_what_one_plans(checkpoint, num_parts, num_hosts, data):
    """The digest of the plan, the other tensors that are alike, and what was read to find them."""
    old, new, model = checkpoint
    with scratch() as path:
        tree = path / "tree"
        tree.mkdir()
        write_tree(tree, model, old, num_parts)
        (tree / "config.json").write_text("{}")
        paths = spread(data.draw, tree, path, num_hosts)
        pools = pooled(paths)
        one, alike = prepared_by(open_shards(tree), old, new, ALONE)

        def work(hosts: Hosts) -> tuple[Prepared, Alike]:
            require_alike(pools[hosts.node], hosts.gather(copies_digests(pools[hosts.node])))
            shards = open_pool(Pool.from_bytes(pools[hosts.node].to_bytes()))
            return prepared_by(shards, old, new, hosts)

        for found in run_hosts(in_memory(), *[work] * num_hosts):
            assert not isinstance(found, BaseException), found
            assert (found[0].digest, found[1].keys) == (one.digest, alike.keys)
            assert one.checkpoint.shards.carried == found[0].checkpoint.shards.carried
            np.testing.assert_array_equal(found[1].digests, alike.digests)
