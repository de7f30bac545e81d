"""Tables with bars on a terminal, for the results of all commands.

Only a terminal gets them: a file or a pipe gets plain lines, which programs read. rich is imported when
something is shown, because a command that shows nothing must not wait for it. Texts are escaped and given
to rich as text without markup, so nothing in a document or a name can be an escape sequence, a style or a
link. NO_COLOR switches the colours off (rich follows no-color.org).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from preprocess.console import is_live
from preprocess.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_BAR_WIDTH = 24  # columns
MAX_MEASURED = 10_000  # columns of the widest table
EIGHTHS = " ▏▎▍▌▋▊▉█"
STRONG, FAINT, BAR = "bold", "dim", "cyan"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table. `bars`: a number for each row, drawn as a bar in a last column if it fits; none if empty."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_text_columns: int = 1  # the first columns, which are aligned to the left
    bars: Sequence[float] = ()
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of text; `style` is STRONG, FAINT or empty."""

    text: str
    style: str = ""


def is_shown() -> bool:
    """Return whether stdout is a terminal, which gets tables instead of plain lines."""
    return is_live(sys.stdout)


def show(blocks: Sequence[Grid | Line]) -> None:
    """Print tables and lines on stdout, as wide as the terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    for number, block in enumerate(blocks):
        if isinstance(block, Line):
            console.print(Text(one_line(block.text), style=block.style))
        elif block.rows:
            if number:
                console.print()
            table = _make_table(block, console)
            wanted = console.measure(table, options=console.options.update(max_width=MAX_MEASURED)).maximum
            is_wide = bool(block.bars) and wanted > console.width
            console.print(_make_table(replace(block, bars=()), console) if is_wide else table)


def _make_table(grid: Grid, console: Console) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    is_ascii = console.options.ascii_only
    title = Text(one_line(grid.title), style=STRONG) if grid.title else None
    table = Table(
        box=box.ASCII2 if is_ascii else box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        header_style=STRONG,
        pad_edge=False,
        show_edge=False,
        show_header=any(grid.header),
    )
    for number, name in enumerate(grid.header):
        table.add_column(
            Text(one_line(name)), justify="left" if number < grid.num_text_columns else "right", overflow="fold"
        )
    bars = _draw_bars(grid.bars, is_ascii=is_ascii)
    if bars:
        table.add_column("", style=BAR, no_wrap=True)
    for number, row in enumerate(grid.rows):
        table.add_row(*(Text(one_line(cell)) for cell in row), *(bars[number : number + 1]))
    return table


def _draw_bars(numbers: Sequence[float], *, is_ascii: bool) -> list[str]:
    """Return a bar for each number, the longest of MAX_BAR_WIDTH characters."""
    longest = max(numbers, default=0)
    if longest <= 0:
        return []
    bars = []
    for number in numbers:
        eighths = round(8 * MAX_BAR_WIDTH * number / longest)
        bar = "#" * round(eighths / 8) if is_ascii else EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()
        bars.append(bar or ("" if not number else "|" if is_ascii else EIGHTHS[1]))
    return bars
