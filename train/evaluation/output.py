"""The output of evaluate.py: evaluations as text or as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from preprocess.console import Console
from preprocess.errors import one_line, printable
from preprocess.terminal import Grid, is_shown, show
from train.evaluation.comparison import format_loss, format_number
from train.evaluation.harness.rows import TaskRow, format_rows, list_cells
from train.evaluation.results import EvaluationRow
from train.run.console import format_perplexity


@dataclass(frozen=True, kw_only=True)
class Output:
    """A printer of evaluations: as text, or with `json` as one JSON object per line.

    With `quiet`, it prints only results.
    """

    quiet: bool = False
    json: bool = False

    @functools.cached_property
    def console(self) -> Console:
        """The console that shows the progress, on stderr, because stdout is for the results."""
        return Console("stderr", quiet=self.quiet or self.json)

    def note(self, line: str) -> None:
        """Print a line that is not a result."""
        if not self.quiet and not self.json:
            print(one_line(line), flush=True)

    def json_row(self, row: EvaluationRow) -> None:
        """Print a finished evaluation as JSON, if `json` is set."""
        if self.json:
            print(json.dumps(row.as_dict()), flush=True)

    def losses(self, row: EvaluationRow, note: str = "") -> None:
        """Print the losses of an evaluation as text, followed by `note`, unless `json` is set."""
        if self.json or not row.num_windows:
            return
        columns = (
            f"step {row.step:,}",
            f"val loss {format_loss(row)}",
            f"perplexity {format_perplexity(row.perplexity)}",
            f"bits per byte {format_number(row.bits_per_byte, '.4f')}",
            f"{row.num_windows:,} windows of {row.data}, in {row.precision} on {row.device}",
        )
        print(one_line("  ".join(columns)) + note, flush=True)

    def completions(self, row: EvaluationRow) -> None:
        """Print the prompts and completions of an evaluation as text, unless `json` is set."""
        if self.json:
            return
        for number, each in enumerate(row.completions, start=1):
            print(printable(f"prompt {number}: {each.prompt}\ncompletion {number}: {each.completion}"), flush=True)

    def tasks(self, rows: Sequence[TaskRow]) -> None:
        """Print the results of a checkpoint on tasks: a table, or with `json` one object per line."""
        if self.json:
            for row in rows:
                print(json.dumps(row.as_dict()), flush=True)
            return
        self.note(f"step {rows[0].step:,}, in {rows[0].precision} on {rows[0].device}")
        if is_shown():
            header, *cells = list_cells(rows)
            show([Grid(header=header, rows=cells)])
        else:
            print("\n".join(format_rows(rows)), flush=True)
