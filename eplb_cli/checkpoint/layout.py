"""Which tensors of a shard are rows of experts, and what their names mean.

A layout is a small TOML file: patterns for the names of files, and how expert tensors are found. The presets
find them by shape (`models/names`): whatever is under a module of experts, but for the others that are known.
A layout for names without that shape has patterns of keys instead, and the exact names an expert consists of.
Patterns are literal text with placeholders, never regular expressions, so a hostile layout file cannot make
matching slow: the time to match a key grows as its length.
A number in a key is the row on its rank, `{row}`, or the number in the whole model, `{expert}`; without one
the tensor is stacked, its dim 0 being the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from eplb_cli.models.names import LayerPlace, looks_like_experts, names_experts, split_expert_key
from eplb_cli.values import dataclass

FORMAT = "eplb-layout/1"
_STACKED = ("w13_", "w2_")
"""What engines call the tensors of all experts of a rank, wherever they are."""

_NUMBER = "0|[1-9][0-9]{0,8}"


class ShardName(NamedTuple):
    """What a file name says: `series` is the name with `{rank}`, `{part}` and `{world}` left open.

    `world` is the number of ranks where the name has it.
    """

    series: str
    rank: int
    part: int
    world: int | None = None


class ExpertKey(NamedTuple):
    """What the key of an expert tensor says.

    Attributes:
        place: its layer.
        tensor: the name of the tensor inside its expert.
        number: the row or the expert in the key; None for a stacked tensor.
        template: the key with `{row}` or `{expert}` left open.
        of_layers: the same with `{layer}` left open too.
    """

    place: LayerPlace
    tensor: str
    number: int | None
    template: str
    of_layers: str


class _KeyPattern(NamedTuple):
    """A pattern of `experts`, divided at `{tensor}`.

    As one regular expression it would try every end of what is free before the tensor with every end of
    the tensor. Divided, all that is tried is how many digits belong to the numbers behind the tensor.
    """

    before: re.Pattern[str]
    after: re.Pattern[str] | None

    def matches(self, key: str) -> Iterable[dict[str, str]]:
        """The values of the placeholders, and "prefix", for each such way; the longest numbers first."""
        if self.after is not None:
            return self._matches_before(self.after, key)
        before = self.before.match(key, 0, max(len(key) - 1, 0))
        return () if before is None else ({**before.groupdict(), "tensor": key[before.end() :]},)

    def _matches_before(self, behind: re.Pattern[str], key: str) -> Iterator[dict[str, str]]:
        begin = 0
        while begin <= len(key) and (after := behind.search(key, begin)):
            if before := self.before.match(key, 0, max(after.start() - 1, 0)):
                tensor = key[before.end() : after.start()]
                yield {**before.groupdict(), **after.groupdict(), "tensor": tensor}
            begin = after.start() + 1


@dataclass(frozen=True)
class Layout:
    """A naming convention of shards. See `layouts/` for the presets.

    Attributes:
        files: patterns of shard names, with `{rank}` and perhaps `{part}`, `{stage}`, `{world}`.
        experts: patterns of expert tensors, matched at the end of a key; none to find them by shape.
        tensors: with patterns, the values of `{tensor}` that are rows of experts. By shape, what tells shards
            of this layout from those of another with the same file names.
        input_scales: with patterns, values of `{tensor}` that are rows where dim 0 says so.
        others: what is under a module of experts, or fits a pattern, and is no row; `*` stands for anything
            at the end.
        scales: with patterns, a scale and the weights, divided by spaces, one of which it belongs to.
        numbers: by shape, what a number in a key is: "row", "expert", or "" where keys have none.
        maps: tensors under a module of experts that say which experts a rank has.
        main: the module whose layers placements speak of, where it is not to be found out.
    """

    name: str
    files: tuple[str, ...]
    experts: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    input_scales: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    scales: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    numbers: Literal["", "row", "expert"] = ""
    maps: tuple[str, ...] = ()
    main: str = ""

    @property
    def names_experts(self) -> bool:
        """Whether a number in a key is that of an expert in the whole model."""
        return self.numbers == "expert" or any("{expert}" in pattern for pattern in self.experts)

    @cached_property
    def _file_patterns(self) -> list[re.Pattern[str]]:
        return [_compile(pattern, "") for pattern in self.files]

    @cached_property
    def _key_patterns(self) -> list[_KeyPattern]:
        divided = [pattern.partition("{tensor}") for pattern in self.experts]
        free = r"(?P<prefix>(?:.*\.)?)"
        return [
            _KeyPattern(_compile(begin, free), _compile(end, "", r"\Z") if end else None)
            for begin, _, end in divided
        ]

    @cached_property
    def _any_beginning(self) -> re.Pattern[str]:
        """What the patterns have before `{tensor}`, in one: most keys fit none of them."""
        begins = {re.escape(pattern.partition("{tensor}")[0]) for pattern in self.experts}
        texts = (re.sub(r"\\\{\w+\\\}", f"(?:{_NUMBER})", begin) for begin in sorted(begins))
        return re.compile(rf"(?:.*\.)?(?:{'|'.join(texts)})", re.DOTALL)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.tensors + self.input_scales)

    def match_file(self, name: str) -> ShardName | None:
        """The rank and part in a file name, or None where it is no shard of this layout."""
        for pattern, compiled in zip(self.files, self._file_patterns, strict=True):
            if match := compiled.fullmatch(name):
                found = match.groupdict()
                series = pattern.replace("{stage}", found.get("stage", ""))
                world = int(found["world"]) if "world" in found else None
                return ShardName(series, int(found["rank"]), int(found.get("part", 0)), world)
        return None

    def match_key(self, key: str) -> ExpertKey | None:
        """What the key of an expert tensor says, or None for any other tensor.

        A key whose template would not give it back, because a placeholder stands in the key itself, is
        none: it could not be written again.
        """
        if not self.experts:
            return self._by_shape(key)
        for pattern, found in self._matches(key):
            if found["tensor"] in self._known and (expert := _expert_key(pattern, found, key)):
                return expert
        return None

    def _by_shape(self, key: str) -> ExpertKey | None:
        name = split_expert_key(key)
        if name is None or name.rest in self.maps or is_any(name.rest, self.others):
            return None
        if name.number is not None and not self.numbers:
            return None
        numbered = f"{{{self.numbers}}}"
        return ExpertKey(
            name.place,
            name.tensor,
            name.number,
            name.template(numbered, open_layer=False),
            name.template(numbered, open_layer=True),
        )

    def is_map(self, key: str) -> bool:
        """Whether a tensor says which experts a rank has."""
        if not key.endswith(self.maps):
            return False
        name = split_expert_key(key)
        return name is not None and name.rest in self.maps

    def _matches(self, key: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Every pattern that a key fits, and the values of its placeholders."""
        if self.experts and self._any_beginning.match(key):
            for pattern, compiled in zip(self.experts, self._key_patterns, strict=True):
                yield from ((pattern, found) for found in compiled.matches(key))

    def is_known_other(self, key: str) -> bool:
        """Whether a key that is no expert's does not look like one, or is one the layout knows to be none.

        It looks like one where it fits a pattern of `experts` but for its end, or where a part of it says so.
        """
        ends = [found["tensor"] for _, found in self._matches(key)]
        parts = key.split(".")
        if looks_like_experts(key):
            behind = max(at for at, part in enumerate(parts) if names_experts(part)) + 1
            ends.append(".".join(parts[behind:]))
        if not ends:
            return parts[-1] not in self._known and not parts[-1].startswith(_STACKED)
        return self.is_map(key) or any(is_any(end, self.others) for end in ends)

    def as_json(self) -> dict[str, Any]:
        """The layout as a manifest or a job file holds it."""
        return {"format": FORMAT, **asdict(self)}


def is_any(end: str, names: Iterable[str]) -> bool:
    """Whether it is one of some names, of which a `*` at the end stands for anything."""
    return any(end.startswith(name[:-1]) if name.endswith("*") else end == name for name in names)


def _expert_key(pattern: str, found: Mapping[str, str], key: str) -> ExpertKey | None:
    """What a key says that fits a pattern; None where its template would not give it back."""
    of_layers = found["prefix"] + pattern.replace("{tensor}", found["tensor"])
    digits = found.get("row", found.get("expert"))
    layer, number = int(found["layer"]), None if digits is None else int(digits)
    template = of_layers.replace("{layer}", str(layer))
    if key_name(template, layer, number) != key or key_name(of_layers, layer, number) != key:
        return None
    before, _, home = pattern.partition("{layer}")
    place = LayerPlace((found["prefix"] + before).rstrip("."), layer, home.lstrip("."))
    return ExpertKey(place, found["tensor"], number, template, of_layers)


def numbering(template: str) -> Literal["stacked", "row", "expert"]:
    """What the number in the keys of a template means; "stacked" where there is none."""
    if "{row}" in template:
        return "row"
    return "expert" if "{expert}" in template else "stacked"


def _compile(pattern: str, before: str, after: str = "") -> re.Pattern[str]:
    text = re.sub(r"\\\{(\w+)\\\}", rf"(?P<\1>{_NUMBER})", re.escape(pattern))
    return re.compile(before + text + after, re.DOTALL)


def file_name(series: str, rank: int, part: int, num_ranks: int) -> str:
    """The name of a shard of `num_ranks` ranks, from the series of the one it follows."""
    values = {"rank": rank, "part": part, "world": num_ranks}
    for placeholder, value in values.items():
        series = series.replace(f"{{{placeholder}}}", str(value))
    return series


def has_parts(series: str) -> bool:
    """Whether a rank can have several files of a series."""
    return "{part}" in series


def key_name(template: str, layer: int, number: int | None) -> str:
    """The key of an expert tensor; the inverse of `Layout.match_key`."""
    key = template.replace("{layer}", str(layer))
    for placeholder in ("{row}", "{expert}"):
        key = key.replace(placeholder, str(number))
    return key
