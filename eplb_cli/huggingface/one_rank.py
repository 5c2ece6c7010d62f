"""A Hugging Face checkpoint as the shards of one rank that holds all experts: what its keys say.

A layer is (module, number), here as for shards. A key of an expert's tensor says its layer, its expert and
what of it the tensor is; any other key of the main module says its layer, and those elsewhere say nothing::

    model.layers.3.mlp.experts.17.up_proj.weight    layer 3, expert 17 of model.layers.{layer}.mlp.experts...
    model.layers.3.mlp.gate.weight                  layer 3 of model.layers.{layer}.mlp.gate.weight
    mtp.layers.0.mlp.experts.17.up_proj.weight      layer 48, expert 17 of mtp.layers.0.mlp.experts...
    mtp.layers.0.mlp.gate.weight                    itself
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.layout_file import find_layout, preset
from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.errors import CheckpointError
from eplb_cli.huggingface.source import HuggingFace
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.names import has_placeholder, is_number, looks_like_experts
from eplb_cli.values import dataclass

BY_ROW = "per-row"
STACKED = "huggingface"
"""Layouts of shards that keep the names of Hugging Face: with a number in the key, and without any."""


class Key(NamedTuple):
    """A key taken apart; None where it says no such number."""

    template: str
    layer: int | None
    expert: int | None
    is_expert: bool


@dataclass(frozen=True)
class OneRank(Shards):
    """All experts of a Hugging Face checkpoint in order.

    Attributes:
        tree: its files.
        model: what its config.json says.
    """

    tree: HuggingFace
    model: ModelConfig | None

    @property
    def config(self) -> ModelConfig | None:
        """What config.json says, wherever a link to it leads."""
        return self.model

    @cached_property
    def keys(self) -> Mapping[str, Key]:
        """What each key says."""
        return {key: self._split(key, at) for key, at in self.tensors[0].items()}

    def _split(self, key: str, at: TensorAt) -> Key:
        found = self.expert_keys.get(key)
        if found is not None and (found.number is not None or at.entry.shape):
            return Key(found.template, found.layer, found.number, is_expert=True)
        before = f"{self.layers.main}."
        number, dot, rest = key.removeprefix(before).partition(".")
        is_in_main = key.startswith(before) and dot and is_number(number)
        if not is_in_main or has_placeholder(key):
            return Key(key, None, None, is_expert=False)
        return Key(f"{before}{{layer}}.{rest}", int(number), None, is_expert=False)

    def require_experts(self) -> None:
        """Refuse what has none, or some that nothing is known of.

        Raises:
            CheckpointError: EP224, there is no tensor of an expert; EP207, a tensor looks like one and its
                name does not say of which layer.
        """
        hint = "say what its name means in a layout file, and name that with --layout: see docs/layouts.md"
        for key in self.keys:
            is_known = key in self.expert_keys or self.layout.is_known_other(key)
            if looks_like_experts(key) and not is_known:
                problem = f"{key!r} looks like an expert's, and layout {self.layout.name} does not know it"
                raise CheckpointError("EP207", f"{self.path}: {problem}", hint)
        if not any(said.is_expert for said in self.keys.values()):
            raise CheckpointError("EP224", f"{self.path} has no tensor of an expert", hint)


def as_one_rank(tree: HuggingFace, model: ModelConfig | None, layout: Layout | None = None) -> OneRank:
    """A checkpoint with what its keys say, by shape or as a layout file has it."""
    known = by_expert(preset(BY_ROW)) if layout is None else layout
    shards = tuple(file.as_shard(known.files[0]) for file in tree.files)
    return OneRank(tree.path, known, shards, (tree.tensors,), tuple(tree.carried), None, tree, model)


def layout_of_keys(name: str) -> Layout | None:
    """What --layout says of the keys of a Hugging Face checkpoint; None for "auto". Raises EP206."""
    return None if name == "auto" else by_expert(find_layout(name, (), ()))


def by_expert(layout: Layout) -> Layout:
    """A layout with its numbers those of experts, as Hugging Face's are."""
    return _numbered(layout, "{row}", "{expert}") if layout.experts else replace(layout, numbers="expert")


def by_row(layout: Layout) -> Layout:
    """The layout of shards that keep the names of such a checkpoint, of which at least one has a number."""
    known = preset(BY_ROW)
    if layout.experts:
        return replace(_numbered(layout, "{expert}", "{row}"), files=known.files)
    return replace(known, tensors=layout.tensors, others=layout.others, maps=layout.maps, main=layout.main)


def _numbered(layout: Layout, old: str, new: str) -> Layout:
    return replace(layout, experts=tuple(pattern.replace(old, new) for pattern in layout.experts))
