"""Numbers that a rank computed from its own experts: refused where these leave, or the largest for all."""

from __future__ import annotations

import json
import struct

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import Tensor, placement, read_tree, stacked

PLAIN = placement([[0, 1, 2, 3], [0, 1, 2, 3]])
CHANGED = placement([[2, 1, 0, 3], [0, 1, 2, 3]])
"""Experts of layer 3 change rank, those of layer 4 stay."""

WITHIN = placement([[1, 0, 2, 3], [1, 0, 3, 2]])
"""Rows move, and none to another rank."""

MAX = ("--rank-scalars", "max")
FORMATS = {"F32": "<f", "F64": "<d", "F16": "<e"}


def key(name, layer=3):
    return f"model.layers.{layer}.mlp.experts.{name}"


def number(value, dtype="F32", shape=()):
    """A tensor of one number; of BF16 the upper half of a float32."""
    if dtype == "BF16":
        return Tensor(dtype, shape, struct.pack("<f", value)[2:])
    return Tensor(dtype, shape, struct.pack(FORMATS[dtype], value))


def write(case, numbers, old=PLAIN):
    """Shards of OLD in which a key has the number that stands for each rank."""
    ranks = stacked(old)
    for name, values in numbers.items():
        for tensors, value in zip(ranks, values, strict=True):
            tensors[name] = value if isinstance(value, Tensor) else number(value)
    case.write(ranks)
    case.old(old)


def found(tree, name):
    """What the ranks of a tree have."""
    return [tensors[name].data for tensors in read_tree(tree).values()]


def values_of(tree, name):
    return [struct.unpack("<f", data)[0] for data in found(tree, name)]


@pytest.fixture
def scaled(case):
    """Static fp8 as vLLM leaves it: an activation scale of each rank, the largest of its experts."""
    numbers = {
        key(f"{projection}_input_scale", layer): (0.25 * layer, 0.5 * layer)
        for projection in ("w13", "w2")
        for layer in (3, 4)
    }
    write(case, numbers)
    case.new(CHANGED)
    return case


def test_refused(scaled):
    """EP231 by name, with how many there are and the way on; layer 4 does not change and is not named."""
    result = scaled.refuse("EP231", key("w13_input_scale"), "(and 1 more)", "--rank-scalars max")
    assert "layers.4" not in result.err
    scaled.refuse("EP231", options=("--dry-run",))
    assert_error(
        scaled.eplb("plan", scaled.home / "old.json", scaled.home / "new.json", "--checkpoint", scaled.src),
        "EP231",
    )


def test_the_largest_for_all(scaled):
    """--rank-scalars max: every rank gets it, where an expert changes rank; all else is NEW's."""
    scaled.reshard(*MAX)
    assert values_of(scaled.dst, key("w13_input_scale")) == [1.5, 1.5]
    assert values_of(scaled.dst, key("w2_input_scale")) == [1.5, 1.5]
    assert values_of(scaled.dst, key("w13_input_scale", 4)) == [1.0, 2.0]
    for held, expected in zip(read_tree(scaled.dst).values(), stacked(CHANGED), strict=True):
        assert {name: at for name, at in held.items() if "input_scale" not in name} == expected


def test_the_largest_is_wherever_it_is(scaled):
    """Of the first rank as of the last one, and negative numbers in their order."""
    for count, values in enumerate([(3.0, 1.0), (-2.0, -1.0), (0.0, -1.0), (1e-38, 1e-39)]):
        write(scaled, {key("w2_input_scale"): values})
        dst = scaled.home / str(count)
        scaled.reshard(*MAX, dst=dst)
        wanted = struct.pack("<f", max(values))
        assert found(dst, key("w2_input_scale")) == [wanted, wanted]


def test_it_is_recorded(scaled):
    """eplb.json says the rule, and of which rank each number is; `verify --against` goes by it."""
    scaled.reshard(*MAX)
    decisions = json.loads((scaled.dst / "eplb.json").read_text())["decisions"]
    assert decisions == {
        "rank_scalars": "max",
        "numbers_of_rank": {key("w13_input_scale"): 1, key("w2_input_scale"): 1},
    }
    damaged = scaled.dst / "model-rank-0-part-0.safetensors"
    content = damaged.read_bytes()
    assert content.count(struct.pack("<f", 1.5)) >= 2
    damaged.write_bytes(content.replace(struct.pack("<f", 1.5), struct.pack("<f", 0.75)))
    for against in ((), ("--against", scaled.src)):
        assert_error(scaled.eplb("verify", scaled.dst, *against), "EP504", exit_code=5)


def test_on_from_there(scaled):
    """DST has equal numbers, so that nothing is left to decide for the next reshard."""
    scaled.reshard(*MAX)
    scaled.new(PLAIN)
    back = scaled.home / "back"
    scaled.reshard(src=scaled.dst, dst=back, old=None)
    assert values_of(back, key("w13_input_scale")) == [1.5, 1.5]
    assert json.loads((back / "eplb.json").read_text())["decisions"] == {}


def test_from_a_tree_of_eplb(scaled):
    """The numbers of ranks that are not the largest are read too, and compared with eplb.json."""
    scaled.new(WITHIN)
    scaled.reshard()
    scaled.new(CHANGED)
    again = {"src": scaled.dst, "dst": scaled.home / "again", "old": None}
    scaled.refuse("EP231", key("w13_input_scale"), **again)
    scaled.reshard(*MAX, **again)
    assert values_of(scaled.home / "again", key("w13_input_scale")) == [1.5, 1.5]
    damaged = scaled.dst / "model-rank-0-part-0.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content.replace(struct.pack("<f", 0.75), struct.pack("<f", 0.625)))
    again["dst"] = scaled.home / "other"
    scaled.refuse("EP506", "input_scale", exit_code=5, options=MAX, **again)


@pytest.mark.parametrize("with_option", [True, False])
def test_in_a_plan(scaled, with_option):
    """`plan --rank-scalars max --out` carries it to `reshard --plan`."""
    plan = scaled.home / "plan"
    arguments = [scaled.home / "old.json", scaled.home / "new.json", "--checkpoint", scaled.src]
    result = scaled.eplb("plan", *arguments, "--out", plan, *(MAX if with_option else ()))
    if not with_option:
        assert_error(result, "EP231")
        return
    assert result.code == 0, result.err
    result = scaled.eplb("reshard", scaled.src, scaled.dst, "--plan", plan, "--backend", "file")
    assert result.code == 0, result.err
    assert values_of(scaled.dst, key("w13_input_scale")) == [1.5, 1.5]
    assert scaled.eplb("verify", scaled.dst, "--against", scaled.src).code == 0


def test_equal_numbers(case):
    """Nothing to decide, and nothing decided, with the option too."""
    write(case, {key("w13_input_scale"): (0.5, 0.5), key("g1_alphas"): (2.0, 2.0)})
    case.new(CHANGED)
    for count, options in enumerate([(), MAX]):
        dst = case.home / str(count)
        case.reshard(*options, dst=dst)
        assert values_of(dst, key("w13_input_scale")) == [0.5, 0.5]
        assert json.loads((dst / "eplb.json").read_text())["decisions"] == {}


@pytest.mark.parametrize("new", [PLAIN, WITHIN])
def test_rows_that_stay_on_their_rank(scaled, new):
    """Each rank keeps its number: it is of the same experts as before."""
    scaled.new(new)
    scaled.reshard(*MAX, "--copy")
    assert values_of(scaled.dst, key("w13_input_scale")) == [0.75, 1.5]
    assert json.loads((scaled.dst / "eplb.json").read_text())["decisions"] == {}


@pytest.mark.parametrize(
    "name", ["g1_alphas", "w13_input_scale_quant", "w2_input_scale_inv", "act_amax", "some"]
)
def test_what_is_no_maximum(case, name):
    """EP231 with and without the option; the hint does not offer it."""
    write(case, {key(name): (0.5, 0.25), key("w2_input_scale"): (0.5, 0.25)})
    case.new(CHANGED)
    for options in ((), MAX):
        result = case.refuse("EP231", options=options)
        assert "--rank-scalars" not in result.err.split("hint:")[1]
        assert "eplb shard" in result.err
    case.new(WITHIN)
    case.reshard()


@pytest.mark.parametrize("name", ["g1_alphas", "w13_input_scale_quant"])
@pytest.mark.parametrize("values", [(0.5, 0.25), (0.5, 0.5)])
def test_products_of_a_maximum(case, name, values):
    """EP231: g1_alphas has w13_input_scale in it, of every rank its own, whether they differ or have rows."""
    write(case, {key("w13_input_scale"): (1.0, 2.0), key(name): values})
    case.new(CHANGED)
    case.refuse("EP231", name, "not known to be a maximum", options=MAX)
    rows = Tensor("F32", (2,), struct.pack("<2f", 0.5, 0.25))
    write(case, {key("w13_input_scale"): (1.0, 2.0), key(name): (rows, rows)})
    case.refuse("EP231", name, options=MAX)


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_another_number_of_ranks(scaled, num_ranks):
    """EP231 as well; with the option new ranks have the largest too. Nobody is told to save otherwise."""
    scaled.new(placement(PLAIN["physical_to_logical_map"], num_ranks))
    result = scaled.refuse("EP231", key("w13_input_scale"))
    assert "tensor parallelism" not in result.err
    scaled.reshard(*MAX)
    assert values_of(scaled.dst, key("w13_input_scale")) == [1.5] * num_ranks
    assert values_of(scaled.dst, key("w13_input_scale", 4)) == [2.0] * num_ranks


@pytest.mark.parametrize(
    "values", [(float("nan"), 1.0), (1.0, float("nan")), (float("inf"), 1.0), (float("-inf"), 1.0)]
)
def test_no_numbers(case, values):
    """EP231: of these there is no largest that anybody meant."""
    write(case, {key("w13_input_scale"): values})
    case.new(CHANGED)
    case.refuse("EP231", "no largest number", options=MAX)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_dtypes(case, dtype):
    """The number itself is compared, and its bytes are copied."""
    numbers = [number(value, dtype) for value in (0.5, 3.0)]
    write(case, {key("w13_input_scale"): numbers})
    case.new(CHANGED)
    case.reshard(*MAX)
    assert found(case.dst, key("w13_input_scale")) == [numbers[1].data] * 2


def test_dtypes_that_are_none(case):
    """EP231 for whole numbers, and for ranks of several dtypes."""
    for values in (
        [Tensor("I64", (), struct.pack("<q", value)) for value in (1, 2)],
        [number(0.5), number(1.0, "BF16")],
    ):
        write(case, {key("w13_input_scale"): values})
        case.new(CHANGED)
        case.refuse("EP231", "no largest number", options=MAX)


def test_one_value_in_a_list(case):
    """(1,) is one number of a rank too, where it has more rows; with one row each it is a row."""
    values = [number(value, shape=(1,)) for value in (0.5, 1.0)]
    write(case, {key("w13_input_scale"): values})
    case.new(CHANGED)
    case.refuse("EP231", key("w13_input_scale"))
    case.reshard(*MAX)
    assert values_of(case.dst, key("w13_input_scale")) == [1.0, 1.0]
    ones = placement([[0, 1], [0, 1]])
    write(case, {key("w13_input_scale"): values}, ones)
    case.new(placement([[1, 0], [0, 1]]))
    case.reshard(dst=case.home / "rows")
    assert values_of(case.home / "rows", key("w13_input_scale")) == [1.0, 0.5]


def test_replicas_that_are_dropped(case):
    """A number is not too small for the experts that are left, if it was the largest of more."""
    old = placement([[0, 1, 2, 0], [0, 1, 2, 0]])
    new = placement([[0, 1, 2, 2], [0, 1, 2, 0]])
    write(case, {key("w13_input_scale"): (0.5, 0.75)}, old)
    case.new(new)
    case.reshard()
    assert values_of(case.dst, key("w13_input_scale")) == [0.5, 0.75]


def test_gloo(scaled):
    """Workers take it from the rank that has the largest."""
    pytest.importorskip("torch")
    arguments = [*scaled.arguments(*MAX)]
    arguments[arguments.index("file")] = "gloo"
    result = scaled.eplb(*arguments, "--nproc-per-node", "2")
    assert result.code == 0, result.err
    assert values_of(scaled.dst, key("w13_input_scale")) == [1.5, 1.5]
    assert scaled.eplb("verify", scaled.dst, "--against", scaled.src).code == 0


def test_other_numbers_are_a_ranks_own(case):
    """What is not under a module of experts is no business of theirs."""
    ranks = stacked(PLAIN)
    for rank, tensors in enumerate(ranks):
        tensors["model.layers.3.self_attn.attn._k_scale"] = number(rank + 1.0)
        tensors[key("_shared_experts._layer.input_scale")] = number(rank + 1.0)
    case.write(ranks)
    case.old(PLAIN)
    case.new(CHANGED)
    case.reshard()
    assert values_of(case.dst, "model.layers.3.self_attn.attn._k_scale") == [1.0, 2.0]


def test_an_unknown_rule(scaled):
    """It is refused by the command line."""
    assert scaled.eplb(*scaled.arguments("--rank-scalars", "mean")).code == 2
