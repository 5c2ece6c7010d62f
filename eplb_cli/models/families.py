"""Families of models by `model_type`: how each says what it is, and what its tensors are called.

The one table of them: a new family is one entry of `FAMILIES`. What an entry leaves out is not known of the
family, and whoever needs it refuses the model. Which layers have experts is no matter of families but of keys
(`eplb_cli.models.layers`); an entry says only which keys have to be there. A model of no family here is read
all the same where such a key is there, or where its tensors are.
"""

from __future__ import annotations

from eplb_cli.values import dataclass

_GATED = ("gate_proj", "up_proj", "down_proj")
_NUMBERED = ("w1", "w3", "w2")


@dataclass(frozen=True)
class Family:
    """How models of one `model_type` say what they are.

    Attributes:
        key: the key of an expert tensor; empty where it is not known.
        needs: keys of which one has to say which layers have experts; none where all have them.
        hidden: the key for the number of layers.
        inputs: the keys for the width of what an expert gets, of which the first that is there counts.
        intermediate: the key for the width of an expert.
        projections: gate and up, if any, and down last, as keys call them; none where experts are stacked.
        block_scale: the dtype of the scales of fp8 blocks, where all published checkpoints have one.
        own_fp4: `expert_dtype` "fp4" means the form in which DeepSeek publishes them.
        router: how keys of tensors with a row for each expert end; none where nobody has looked.
        groups: the key for the number of groups of experts that the router chooses first.
    """

    key: str = ""
    needs: tuple[str, ...] = ()
    hidden: str = "num_hidden_layers"
    inputs: tuple[str, ...] = ("hidden_size",)
    intermediate: str = "moe_intermediate_size"
    projections: tuple[str, ...] = _GATED
    block_scale: str | None = None
    own_fp4: bool = False
    router: tuple[str, ...] = ()
    groups: str | None = None

    @property
    def block(self) -> str:
        """What the keys of experts, routers and shared experts begin with, with {layer}."""
        return self.key.partition("experts.")[0]

    @property
    def routers(self) -> tuple[str, ...]:
        """The templates of tensors with a row for each expert, with {layer}."""
        return tuple(self.block + end for end in self.router)


_MLP = "model.layers.{layer}.mlp.experts.{expert}.{tensor}"
_SPARSE_MOE = "model.layers.{layer}.block_sparse_moe.experts.{expert}.{tensor}"
_STACKED = "model.layers.{layer}.mlp.experts.{tensor}"
_GATE = ("gate.weight",)
_BIASED_GATE = ("gate.weight", "gate.e_score_correction_bias")
_FIRST = ("first_k_dense_replace", "mlp_layer_types")
_STEP = ("decoder_sparse_step", "mlp_layer_types")

FAMILIES = {
    "deepseek_v2": Family(_MLP, _FIRST, router=_GATE, groups="n_group"),
    "deepseek_v3": Family(_MLP, _FIRST, block_scale="F32", router=_BIASED_GATE, groups="n_group"),
    "deepseek_v32": Family(_MLP, _FIRST, router=_BIASED_GATE, groups="n_group"),
    "deepseek_v4": Family(
        "layers.{layer}.ffn.experts.{expert}.{tensor}", projections=_NUMBERED, own_fp4=True
    ),
    "kimi_k2": Family(_MLP, _FIRST, block_scale="F32", router=_BIASED_GATE, groups="n_group"),
    "kimi_linear": Family(
        _SPARSE_MOE, _FIRST, inputs=("routed_expert_hidden_size", "hidden_size"), projections=_NUMBERED
    ),
    "glm4_moe": Family(_MLP, _FIRST, router=_BIASED_GATE, groups="n_group"),
    "glm4_moe_lite": Family(_MLP, _FIRST, router=_BIASED_GATE, groups="n_group"),
    "glm_moe_dsa": Family(_MLP, _FIRST, router=_BIASED_GATE, groups="n_group"),
    "dots1": Family(_MLP, _FIRST, router=_BIASED_GATE, groups="n_group"),
    "bailing_moe_v2": Family(_MLP, _FIRST),
    "qwen2_moe": Family(_MLP, _STEP, router=_GATE),
    "qwen3_moe": Family(_MLP, _STEP, router=_GATE),
    "qwen3_next": Family(_MLP, _STEP, router=_GATE),
    "qwen3_vl_moe_text": Family(
        "model.language_model.layers.{layer}.mlp.experts.{tensor}", _STEP, projections=()
    ),
    "qwen3_5_moe_text": Family("model.language_model.layers.{layer}.mlp.experts.{tensor}", projections=()),
    "mixtral": Family(_SPARSE_MOE, intermediate="intermediate_size", projections=_NUMBERED, router=_GATE),
    "minimax_m2": Family(
        _SPARSE_MOE,
        intermediate="intermediate_size",
        projections=_NUMBERED,
        block_scale="F32",
        router=("gate.weight", "e_score_correction_bias"),
    ),
    "minimax": Family(_SPARSE_MOE, intermediate="intermediate_size", projections=_NUMBERED, router=_GATE),
    "phimoe": Family(_SPARSE_MOE, intermediate="intermediate_size", projections=_NUMBERED, router=_GATE),
    "olmoe": Family(_MLP, intermediate="intermediate_size", router=_GATE),
    "flex_olmo": Family(_MLP, intermediate="intermediate_size", router=_GATE),
    "solar_open": Family(_MLP, router=_BIASED_GATE, groups="n_group"),
    "granitemoeshared": Family(intermediate="intermediate_size", projections=()),
    "granitemoe": Family(intermediate="intermediate_size", projections=()),  # its key has no "experts"
    "jamba": Family(
        "model.layers.{layer}.feed_forward.experts.{expert}.{tensor}",
        ("expert_layer_period",),
        intermediate="intermediate_size",
        router=("router.weight",),
    ),
    "dbrx": Family(
        "transformer.blocks.{layer}.ffn.experts.mlp.{tensor}",
        hidden="n_layers",
        inputs=("d_model",),
        intermediate="ffn_hidden_size",
        projections=(),
    ),
    "ernie4_5_moe": Family(_MLP, ("moe_layer_start_index",)),
    "hunyuan_v1_moe": Family(_MLP),
    "longcat_flash": Family(_MLP, hidden="num_layers", intermediate="expert_ffn_hidden_size"),
    "mimo_v2_flash": Family(
        _MLP, ("moe_layer_freq", "mlp_layer_types"), router=_BIASED_GATE, groups="n_group"
    ),
    "nemotron_h": Family(
        "backbone.layers.{layer}.mixer.experts.{expert}.{tensor}",
        ("hybrid_override_pattern", "layers_block_type"),
        inputs=("moe_latent_size", "hidden_size"),
        projections=("up_proj", "down_proj"),
    ),
    "step3_text": Family("", ("moe_layers_enum",), projections=()),
    "gpt_oss": Family(
        _STACKED, intermediate="intermediate_size", projections=(), router=("router.weight", "router.bias")
    ),
    "llama4_text": Family(
        "language_model.model.layers.{layer}.feed_forward.experts.{tensor}",
        ("interleave_moe_layer_step", "moe_layers"),
        intermediate="intermediate_size",
        projections=(),
    ),
}
"""By the `model_type` of the text model."""
