"""Wall-clock seconds of each stage of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping

from eplb_cli.progress import tell


class Clock:
    """Wall-clock seconds of each stage; `before` are stages that have ended already."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._last = time.perf_counter()
        self._seconds = dict(before or {})

    def lap(self, stage: str) -> None:
        """End a stage, or a further part of it."""
        now = time.perf_counter()
        tell("stage", f"{stage}, {now - self._last:.2f} s")
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return dict(self._seconds)
