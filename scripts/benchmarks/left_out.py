"""A planned rearrangement without some of its steps: what the others cost where nothing gets in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplb_cli.live import Rearrangement
    from eplb_cli.live.rows import LiveRows

Steps = Literal["copies", "scatters"]


def leave_out(planned: Rearrangement, steps: Sequence[Steps]) -> None:
    """Let a rearrangement do no more copies from row to row, or no scatters; its result is wrong then."""
    rows = planned._rows  # noqa: SLF001 - there is no other use for this
    rows._mover = _Without(rows, steps)  # type: ignore[assignment]  # noqa: SLF001 - as above


class _Without:
    """The mover of rows, of which only some steps are asked for."""

    def __init__(self, rows: LiveRows, steps: Sequence[Steps]) -> None:
        self._mover, self._levels, self._steps = rows._mover, rows._levels, steps  # noqa: SLF001 - as above

    def run(self, step: int, *, alone: bool = False) -> None:
        if self._kind(step) not in self._steps:
            self._mover.run(step, alone=alone)

    def _kind(self, step: int) -> str:
        """As `LiveRows` numbers them: copies; then gather, copies, scatter and repeat of each chunk."""
        within = (step - self._levels) % (self._levels + 3)
        if step < self._levels or 0 < within <= self._levels:
            return "copies"
        return "scatters" if within else "gather"
