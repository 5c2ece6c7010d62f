"""What is wrong, or odd, with a placement or with a pair of them: values with a code, never printed here.

A finding speaks of one layer: it names the first slot and counts the others, so that a broken file has as
many findings as it has broken lines. All checks are one vectorised pass over (L, P) arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError, Where
from eplb_cli.placements.placement import Placement
from eplb_cli.values import dataclass

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One problem at one place.

    Attributes:
        code: one of `errors.CODES`.
        severity: an "error" makes the placement unusable, a "warning" does not, and a "note"
            is only good to know.
        message: what is wrong, with layer, slot and rank, but without file and line.
        hint: what to do about it.
        file: the file it is in.
        line: the line of that file, from 1.
        column: the character of that line, from 1.
        layer: the model's own number of the layer where the placement knows it, else its index.
        slot: the first slot concerned.
        rank: the rank concerned.
    """

    code: str
    severity: Severity
    message: str
    hint: str = ""
    file: str | None = None
    line: int | None = None
    layer: int | None = None
    slot: int | None = None
    rank: int | None = None
    column: int | None = None

    @property
    def place(self) -> str:
        """`FILE:LINE`, or as much of it as is known."""
        return ":".join(str(part) for part in (self.file, self.line) if part is not None)

    @property
    def where(self) -> Where:
        """The same, with what the message says of it."""
        return Where(self.file, self.line, self.layer, self.slot, self.rank)


def check_placement(placement: Placement) -> list[Finding]:
    """All that can be said of one well-formed placement: EP110, EP112, EP113."""
    return [*missing_experts(placement), *_repeated_experts(placement), *_bare_ranks(placement)]


def check_pair(old: Placement, new: Placement) -> list[Finding]:
    """All that keeps a checkpoint from going from OLD to NEW: EP109, or else EP106 and EP107.

    The experts of each layer must be the same set on both sides. Layers and slots are those of NEW, for
    EP107 those of OLD.
    """
    return _differences(old, new) or [*_without_source(old, new), *_dropped(old, new)]


def raise_first(findings: Iterable[Finding]) -> None:
    """Do nothing without an error among the findings.

    Raises:
        PlacementError: of the first error, with its file and line, and the number of further ones.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first = errors[0]
        message = f"{first.place}: {first.message}" if first.place else first.message
        more = f" (and {len(errors) - 1:,} more)" if len(errors) > 1 else ""
        raise PlacementError(first.code, message + more, first.hint, first.where)


def first_of_each_layer(marks: NDArray[np.bool_]) -> Iterator[tuple[int, int, str]]:
    """For each row of `marks` (L, N) that has any: its index, the first marked column, `others`."""
    counts = marks.sum(axis=1)
    for layer in np.flatnonzero(counts):
        yield int(layer), int(marks[layer].argmax()), others(int(counts[layer]) - 1)


def others(count: int) -> str:
    """The end of a message that names one problem out of `count` + 1 in a layer."""
    return f"; {count:,} more like it in this layer" if count else ""


def missing_experts(placement: Placement) -> Iterator[Finding]:
    """EP110. An expert without a slot is one that sorted, distinct ids skip."""
    in_order = np.sort(placement.physical_to_logical, axis=1)
    is_new = np.diff(in_order, axis=1, prepend=-1) > 0
    num_missing = placement.num_logical_experts - is_new.sum(axis=1)
    for index in np.flatnonzero(num_missing):
        layer, present = placement.layer_number(int(index)), in_order[index][is_new[index]]
        skipped = present != np.arange(len(present))
        expert = int(skipped.argmax()) if skipped.any() else len(present)
        message = f"layer {layer}: expert {expert} is in no slot{others(int(num_missing[index]) - 1)}"
        yield Finding("EP110", "error", message, layer=layer)


def repeats_on_ranks(placement: Placement) -> NDArray[np.bool_]:
    """(L, P): slots whose rank holds their expert in an earlier slot too.

    Sorted by (rank, expert), a slot that equals the one before it; empty slots equal none.
    """
    table, num_experts = placement.physical_to_logical, placement.num_logical_experts
    empty = -1 - np.arange(placement.num_slots)
    keys = np.where(table >= 0, placement.rank_of_slot * num_experts + table, empty)
    order = np.argsort(keys, axis=1, kind="stable")
    in_order = np.take_along_axis(keys, order, axis=1)
    repeats = np.zeros(table.shape, dtype=bool)
    np.put_along_axis(repeats, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    return repeats


def _repeated_experts(placement: Placement) -> Iterator[Finding]:
    """EP112."""
    table = placement.physical_to_logical
    for index, slot, rest in first_of_each_layer(repeats_on_ranks(placement)):
        layer, rank = placement.layer_number(index), int(placement.rank_of_slot[slot])
        message = f"layer {layer}, slot {slot}: rank {rank} already holds expert {table[index, slot]}{rest}"
        yield Finding("EP112", "warning", message, layer=layer, slot=slot, rank=rank)


def _bare_ranks(placement: Placement) -> Iterator[Finding]:
    """EP113. Running totals of filled slots, because a rank may own no slot at all."""
    filled = np.pad(np.cumsum(placement.physical_to_logical >= 0, axis=1), ((0, 0), (1, 0)))
    for index, rank, rest in first_of_each_layer(np.diff(filled[:, placement.first_slot], axis=1) == 0):
        layer = placement.layer_number(index)
        message = f"layer {layer}: rank {rank} has no expert{rest}"
        yield Finding("EP113", "warning", message, layer=layer, rank=rank)


def _differences(old: Placement, new: Placement) -> list[Finding]:
    """EP109 for each number that has to be the same on both sides."""
    pairs = [
        ("logical experts", old.num_logical_experts, new.num_logical_experts),
        ("MoE layers", old.num_layers, new.num_layers),
    ]
    messages = [f"OLD has {a:,} {what}, NEW has {b:,}" for what, a, b in pairs if a != b]
    if old.num_layers != new.num_layers:
        messages[-1] += _in_one_alone(_ids(old), _ids(new))
    if not messages and old.layer_ids is not None and new.layer_ids is not None:
        differing = np.flatnonzero(old.layer_ids != new.layer_ids)[:1]
        messages = [
            f"row {r} is layer {old.layer_ids[r]} in OLD, {new.layer_ids[r]} in NEW" for r in differing
        ]
    hint = "both have to be written for the same checkpoint"
    return [Finding("EP109", "error", message, hint) for message in messages]


def _ids(placement: Placement) -> set[int]:
    return set() if placement.layer_ids is None else {*placement.layer_ids.tolist()}


def _in_one_alone(old: set[int], new: set[int]) -> str:
    """The first layer that one of them names and the other does not, where both say their layers."""
    if only := sorted(old - new if len(old) > len(new) else new - old):
        return f"; layer {only[0]} is in {'OLD' if only[0] in old else 'NEW'} alone" if old and new else ""
    return ""


def _without_source(old: Placement, new: Placement) -> Iterator[Finding]:
    hint = "was OLD written for another checkpoint? `eplb inspect SRC` shows what the shards hold"
    for index, slot, rest in first_of_each_layer(_only_in_first(new, old)):
        layer, expert = _number(index, new, old), new.physical_to_logical[index, slot]
        message = f"layer {layer}, slot {slot}: expert {expert} is in NEW but nowhere in OLD{rest}"
        yield Finding("EP106", "error", message, hint, layer=layer, slot=slot)


def _dropped(old: Placement, new: Placement) -> Iterator[Finding]:
    hint = "the router still names that expert: give it a slot in NEW"
    for index, slot, rest in first_of_each_layer(_only_in_first(old, new)):
        layer, expert = _number(index, new, old), old.physical_to_logical[index, slot]
        message = f"layer {layer}, slot {slot} of OLD: expert {expert} is in OLD but nowhere in NEW{rest}"
        yield Finding("EP107", "error", message, hint, layer=layer, slot=slot)


def _number(index: int, new: Placement, old: Placement) -> int:
    """The model's own layer number, from whichever side knows it."""
    return (old if new.layer_ids is None else new).layer_number(index)


def _only_in_first(first: Placement, second: Placement) -> NDArray[np.bool_]:
    """(L, P of `first`): slots of `first` that hold an expert which the same layer of `second` lacks."""
    layers = np.arange(first.num_layers)[:, None] * first.num_logical_experts
    wanted, present = first.physical_to_logical, second.physical_to_logical
    found = np.isin(layers + wanted, (layers + present)[present >= 0])
    return (wanted >= 0) & ~found
