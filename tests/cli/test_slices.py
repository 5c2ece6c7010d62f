"""Slices of experts, as plain tensor parallelism leaves them, are told from replicas: EP232."""

from __future__ import annotations

import json

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import Tensor, placement, read_tree, row, stacked, tensor

HIDDEN, WIDTH = 6, 4
CONFIG = {
    "num_experts": 4,
    "num_hidden_layers": 5,
    "hidden_size": HIDDEN,
    "moe_intermediate_size": WIDTH,
}
REPLICATED = placement([[0, 1, 2, 3] * 2, [0, 1, 2, 3] * 2])
OTHER = placement([[3, 2, 1, 0] * 2, [0, 1, 2, 3] * 2])
NAMES = {"vllm": ("w13_weight", "w2_weight"), "huggingface": ("gate_up_proj", "down_proj")}


def sliced(num_ranks=2, names=NAMES["vllm"]):
    """All experts on every rank, each a slice of the width."""
    first, second = names
    width = WIDTH // num_ranks
    ranks = []
    for rank in range(num_ranks):
        tensors = {"model.norm.weight": tensor("BF16", (3,), "norm")}
        for layer in (3, 4):
            for name, shape in ((first, (2 * width, HIDDEN)), (second, (HIDDEN, width))):
                data = b"".join(row(layer, expert, f"{name} {rank}", ("BF16", shape)) for expert in range(4))
                tensors[f"model.layers.{layer}.mlp.experts.{name}"] = Tensor("BF16", (4, *shape), data)
        ranks.append(tensors)
    return ranks


def whole_kinds(names=NAMES["vllm"]):
    return {names[0]: ("BF16", (2 * WIDTH, HIDDEN)), names[1]: ("BF16", (HIDDEN, WIDTH))}


def configure(case, config=CONFIG):
    (case.src / "config.json").write_text(json.dumps(config))


@pytest.fixture
def tp(case):
    """Two ranks with half of every expert, and no config.json that would say so."""
    case.write(sliced())
    case.new(OTHER)
    case.old(REPLICATED)
    return case


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("config", [CONFIG, {"text_config": CONFIG}])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_widths_of_config_json(case, names, config, num_ranks):
    """It says how wide a whole expert is; `inspect` finds it too, and whoever asks for nothing else."""
    case.write(sliced(num_ranks, names))
    configure(case, config)
    says = ("rows of all 4 experts", "wide instead of", "slices of tensor parallelism")
    for old in ("linear", "round_robin"):
        case.refuse("EP232", *says, old=old, new="linear")
    more = ("--num-logical-experts", 4, "--num-ranks", num_ranks)
    case.new({**OTHER, "physical_to_logical_map": [[3, 2, 1, 0] * num_ranks] * 2, "num_ranks": num_ranks})
    case.refuse("EP232", *says, old="linear", options=more)
    result = case.eplb("inspect", case.src)
    assert "EP232" in result.out + result.err
    assert "slices of tensor parallelism" in " ".join((result.out + result.err).split())


def test_a_placement_in_a_file(tp):
    """Whatever names OLD; dry runs and plans too."""
    configure(tp)
    tp.refuse("EP232", "slices of tensor parallelism")
    tp.refuse("EP232", options=("--dry-run",))
    old, new = tp.home / "old.json", tp.home / "new.json"
    assert_error(tp.eplb("plan", old, new, "--checkpoint", tp.src), "EP232")


@pytest.mark.parametrize("config", [None, {"num_experts": 4}, {**CONFIG, "moe_intermediate_size": None}])
def test_bytes_of_no_two_ranks(tp, config):
    """Without a width the bytes say it: all experts on every rank, and no two ranks with the same."""
    (tp.src / "config.json").unlink()
    if config is not None:
        configure(tp, config)
    tp.refuse("EP232", "each of the 2 ranks has all 4 experts, and of no expert they have the same")
    tp.refuse("EP232", options=("--dry-run",))
    tp.refuse("EP232", old="linear", options=("--num-logical-experts", 4, "--num-ranks", 2))


@pytest.mark.parametrize("with_config", [True, False])
def test_replicas_of_every_expert(case, with_config):
    """Fully replicated and whole: what placements are for."""
    case.write(stacked(REPLICATED, whole_kinds()))
    case.old(REPLICATED)
    case.new(OTHER)
    if with_config:
        configure(case)
    case.reshard()
    expected = stacked(OTHER, whole_kinds())
    assert list(read_tree(case.dst).values()) == expected
    findings = case.eplb("inspect", case.src, "--format", "json").json["findings"]
    assert [found for found in findings if found["code"] == "EP232"] == []


def test_a_replica_that_differs(case):
    """One expert of which the ranks have different bytes is no slice: a warning, as ever."""
    ranks = stacked(REPLICATED, whole_kinds())
    name = "model.layers.3.mlp.experts.w13_weight"
    data = bytearray(ranks[1][name].data)
    data[0] ^= 1
    ranks[1][name] = ranks[1][name]._replace(data=bytes(data))
    case.write(ranks)
    case.old(REPLICATED)
    case.new(OTHER)
    assert "the replicas of expert 0 differ in SRC" in case.reshard().err


def test_two_ranks_of_four_alike(case):
    """Halves on two pairs of ranks are slices all the same, with config.json and without."""
    two = sliced()
    case.write([two[0], two[1], two[0], two[1]])
    (case.src / "config.json").unlink()
    case.old(placement([[0, 1, 2, 3] * 4] * 2, 4))
    case.new(placement([[3, 2, 1, 0] * 4] * 2, 4))
    case.refuse("EP232", "of no expert they have the same")
    configure(case)
    case.refuse("EP232", f"{WIDTH} wide instead of {2 * WIDTH}")


def test_a_model_as_wide_as_its_experts(case):
    """One dimension of the model's own width says nothing."""
    configure(case, {**CONFIG, "hidden_size": 2 * WIDTH})
    whole = {"w13_weight": ("U8", (2 * WIDTH, 2 * WIDTH)), "w2_weight": ("U8", (2 * WIDTH, WIDTH))}
    case.write(stacked(REPLICATED, whole))
    case.old(REPLICATED)
    case.new(OTHER)
    case.reshard()
    half = {"w13_weight": ("U8", (WIDTH, 2 * WIDTH)), "w2_weight": ("U8", (2 * WIDTH, WIDTH // 2))}
    case.write(stacked(REPLICATED, half))
    case.refuse("EP232", "w13_weight", f"{WIDTH} wide instead of {2 * WIDTH}", dst=case.home / "other")


def test_an_expert_per_rank(case):
    """One expert, on all ranks: nothing is known of it, and it is not taken for slices."""
    old = placement([[0, 0], [0, 0]])
    case.write(stacked(old, whole_kinds()))
    case.old(old)
    case.new(old)
    case.reshard("--copy")


def test_expert_parallelism_of_a_quantised_model(case):
    """Packed weights are narrow, and no slices where ranks have experts of their own."""
    old = placement([[0, 1, 2, 3], [0, 1, 2, 3]])
    case.write(stacked(old, {"w13_weight": ("U8", (2 * WIDTH, 3)), "w2_weight": ("U8", (HIDDEN, 2))}))
    configure(case)
    case.old(old)
    case.new(placement([[3, 1, 2, 0], [0, 1, 2, 3]]))
    case.reshard()


@pytest.mark.parametrize("with_config", [True, False])
def test_packed_replicas(case, with_config):
    """Four bits a value: half as wide as an expert, on all ranks, and the same bytes. No slices."""
    kinds = {"w13_weight": ("U8", (2 * WIDTH, HIDDEN // 2)), "w2_weight": ("U8", (HIDDEN, WIDTH // 2))}
    case.write(stacked(REPLICATED, kinds))
    case.old(REPLICATED)
    case.new(OTHER)
    if with_config:
        configure(case)
    case.reshard()
