"""Whatever the names: rows go with their experts under the map of their own layer, or are refused."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hypothesis import event, given, settings
from hypothesis import strategies as st

from eplb_cli.errors import EplbError
from eplb_cli.run.request import Request
from eplb_cli.run.reshard import reshard
from tests.support.checkpoints import BITS, Tensor, read_file, write_file
from tests.support.scratch import scratch
from tests.support.weights import expert_row

Kinds = Mapping[str, tuple[str, tuple[int, ...]]]


class Style(NamedTuple):
    """How an engine or quantiser names the tensors of an expert.

    Attributes:
        key: what stands behind the module of experts, with {tensor} or {projection} and {suffix}, and perhaps
            {number}: the row on the rank, or the expert where `by_expert`.
        kinds: dtype and shape of a row, by the name of the tensor, or by (projection, suffix).
    """

    key: str
    kinds: Kinds
    file: str = "model-rank-{rank}-part-0.safetensors"
    by_expert: bool = False


def projections(names: tuple[str, ...], suffixes: Mapping[str, tuple[str, tuple[int, ...]]]) -> Kinds:
    """Every suffix for every projection."""
    return {f"{name}.{suffix}": kind for name in names for suffix, kind in suffixes.items()}


STACKED: Kinds = {"w13_weight": ("U8", (2, 3)), "w2_weight": ("U8", (3,))}
SCALED: Kinds = {
    "w13_weight": ("F8_E4M3", (2, 3)),
    "w2_weight": ("F8_E4M3", (3,)),
    "w13_weight_scale": ("F32", ()),
    "w2_weight_scale": ("F32", ()),
    "w13_input_scale": ("F32", ()),
    "w13_bias": ("BF16", (2,)),
    "w2_bias": ("BF16", (1,)),
}
LLAMA, MIXTRAL = ("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3")
PLAIN = {"weight": ("BF16", (2,))}
QUANTISED = {"qweight": ("I32", (1, 2)), "scales": ("F16", (2,)), "qzeros": ("I32", ())}
NVFP4 = {
    "weight": ("U8", (3,)),
    "weight_scale": ("F8_E4M3", (1,)),
    "weight_scale_2": ("F32", ()),
    "input_scale": ("F32", ()),
}
FP8 = {"weight": ("F8_E4M3", (3,)), "scale": ("F8_E8M0", (1,))}

STYLES = (
    Style("{tensor}", STACKED),
    Style("{tensor}", SCALED),
    Style("routed_experts.{tensor}", STACKED),
    Style("routed_experts.{tensor}", SCALED),
    Style("{number}.{tensor}", projections(LLAMA, PLAIN)),
    Style("{number}.{tensor}", projections(LLAMA, NVFP4)),
    Style("{number}.{tensor}", projections(MIXTRAL, QUANTISED)),
    Style("{projection}.{number}.{suffix}", projections(LLAMA, QUANTISED)),
    Style(
        "{number}.{tensor}", projections(MIXTRAL, FP8), "model{rank}-mp{world}.safetensors", by_expert=True
    ),
)

HOMES = (
    "mlp.experts", "mixer.experts", "moe.experts", "moe_block.experts", "block_sparse_moe.experts",
    "ffn.experts", "feed_forward.experts", "mlp.text_experts", "experts",
)  # fmt: skip
MODULES = (
    "model.layers",
    "model.language_model.layers",
    "layers",
    "transformer.blocks",
    "language_model.model.layers",
)
BESIDE = ("mtp.layers", "mtp", "talker.model.layers", "model.mtp.layers")

Place = tuple[str, int]
"""The module and the number of a layer."""


class Tree(NamedTuple):
    """A checkpoint and what is to become of it.

    Attributes:
        old, new: by layer, experts by slot; of layers beside too, where a placement says them.
        seeds: by layer, the number that its rows' bytes follow from: no two layers have the same.
        said: the layers that the placements name: those of the main module.
        hidden: num_hidden_layers in config.json, or None without one.
    """

    style: Style
    home: str
    num_ranks: tuple[int, int]
    num_experts: int
    old: Mapping[Place, list[int]]
    new: Mapping[Place, list[int]]
    seeds: Mapping[Place, int]
    said: tuple[Place, ...]
    hidden: int | None


@st.composite
def rows(draw: st.DrawFn, experts: int, num_ranks: int, slots: int, *, once: bool) -> list[int]:
    """Experts by slot: each somewhere, and with `once` at most once on a rank."""
    size = num_ranks * slots
    if not once:
        more = draw(st.lists(st.integers(0, experts - 1), min_size=size - experts, max_size=size - experts))
        return draw(st.permutations([*range(experts), *more]))
    order = draw(st.permutations(range(experts)))
    shift = [order[slot % experts] for slot in range(size)]
    return [
        expert
        for rank in draw(st.permutations(range(num_ranks)))
        for expert in shift[rank * slots : (rank + 1) * slots]
    ]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    style = draw(st.sampled_from(STYLES))
    experts = draw(st.integers(2, 4))

    def size() -> tuple[int, int]:
        num_ranks = draw(st.integers(1, 3))
        least = -(-experts // num_ranks)
        return num_ranks, draw(st.integers(least, experts if style.by_expert else least + 1))

    old_size = size()
    new_size = draw(st.just(old_size) | st.builds(size))
    module, first = draw(st.sampled_from(MODULES)), draw(st.integers(0, 2))
    count = draw(st.integers(1, 3))
    said = tuple((module, number) for number in range(first, first + count))
    others = draw(st.lists(st.sampled_from(BESIDE), max_size=2, unique=True))
    beside = [(other, number) for other in others for number in range(draw(st.integers(1, count)))]
    hidden = draw(st.none() | st.just(first + count))
    if hidden is not None and draw(st.booleans()):
        beside.append((module, hidden))

    def placed(size: tuple[int, int]) -> list[int]:
        return draw(rows(experts, *size, once=style.by_expert))

    in_order = [slot % experts for slot in range(math.prod(old_size))]
    old = {place: placed(old_size) for place in said}
    # Of rows that are taken to be in order and are not, replicas would differ, and either might be sent.
    is_free = style.by_expert or old_size == new_size or len(in_order) == experts
    old |= {place: placed(old_size) if is_free and draw(st.booleans()) else in_order for place in beside}
    new = {place: placed(new_size) for place in said}
    seeds = dict(zip([*said, *beside], draw(st.permutations(range(len(old)))), strict=True))
    return Tree(
        style,
        draw(st.sampled_from(HOMES)),
        (old_size[0], new_size[0]),
        experts,
        old,
        new,
        seeds,
        said,
        hidden,
    )


def key_of(tree: Tree, place: Place, tensor: str, number: int) -> str:
    """The key of a tensor, as its style has it."""
    projection, _, suffix = tensor.partition(".")
    end = tree.style.key.format(tensor=tensor, projection=projection, suffix=suffix, number=number)
    return f"{place[0]}.{place[1]}.{tree.home}.{end}"


def row_of(tree: Tree, place: Place, expert: int, tensor: str) -> bytes:
    """The bytes of a row, which no other layer, expert or tensor has."""
    dtype, shape = tree.style.kinds[tensor]
    nbytes = math.prod(shape) * BITS[dtype] // 8
    tag = bytes([tree.seeds[place] * 16 + expert])
    return tag + expert_row(tree.seeds[place], expert, tensor, nbytes)[1:] if nbytes else b""


def rank_tensors(
    tree: Tree, tables: Mapping[Place, list[int]], num_ranks: int, rank: int
) -> dict[str, Tensor]:
    """All rows of a rank under the tables of each layer."""
    held = {}
    for place, table in tables.items():
        slots = len(table) // num_ranks
        experts = table[rank * slots : (rank + 1) * slots]
        for tensor, (dtype, shape) in tree.style.kinds.items():
            data = [row_of(tree, place, expert, tensor) for expert in experts]
            if "{number}" not in tree.style.key:
                held[key_of(tree, place, tensor, 0)] = Tensor(dtype, (slots, *shape), b"".join(data))
                continue
            for row, expert in enumerate(experts):
                number = expert if tree.style.by_expert else row
                held[key_of(tree, place, tensor, number)] = Tensor(dtype, shape, data[row])
    return held


def file_of(tree: Tree, rank: int, num_ranks: int) -> str:
    return tree.style.file.format(rank=rank, world=num_ranks)


def write(path: Path, tree: Tree) -> None:
    """SRC, with a tensor that is nobody's, and both placements without the layers beside."""
    src, num_ranks = path / "src", tree.num_ranks[0]
    src.mkdir()
    for rank in range(num_ranks):
        norm = {"model.norm.weight": Tensor("BF16", (2,), b"norm")}
        write_file(src / file_of(tree, rank, num_ranks), rank_tensors(tree, tree.old, num_ranks, rank) | norm)
    if tree.hidden is not None:
        (src / "config.json").write_text(json.dumps({"num_hidden_layers": tree.hidden}))
    for name, tables, ranks in zip(("old", "new"), (tree.old, tree.new), tree.num_ranks, strict=True):
        content = {
            "format": "eplb-placement/1",
            "num_ranks": ranks,
            "num_logical_experts": tree.num_experts,
            "layer_ids": [number for _, number in tree.said],
            "physical_to_logical_map": [tables[place] for place in tree.said],
        }
        (path / f"{name}.json").write_text(json.dumps(content))


def expected(tree: Tree) -> dict[Place, list[int]]:
    """By layer, what DST has in each slot: NEW, and of other layers what they had, or experts in order.

    Laid out in order, a slot has what SRC has in the slot of that expert in order: which is that expert
    where SRC has them so too, or where keys say which experts they are.
    """
    num_slots = len(tree.new[tree.said[0]])
    tables = dict(tree.new)
    for place, table in tree.old.items():
        if place in tables:
            continue
        stays = tree.num_ranks[0] == tree.num_ranks[1] and len(table) == num_slots
        in_order = [slot % tree.num_experts for slot in range(num_slots)]
        known = list(range(tree.num_experts)) if tree.style.by_expert else table
        tables[place] = table if stays else [known[expert] for expert in in_order]
    return tables


@contextlib.contextmanager
def no_progress(total: int, description: str) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


@settings(max_examples=150)
@given(trees())
def test_rows_follow_their_experts_under_the_map_of_their_layer(tree):
    """Every key of DST, and every byte, is what the tables of its layer say; or the refusal has a code."""
    with scratch() as path:
        write(path, tree)
        request = Request(
            path / "src",
            path / "dst",
            str(path / "new.json"),
            str(path / "old.json"),
            backend="file",
            copy=True,
            durable=False,
        )
        refused: EplbError | None = None
        try:
            reshard(request, no_progress)
        except EplbError as error:
            refused = error
        if refused is not None:
            event(f"refused: {refused.code}")
            assert refused.code == "EP212", refused  # a module beside has as many layers as the model
            assert refused.hint
            assert not (path / "dst").exists()
            return
        event("resharded")
        tables, num_ranks = expected(tree), tree.num_ranks[1]
        for rank in range(num_ranks):
            found = read_file(path / "dst" / file_of(tree, rank, num_ranks))
            found.pop("model.norm.weight")
            assert found == rank_tensors(tree, tables, num_ranks, rank)
