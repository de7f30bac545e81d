"""Evaluations of several runs in a table, and their difference window by window."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from preprocess.errors import MisuseError, one_line
from train.core.names import names_apart, shorten
from train.evaluation.results import SHORT_KEY, Row, losses_of, read_evaluations
from train.run.checkpoint import step_folder
from train.run.metrics import format_perplexity
from train.run.validation import NOISE

NARROWEST_NAME = 8  # characters of a run's name that a table keeps
HEADER = ("run", "step", "val loss", "perplexity", "bits per byte", "parameters")


def compare(runs: Sequence[Path], *, best: bool, build_id: str | None, width: int) -> str:
    """A table of the newest or best evaluation of each run, and below what each differs by from the first, in lines of at most `width`.

    Of a run that has evaluations on `build_id`, one of these; else one on the data that it was evaluated on last. Where `build_id` is
    None, the data are those that all were evaluated on, of several those of the first run's newest evaluation.
    Raises MisuseError for a run without any, or one that stands twice.
    """
    names, told = names_apart(runs), [_rows(run) for run in runs]
    if build_id is None:
        known = [{row["build_id"] for row in rows} for rows in told]
        build_id = next(
            (row["build_id"] for row in told[0][::-1] if all(row["build_id"] in each for each in known)), None
        )
    rows = [_choose(each, best=best, build_id=build_id) for each in told]
    lines = table(list(zip(names, rows, strict=True)), width)
    for run, name, row in list(zip(runs, names, rows, strict=True))[1:]:
        text = _difference((runs[0], names[0], rows[0]), (run, name, row))
        lines += textwrap.wrap(one_line(text), width, subsequent_indent="  ")
    return "\n".join(lines)


def check_comparable(run: Path, others: Sequence[Path]) -> None:
    """Raise MisuseError where `others` have no evaluations, or `run`, which is to be evaluated, is one of them."""
    names_apart([run, *others])
    for other in others:
        _rows(other)


def _rows(run: Path) -> list[Row]:
    if not run.exists():
        raise MisuseError(f"there is no run {run}; name the out_dir of a run, such as runs/demo")
    rows = read_evaluations(run)
    if not rows:
        raise MisuseError(f"{run} has no evaluations; make one: python train/evaluate.py {run}")
    return rows


def _choose(rows: Sequence[Row], *, best: bool, build_id: str | None) -> Row:
    on_these = [row for row in rows if row["build_id"] == build_id] or [
        row for row in rows if row["build_id"] == rows[-1]["build_id"]
    ]
    latest_first = on_these[::-1]  # of a step that was trained twice, the one that was evaluated last
    if best:
        return min(latest_first, key=lambda row: math.inf if row["val_loss"] is None else row["val_loss"])
    return max(latest_first, key=lambda row: row["step"])


def table(entries: Sequence[tuple[str, Row]], width: int) -> list[str]:
    """Lines of a table, a run each, in at most `width` characters: names are shortened, then the last columns left out."""
    cells = [list(HEADER)] + [
        [name, f"{row['step']:,}", format_loss(row), format_perplexity(row["perplexity"]), spell(row["bits_per_byte"], ".4f"),
         f"{row['num_parameters']:,}"]
        for name, row in entries
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    narrowest = min(widths[0], NARROWEST_NAME)
    while len(widths) > 1 and narrowest + sum(2 + each for each in widths[1:]) > width:
        widths.pop()
    widths[0] = max(min(widths[0], width - sum(2 + each for each in widths[1:])), 1)
    return [
        "  ".join(
            [
                f"{shorten(line[0], widths[0]):<{widths[0]}}",
                *(f"{cell:>{w}}" for cell, w in zip(line[1:], widths[1:], strict=False)),
            ]
        )
        for line in cells
    ]


def _difference(one: tuple[Path, str, Row], other: tuple[Path, str, Row]) -> str:
    """How much higher or lower the loss of `other` is, window by window."""
    (folder, name, row), (other_folder, other_name, other_row) = one, other
    what = f"{other_name} − {name}"
    if any(row[key] != other_row[key] for key in ("build_id", "block_size", "num_windows")):
        cure = (
            "; evaluate both with the same --data, where they share a tokenizer"
            if row["block_size"] == other_row["block_size"]
            else ""
        )
        return f"{what}: not evaluated on the same windows ({_format_windows(other_row)}; {_format_windows(row)}){cure}"
    kept, other_kept = losses_of(folder, row), losses_of(other_folder, other_row)
    if kept is None or other_kept is None:
        lacking = [(folder, row)] if kept is None else []
        lacking += [(other_folder, other_row)] if other_kept is None else []
        return f"{what}: {'; '.join(_format_missing(*each) for each in lacking)}"
    gain, stderr = kept[1].mean_and_stderr(other_kept[0].double() - kept[0].double())
    if not math.isfinite(gain):
        return f"{what}: n/a"
    error = "" if stderr is None else f" ± {stderr:.4f}"
    verdict = "" if stderr is None else ", beyond noise" if abs(gain) > NOISE * stderr else ", within noise"
    return f"{what}: {gain:+.4f}{error} nats a token on the same {row['num_windows']:,} windows{verdict}"


def _format_missing(run: Path, row: Row) -> str:
    checkpoint = step_folder(run, row["step"])
    cure = (
        f"python train/evaluate.py {checkpoint}"
        if checkpoint.is_dir()
        else "evaluate another step, this one's checkpoint is gone"
    )
    return f"the losses of the windows of {run}, step {row['step']:,} on {row['data']}, are missing or damaged; make them again: {cure}"


def _format_windows(row: Row) -> str:
    return f"{row['num_windows']:,} of {row['data']} {row['build_id'][:SHORT_KEY]}, block_size {row['block_size']:,}"


def spell(value: float | None, form: str) -> str:
    return "n/a" if value is None else f"{value:{form}}"


def format_loss(row: Row) -> str:
    return spell(row["val_loss"], ".4f") + (
        "" if row["val_loss_stderr"] is None else f" ± {row['val_loss_stderr']:.4f}"
    )
