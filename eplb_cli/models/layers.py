"""Which layers have experts, as the keys of a config.json say it.

Families share these keys, and mean the same by them: so there is a rule for each key, and none for each
family. Some keys count (`first_k_dense_replace`: every layer from that one on), and a layer has experts where
all that are there allow it. Others list the layers. Where several lists are there, or counts beside a list,
they have to say the same.

What a key means was looked up in the code of transformers and vLLM that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

Config = Mapping[str, Any]
"""The keys of a config.json that are about the text model."""

_MLPS = {"sparse": True, "moe": True, "hash_moe": True, "dense": False}
_BLOCK_WORDS = {
    "moe": True,
    **dict.fromkeys(("mlp", "mamba", "attention", "linear_attention", "full_attention"), False),
}
"""Whether a layer of which this is said has experts; "sparse" is also said of attention, but not of MLPs."""

_BLOCKS = {"E": "moe", "M": "mamba", "*": "attention", "-": "mlp"}
_TO_THE_END = -1


def _from(value: int, layer: int) -> bool:
    return layer >= value


def _up_to(value: int, layer: int) -> bool:
    return value == _TO_THE_END or layer <= value


def _each(value: int, layer: int) -> bool:
    """Each so many layers, counted from 1."""
    return (layer + 1) % value == 0


def _each_from_first(value: int, layer: int) -> bool:
    """Each so many layers, the first one among them."""
    return layer % value == 0


_COUNTS: Mapping[str, tuple[Callable[[int, int], bool], int]] = {
    "first_k_dense_replace": (_from, 0),  # DeepSeek, GLM, Kimi, dots, Ling
    "num_dense_layers": (_from, 0),  # AFMoE, LFM2
    "moe_layer_num_skipped": (_from, 0),  # Hunyuan
    "moe_layer_start_index": (_from, 0),  # ERNIE, as the next two
    "moe_layer_end_index": (_up_to, _TO_THE_END),
    "moe_layer_interval": (_each, 1),
    "moe_layer_freq": (_each_from_first, 1),  # DeepSeek
    "decoder_sparse_step": (_each, 1),  # Qwen
    "interleave_moe_layer_step": (_each, 1),  # Llama 4
}
"""Whether a number allows a layer, and the least such number."""


def _flags(value: object, hidden: int) -> list[int] | None:
    """MiMo's `moe_layer_freq` and EXAONE's `is_moe_layer`: a yes or no for each layer."""
    if not isinstance(value, list):
        return None
    if len(value) != hidden or not all(isinstance(flag, int) and flag in (0, 1) for flag in value):
        raise ValueError(f"no yes or no for each of {hidden:,} layers")
    return [layer for layer, flag in enumerate(value) if flag]


def _numbers(value: object, hidden: int) -> list[int]:
    """Llama 4's `moe_layers`, and Step's `moe_layers_enum`, which may be text."""
    del hidden
    if isinstance(value, str):
        return [int(part) for part in value.split(",")]
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        raise ValueError("no numbers of layers")
    return value


def _words(value: object, hidden: int, known: Mapping[str, bool]) -> list[int]:
    """The layers of which a word is said that means experts."""
    if not isinstance(value, list) or len(value) != hidden:
        raise ValueError(f"no word for each of {hidden:,} layers")
    if not all(isinstance(word, str) and word in known for word in value):
        raise ValueError("words that are not known")
    return [layer for layer, word in enumerate(value) if known[word]]


def _mlps(value: object, hidden: int) -> list[int]:
    """A word for the MLP of each layer."""
    return _words(value, hidden, _MLPS)


def _blocks(value: object, hidden: int) -> list[int] | None:
    """A word for each layer; None where the words are about attention only."""
    return _words(value, hidden, _BLOCK_WORDS) if isinstance(value, list) and "moe" in value else None


def _pattern(value: object, hidden: int) -> list[int] | None:
    """Nemotron's `hybrid_override_pattern`: a letter for each layer."""
    if not isinstance(value, str) or not set(value) <= _BLOCKS.keys():
        raise ValueError("no letter for each layer")
    return _blocks([_BLOCKS[letter] for letter in value], hidden)


_LISTS: Mapping[str, Callable[[object, int], list[int] | None]] = {
    "moe_layer_freq": _flags,
    "is_moe_layer": _flags,
    "moe_layers": _numbers,
    "moe_layers_enum": _numbers,
    "mlp_layer_types": _mlps,  # transformers 5: GLM, Laguna, EXAONE, DeepSeek-V4
    "layers_block_type": _blocks,  # transformers 5: Nemotron, as the next two
    "layer_types": _blocks,
    "hybrid_override_pattern": _pattern,
}

_STEPS = ("moe_layer_freq", "decoder_sparse_step", "moe_layer_interval", "interleave_moe_layer_step")
"""From which layer on these count, beyond each first, is not the same in all families."""

_OTHER_COUNTS = ("mlp_only_layers", "expert_layer_period")
_KNOWN = {*_COUNTS, *_LISTS, *_OTHER_COUNTS, "expert_layer_offset"}

_ABOUT = {"moe", "expert", "experts", "sparse", "dense", "mlp", "ffn"}
_WHICH = {
    *(
        "layer",
        "layers",
        "freq",
        "frequency",
        "step",
        "period",
        "interval",
        "offset",
        "every",
        "first",
        "last",
    ),
    *("start", "end", "skip", "skipped", "replace", "pattern", "types", "list"),
}
_APART = {"mtp", "nextn", "attention", "attn"}


def moe_layers(config: Config, hidden: int, needs: Collection[str] | None) -> tuple[int, ...] | str:
    """The layers with experts, ascending and without those of MTP; or the reason why they are not said.

    Args:
        hidden: dense and MoE layers.
        needs: the keys of which a family has to have one, none where all its layers have experts unless a key
            says otherwise; None where the family is not known, and any known key has to say it.

    Raises:
        ValueError: a key has a value that says nothing, or two keys say different layers.
    """
    said = _listed(config, hidden)
    listed = bool(said)
    if counts := _counting(config):
        said[", ".join(counts)] = _counted(config, counts, hidden)
    keys = {key for names in said for key in names.split(", ")}
    if needs is None and (unknown := _unknown_key(config, listed=listed)):
        return f"nobody has looked what {unknown!r} says of its layers"
    if needs and not keys & set(needs):
        return f"it has none of the keys {', '.join(needs)}, which say which of its layers have experts"
    if not said:
        return tuple(range(hidden)) if needs is not None else "no key says which of its layers have experts"
    (first, layers), *others = said.items()
    for other, found in others:
        if found != layers:
            raise ValueError(f"{first} and {other} say different layers")
    if not layers or not layers <= set(range(hidden)):
        raise ValueError("it has no MoE layers, or some that are no layers")
    return tuple(sorted(layers))


def _listed(config: Config, hidden: int) -> dict[str, set[int]]:
    """The layers by the key that lists them."""
    found = {}
    for key, read in _LISTS.items():
        if not config.get(key):
            continue
        try:
            layers = read(config[key], hidden)
        except ValueError as error:
            raise ValueError(f"{key!r}: {error}") from error
        if layers is not None:
            found[key] = set(layers)
    return found


def _counting(config: Config) -> list[str]:
    """The keys that are there and count layers."""
    keys = [key for key in (*_COUNTS, *_OTHER_COUNTS) if config.get(key) not in (None, [])]
    return [key for key in keys if key not in _LISTS or not isinstance(config[key], list)]


def _counted(config: Config, keys: Collection[str], hidden: int) -> set[int]:
    """The layers that all of these keys allow."""
    layers = set(range(hidden))
    for key in keys:
        if key == "mlp_only_layers":  # Qwen
            layers -= set(_numbers(config[key], hidden))
        elif key == "expert_layer_period":  # Jamba
            period, offset = _count(config, key, 1), _count(config, "expert_layer_offset", 0)
            layers = {layer for layer in layers if (layer - offset) % period == 0}
        else:
            allows, least = _COUNTS[key]
            number = _count(config, key, least)
            layers = {layer for layer in layers if allows(number, layer)}
    return layers


def _count(config: Config, key: str, least: int) -> int:
    value = config.get(key)
    if type(value) is not int or value < least:
        raise ValueError(f"{key!r} is no number from {least}")
    return value


def _unknown_key(config: Config, *, listed: bool) -> str | None:
    """A key that may say which layers have experts, as far as words tell, and has no rule here."""
    if listed:
        return None
    for key in _STEPS:
        if type(step := config.get(key)) is int and step > 1:
            return key
    if "decoder_sparse_step" in config and "mlp_only_layers" not in config:  # Flint has two dense ones then
        return "decoder_sparse_step"
    return next((key for key, value in config.items() if _may_say(key, value)), None)


def _may_say(key: str, value: object) -> bool:
    words = set(key.lower().split("_"))
    if key in _KNOWN or not words & _ABOUT or words & _APART or value in (None, False, 0, "", [], {}):
        return False
    differs = isinstance(value, list) and any(entry != value[0] for entry in value)
    return bool(words & _WHICH) or isinstance(value, dict) or differs
