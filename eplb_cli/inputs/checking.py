"""One placement file after the other, with all that is known beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.formats.reading import read_stdin
from eplb_cli.inputs.found import STDIN
from eplb_cli.inputs.old_and_new import draft_beside, named_hints, read_alone, read_old
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.placements.choice import NAMED_MAPS, EngineName
from eplb_cli.placements.draft import Draft
from eplb_cli.placements.engines import engine_called
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import compare_slots
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import draft_of_bytes, read_draft
from eplb_cli.placements.validate import findings_of

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards
    from eplb_cli.inputs.load import Judging
    from eplb_cli.inputs.moved import Moving


class Checking:
    """One file after the other, with what is known beside them."""

    def __init__(
        self,
        names: Sequence[str],
        old: str | None,
        shards: Shards | None,
        options: PlacementOptions,
        engine: EngineName | None = None,
        moving: Moving | None = None,
        judging: Judging | None = None,
    ) -> None:
        self._names = names
        self._old = old
        self._shards = shards
        self._options = options
        self._judging = judging
        self._engine = None if engine is None else engine_called(engine)
        self._moving = moving
        self._stdin: bytes | None = None

    def findings(self) -> Iterator[Finding]:
        """What is found about OLD, and about one file after the other."""
        known = None
        if self._old is not None:
            known, warnings = _read_old(self._old, self._names, self._shards, self._options)
            yield from warnings
        for name in self._names:
            yield from self._of_file(name, known)

    def _of_file(self, name: str, known: Placement | None) -> Iterator[Finding]:
        """Of its own, and where that is no error, of the gates."""
        if self._old is None:
            old, draft = None, self._read(name, _hints(name, self._shards, self._options))
        else:
            old, draft = draft_beside(known, self._old, name, self._options, self._read)
        found = findings_of(draft, old, self._engine, has_load=self._judging is not None)
        yield from found
        is_usable = not any(finding.severity == "error" for finding in found)
        if self._judging is not None and self._old is not None and old is not None:
            yield from self._judging.of_placement(self._old, old)
        if self._judging is not None and is_usable:
            yield from self._judging.of_file(draft)
        if self._moving is not None and old is not None and is_usable:
            yield from self._moving.of_file(draft, old)

    def _read(self, name: str, hints: Hints) -> Draft:
        """A file, or what stdin has, which can be read only once."""
        if name != STDIN:
            return read_draft(name, hints)
        if self._stdin is None:
            self._stdin = read_stdin()
        return draft_of_bytes(self._stdin, name, hints)


def _read_old(
    old: str, names: Sequence[str], shards: Shards | None, options: PlacementOptions
) -> tuple[Placement | None, list[Finding]]:
    """OLD, None where it is a map that has to be made for each file; and warnings."""
    known, warnings = read_alone(old, options) if shards is None else read_old(shards, old, names, options)
    if known is not None and shards is not None:
        compare_slots(known.slots_per_rank, Hints(slots_per_rank=shards.slots_per_rank))
    return known, warnings


def _hints(name: str, shards: Shards | None, options: PlacementOptions) -> Hints:
    """For a file alone, or one that has to be the placement of shards."""
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    if shards is None:
        return hints
    if name in NAMED_MAPS:
        return named_hints(shards, name, options)
    layer_ids = np.array(shards.moe_layers, np.int64)
    return replace(hints, layer_ids=layer_ids, slots_per_rank=shards.slots_per_rank)
