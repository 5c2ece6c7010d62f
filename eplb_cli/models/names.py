"""What the name of a tensor says: the module and number of its layer, and the expert it belongs to.

Found by shape, for models nobody has looked at: a component that names experts, a number somewhere before it,
and perhaps one behind it::

    model.layers.3.mlp.experts.17.gate_proj.weight
    └ module ──┘ │ └ home ───┘ └ number            tensor: gate_proj.weight
                 └ layer
    transformer.blocks.3.ffn.experts.w13_weight    no number: dim 0 says which expert
    model.layers.3.mlp.experts.up_proj.17.qweight  tensor: up_proj.qweight

A layer is (module, number): `model.layers.0` and `mtp.layers.0` are two. The model's own layers, those that
placements speak of, are those of the main module and keep their numbers; all others are numbered on behind
them, as DeepSeek does: `mtp.layers.0` of a model of 48 layers is layer 48.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from eplb_cli.errors import CheckpointError
from eplb_cli.values import dataclass

_PLACEHOLDERS = ("{layer}", "{row}", "{expert}")
_MTP = ("mtp", "nextn")
"""What the names of modules for further tokens begin with."""

_MAX_DIGITS = 9


class LayerPlace(NamedTuple):
    """Which experts of which layer: the module and the number are not enough where a layer has two kinds."""

    module: str
    number: int
    home: str

    @property
    def path(self) -> str:
        """The layer as keys name it."""
        return f"{self.module}.{self.number}"


class ExpertName(NamedTuple):
    """The key of a tensor under a module of experts.

    Attributes:
        parts: the key at its dots.
        layer_at: which of them is the layer's number.
        home_begin: the first one that names experts. home_end: the first one behind their module.
        number_at: which of them is the number of an expert or row; None where there is none.
    """

    parts: tuple[str, ...]
    layer_at: int
    home_begin: int
    home_end: int
    number_at: int | None

    @property
    def place(self) -> LayerPlace:
        """Which experts of which layer; modules inside that of the experts are the same place."""
        module, home = self.parts[: self.layer_at], self.parts[self.layer_at + 1 : self.home_begin + 1]
        number = int(self.parts[self.layer_at])
        return LayerPlace(sys.intern(".".join(module)), number, sys.intern(".".join(home)))

    @property
    def rest(self) -> str:
        """Everything behind the module of experts."""
        return ".".join(self.parts[self.home_end :])

    @property
    def number(self) -> int | None:
        """The number of the expert, or of the row; None for a tensor of all of them."""
        return None if self.number_at is None else int(self.parts[self.number_at])

    @property
    def tensor(self) -> str:
        """What is behind the module of experts, without the number."""
        if self.number_at is None:
            return self.rest
        return sys.intern(
            ".".join(self.parts[self.home_end : self.number_at] + self.parts[self.number_at + 1 :])
        )

    def template(self, numbered: str, *, open_layer: bool) -> str:
        """The key with placeholders: `numbered` for the number, and {layer} if that is to be left open."""
        parts = list(self.parts)
        if self.number_at is not None:
            parts[self.number_at] = numbered
        if open_layer:
            parts[self.layer_at] = "{layer}"
        return sys.intern(".".join(parts))  # a hundred thousand keys have a few hundred templates


def split_expert_key(key: str) -> ExpertName | None:
    """What a key says that is under a module of experts of a layer; None for every other.

    A key that has a placeholder in itself is none: it could not be written again.
    """
    if "experts" not in key or has_placeholder(key):
        return None
    parts = tuple(key.split("."))
    begin = _first(parts, names_experts, 0)
    end = begin
    while end < len(parts) and names_experts(parts[end]):
        end += 1
    layer_at = begin - 1
    while layer_at > 0 and not is_number(parts[layer_at]):
        layer_at -= 1
    if layer_at <= 0 or end >= len(parts):
        return None
    number_at = _first(parts, is_number, end)
    return ExpertName(parts, layer_at, begin, end, number_at if number_at < len(parts) else None)


def _first(parts: Sequence[str], wanted: Callable[[str], bool], begin: int) -> int:
    """Where the first of some parts is that is wanted, from `begin` on; their number where none is."""
    for at in range(begin, len(parts)):
        if wanted(parts[at]):
            return at
    return len(parts)


def names_experts(part: str) -> bool:
    """Whether a component of a key names routed experts; shared ones are like any other part of a layer."""
    return part == "experts" or (part.endswith("_experts") and "shared" not in part)


def looks_like_experts(key: str) -> bool:
    """Whether a key has a component that names experts, whatever else it is."""
    return "experts" in key and any(map(names_experts, key.split(".")))


def has_placeholder(key: str) -> bool:
    """Whether a key has what templates have in the place of a number."""
    return "{" in key and any(placeholder in key for placeholder in _PLACEHOLDERS)


def is_number(part: str) -> bool:
    """Whether a component of a key is a number as they are written: decimal, without leading zeros."""
    if not part.isdecimal() or not part.isascii() or len(part) > _MAX_DIGITS:
        return False
    return part == "0" or part[0] != "0"


def is_mtp(module: str) -> bool:
    """Whether a module predicts further tokens, by its name."""
    return any(part.startswith(_MTP) for part in module.split("."))


@dataclass(frozen=True)
class LayerNames:
    """The layers of a checkpoint that have experts.

    Attributes:
        main: the module that placements speak of, as in "model.layers".
        numbers: every layer's own number, or the one it was given behind those of the main module.
        hidden: dense and MoE layers of the main module, where it is known.
    """

    main: str
    numbers: Mapping[LayerPlace, int]
    hidden: int | None

    def is_open(self, place: LayerPlace) -> bool:
        """Whether a layer keeps its own number, so that a template can leave it open."""
        return self.numbers[place] == place.number and place.module == self.main

    @property
    def placed(self) -> list[int]:
        """The layers that placements speak of, ascending."""
        own = (number for place, number in self.numbers.items() if self.is_open(place))
        return sorted({number for number in own if self.hidden is None or number < self.hidden})

    @property
    def beside(self) -> list[int]:
        """The other layers with experts, ascending: those of MTP, and of other modules."""
        return sorted(set(self.numbers.values()) - set(self.placed))

    def name(self, number: int) -> str:
        """A layer in words: its number, and where it is if that is not the main module."""
        place = next((place for place, known in self.numbers.items() if known == number), None)
        return (
            str(number) if place is None or self.is_open(place) else f"{number} ({place.path}.{place.home})"
        )


def number_layers(places: Iterable[LayerPlace], hidden: int | None = None, main: str = "") -> LayerNames:
    """Number the layers of a checkpoint.

    Args:
        places: of all tensors of experts; the same ones may come again.
        hidden: dense and MoE layers of the model, where config.json says it.
        main: the main module, where somebody says it; else the one of the most layers that is not MTP's.

    Raises:
        CheckpointError: EP212, `main` has no experts, or there are several modules of which any could be it.
    """
    modules: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for module, number, home in places:
        modules[module][home].add(number)
    if not modules:
        return LayerNames(main, {}, hidden)
    if main and main not in modules:
        problem = f"the layout says that the layers are those of {main!r}, which has no experts"
        raise CheckpointError("EP212", problem, f"modules with experts: {', '.join(sorted(modules))}")
    main = main or _main_module(modules)
    numbers: dict[LayerPlace, int] = {}
    taken: set[int] = set()
    for home, found in sorted(modules[main].items(), key=lambda item: (-len(item[1]), item[0])):
        numbers |= {LayerPlace(main, number, home): number for number in found - taken}
        taken |= found
    rest = sorted(
        {
            LayerPlace(module, number, home)
            for module, homes in modules.items()
            for home, found in homes.items()
            for number in found
        }
        - numbers.keys()
    )
    first = max(hidden or 0, max(taken) + 1)
    numbers |= {place: first + behind for behind, place in enumerate(rest)}
    return LayerNames(main, numbers, hidden)


def _main_module(modules: Mapping[str, Mapping[str, set[int]]]) -> str:
    """The module of the most layers, MTP apart. Raises EP212 where two have as many."""
    counts = {module: len(set().union(*homes.values())) for module, homes in modules.items()}
    ranked = sorted(counts, key=lambda module: (is_mtp(module), -counts[module], module))
    first, *others = ranked
    alike = [
        module for module in others if (is_mtp(module), counts[module]) == (is_mtp(first), counts[first])
    ]
    if alike:
        raise CheckpointError(
            "EP212",
            f"{first!r} and {alike[0]!r} have experts in {counts[first]:,} layers each: whose layers does a "
            "placement speak of?",
            'say it in a layout file, with main = "MODULE", and name that with --layout: see docs/layouts.md',
        )
    return first
