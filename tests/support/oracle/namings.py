"""How shards are named, drawn at random: the presets of eplb, and layout files of the fuzz's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tests.support.oracle.truth import BITS, Kind, Style

PARTS = "model-rank-{rank}-part-{part}.safetensors"
STAGES = "model-pp-{stage}-tp-{rank}-part-{part}.safetensors"


@dataclass(frozen=True)
class Naming:
    """A layout, as far as the fuzz makes use of it.

    Attributes:
        experts: the end of a key, with `{layer}`, `{tensor}` and perhaps `{number}`.
        weights: families of weights, of which a checkpoint has one.
        scales: for each family, ends of names that its weights may have beside them.
        extras: tensors that a layer may have or not.
        input_scales: moved where there is one value a row.
        others: tensors under the experts' prefix that are none.
        toml: a layout file.
    """

    name: str
    style: Style
    file: str
    experts: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]
    scales: tuple[tuple[str, ...], ...]
    extras: tuple[str, ...] = ()
    input_scales: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    toml: str = ""
    prefixes: tuple[str, ...] = ("model.", "language_model.model.", "thinker.model.", "")


_VLLM = ("mlp.experts", "block_sparse_moe.experts", "feed_forward.experts.routed_experts")
_ROW = ("mlp.experts", "block_sparse_moe.experts", "feed_forward.experts")
_GATED = ("gate_proj", "up_proj", "down_proj")


def _sharded_state(file: str, name: str) -> Naming:
    return Naming(
        name,
        "stacked",
        file,
        tuple(f"layers.{{layer}}.{part}.{{tensor}}" for part in _VLLM),
        (
            ("w13_weight", "w2_weight"),
            ("w13_weight_packed", "w2_weight_packed"),
            ("w13_qweight", "w2_qweight"),
        ),
        (("_scale_inv", "_scale", "_scale_2"), ("-_scale", "-_global_scale"), ("-scales",)),
        ("w13_bias", "w2_bias", "w13_weight_shape", "w2_g_idx", "w13_qzeros"),
        ("w13_input_scale", "w2_input_scale"),
        ("e_score_correction_bias", "gate.weight", "shared_experts.down_proj.weight"),
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
    families = (("up_gate", "down"),), (("_scale",),), ("zero",), ("act_scale",), router
    return Naming(f"own-{style}", style, file, (experts,), *families, toml)


NAMINGS = (
    _sharded_state(PARTS, "sharded-state"),
    _sharded_state(STAGES, "sharded-state, stages"),
    Naming(
        "per-row",
        "row",
        PARTS,
        tuple(f"layers.{{layer}}.{part}.{{number}}.{{tensor}}" for part in _ROW),
        (
            tuple(f"{name}.weight" for name in _GATED),
            tuple(f"{name}.weight_packed" for name in _GATED),
            ("w1.weight", "w2.weight", "w3.weight"),
        ),
        (("_scale_inv", "_scale"), ("-_scale",), ("_scale_inv", "_scale")),
        ("gate_proj.bias", "up_proj.bias"),
        ("gate_proj.input_scale", "w1.input_scale"),
    ),
    Naming(
        "huggingface",
        "stacked",
        PARTS,
        ("layers.{layer}.mlp.experts.{tensor}", "layers.{layer}.feed_forward.experts.{tensor}"),
        (("gate_up_proj", "down_proj"), ("gate_up_proj_blocks", "down_proj_blocks")),
        ((), ("-scales",)),
        ("gate_up_proj_bias", "down_proj_bias"),
    ),
    Naming(
        "deepseek",
        "expert",
        "model{rank}-mp{world}.safetensors",
        ("layers.{layer}.ffn.experts.{number}.{tensor}",),
        (("w1.weight", "w2.weight", "w3.weight"),),
        (("-scale",),),
    ),
    _own("stacked", "bank_{rank}.{part}.safetensors", "blocks.{layer}.moe.bank.{tensor}"),
    _own("row", "ep{rank}of{world}.safetensors", "h.{layer}.ffn.{tensor}.row{number}"),
    _own("expert", "s{stage}r{rank}p{part}.safetensors", "h.{layer}.moe.{number}.{tensor}"),
)


def scale_name(weight: str, end: str) -> str:
    """A scale of a weight; "-" stands for the name without its last part, which the end replaces."""
    if not end.startswith("-"):
        return weight + end
    for last in ("_packed", "qweight", "blocks", "weight"):
        if weight.endswith(last):
            return weight.removesuffix(last) + end[1:]
    raise ValueError(weight)


@dataclass
class Names:
    """The names of one checkpoint: a prefix, a family of weights, and which scales all of them have."""

    naming: Naming
    chance: Random
    prefix: str = field(init=False)
    family: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.prefix = self.chance.choice(self.naming.prefixes)
        number = self.chance.randrange(len(self.naming.weights))
        weights, ends = self.naming.weights[number], self.naming.scales[number]
        kept = [end for end in ends if self.chance.random() < 0.5]
        self.family = [*weights, *(scale_name(weight, end) for weight in weights for end in kept)]

    def kinds(self, layer: int, dtypes: list[str], stage: int) -> list[Kind]:
        """The tensors of an expert of a layer."""
        optional = [*self.naming.extras, *self.naming.input_scales]
        names = [*self.family, *(name for name in optional if self.chance.random() < 0.3)]
        end = self.chance.choice(self.naming.experts)
        key = self.prefix + end.replace("{layer}", str(layer))
        return [
            Kind(key.replace("{tensor}", name), name, dtype, row_shape(dtype, self.chance), stage)
            for name in names
            for dtype in [self.chance.choice(dtypes)]
        ]


def row_shape(dtype: str, chance: Random) -> tuple[int, ...]:
    """The shape of a row of whole bytes: mostly a few, sometimes none, sometimes a page."""
    bits = BITS[dtype]
    if chance.random() < 0.04:
        return (chance.choice([1, 2]), 8 * 4096 // bits) if 8 * 4096 % bits == 0 else (4, 4096)
    shape = [chance.choice([1, 1, 2, 3, 5, 8, 0]) for _ in range(chance.choice([0, 1, 1, 2, 2, 3]))]
    if bits % 8:
        shape.append(8 if bits == 4 else 4)
    return tuple(shape)
