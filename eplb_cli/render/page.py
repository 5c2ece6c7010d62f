"""The console, and the one kind of table, that all pages share."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb_cli.render.text import printable, write

DEFAULT_WIDTH = 100
"""Columns where there is no terminal and COLUMNS says nothing."""

MIN_WIDTH = 60
"""Columns every page needs; a narrower terminal wraps lines, and nothing is lost."""

_UNLIMITED = 10_000
_RULE = Box(str(SIMPLE_HEAD), ascii=True)  # not quite ASCII, but `write` knows what to say instead


def new_console(stream: TextIO) -> Console:
    """A console that takes strings as they are: no markup, no emoji, no highlighting."""
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    if not stream.isatty():
        columns = os.environ.get("COLUMNS", "")
        console.width = int(columns) if columns.isdigit() else DEFAULT_WIDTH
    console.width = max(console.width, MIN_WIDTH)
    return console


@contextmanager
def page(stream: TextIO) -> Iterator[Console]:
    """A console whose output goes to `stream` at once when the page is complete."""
    console = new_console(stream)
    with console.capture() as capture:
        yield console
    lines = capture.get().split("\n")
    write(stream, "\n".join(line.rstrip() for line in lines))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Text | str]], words: Collection[int] = (0,)
) -> Table:
    """A table without edges.

    Numbers stand to the right and are never cut. The columns in `words` stand to the left and fold where
    the page is too narrow.
    """
    result = Table(box=_RULE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, border_style="dim")
    for i, header in enumerate(headers):
        is_words = i in words
        result.add_column(
            header, justify="left" if is_words else "right", no_wrap=not is_words, overflow="fold"
        )
    for row in rows:
        result.add_row(*row)
    return result


def fits(console: Console, candidate: Table) -> bool:
    """Whether the table can be printed without folding or cutting anything."""
    options = console.options.update(max_width=_UNLIMITED)
    return console.measure(candidate, options=options).maximum <= console.width


def heading(console: Console, text: str) -> None:
    """A blank line, and the title of what follows."""
    console.print()
    console.print(Text(text, style="bold"))


def show_list(console: Console, title: str, items: Iterable[str], style: str = "") -> None:
    """A title and one untrusted item below the other, folded beside its dash; nothing without items."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for item in items:
        grid.add_row("-", Text(printable(item), style))
    if grid.row_count:
        heading(console, title)
        console.print(grid)


def show_pairs(console: Console, pairs: Iterable[tuple[str, object]]) -> None:
    """A name and what belongs to it on each line; both are untrusted and fold."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(printable(name).replace("_", " "), printable(value))
    console.print(grid)
