"""Who sends how much to whom: one shaded cell for each pair of ranks.

With numbers in the cells while they fit, else with cells of two characters or of one. Without colour
shades take its place, so that the map can be read in a log file or under `NO_COLOR` as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from eplb_cli.render.bars import show_rank_bars
from eplb_cli.render.page import heading
from eplb_cli.render.text import format_bytes, plural
from eplb_cli.report.blocks import block_of, name_of_block, traffic_of_blocks
from eplb_cli.report.report import Report
from eplb_cli.values import dataclass

MAX_NUMBERED = 16
"""Ranks up to which cells have numbers; more of them are a wall of digits, not a map."""

_NUMBER_WIDTH = 6


@dataclass(frozen=True)
class Ink:
    """How the levels of the scale look; level 0 is a pair without traffic.

    Attributes:
        glyphs: one character per level, which fills a cell.
        styles: one per level.
        marked: whether a number needs the glyph beside it to show its level.
    """

    glyphs: str
    styles: tuple[str, ...]
    marked: bool = True

    @property
    def num_levels(self) -> int:
        """Levels above 0."""
        return len(self.glyphs) - 1

    @property
    def numbered_width(self) -> int:
        """Characters of a cell with a number."""
        return _NUMBER_WIDTH + (3 if self.marked else 1)

    def blank(self, level: int, width: int) -> Text:
        """A cell without a number."""
        glyph = self.glyphs[level]
        return Text(glyph * width if level else glyph.rjust(width), self.styles[level])

    def numbered(self, level: int, number: str) -> Text:
        """A cell with a number, which is left out on level 0."""
        if not level:
            return Text(f"{self.glyphs[0]:>{_NUMBER_WIDTH}}".ljust(self.numbered_width), self.styles[0])
        mark = 2 * self.glyphs[level] if self.marked else ""
        return Text(f"{number:>{_NUMBER_WIDTH}} {mark}", self.styles[level])


# From dark to bright in steps that 256 colours can tell apart. Numbers are white on the first two and black
# on the others, by contrast; all by their number in the palette, since "white" is what a theme makes of it.
_STEPS = (54, 61, 31, 37, 77, 185, 229)
_ON_STEPS = tuple(f"color({231 if step in _STEPS[:2] else 16}) on color({step})" for step in _STEPS)

COLOURS = Ink("·" + " " * len(_STEPS), ("dim", *_ON_STEPS), marked=False)
SHADES = Ink("·░▒▓█", ("dim", "", "", "", ""))
PUNCTUATION = Ink(".:+*#", ("dim", "", "", "", ""))


def ink_for(console: Console) -> Ink:
    """Colours where the terminal has enough of them for a scale."""
    if console.color_system in {"256", "truecolor"} and not console.no_color:
        return COLOURS
    return PUNCTUATION if console.options.ascii_only else SHADES


@dataclass(frozen=True)
class HeatMap:
    """A square of cells.

    Attributes:
        amounts: bytes or rows by (old, new), for pairs with traffic.
        size: ranks (or nodes) on each side.
        in_bytes: whether amounts are bytes.
        ink: how cells look.
        cell_width: characters of a cell.
    """

    amounts: dict[tuple[int, int], int]
    size: int
    in_bytes: bool
    ink: Ink
    cell_width: int

    @property
    def label_width(self) -> int:
        """Characters of the largest rank."""
        return len(str(self.size - 1))

    @property
    def width(self) -> int:
        """Characters of a line."""
        return self.label_width + 1 + self.size * self.cell_width

    def lines(self) -> Iterator[Text]:
        """The new ranks, a line for each old rank, and the scale."""
        largest = max(self.amounts.values())
        yield self._labels()
        for old in range(self.size):
            cells = [self._cell(self.amounts.get((old, new), 0), largest) for new in range(self.size)]
            yield Text.assemble((f"{old:>{self.label_width}} ", "dim"), *cells)
        yield self._scale(largest)

    def _labels(self) -> Text:
        """One label every 1, 2, 4, 8 ... cells: as many as have room."""
        width, step = self.cell_width, 1
        while step * width <= self.label_width:
            step *= 2
        indent = _NUMBER_WIDTH if width == self.ink.numbered_width else 0
        labels = [f"{new:>{indent}}".ljust(step * width) for new in range(0, self.size, step)]
        return Text(" " * (self.label_width + 1) + "".join(labels).rstrip(), "dim")

    def _cell(self, amount: int, largest: int) -> Text:
        level = -(-amount * self.ink.num_levels // largest)
        if self.cell_width < self.ink.numbered_width:
            return self.ink.blank(level, self.cell_width)
        number = format_bytes(amount).removesuffix("B").replace(" ", "") if self.in_bytes else str(amount)
        return self.ink.numbered(level, number)

    def _scale(self, largest: int) -> Text:
        swatches = [self.ink.blank(level, 2) for level in range(1, self.ink.num_levels + 1)]
        end = format_bytes(largest) if self.in_bytes else plural(largest, "row")
        steps = f" in {self.ink.num_levels} equal steps up to {end}"
        return Text.assemble("scale: ", self.ink.blank(0, 1), " none, ", *swatches, steps)


def show_traffic(console: Console, report: Report) -> None:
    """Print the map with the widest cells that fit, and bars for the same ranks, nodes or blocks of them.

    Where ranks do not fit it is a map of nodes (of 8 ranks where nothing says), or of so many nodes together
    as it takes.
    """
    in_bytes = report.totals.remote_bytes is not None
    if not any(rows for *_, rows in report.traffic):
        console.print("\nnothing goes from one rank to another")
        return
    if in_bytes and not report.totals.remote_bytes:
        console.print("\nwhat goes from one rank to another has no bytes")
        return
    ink = ink_for(console)
    block = block_of(report, lambda size: _widest_cell(console, size, ink) > 0)
    size = -(-len(report.ranks) // block)
    cell_width = _widest_cell(console, size, ink)
    heat_map = HeatMap(traffic_of_blocks(report, block), size, in_bytes, ink, cell_width)
    of = name_of_block(report, block)
    noun = of.split(maxsplit=1)[0]
    heading(console, f"{'bytes' if in_bytes else 'rows'}, old {of} (down) to new {noun} (across)")
    for line in heat_map.lines():
        console.print(line)
    show_rank_bars(console, report, block=block, of=of)


def _widest_cell(console: Console, size: int, ink: Ink) -> int:
    """The widest cells with which a map of this size fits; 0 where not even one character does."""
    cell_widths = (ink.numbered_width, 2, 1) if size <= MAX_NUMBERED else (2, 1)
    for width in cell_widths:
        if HeatMap({}, size, in_bytes=True, ink=ink, cell_width=width).width <= console.width:
            return width
    return 0
