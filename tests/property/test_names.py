"""Generated names: each row lands with its expert or the command refuses; no map moves another's layer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import eplb_cli
from tests.cli.test_shard import assert_same
from tests.cli.tree import Rank, Tensor, tensor, write_json
from tests.support.huggingface import write_checkpoint
from tests.support.published import read_rank
from tests.support.scratch import scratch

MAIN = ("model.layers", "layers", "transformer.h", "language_model.model.layers", "backbone.blocks")
BESIDE = ("mtp.layers", "mtp", "nextn.layers", "talker.model.layers", "draft.layers")
HOMES = ("mlp.experts", "mixer.experts", "block_sparse_moe.experts", "ffn.experts", "moe.text_experts")
STYLES = ("{home}.{expert}.{name}.{kind}", "{home}.{name}.{expert}.{kind}", "{home}.{name}_{kind}")
"""The number of the expert before its tensor's name, in it, and nowhere: all experts in one tensor."""

PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
Kinds = dict[str, tuple[str, tuple[int, ...]]]
KINDS: tuple[Kinds, ...] = (
    {"weight": ("BF16", (2, 3))},
    {"weight": ("F8_E4M3", (2, 3)), "weight_scale_inv": ("F32", (1, 1))},
    {"qweight": ("I32", (2,)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, 2)), "g_idx": ("I32", (3,))},
    {"weight": ("U8", (2, 1)), "weight_scale": ("F8_E4M3", (2, 1)), "weight_scale_2": ("F32", (1,))},
    {"weight_packed": ("U8", (2, 1)), "weight_scale": ("BF16", (2, 1)), "weight_shape": ("I64", (2,))},
)
MOST_LAYERS = 6


@dataclass(frozen=True)
class Module:
    """Layers with experts whose names have one form."""

    path: str
    layers: tuple[int, ...]
    home: str
    style: str
    names: tuple[str, ...]
    kinds: Kinds

    def tensors(self, layer: int, experts: list[int], *, by_row: bool) -> Rank:
        """A layer that holds these experts, each under the number of its row or under its own."""
        found: Rank = {}
        for name, (kind, (dtype, shape)) in itertools.product(self.names, self.kinds.items()):
            end = self.style.replace("{home}", self.home).replace("{name}", name).replace("{kind}", kind)
            key = f"{self.path}.{layer}.{end}"
            rows = [tensor(dtype, shape, f"{key} {expert}") for expert in experts]
            if "{expert}" not in key:
                found[key] = Tensor(dtype, (len(rows), *shape), b"".join(row.data for row in rows))
                continue
            for number, (expert, row) in enumerate(zip(experts, rows, strict=True)):
                found[key.replace("{expert}", str(number if by_row else expert))] = row
        return found


@dataclass(frozen=True)
class Model:
    """A checkpoint, and maps for the layers of its first module: (layer, slot) each."""

    modules: tuple[Module, ...]
    hidden: int
    num_experts: int
    others: Rank
    maps: tuple[list[list[int]], list[list[int]]]
    num_ranks: tuple[int, int]

    def whole(self) -> Rank:
        """All tensors of the checkpoint."""
        experts = list(range(self.num_experts))
        layers = [(module, layer) for module in self.modules for layer in module.layers]
        found = [module.tensors(layer, experts, by_row=False) for module, layer in layers]
        return self.others | {key: at for tensors in found for key, at in tensors.items()}

    def on_rank(self, which: int, rank: int) -> Rank:
        """What a rank holds under one of the maps; the experts of other modules are in order."""
        rows, num_ranks = self.maps[which], self.num_ranks[which]
        size = len(rows[0]) // num_ranks
        in_order = [slot % self.num_experts for slot in range(len(rows[0]))]
        found = dict(self.others)
        for module in self.modules:
            for number, layer in enumerate(module.layers):
                is_placed = module is self.modules[0] and layer < self.hidden
                row = rows[number] if is_placed else in_order
                held = row[size * rank : size * (rank + 1)]
                found |= module.tensors(layer, held, by_row=True)
        return found


@st.composite
def models(draw: st.DrawFn) -> Model:
    """One module or several, each with its own names; layers beyond the hidden ones in the first."""
    hidden = draw(st.integers(1, MOST_LAYERS))
    numbers = st.lists(st.integers(0, hidden), min_size=1, max_size=3, unique=True).map(sorted)
    layers = draw(numbers.filter(lambda found: found[0] < hidden))
    paths = [draw(st.sampled_from(MAIN)), *draw(st.lists(st.sampled_from(BESIDE), max_size=2, unique=True))]
    modules = []
    for path in paths:
        own = layers if path == paths[0] else [0]
        home, style = draw(st.sampled_from(HOMES)), draw(st.sampled_from(STYLES))
        names, kinds = draw(st.sampled_from(PROJECTIONS)), draw(st.sampled_from(KINDS))
        modules.append(Module(path, tuple(own), home, style, names, kinds))
    num_experts = draw(st.integers(2, 4))
    ranks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    placed = [layer for layer in layers if layer < hidden]
    maps = [draw(_maps(len(placed), num_experts, num_ranks)) for num_ranks in ranks]
    keys = [f"{path}.0.{end}" for path in paths for end in ("norm.weight", "mlp.gate.weight")]
    others = {key: tensor("BF16", (2,), key) for key in [*keys, "mtp.fc.weight", "lm_head.weight"]}
    return Model(tuple(modules), hidden, num_experts, others, (maps[0], maps[1]), ranks)


@st.composite
def _maps(draw: st.DrawFn, num_layers: int, num_experts: int, num_ranks: int) -> list[list[int]]:
    """Every expert in a slot at least, in each layer."""
    size = draw(st.integers(-(-num_experts // num_ranks), 4))
    more = st.lists(
        st.integers(0, num_experts - 1),
        min_size=size * num_ranks - num_experts,
        max_size=size * num_ranks - num_experts,
    )
    return [draw(st.permutations([*range(num_experts), *draw(more)])) for _ in range(num_layers)]


def written(path: Path, model: Model) -> None:
    """The checkpoint, and its maps."""
    write_checkpoint(path / "hf", model.whole(), "generated")
    config = {"model_type": "generated", "num_hidden_layers": model.hidden, "num_experts": model.num_experts}
    write_json(path / "hf" / "config.json", config)
    for number, rows in enumerate(model.maps):
        write_json(path / f"{number}.json", rows)


@settings(max_examples=60)
@given(models())
def test_rows_land_with_their_experts_or_the_command_refuses(model):
    """In shards, in shards of other ranks, and in the checkpoint again; a tie of modules is refused."""
    options = [eplb_cli.PlacementOptions(num_ranks=num_ranks) for num_ranks in model.num_ranks]
    with scratch() as path:
        written(path, model)
        try:
            eplb_cli.shard(path / "hf", path / "0", path / "0.json", "huggingface", options[0], durable=False)
        except eplb_cli.EplbError as error:
            assert error.code == "EP212", error  # noqa: PT017 - which modules have as many layers
            assert len(model.modules) > 1
            return
        new = str(path / "1.json")
        request = eplb_cli.Request(
            path / "0", path / "1", new=new, placements=options[1], backend="file", copy=True, durable=False
        )
        eplb_cli.reshard(request)
        for which in range(2):
            for rank in range(model.num_ranks[which]):
                assert read_rank(path / str(which), rank) == model.on_rank(which, rank)
            eplb_cli.verify(path / str(which), against=path / "hf")
            eplb_cli.merge(path / str(which), path / f"merged-{which}", durable=False)
            assert_same(path / "hf", path / f"merged-{which}")
