"""From the content of a placement file to a `Placement`, with every problem on the way.

What is wrong with one key does not hide what is wrong with another: a draft is understood as far as
possible, in the order in which the keys need each other: layer numbers, map, experts, ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError
from eplb_cli.formats.json_text import JsonText, Place, shown, shown_keys
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS
from eplb_cli.placements.findings import Finding, Severity, first_of_each_layer, others
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import FORMAT, KEYS, MAP, find_layer_ids, find_num_experts, find_slots_per_rank
from eplb_cli.placements.placement import EMPTY, Placement

if TYPE_CHECKING:
    from eplb_cli.formats.yaml_text import YamlText

_REQUIRED_KEYS = ("format", MAP)
_INT64 = np.iinfo(np.int64)

T = TypeVar("T")


class Origin:
    """Where a placement comes from; its lines are looked for only when there is a finding.

    `rows`: those of the map, as they are in the value of the text; a dialect may have made others of them.
    """

    def __init__(self, name: str, text: JsonText | YamlText | None = None) -> None:
        self.name = name
        self.rows: Sequence[object] = ()
        self.repeated_keys = [] if text is None else [*text.repeated_keys]
        self._text = text

    def place(self, key: str, row: int | None = None) -> Place | None:
        """Where a key's value, or a row of the map, begins."""
        if row is not None and row < len(self.rows) and id(self.rows[row]) in self._row_places:
            return self._row_places[id(self.rows[row])]
        return self._key_places.get(key)

    def located(self, finding: Finding, key: str, row: int | None = None) -> Finding:
        """A finding about a key or a row of the map, with file, line and column."""
        place = self.place(key, row)
        if place is None:
            return replace(finding, file=self.name)
        return replace(finding, file=self.name, line=place.line, column=place.column)

    def locate(self, findings: Iterable[Finding], placement: Placement) -> list[Finding]:
        """Findings about the layers of `placement`, with file, line and column."""
        rows: dict[int | None, int] = {placement.layer_number(r): r for r in range(placement.num_layers)}
        return [self.located(finding, MAP, rows.get(finding.layer)) for finding in findings]

    @cached_property
    def _key_places(self) -> dict[str, Place]:
        return {} if self._text is None else self._text.key_places()

    @cached_property
    def _row_places(self) -> dict[int, Place]:
        places = [] if self._text is None else self._text.list_places()
        return {id(found): place for found, place in places}


class Draft:
    """A placement as far as its JSON is understood.

    Attributes:
        hints: what it may leave out.
        origin: where it comes from.
        findings: all problems of form, in the order in which they were met.
        placement: None after an error.
        rankless: the placement with all slots on one rank, where at most the ranks are wrong.
    """

    def __init__(self, hints: Hints, origin: Origin) -> None:
        self.findings: list[Finding] = []
        self.placement: Placement | None = None
        self.rankless: Placement | None = None
        self.origin = origin
        self.hints = hints
        self._content: dict[str, Any] = {}
        self._layer_ids: NDArray[np.int64] | None = None

    def understand(self, content: object) -> None:
        """Take in the JSON of a placement, of which nothing is known yet."""
        if not isinstance(content, dict):
            hint = f'a placement is an object that begins with "format": "{FORMAT}"'
            self._note("EP103", f"not a placement: {shown(content)} instead of an object", hint=hint)
            return
        self._content = content
        self._check_keys()
        num_experts = self._attempt("num_logical_experts", find_num_experts, self.hints)
        rows = self._rows()
        if rows is not None:
            self._layer_ids = self._attempt("layer_ids", find_layer_ids, len(rows), self.hints)
            table = self._table(rows)
            if table is not None:
                self._check_ids(rows, table, num_experts or MAX_EXPERTS)
                self._complete(table, num_experts or self._guess_num_experts(table))

    def _complete(self, table: NDArray[np.int64], num_experts: int) -> None:
        """Set `rankless` and `placement`, each unless there was an error before it."""
        num_slots = table.shape[1]
        if not self._has_errors():
            self.rankless = Placement(table, np.array([0, num_slots]), num_experts, self._layer_ids)
        key = "slots_per_rank" if "slots_per_rank" in self._content else "num_ranks"
        slots = self._attempt(key, find_slots_per_rank, num_slots, self.hints)
        if slots is not None and not self._has_errors():
            first_slot = np.concatenate([[0], np.cumsum(slots)])
            self.placement = Placement(table, first_slot, num_experts, self._layer_ids)

    def _has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    def _attempt(self, key: str, find: Callable[..., T], *args: object) -> T | None:
        """What `find(content, *args)` finds; None after a finding about `key` where it raises."""
        try:
            return find(self._content, *args)
        except PlacementError as error:
            self._note(error.code, error.message, hint=error.hint, key=key)
            return None

    def _note(
        self, code: str, message: str, *, hint: str = "", key: str = "", severity: Severity = "error"
    ) -> None:
        """Add a finding about a key."""
        self.findings.append(self.origin.located(Finding(code, severity, message, hint), key))

    def _note_layer(self, code: str, row: int, slot: int | None, problem: str) -> None:
        """Add an error about a layer, or about one of its slots."""
        layer = row if self._layer_ids is None else int(self._layer_ids[row])
        message = f"layer {layer} {problem}" if slot is None else f"layer {layer}, slot {slot}: {problem}"
        finding = Finding(code, "error", message, layer=layer, slot=slot)
        self.findings.append(self.origin.located(finding, MAP, row))

    def _check_keys(self) -> None:
        """EP102 for keys that are there twice; EP103 for unknown and missing ones, and the format."""
        repeated = self.origin.repeated_keys
        if repeated:
            self._note("EP102", f"more than once in one object: {shown_keys(repeated)}", key=repeated[0])
        unknown = [key for key in self._content if key not in KEYS]
        if unknown:
            hint = f"known are {', '.join(KEYS)}"
            message = f"ignored, because unknown: {shown_keys(unknown)}"
            self._note("EP103", message, hint=hint, key=unknown[0], severity="warning")
        for key in _REQUIRED_KEYS:
            if key not in self._content:
                self._note("EP103", f'"{key}" is missing')
        name = self._content.get("format", FORMAT)
        if name != FORMAT:
            self._note("EP103", f'"format" is {shown(name)}, not "{FORMAT}"', key="format")

    def _rows(self) -> list[Any] | None:
        """The rows of the map, each of them unchecked; None without any."""
        rows = self._content.get(MAP)
        if isinstance(rows, list) and 1 <= len(rows) <= MAX_LAYERS:
            self.origin.rows = rows
            return rows
        if isinstance(rows, list):
            problem = f"has {len(rows):,} layers, not from 1 to {MAX_LAYERS:,}"
            self._note("EP104", f'"{MAP}" {problem}', key=MAP)
        elif MAP in self._content:
            self._note("EP104", f'"{MAP}" is {shown(rows)}, not a list of layers', key=MAP)
        return None

    def _table(self, rows: list[Any]) -> NDArray[np.int64] | None:
        """(L, P), ids beyond int64 clamped; None after EP104 for each row that is none."""
        num_slots = next((len(row) for row in rows if isinstance(row, list)), 0)
        are_rows = [self._is_row(index, row, num_slots) for index, row in enumerate(rows)]
        if not all(are_rows):
            return None
        try:
            return np.array(rows, dtype=np.int64)
        except OverflowError:
            return np.array([[min(max(expert, _INT64.min), _INT64.max) for expert in row] for row in rows])

    def _is_row(self, index: int, row: object, num_slots: int) -> bool:
        """Whether a row is a list of `num_slots` integers; EP104 where it is not."""
        if not isinstance(row, list):
            self._note_layer("EP104", index, None, f"is {shown(row)} instead of a list of experts")
        elif not row:
            self._note_layer("EP104", index, None, "has no slots")
        elif len(row) != num_slots:
            problem = f"has {len(row):,} slots; the first layer has {num_slots:,}"
            self._note_layer("EP104", index, None, problem)
        elif set(map(type, row)) != {int}:
            wrong = [slot for slot, expert in enumerate(row) if type(expert) is not int]
            problem = f"{shown(row[wrong[0]])} is not an integer{others(len(wrong) - 1)}"
            self._note_layer("EP104", index, wrong[0], problem)
        else:
            return True
        return False

    def _check_ids(self, rows: list[Any], table: NDArray[np.int64], num_experts: int) -> None:
        """EP105 for each layer with an id that is neither an expert nor `EMPTY`."""
        for row, slot, rest in first_of_each_layer((table < EMPTY) | (table >= num_experts)):
            valid = f"an expert from 0 to {num_experts - 1:,}, or {EMPTY} for an empty slot"
            self._note_layer("EP105", row, slot, f"{shown(rows[row][slot])} is not {valid}{rest}")

    def _guess_num_experts(self, table: NDArray[np.int64]) -> int:
        """E as the largest id has it, with EP111 where no error is there instead."""
        guess = int(table.max(initial=0)) + 1
        if guess <= MAX_EXPERTS and "num_logical_experts" not in self._content:
            message = f"the number of logical experts is taken to be {guess:,}, the largest id + 1"
            hint = 'say it: "num_logical_experts" in the file, or --num-logical-experts E'
            self._note("EP111", message, hint=hint, key=MAP, severity="warning")
        return guess
