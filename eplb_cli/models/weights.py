"""What the tensors beside a config.json say: their names say layers and experts, their headers sizes.

Only the files of a Hugging Face checkpoint are asked: the shards of one rank have its rows, not all experts.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import EplbError
from eplb_cli.formats.index_file import INDEX_SUFFIX, MAX_INDEX_NBYTES, index_json
from eplb_cli.formats.safetensors_header import TensorEntry, read_header
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS, ModelTensor, malformed
from eplb_cli.models.names import ExpertName, LayerNames, LayerPlace, number_layers, split_expert_key
from eplb_cli.values import dataclass

_FILE = re.compile(r"(?:pytorch_)?model(?:-[0-9]{5}-of-([0-9]{5}))?\.safetensors")
_STACKED_DIMENSIONS = 3
"""Fewest dimensions of a stacked weight; where experts lie one below the other in two, dim 0 is not E."""

Read = Callable[[Path, int], bytes]


@dataclass(frozen=True)
class Weights:
    """The tensors of experts in a checkpoint.

    Attributes:
        path: the directory.
        names: of tensors under a module of experts, by key.
        entries: what their headers say, by key; empty where not all of them are there.
    """

    path: Path
    names: Mapping[str, ExpertName]
    entries: Mapping[str, TensorEntry]

    def layers(self, hidden: int) -> LayerNames:
        """Which layers have experts. Raises EP118 where no module is the main one, or some are too far."""
        places = {name.place for name in self.names.values()}
        try:
            layers = number_layers(places, hidden)
        except EplbError as error:
            raise malformed(self.path, error.message) from error
        if not layers.placed or max(layers.numbers.values()) >= MAX_LAYERS:
            raise malformed(self.path, f"its tensors have no experts in {hidden:,} layers, or in too many")
        return layers

    def num_experts(self, layers: LayerNames) -> int | None:
        """E, None where experts are stacked and nothing says it. Raises EP118 where layers differ."""
        numbers: dict[LayerPlace, set[int]] = defaultdict(set)
        for name in self._placed(layers).values():
            if name.number is not None:
                numbers[name.place].add(name.number)
        if not numbers:
            return self._num_stacked(layers)
        first, *others = numbers.values()
        if (
            any(found != first for found in others)
            or first != set(range(len(first)))
            or len(first) > MAX_EXPERTS
        ):
            raise malformed(self.path, "its layers have other experts than one another, or some are missing")
        return len(first)

    def _num_stacked(self, layers: LayerNames) -> int | None:
        shapes = [self.entries[key].shape for key in self._placed(layers) if key in self.entries]
        counts = {shape[0] for shape in shapes if len(shape) >= _STACKED_DIMENSIONS}
        if len(counts) > 1:
            raise malformed(
                self.path, f"its stacked tensors are of {min(counts):,} and {max(counts):,} experts"
            )
        return next((count for count in counts if 1 <= count <= MAX_EXPERTS), None)

    def template(self, layers: LayerNames) -> str:
        """The key of a tensor, with {layer}, {tensor} and, unless stacked, {expert}; empty if keys differ."""
        found = {_template(name) for name in self._placed(layers).values()}
        return found.pop() if len(found) == 1 else ""

    def tensors(self, layers: LayerNames, num_experts: int) -> dict[str, ModelTensor]:
        """What an expert consists of, where all of them are alike and their headers are there."""
        experts: dict[tuple[LayerPlace, int | None], dict[str, ModelTensor]] = defaultdict(dict)
        for key, name in self._placed(layers).items():
            entry = self.entries.get(key)
            shape = None if entry is None else _shape_of_one(entry, name, num_experts)
            if entry is None or shape is None:
                return {}
            experts[name.place, name.number][name.tensor] = ModelTensor(entry.dtype, shape)
        first, *others = experts.values()
        return first if all(found == first for found in others) else {}

    def _placed(self, layers: LayerNames) -> dict[str, ExpertName]:
        """The tensors of the layers that placements speak of."""
        placed = set(layers.placed)
        return {
            key: name
            for key, name in self.names.items()
            if layers.is_open(name.place) and layers.numbers[name.place] in placed
        }


def _template(name: ExpertName) -> str:
    parts = list(name.parts[: name.home_end])
    parts[name.layer_at] = "{layer}"
    return ".".join([*parts, *([] if name.number_at is None else ["{expert}"]), "{tensor}"])


def _shape_of_one(entry: TensorEntry, name: ExpertName, num_experts: int) -> tuple[int, ...] | None:
    """The shape of one expert's part; None where a tensor of all of them has no dimension for experts."""
    if name.number is not None:
        return entry.shape
    return entry.shape[1:] if entry.shape and entry.shape[0] == num_experts else None


def weights_beside(path: Path, read: Read) -> Weights | None:
    """The tensors beside a config.json; None where there are none, or none that are called experts.

    Raises:
        PlacementError: EP118, the index is none. CheckpointError: EP201, EP203, EP204 or EP220.
    """
    found = _list(path.parent)
    indices = [name for name in found if name.endswith(INDEX_SUFFIX)]
    keys = _keys(path.parent / indices[0], read) if len(indices) == 1 else {}
    files_named = set(keys.values()) if keys else _whole(found)
    entries = _entries(path.parent, files_named) if files_named <= found else {}
    names = {key: name for key in keys or entries if (name := split_expert_key(key)) is not None}
    if not names:
        return None
    return Weights(path.parent, names, {key: entries[key] for key in names if key in entries})


def _entries(path: Path, names: Iterable[str]) -> dict[str, TensorEntry]:
    """What the headers of these files say."""
    entries: dict[str, TensorEntry] = {}
    for name in sorted(names):
        entries |= read_header(Path(os.path.realpath(path / name)))[0].tensors
    return entries


def holds_checkpoint(path: Path) -> bool:
    """Whether a directory has files named as those of a Hugging Face checkpoint."""
    return any(name.endswith(INDEX_SUFFIX) or _FILE.fullmatch(name) for name in _list(path))


def _list(path: Path) -> set[str]:
    with files.reading(path), os.scandir(path) as entries:
        return {entry.name for entry in entries}


def _whole(found: Collection[str]) -> set[str]:
    """The files of a checkpoint without an index, if they are all there."""
    matches = [match for name in found if (match := _FILE.fullmatch(name))]
    counts = {match[1] for match in matches}
    if len(counts) != 1 or len(matches) != int(counts.pop() or 1):
        return set()
    return {match[0] for match in matches}


def _keys(path: Path, read: Read) -> dict[str, str]:
    """The files of all keys of an index, by key."""
    content = read(Path(os.path.realpath(path)), MAX_INDEX_NBYTES)
    return dict(index_json(content, partial(malformed, path))["weight_map"])
