"""What every family has to pass, and what has to be refused, or seen as wrong."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from scripts.serving.bench import Served
from scripts.serving.served import MENDED, Job
from scripts.serving.trees import (
    NUM_REDUNDANT,
    damaged,
    on_hosts,
    with_a_wrong_map,
    with_empty_slots,
    without_a_layer,
)

DP = (*MENDED, "data_parallelism")
EPLB = (*DP, "balancing")
MONOLITHIC = (*MENDED, "monolithic_kernels")
NEVER, OFTEN = 10**8, 8
"""Steps between rearrangements."""

VERIFY = {"EPLB_VERIFY": "1"}
STOCK = {"load_format": "sharded_state"}
PATTERN = "model-rank-RANK-part-{part}.safetensors"


def balanced(interval: int, num_redundant: int = NUM_REDUNDANT) -> dict[str, Any]:
    """Options for EPLB that rearranges every so many steps."""
    config = {
        "num_redundant_experts": num_redundant,
        "step_interval": interval,
        "window_size": OFTEN,
        "use_async": False,
        "communicator": "torch_nccl",
    }
    return {"enable_eplb": True, "eplb_config": config}


def serve_family(case: Served) -> None:
    """What every family has to pass."""
    _default(case)
    _permuted(case)
    _on_hosts(case)
    _with_replicas(case)
    case.same("vLLM's own shards (TP = 2), resharded: plugin, TP = 2", lambda: _saved(case))
    if case.trees.family.can_bake:
        case.same("bake: unmodified vLLM, TP = 2", lambda: case.job("baked", case.trees.baked()))


def _default(case: Served) -> None:
    """The placement that vLLM has by itself."""
    linear = case.trees.linear
    stock = {"tp": 1, "dp": 2, "mends": DP, "options": STOCK, "pattern": PATTERN}
    case.same(
        "shard, linear: stock vLLM, DP = 2, a pattern for each rank",
        lambda: case.job("stock", linear(), **stock),
    )
    case.same("shard, linear: plugin, TP = 2", lambda: case.plugin("linear", linear()))
    case.same(
        "shard, linear: plugin, DP = 2", lambda: case.plugin("linear dp", linear(), tp=1, dp=2, mends=DP)
    )


def _permuted(case: Served) -> None:
    """No replicas, and another order in each layer."""
    placed, what = case.trees.placed, "shard, a permutation for each layer"
    case.same(f"{what}: plugin, TP = 2", lambda: case.plugin("placed", placed()))
    case.same(f"{what}: plugin, DP = 2", lambda: case.plugin("placed dp", placed(), tp=1, dp=2, mends=DP))
    case.same(
        f"{what}, 4 ranks: plugin, TP = 2 and DP = 2",
        lambda: case.plugin("placed 4", placed(4), tp=2, dp=2, mends=DP),
    )
    case.same(
        f"{what}: plugin, TP = 2, EPLB rearranging",
        lambda: case.plugin("placed eplb", placed(), mends=EPLB, options=balanced(OFTEN, 0)),
        rearranges=True,
    )


def _on_hosts(case: Served) -> None:
    """A directory for each host, with the shards of its own ranks alone."""
    trees, what = case.trees, "a directory for each host"
    case.same(
        f"{what}, a permutation for each layer, 4 ranks on 2 hosts: plugin, TP = 2 and DP = 2, EPLB_VERIFY=1",
        lambda: case.plugin(
            "hosts", on_hosts(trees.placed(4), 4, 2), tp=2, dp=2, mends=DP, environment=VERIFY
        ),
    )
    stock = {"tp": 1, "dp": 2, "mends": DP, "options": STOCK, "pattern": PATTERN}
    case.same(
        f"{what}, linear, 2 ranks on 2 hosts: stock vLLM, DP = 2, a pattern for each rank",
        lambda: case.job("stock hosts", on_hosts(trees.linear(), 2, 1), **stock),
    )


def _with_replicas(case: Served) -> None:
    """Replicas at random, and EPLB."""
    trees, what = case.trees, f"shard, {NUM_REDUNDANT} replicas at random"
    frozen = {"mends": EPLB, "options": balanced(NEVER)}
    moving = {"mends": EPLB, "options": balanced(OFTEN)}
    case.same(
        f"{what}: plugin, TP = 2, EPLB frozen, EPLB_VERIFY=1",
        lambda: case.plugin("frozen", trees.replicas(), environment=VERIFY, **frozen),
    )
    case.same(
        f"{what}: plugin, TP = 2, EPLB rearranging",
        lambda: case.plugin("moving", trees.replicas(), **moving),
        rearranges=True,
    )
    case.same(
        f"{what}: plugin, DP = 2, EPLB rearranging",
        lambda: case.plugin("moving dp", trees.replicas(), tp=1, dp=2, **moving),
        rearranges=True,
    )
    case.same(
        "the same, resharded to other replicas: plugin, TP = 2, EPLB frozen",
        lambda: case.plugin("resharded", _other_replicas(case), **frozen),
    )
    case.same(
        "the same, resharded to the map that vLLM wrote after rearranging: plugin, TP = 2, EPLB frozen",
        lambda: case.plugin("again", _as_rearranged(case), **frozen),
    )


def _other_replicas(case: Served) -> Path:
    trees = case.trees
    return trees.reshard(trees.replicas(), "resharded", trees.map(2, NUM_REDUNDANT, seed=1))


def _as_rearranged(case: Served) -> Path:
    """A tree under the map that a vLLM which rearranges has left."""
    trees = case.trees
    written = trees.home / "now.json"
    options = {**balanced(OFTEN), "model_loader_extra_config": {"current_map": str(written)}}
    case.bench.answers(case.plugin("writes its map", trees.replicas(), mends=EPLB, options=options))
    return trees.reshard(trees.replicas(), "as-rearranged", written)


def _saved(case: Served) -> Job:
    """Shards that vLLM saved, under another placement."""
    trees = case.trees
    path = trees.home / "saved"
    options, environment = {"load_format": "saving"}, {"SAVE_TO": str(path)}
    mends = (*MENDED, "saving")
    case.bench.answers(case.job("saves", trees.hf, mends=mends, options=options, environment=environment))
    shutil.copy(trees.hf / "config.json", path)
    return case.plugin("saved", trees.reshard(path, "saved-placed", trees.map(2, seed=2), old="linear"))


def refuse(case: Served) -> None:
    """What has to be refused, or seen."""
    _refuse_starts(case)
    _refuse_trees(case)
    case.different(
        "a map that is not that of the rows, on purpose: plugin",
        lambda: case.plugin("wrong", with_a_wrong_map(case.trees)),
    )
    stock = {"tp": 1, "dp": 2, "mends": DP, "options": STOCK, "pattern": PATTERN}
    case.different(
        "shard, a permutation for each layer: stock vLLM, DP = 2, takes it for linear",
        lambda: case.job("stock placed", case.trees.placed(), **stock),
    )


def _refuse_starts(case: Served) -> None:
    """Good trees, and a vLLM that was started otherwise."""
    placed, replicas = case.trees.placed, case.trees.replicas
    starts: list[tuple[str, str, str, dict[str, Any]]] = [
        ("EP234", "other ranks", "placed", {"tp": 1}),
        ("EP234", "replicas without EPLB", "replicas", {}),
        ("EP234", "other redundant experts", "replicas", {"mends": EPLB, "options": balanced(NEVER, 2)}),
        ("EP235", "a kernel that routes by itself", "placed", {"mends": MONOLITHIC}),
        ("EP235", "a router that maps nothing: stock vLLM on the CPU", "placed", {"mends": ()}),
        (
            "EP235",
            "--expert-placement-strategy round_robin",
            "placed",
            {"options": {"expert_placement_strategy": "round_robin"}},
        ),
        (
            "EP236",
            "another config: --hf-overrides",
            "placed",
            {"options": {"hf_overrides": {"moe_intermediate_size": 32}}},
        ),
        ("EP001", "an option that is none", "placed", {"pattern": "x"}),
    ]
    for code, what, tree, how in starts:
        model = placed() if tree == "placed" else replicas()
        case.refused(what, code, partial(case.plugin, what, model, **how))


def _refuse_trees(case: Served) -> None:
    """Trees that are not what they should be, and a vLLM that was started well."""
    trees = case.trees
    frozen = {"mends": EPLB, "options": balanced(NEVER)}
    case.refused("a layer without a map", "EP212", lambda: case.plugin("no map", without_a_layer(trees)))
    case.refused("empty slots", "EP235", lambda: case.plugin("empty", with_empty_slots(trees), **frozen))
    case.refused("a baked checkpoint", "EP214", lambda: case.plugin("is baked", trees.baked()))
    case.refused(
        "staging", "EP214", lambda: case.plugin("staging", trees.copy(trees.placed(), ".dst.eplb-staging"))
    )
    for what, code in (
        ("config.json", "EP506"),
        ("header", "EP506"),
        ("gone", "EP202"),
        ("cut", "EP203"),
        ("eplb.json", "EP214"),
    ):
        make = partial(case.plugin, f"damaged {what}", damaged(trees, what))
        case.refused(f"a tree that was damaged: {what}", code, make)
    for what, code in (("w2_weight", "EP501"), ("o_proj.weight", "EP504")):
        make = partial(case.plugin, f"flipped {what}", damaged(trees, what), environment=VERIFY)
        case.refused(f"a byte of {what} that was changed, EPLB_VERIFY=1", code, make)
