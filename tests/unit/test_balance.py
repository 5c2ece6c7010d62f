"""How evenly placements spread a load, as values and at 80 columns."""

from __future__ import annotations

import io

import numpy as np
import pytest

from eplb_cli.models.counted import Load
from eplb_cli.render import print_balances
from eplb_cli.report.balance import Balances, balance, balances_json
from tests.support.placements import placement


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def judged(rows, loads, num_ranks=2, name="NEW", layer_ids=None):
    """One placement under a load."""
    load = Load("array", np.array([loads], float), None)
    return balance("load.npy", load, name, placement(rows, num_ranks, len(loads[0]), layer_ids))


def page_of(*placements, stream=None, notes=()):
    """The page, line by line."""
    stream = io.StringIO() if stream is None else stream
    print_balances(Balances("load.npy", "array", notes, placements), stream)
    return stream


def bars_of(page, label):
    """What stands behind each label."""
    lines = page.getvalue().splitlines()
    return [line.removeprefix(label).strip() for line in lines if line.startswith(f"{label}  ")][1:]


def test_numbers_have_six_digits():
    """Thirds are no endless row of them, and a sum that is off in its last digit is not seen."""
    found = balances_json(Balances("l", "array", (), (judged([[0, 1, 1, 1]], [[1, 1]], 4),)))
    (only,) = found["placements"]
    assert only["rank_load"] == [[1, 0.333333, 0.333333, 0.333333]]
    assert (only["max_over_mean"], only["bound"]) == (2, 2)


def test_layers_have_the_numbers_of_the_model():
    """Where the placement knows them."""
    assert judged([[0, 1]], [[1, 1]], layer_ids=[7]).layers == (7,)
    assert judged([[0, 1], [0, 1]], [[1, 1], [1, 2]]).layers == (0, 1)
    assert judged([[0, 1], [0, 1]], [[1, 1], [1, 2]], layer_ids=[5, 9]).worst_layer == 9


def test_further_layers_are_left_out():
    """Unless the load counts them; a placement of such layers alone is judged as it is."""
    both = placement([[0, 1], [0, 1]], 2, 2, [5, 6])
    one, two = np.array([[[1.0, 3]]]), np.array([[[1.0, 3], [2, 2]]])
    assert balance("l", Load("array", one, None), "NEW", both, [6]).layers == (5,)
    assert balance("l", Load("sglang", two, np.array([5, 6])), "NEW", both, [6]).layers == (5, 6)
    assert balance("l", Load("array", two, None), "NEW", both, [5, 6]).layers == (5, 6)
    unnamed = placement([[0, 1], [0, 1]], 2, 2)
    assert balance("l", Load("array", two, None), "NEW", unnamed, [1]).layers == (0, 1)


def test_perfect_balance_has_no_bars():
    """And next to none is shown for what is nearly that."""
    even = page_of(judged([[0, 1], [0, 1]], [[5, 5], [0, 0]]))
    assert bars_of(even, "NEW") == ["····"]
    assert "a full bar is 1.100" in even.getvalue()
    nearly = page_of(judged([[0, 1]], [[101, 100]]))
    assert bars_of(nearly, "NEW") == ["▁▁"]


def test_more_layers_and_ranks_than_columns():
    """Each bar is the highest of some, so that none is lost, and it says so."""
    rows, loads = [list(range(200))] * 150, np.ones((150, 200))
    loads[147, 199] = 100
    page = page_of(judged(rows, loads, 200, "a" * 30 + ".json"))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    words = " ".join(page.getvalue().split())
    assert "nothing is 1, a full bar is 66.890; each is the highest of 3 layers" in words
    assert "a full bar is 66.890 times the mean; each is the highest of 4 ranks" in words
    layers, ranks = (line.split()[-1] for line in lines if line.startswith("…"))
    assert layers == "·" * 49 + "█"
    assert (len(ranks), ranks[-1], set(ranks[:-1])) == (50, "█", {"▁"})


def test_in_ascii():
    """Where the stream has no blocks."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    page_of(judged([[0, 1]], [[3, 1]]), stream=stream)
    text = stream.buffer.getvalue().decode()
    assert "NEW    @@" in text
    assert "bound  @@" in text


def test_names_are_neither_markup_nor_commands():
    """They come from the command line."""
    page = page_of(judged([[0, 1]], [[3, 1]], name="[red]x\x1b[2J"))
    assert "[red]x\\x1b[2J" in page.getvalue()
    assert "\x1b" not in page.getvalue()


def test_nothing_to_judge():
    """No page, and no notes either."""
    assert page_of(notes=("a note",)).getvalue() == ""


def test_pictures_for_a_browser():
    """Lines above their bounds, and cells that are loads over the mean, 0 in a layer without tokens."""
    pytest.importorskip("plotly")
    from eplb_cli.render.html_balance import draw_balance, draw_loads

    rows, loads = [[0, 1], [1, 0]], [[1, 3], [0, 0]]
    both = Balances("l", "array", (), (judged(rows, loads, name="OLD"), judged(rows, loads)))
    lines = {line.name: line.y.tolist() for line in draw_balance(both).data}
    assert lines == {when: [1.5, 1.0] for when in ("before", "bound before", "after", "bound after")}
    cells = draw_loads(both).data
    assert [each.z.tolist() for each in cells] == [[[0.5, 1.5], [0.0, 0.0]]] * 2


def test_a_picture_of_many_ranks():
    """Of so many that each cell is the busiest of some, and their numbers stay."""
    pytest.importorskip("plotly")
    from eplb_cli.render.html_balance import draw_loads

    loads = np.ones((1, 600))
    loads[0, 599] = 100
    wide = judged([list(range(600))], loads, 600)
    figure = draw_loads(Balances("l", "array", (), (wide, wide)))
    assert figure.data[0].z.shape == (1, 200)
    assert figure.data[0].z[0].argmax() == 199
    assert (figure.data[0].dx, figure.layout.xaxis.title.text) == (3, "busiest of 3 ranks, before")
