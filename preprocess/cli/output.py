"""Print the results of commands, and define the options --version, --quiet and --json."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, AnyStr

import click

from preprocess import __version__
from preprocess.errors import one_line
from preprocess.terminal import is_shown, show

if TYPE_CHECKING:
    from preprocess.progress import Progress
    from preprocess.terminal import Grid, Line

    Screen = Callable[[], Sequence[Grid | Line]]

ECHOED_PARTS = 1024  # that are written at once

version_option = click.version_option(__version__, prog_name="preprocess")


@dataclass(frozen=True)
class Output:
    """Prints the result of a command as the options --quiet and --json say."""

    quiet: bool
    as_json: bool

    def progress(self) -> Progress:
        """Return a Progress that writes to stderr; with --quiet or --json only warnings."""
        from preprocess.progress import Progress

        return Progress(quiet=self.quiet or self.as_json)

    def write(
        self, result: Any, lines: Iterable[str], screen: Callable[[], Sequence[Grid | Line]] | None = None
    ) -> None:
        """Print `result` as JSON if --json is given, else `lines`.

        A terminal gets what `screen` returns instead of `lines`, unless --quiet is given.
        """
        if self.as_json:
            click.echo(_encode_json(result, indent=2))
        elif screen is not None and not self.quiet and is_shown():
            show(screen())
        else:
            for line in lines:
                click.echo(one_line(line))


def write_json_list(result: dict[str, Any], key: str, items: Iterable[object]) -> None:
    """Print `result` as JSON, with `items` as the list `key` at its end, one in each line.

    There may be a hundred million items, so they are written in parts.
    """
    head = _encode_json({**result, key: []}, indent=2).removesuffix(b"]\n}")
    separators = itertools.chain([b"\n    "], itertools.repeat(b",\n    "))
    lines = (separator + _encode_json(item) for separator, item in zip(separators, items, strict=False))
    echo_parts(itertools.chain([head], lines, [b"\n  ]\n}\n"]))


def echo_parts(parts: Iterable[AnyStr]) -> None:
    """Write `parts` to standard output, many at a time, because each call of `click.echo` flushes it."""
    remaining = iter(parts)
    while some := list(itertools.islice(remaining, ECHOED_PARTS)):
        click.echo(some[0][:0].join(some), nl=False)


def _encode_json(value: Any, *, indent: int | None = None) -> bytes:
    """Return `value` as JSON. It is UTF-8 even if the terminal has another encoding.

    A path may contain bytes that are not UTF-8. Python represents them by surrogates, which are written as
    JSON escapes here.
    """
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --version, --quiet and --json to a command. It gets an `Output` as argument `output`."""

    @functools.wraps(command)
    def run(*, quiet: bool, as_json: bool, **arguments: Any) -> None:
        command(output=Output(quiet, as_json), **arguments)

    run = version_option(run)
    run = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(run)
    return click.option("--quiet", is_flag=True, help="Print only the result and warnings.")(run)


def format_table(rows: Sequence[tuple[str, ...]], *, num_text_columns: int) -> list[str]:
    """Return `rows` as lines with aligned columns.

    The first `num_text_columns` columns are aligned to the left, the others to the right. If the
    last cell of a row is empty, its second cell is a message, which does not widen its column.
    """
    widths = [max(len(row[i]) for row in rows if row[-1] or i == 0) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < num_text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
