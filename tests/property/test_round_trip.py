"""The whole flow in one process: there and back again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.audit.verify import verify
from eplb_cli.placements.own_format import format_placement
from eplb_cli.run.request import Request
from eplb_cli.run.reshard import reshard
from tests.support.checkpoints import Style, assert_tree, write_tree
from tests.support.models import models
from tests.support.pairs import pairs
from tests.support.scratch import scratch


@contextlib.contextmanager
def no_progress(total: int, description: str) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


@st.composite
def checkpoints(draw: st.DrawFn):
    style: Style = draw(st.sampled_from(["stacked", "row", "expert"]))
    pair = draw(pairs(max_layers=2, max_ranks=4, max_slots=3, once_per_rank=style == "expert"))
    return pair, draw(models(pair, style))


@settings(max_examples=60)
@given(checkpoints(), st.integers(1, 3), st.booleans())
def test_there_and_back_gives_the_rows_of_the_beginning(checkpoint, num_parts, named):
    """OLD to NEW, proved; then back with what eplb.json says of OLD; `verify` finds both good."""
    (old, new), model = checkpoint
    with scratch() as path:
        (path / "src").mkdir()
        write_tree(path / "src", model, old, num_parts)
        for name, side in (("old", old), ("new", new)):
            (path / f"{name}.json").write_text(format_placement(side))
        there = Request(
            path / "src",
            path / "there",
            str(path / "new.json"),
            str(path / "old.json"),
            backend="file",
            copy=True,
            durable=False,
        )
        again = dataclasses.replace(
            there,
            source=path / "there",
            destination=path / "back",
            new=str(path / "old.json"),
            old=str(path / "new.json") if named else None,
        )
        for request, side in ((there, new), (again, old)):
            report = reshard(request, no_progress)
            assert report.run is not None
            assert report.run.verified
            filled = int(np.count_nonzero(side.physical_to_logical >= 0))
            assert (report.run.rows_proved, report.run.rows_total) == (filled, filled)
            assert_tree(request.destination, model, side)
            assert verify(request.destination, request.source).rows_proved == filled
        assert sorted(file.name for file in path.iterdir()) == [
            "back",
            "new.json",
            "old.json",
            "src",
            "there",
        ]
