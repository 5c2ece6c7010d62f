"""How shards are named, drawn at random: the presets of eplb, and layout files of the fuzz's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from tests.support.oracle.truth import BITS, Kind, Role, Style

PARTS = "model-rank-{rank}-part-{part}.safetensors"
STAGES = "model-pp-{stage}-tp-{rank}-part-{part}.safetensors"


@dataclass(frozen=True)
class Family:
    """What the experts of one checkpoint consist of, as ends of names, behind the name of a projection.

    Attributes:
        scales: all weights of one dtype have the same of them.
        extras: a projection has the same of them in all layers where its weight is of the same dtype.
        inputs: a layer has them or not; moved where there is one value a row.
    """

    projections: tuple[str, ...]
    weight: str
    scales: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Naming:
    """A layout, as far as the fuzz makes use of it.

    Attributes:
        experts: the end of a key, with `{layer}`, `{tensor}` and perhaps `{number}`.
        families: of which a checkpoint has one.
        loose: tensors of no projection, which a layer has or not.
        loose_inputs: such ones that are moved where there is one value a row.
        others: tensors under the experts' prefix that are none.
        maps: what says where the experts of a layer are.
        toml: a layout file.
    """

    name: str
    style: Style
    file: str
    experts: tuple[str, ...]
    families: tuple[Family, ...]
    loose: tuple[str, ...] = ()
    loose_inputs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    toml: str = ""
    prefixes: tuple[str, ...] = ("model.", "language_model.model.", "thinker.model.", "")


_VLLM = ("mlp.experts", "block_sparse_moe.experts", "feed_forward.experts.routed_experts")
_ROW = ("mlp.experts", "block_sparse_moe.experts", "feed_forward.experts")
_GATED = ("gate_proj", "up_proj", "down_proj")
_NUMBERED = ("w1", "w2", "w3")
_STACKED = ("w13", "w2")


def _sharded_state(file: str, name: str) -> Naming:
    extras, inputs = ("_bias", "_g_idx", "_weight_shape"), ("_input_scale",)
    fp8 = ("_weight_scale_inv", "_weight_scale", "_weight_scale_2")
    return Naming(
        name,
        "stacked",
        file,
        tuple(f"layers.{{layer}}.{part}.{{tensor}}" for part in _VLLM),
        (
            Family(_STACKED, "_weight", fp8, extras, inputs),
            Family(_STACKED, "_weight_packed", ("_weight_scale", "_weight_global_scale"), extras, inputs),
            Family(_STACKED, "_qweight", ("_scales", "_qzeros"), extras, inputs),
        ),
        others=("e_score_correction_bias", "gate.weight", "shared_experts.down_proj.weight"),
        maps=("expert_map", "_expert_map"),
    )


def _own(style: Style, file: str, experts: str) -> Naming:
    """A layout file of the fuzz's own."""
    number = {"stacked": "", "row": "{row}", "expert": "{expert}"}[style]
    toml = f"""format = "eplb-layout/1"
name = "own-{style}"
files = ["{file}"]
experts = ["{experts.replace("{number}", number)}"]
tensors = ["up_gate", "up_gate_scale", "down", "down_scale", "zero"]
input_scales = ["act_scale"]
others = ["router.*"]
[scales]
up_gate_scale = "up_gate"
down_scale = "down"
"""
    router = ("router.bias",) if style == "stacked" else ()
    families = (Family(("up_gate", "down"), "", ("_scale",)),)
    return Naming(
        f"own-{style}", style, file, (experts,), families, ("zero",), ("act_scale",), router, toml=toml
    )


NAMINGS = (
    _sharded_state(PARTS, "sharded-state"),
    _sharded_state(STAGES, "sharded-state, stages"),
    Naming(
        "per-row",
        "row",
        PARTS,
        tuple(f"layers.{{layer}}.{part}.{{number}}.{{tensor}}" for part in _ROW),
        (
            Family(_GATED, ".weight", (".weight_scale_inv", ".weight_scale"), (".bias",), (".input_scale",)),
            Family(_GATED, ".weight_packed", (".weight_scale",), (".bias", ".weight_g_idx")),
            Family(_NUMBERED, ".weight", (".weight_scale_inv", ".weight_scale"), (), (".input_scale",)),
            Family(_NUMBERED, ".qweight", (".scales", ".qzeros"), (".g_idx",)),
        ),
    ),
    Naming(
        "huggingface",
        "stacked",
        PARTS,
        ("layers.{layer}.mlp.experts.{tensor}", "layers.{layer}.feed_forward.experts.{tensor}"),
        (
            Family(("gate_up_proj", "down_proj"), "", (), ("_bias",)),
            Family(("gate_up_proj", "down_proj"), "_blocks", ("_scales",), ("_bias",)),
        ),
        others=("router.bias",),
    ),
    Naming(
        "deepseek",
        "expert",
        "model{rank}-mp{world}.safetensors",
        ("layers.{layer}.ffn.experts.{number}.{tensor}",),
        (Family(_NUMBERED, ".weight", (".scale",)),),
    ),
    _own("stacked", "bank_{rank}.{part}.safetensors", "blocks.{layer}.moe.bank.{tensor}"),
    _own("row", "ep{rank}of{world}.safetensors", "h.{layer}.ffn.{tensor}.row{number}"),
    _own("expert", "s{stage}r{rank}p{part}.safetensors", "h.{layer}.moe.{number}.{tensor}"),
)


@dataclass
class Names:
    """The names of one checkpoint: a prefix, a family, and what belongs to its weights."""

    naming: Naming
    chance: Random
    prefix: str = field(init=False)
    family: Family = field(init=False)
    _belongings: dict[tuple[str, str], list[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.prefix = self.chance.choice(self.naming.prefixes)
        self.family = self.chance.choice(self.naming.families)

    def kinds(self, layer: int, dtypes: list[str], stage: int, module: str | None = None) -> list[Kind]:
        """The tensors of an expert of a layer. `module`: what its keys begin with, if not as all others'."""
        end = self.chance.choice(self.naming.experts)
        key = (self.prefix if module is None else module) + end.replace("{layer}", str(layer))
        found = []
        for projection, name, role, dtype in self._tensors(dtypes):
            at = key.replace("{tensor}", name)
            found.append(Kind(at, name, dtype, row_shape(dtype, self.chance), stage, projection, role))
        return found

    def _tensors(self, dtypes: list[str]) -> Iterator[tuple[str, str, Role, str]]:
        """Projection, name, role and dtype of each."""
        family, chance = self.family, self.chance
        for projection in family.projections:
            dtype = chance.choice(dtypes)
            yield projection, projection + family.weight, "weight", dtype
            ends: list[tuple[str, Role]] = [(end, "scale") for end in self._kept("", dtype, family.scales)]
            ends += [(end, "extra") for end in self._kept(projection, dtype, family.extras)]
            ends += [(end, "input") for end in family.inputs if chance.random() < 0.2]
            for end, role in ends:
                yield projection, projection + end, role, chance.choice(dtypes)
        loose: list[tuple[str, Role]] = [(name, "loose") for name in self.naming.loose]
        loose += [(name, "input") for name in self.naming.loose_inputs]
        for name, role in loose:
            if chance.random() < 0.3:
                yield "", name, role, chance.choice(dtypes)

    def _kept(self, projection: str, dtype: str, ends: tuple[str, ...]) -> list[str]:
        """Those of some ends that a weight of this dtype has, wherever it is."""
        known = self._belongings
        if (projection, dtype) not in known:
            known[projection, dtype] = [end for end in ends if self.chance.random() < 0.4]
        return known[projection, dtype]


def row_shape(dtype: str, chance: Random) -> tuple[int, ...]:
    """The shape of a row of whole bytes: mostly a few, sometimes none, sometimes a page."""
    bits = BITS[dtype]
    if chance.random() < 0.04:
        return (chance.choice([1, 2]), 8 * 4096 // bits) if 8 * 4096 % bits == 0 else (4, 4096)
    shape = [chance.choice([1, 1, 2, 3, 5, 8, 0]) for _ in range(chance.choice([0, 1, 1, 2, 2, 3]))]
    if bits % 8:
        shape.append(8 if bits == 4 else 4)
    return tuple(shape)
