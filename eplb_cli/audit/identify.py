"""Which expert each row of some shards is, told by its bytes: those of a Hugging Face checkpoint.

A live balancer never saved its map, and a map that was saved may be the wrong one. As long as rows are what
the checkpoint says, joined but not repacked by a kernel, their digests say which expert they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Digests, Int
from eplb_cli.audit.reading import reading
from eplb_cli.audit.unknown import unknown_placement
from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.places import Places
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.digests import zero_digests
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.files import write_whole
from eplb_cli.formats.index_file import INDEX_SUFFIX
from eplb_cli.huggingface.engine import find_names
from eplb_cli.huggingface.engines import AS_THEY_ARE
from eplb_cli.huggingface.joined import join
from eplb_cli.huggingface.source import config_of, open_huggingface
from eplb_cli.machine import default_threads
from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.identification import Identification
from eplb_cli.transfer.trees import Known, digest_places, source_tree

_JOINED = {
    "w13_weight": (("gate_proj.weight", "up_proj.weight"), ("w1.weight", "w3.weight")),
    "w2_weight": (("down_proj.weight",), ("w2.weight",)),
}
"""What the weights of stacked shards are joined of; of scales the same, with their ending."""

_DEEPSEEK = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_MAX_WARNINGS = 5


def identify(
    path: str | PathLike[str],
    against: str | PathLike[str],
    *,
    layout: str = "auto",
    output: str | PathLike[str] | None = None,
    progress: ProgressBar = silent,
) -> Identification:
    """Tell which expert each row of some shards is, by the bytes of a Hugging Face checkpoint.

    Args:
        path: shards; what eplb.json says of their placement is not looked at.
        against: the checkpoint they were made of.
        layout: how tensors are named: "auto", the name of a layout, or a TOML file that describes one.
        output: a new file for the placement, in the form eplb-placement/1.
        progress: what shows the bytes read.

    Raises:
        CheckpointError: EP227, a row is no expert of the checkpoint; or one of the two cannot be read.
        OutputError: EP601, `output` exists; EP603 or EP604, it cannot be written.
    """
    path, against = Path(path), Path(against)
    if output is not None:
        files.require_replaceable(Path(output), replace=False)
    with reading(progress, "identify", path, against) as advance:
        shards = open_shards(path, layout)
        found = identify_rows(bind(shards, unknown_placement(shards)), against, advance)
    if output is None:
        return found
    write_whole(Path(output), format_placement(found.placement).encode())
    return replace(found, output=Path(output))


def is_huggingface(path: Path, layout: Layout) -> bool:
    """Whether a directory looks like a Hugging Face checkpoint, and not like shards of a layout."""
    with files.reading(path):
        names = [file.name for file in path.iterdir()]
    if any(layout.match_file(name) for name in names):
        return False
    return any(name.endswith(INDEX_SUFFIX) for name in names) or "model.safetensors" in names


def identify_rows(shards: ShardedCheckpoint, against: Path, advance: Callable[[int], None]) -> Identification:
    """Find the placement of shards.

    Args:
        shards: under any placement of the same ranks and slots; what it says of experts is not looked at.
        against: a Hugging Face checkpoint.
        advance: is told of bytes as they are read.

    Raises:
        CheckpointError: EP227, a row is no expert of the checkpoint; or `against` cannot be read.
    """
    tree, config = open_huggingface(against), config_of(against)
    names = find_names(AS_THEY_ARE, config.model_type, tree.tensors)
    experts = join(tree, names).parts
    layers = _common_layers(shards, experts)
    parts = _parts_of(shards, experts)
    rows = _digest(_places(shards, parts, experts, layers), shards.shards.files, advance)
    wanted = _digest(_places_of_experts(experts, layers, parts), tree.files, advance)
    num_parts = sum(len(members) for members in parts)
    rows = rows.reshape(len(layers), num_parts, shards.placement.num_slots, -1)
    wanted = wanted.reshape(len(layers), num_parts, experts.placement.num_slots, -1)
    sizes = experts.row_nbytes[layers][:, [part for members in parts for part in members]]
    table, warnings = _match(shards, rows, wanted, sizes)
    old = shards.placement
    found = Placement(table, old.first_slot, experts.placement.num_logical_experts, old.layer_ids)
    return Identification(shards.shards.path, against, found, tuple(warnings))


def prove_placement(
    shards: ShardedCheckpoint, against: Path, advance: Callable[[int], None]
) -> tuple[str, ...]:
    """Compare the placement of shards with what their rows are; warnings.

    Raises:
        BytesError: EP501, a row is another expert than the placement says.
    """
    found, said = identify_rows(shards, against, advance), shards.placement
    wrong = np.argwhere(found.placement.physical_to_logical != said.physical_to_logical)
    if len(wrong):
        layer, slot = (int(number) for number in wrong[0])
        has = found.placement.physical_to_logical[layer, slot]
        wants = said.physical_to_logical[layer, slot]
        raise BytesError(
            "EP501",
            f"layer {said.layer_number(layer)}, slot {slot} (rank {said.rank_of_slot[slot]}): the placement "
            f"says expert {wants}, and the bytes are those of {'none' if has == EMPTY else f'expert {has}'} "
            f"in {against}; {len(wrong):,} slots differ in all",
            "was it made with the wrong OLD? `eplb inspect SRC --identify HF_DIR` says what SRC holds",
        )
    return found.warnings


def _common_layers(shards: ShardedCheckpoint, experts: ShardedCheckpoint) -> list[int]:
    """The layers of the shards, by their place in the checkpoint. Raises EP227."""
    known = [] if experts.placement.layer_ids is None else experts.placement.layer_ids.tolist()
    numbers = [shards.placement.layer_number(layer) for layer in range(shards.placement.num_layers)]
    if missing := sorted(set(numbers) - set(known)):
        raise _unmatched(f"layer {missing[0]} has no experts in {experts.shards.path}")
    return [known.index(number) for number in numbers]


def _parts_of(shards: ShardedCheckpoint, experts: ShardedCheckpoint) -> list[list[int]]:
    """For each tensor of the shards, the parts of the checkpoint that a row is joined of. Raises EP227."""
    numbers = {
        tensor.template.rpartition("experts.")[2].removeprefix("{expert}."): number
        for number, tensor in enumerate(experts.expert_tensors)
    }
    found = []
    for tensor in shards.expert_tensors:
        choices = [names for names in _candidates(tensor.tensor) if all(name in numbers for name in names)]
        if not choices:
            raise _unmatched(f"no tensors of {experts.shards.path} make {tensor.template!r}")
        found.append([numbers[name] for name in choices[0]])
    return found


def _candidates(name: str) -> list[tuple[str, ...]]:
    """The tensors that one of some shards may be joined of."""
    for weight, choices in _JOINED.items():
        if name.startswith(weight):
            ending = name.removeprefix(weight)
            return [tuple(part + ending for part in choice) for choice in choices]
    first, _, rest = name.partition(".")
    as_deepseek = f"{_DEEPSEEK.get(first, first)}.{ {'scale': 'weight_scale_inv'}.get(rest, rest) }"
    return [(name,), (as_deepseek,)]


def _places(
    shards: ShardedCheckpoint,
    parts: Sequence[Sequence[int]],
    experts: ShardedCheckpoint,
    layers: Sequence[int],
) -> Places:
    """(L, K, P) where the parts of each row lie in the shards. Raises EP227."""
    file, offset, nbytes = [], [], []
    for tensor, members in enumerate(parts):
        sizes = experts.row_nbytes[np.ix_(list(layers), list(members))]
        wrong = np.flatnonzero(sizes.sum(axis=1) != shards.row_nbytes[:, tensor])
        if len(wrong):
            layer = int(wrong[0])
            raise _unmatched(
                f"layer {shards.placement.layer_number(layer)}: a row of "
                f"{shards.expert_tensors[tensor].template!r} has {shards.row_nbytes[layer, tensor]:,} bytes, "
                f"and an expert {sizes[layer].sum():,}"
            )
        before = np.cumsum(sizes, axis=1) - sizes
        for member in range(len(members)):
            file.append(shards.extents.file[:, tensor])
            offset.append(shards.extents.offset[:, tensor] + before[:, member, None])
            nbytes.append(np.where(file[-1] >= 0, sizes[:, member, None], 0))
    return _columns(file, offset, nbytes)


def _places_of_experts(
    experts: ShardedCheckpoint, layers: Sequence[int], parts: Sequence[Sequence[int]]
) -> Places:
    """(L, K, E) where the parts of each expert lie in the checkpoint."""
    order = [part for members in parts for part in members]
    file = [experts.extents.file[list(layers), part] for part in order]
    offset = [experts.extents.offset[list(layers), part] for part in order]
    nbytes = [
        np.broadcast_to(experts.row_nbytes[list(layers), part, None], at.shape)
        for part, at in zip(order, file, strict=True)
    ]
    return _columns(file, offset, nbytes)


def _columns(file: Sequence[NDArray[np.int32]], offset: Sequence[Int], nbytes: Sequence[Int]) -> Places:
    columns = [np.stack(column, axis=1).ravel().astype(np.int64) for column in (file, offset, nbytes)]
    return Places(np.zeros(len(columns[0]), np.int64), *columns)


def _digest(places: Places, sources: Sequence[Known], advance: Callable[[int], None]) -> Digests:
    files.allow_open_files(len(sources))
    with source_tree(sources) as tree, ThreadPoolExecutor(default_threads(1)) as pool:
        return digest_places(places, np.flatnonzero(places.nbytes), tree, pool, advance)


def _match(shards: ShardedCheckpoint, rows: Digests, wanted: Digests, sizes: Int) -> tuple[Int, list[str]]:
    """(L, P) the expert whose parts have the digests of a row's; empty where all of them are zeros."""
    placement = shards.placement
    table = np.full((len(rows), placement.num_slots), EMPTY)
    warnings = []
    zeros = zero_digests(np.unique(sizes).tolist())
    for layer in range(len(rows)):
        experts: dict[bytes, int] = {}
        for expert in range(wanted.shape[2]):
            first = experts.setdefault(wanted[layer, :, expert].tobytes(), expert)
            if first != expert:
                name = placement.layer_number(layer)
                warnings.append(f"layer {name}: experts {first} and {expert} have the same bytes")
        empty = b"".join(zeros[int(size)] for size in sizes[layer])
        lacking = bytes(len(empty))
        for slot in range(placement.num_slots):
            row = rows[layer, :, slot].tobytes()
            if row in experts:
                table[layer, slot] = experts[row]
            elif row not in (empty, lacking):
                raise _unmatched(
                    f"layer {placement.layer_number(layer)}, slot {slot} "
                    f"(rank {placement.rank_of_slot[slot]}): the row is none of the checkpoint's experts"
                )
    return table, warnings[:_MAX_WARNINGS]


def _unmatched(problem: str) -> CheckpointError:
    return CheckpointError("EP227", problem)
