"""Compare the evaluations of several runs, in a table and window by window."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.errors import MisuseError, one_line
from preprocess.terminal import Grid, Line, is_shown, show
from train.core.names import make_run_names, shorten_middle
from train.evaluation.results import SHORT_KEY, EvaluationRow, read_evaluations, read_losses_of_row
from train.run.checkpoint import step_folder
from train.run.console import format_perplexity
from train.run.validation import MIN_STANDARD_ERRORS

MIN_NAME_CHARACTERS = 8  # the last columns are left out before a run's name becomes shorter than this
HEADER = ("run", "step", "val loss", "perplexity", "bits per byte", "parameters")


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run, and the one evaluation of it that is compared."""

    name: str
    folder: Path
    row: EvaluationRow


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs that are compared, and for each but the first a line about its difference from the first."""

    runs: Sequence[ComparedRun]
    differences: Sequence[str]

    def print(self) -> None:
        """Print a table of the runs, and then the differences, as wide as the terminal."""
        width = shutil.get_terminal_size().columns
        entries = [(run.name, run.row) for run in self.runs]
        if is_shown():
            rows = [_list_cells(*entry) for entry in entries]
            show([Grid(header=HEADER, rows=rows), *(Line(text=line) for line in self.differences)])
            return
        lines = format_table(entries, width)
        for line in self.differences:
            lines += textwrap.wrap(line, width, subsequent_indent="  ")
        print("\n".join(lines))


def compare_runs(folders: Sequence[Path], *, best: bool, build_id: str | None) -> Comparison:
    """Return one evaluation per run, and each run's difference from the first.

    Of each run, the newest evaluation of the last evaluated step is compared or, with `best`, the
    one with the lowest loss. Only evaluations on the data `build_id` count; if a run has none,
    those on the data of its newest evaluation. If `build_id` is None, the first run's newest
    evaluation on data that all runs were evaluated on determines it. Lines have at most `width`
    characters. Raises MisuseError if a run has no evaluations or is given twice.
    """
    names, rows_of_runs = make_run_names(folders), [_read_rows(folder) for folder in folders]
    if build_id is None:
        ids_of_runs = [{row.build_id for row in rows} for rows in rows_of_runs]
        candidates = [row.build_id for row in rows_of_runs[0][::-1]]
        build_id = next((i for i in candidates if all(i in ids for ids in ids_of_runs)), None)
    runs = [
        ComparedRun(name=name, folder=folder, row=_choose_row(rows, best=best, build_id=build_id))
        for name, folder, rows in zip(names, folders, rows_of_runs, strict=True)
    ]
    return Comparison(runs=runs, differences=[one_line(_describe_difference(run, runs[0])) for run in runs[1:]])


def check_comparable(run: Path, others: Sequence[Path]) -> None:
    """Raise MisuseError if one of `others` has no evaluations, or if a run is given twice.

    Call this before `run` is evaluated, which may take hours.
    """
    make_run_names([run, *others])
    for other in others:
        _read_rows(other)


def _read_rows(run: Path) -> list[EvaluationRow]:
    if not run.exists():
        raise MisuseError(f"there is no run {run}; name the out_dir of a run, such as runs/demo")
    rows = read_evaluations(run)
    if not rows:
        raise MisuseError(f"{run} has no evaluations; make one: python train/evaluate.py {run}")
    return rows


def _choose_row(rows: Sequence[EvaluationRow], *, best: bool, build_id: str | None) -> EvaluationRow:
    candidates = [row for row in rows if row.build_id == build_id]
    candidates = candidates or [row for row in rows if row.build_id == rows[-1].build_id]
    newest_first = candidates[::-1]  # among equals, min and max return the first
    if best:
        return min(newest_first, key=lambda row: math.inf if row.val_loss is None else row.val_loss)
    return max(newest_first, key=lambda row: row.step)


def format_table(entries: Sequence[tuple[str, EvaluationRow]], width: int) -> list[str]:
    """Return the lines of a table, one per (name, row), each at most `width` characters long.

    Names are shortened to fit; if that is not enough, the last columns are left out.
    """
    cells = [HEADER, *(_list_cells(name, row) for name, row in entries)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    min_name_width = min(widths[0], MIN_NAME_CHARACTERS)
    while len(widths) > 1 and min_name_width + sum(2 + w for w in widths[1:]) > width:
        widths.pop()
    widths[0] = max(min(widths[0], width - sum(2 + w for w in widths[1:])), 1)
    lines = []
    for name, *values in cells:
        aligned = [f"{value:>{w}}" for value, w in zip(values, widths[1:], strict=False)]
        lines.append("  ".join([f"{shorten_middle(name, widths[0]):<{widths[0]}}", *aligned]))
    return lines


def _list_cells(name: str, row: EvaluationRow) -> tuple[str, ...]:
    return (
        name,
        f"{row.step:,}",
        format_loss(row),
        format_perplexity(row.perplexity),
        format_number(row.bits_per_byte, ".4f"),
        f"{row.num_parameters:,}",
    )


def _describe_difference(run: ComparedRun, first: ComparedRun) -> str:
    """Describe the mean difference of the losses over the windows; positive if `run` is worse."""
    label, row, first_row = f"{run.name} − {first.name}", run.row, first.row
    data, first_data = ((r.build_id, r.times_sha256, r.num_windows) for r in (row, first_row))
    is_cut_equally = (row.block_size, row.is_packed) == (first_row.block_size, first_row.is_packed)
    if data != first_data or not is_cut_equally:
        advice = "; if they share a tokenizer, evaluate both with the same --data" if is_cut_equally else ""
        return f"{label}: not evaluated on the same windows ({_format_data(row)}; {_format_data(first_row)}){advice}"
    saved, first_saved = read_losses_of_row(run.folder, row), read_losses_of_row(first.folder, first_row)
    if saved is None or first_saved is None:
        incomplete = [each for each, losses in ((first, first_saved), (run, saved)) if losses is None]
        return f"{label}: {'; '.join(map(_describe_missing, incomplete))}"
    (losses, _), (first_losses, strata) = saved, first_saved
    mean, stderr = strata.mean_and_stderr(losses.double() - first_losses.double())
    if not math.isfinite(mean):
        return f"{label}: n/a"
    windows = f"on the same {row.num_windows:,} windows"
    if stderr is None:
        return f"{label}: {mean:+.4f} nats per token {windows}"
    verdict = "beyond" if abs(mean) > MIN_STANDARD_ERRORS * stderr else "within"
    return f"{label}: {mean:+.4f} ± {stderr:.4f} nats per token {windows}, {verdict} noise"


def _describe_missing(run: ComparedRun) -> str:
    checkpoint = step_folder(run.folder, run.row.step)
    if checkpoint.is_dir():
        advice = f"compute them again: python train/evaluate.py {checkpoint}"
    else:
        advice = "its checkpoint is deleted, evaluate another step"
    return (
        f"the window losses of {run.folder}, step {run.row.step:,} on {run.row.data}, are missing or damaged; {advice}"
    )


def _format_data(row: EvaluationRow) -> str:
    packed = ", packed documents" if row.is_packed else ""
    return f"{row.num_windows:,} of {row.data} {row.build_id[:SHORT_KEY]}, block_size {row.block_size:,}{packed}"


def format_number(value: float | None, format_spec: str) -> str:
    return "n/a" if value is None else f"{value:{format_spec}}"


def format_loss(row: EvaluationRow) -> str:
    """Return the validation loss with its standard error, such as "3.2500 ± 0.0100"."""
    stderr = "" if row.val_loss_stderr is None else f" ± {row.val_loss_stderr:.4f}"
    return format_number(row.val_loss, ".4f") + stderr
