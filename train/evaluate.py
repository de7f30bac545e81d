"""Evaluate checkpoints on the whole validation split.

    python train/evaluate.py RUN [--all | --best] [--prompts FILE_OR_N] [--compare RUN …]

By default the newest checkpoint is evaluated. Each evaluation appends a row to
RUN/evaluations.jsonl; if it has a row of the same evaluation already, that row is printed instead.
The losses of the windows are stored in RUN/evaluations/, so that `--compare` can compare runs
window by window.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from filelock import FileLock, Timeout

from preprocess.errors import FolioError, one_line, printable
from train.config import Config
from train.core.cli import Parser, log_when_stopped, run_command, warn
from train.core.device import choose_device
from train.core.distributed import World
from train.data.batches import ValidationWindows
from train.data.streams import DataSource, StreamedText, open_data_source, open_validation
from train.evaluation.comparison import check_comparable, compare_runs, format_loss, format_number
from train.evaluation.job import EvaluationJob, EvaluationSettings, prepare_job, run_job
from train.evaluation.mlflow_runs import log_evaluation
from train.evaluation.prompts import read_prompts
from train.evaluation.results import EvaluationRow, append_evaluation, read_evaluations, read_losses_of_row
from train.evaluation.select_checkpoints import find_run_dir, iter_checkpoints, warn_skipped
from train.run.checkpoint import CheckpointError
from train.run.console import format_perplexity
from train.run.run_dir import EVALUATIONS_DIR, LOCK_FILE
from train.trackers.check import check_trackers

STOPPED = "stopped; the evaluations so far are saved, run the same command again to continue"


def main(arguments: list[str]) -> int:
    """Evaluate or compare the runs that the command line names. Return the exit status."""
    options = _parse(arguments)
    runs: list[Path] = options.compare
    if options.run is None:
        build_id = None if options.data is None else open_data_source(options.data, world=World()).build_id
    else:
        which = "all" if options.all else "best" if options.best else "newest"
        if runs:
            check_comparable(find_run_dir(options.run), runs)
        if options.mlflow:
            check_trackers(["mlflow"], option="--mlflow")
        settings, device = _make_settings(options), choose_device(options.device)
        with log_when_stopped(STOPPED):
            log = log_evaluation if options.mlflow else None
            output = Output(quiet=options.quiet, json=options.json)
            out_dir, row = evaluate_run(options.run, which, settings, device=device, log=log, output=output)
        runs, build_id = [out_dir, *runs], row.build_id
    if options.compare:
        width = shutil.get_terminal_size().columns
        print(compare_runs(runs, best=options.best, build_id=build_id, width=width))
    return 0


def evaluate_run(
    run: Path,
    which: str,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    log: Callable[[Path, EvaluationRow], bool] | None,
    output: Output,
) -> tuple[Path, EvaluationRow]:
    """Evaluate checkpoints of `run` that have not been evaluated yet, and print all results.

    `which` is "newest", "best" or "all". `log` is called with the run directory and each row, old
    or new, and returns whether the row was logged now. Returns the run directory and the last row.
    Raises MisuseError if an argument does not fit, and FolioError if no checkpoint can be evaluated.
    """
    out_dir, warn_once = find_run_dir(run), functools.cache(warn)
    # Opened once for all checkpoints: to find the validation text of a stream, all of the stream
    # has to be read.
    open_source = functools.cache(functools.partial(open_data_source, world=World()))
    open_windows = functools.cache(functools.partial(_open_windows, device=device, output=output))
    num_new, last = 0, None
    with _lock_evaluations(out_dir):
        for checkpoint in iter_checkpoints(run, which):
            try:
                job = prepare_job(checkpoint, settings, device=device, open_data_source=open_source, warn=warn_once)
                row, is_new = _evaluate(job, open_windows, out_dir, output)
            except CheckpointError as e:
                is_deleted = not checkpoint.folder.exists() and checkpoint.folder != run
                if which != "all" and not is_deleted:
                    raise
                warn_skipped(e)
                continue
            if log and log(out_dir, row):
                output.note(f"step {row.step:,} is logged to MLflow")
            num_new, last = num_new + is_new, row
            if which != "all":
                break
    if last is None:
        raise FolioError(f"no checkpoint of {run} can be evaluated; train again, or restore one")
    if not num_new:
        output.note("nothing was left to evaluate")
    return out_dir, last


def _evaluate(
    job: EvaluationJob, open_windows: Callable[[DataSource, Config], ValidationWindows], out_dir: Path, output: Output
) -> tuple[EvaluationRow, bool]:
    """Print the row of an evaluation, and return it and whether something had to be computed."""
    previous = next((row for row in read_evaluations(out_dir) if row.key == job.key), None)
    if previous is not None and read_losses_of_row(out_dir, previous) is not None:
        output.losses(previous, "  (evaluated before)")
        output.json_row(previous)
        return previous, False
    if previous is not None:
        log = functools.partial(output.losses, note="  (evaluated before; the losses of its windows were missing)")
        run_job(dataclasses.replace(job, prompts=[]), open_windows(job.source, job.config), out_dir, log=log)
        output.json_row(previous)
        return previous, True
    row = run_job(job, open_windows(job.source, job.config), out_dir, log=output.losses)
    append_evaluation(out_dir, row)
    output.completions(row)
    output.json_row(row)
    return row, True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Prints evaluations: as text, or with `json` one JSON object per line. With `quiet`, results only."""

    quiet: bool = False
    json: bool = False

    def note(self, line: str) -> None:
        """Print a line that is not a result."""
        if not self.quiet and not self.json:
            print(one_line(line), flush=True)

    def json_row(self, row: EvaluationRow) -> None:
        """Print a finished evaluation as JSON, if that is asked for."""
        if self.json:
            print(json.dumps(row.as_dict()), flush=True)

    def losses(self, row: EvaluationRow, note: str = "") -> None:
        """Print the losses of an evaluation as text."""
        if self.json:
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
        """Print the prompts and completions of an evaluation as text."""
        if self.json:
            return
        for number, each in enumerate(row.completions, start=1):
            print(printable(f"prompt {number}: {each.prompt}\ncompletion {number}: {each.completion}"), flush=True)


def _open_windows(source: DataSource, config: Config, *, device: torch.device, output: Output) -> ValidationWindows:
    if isinstance(source, StreamedText):
        output.note(f"reading all of {source.name} for its validation text")
    return open_validation(source, config, device=device)


@contextmanager
def _lock_evaluations(out_dir: Path) -> Iterator[None]:
    """Let only one process evaluate a run at a time. It may be trained meanwhile."""
    (out_dir / EVALUATIONS_DIR).mkdir(exist_ok=True)
    try:
        with FileLock(out_dir / EVALUATIONS_DIR / LOCK_FILE, timeout=0):
            yield
    except Timeout as e:
        raise FolioError(f"another process is evaluating {out_dir}; wait until it ends") from e


def _make_settings(options: argparse.Namespace) -> EvaluationSettings:
    prompts = "0" if options.prompts is None else options.prompts
    is_count = prompts.isdecimal()
    return EvaluationSettings(
        data=options.data,
        num_prompts=int(prompts) if is_count else 0,
        prompts=() if is_count else read_prompts(Path(prompts)),
        completion_tokens=options.tokens,
        temperature=options.temperature or 0.0,
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python train/evaluate.py",
        description="Compute the loss of a run's checkpoints on the whole validation split; each is evaluated once.",
        json=True,
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="the out_dir of a run, or a checkpoint in it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="evaluate every checkpoint, instead of the newest")
    which.add_argument(
        "--best",
        action="store_true",
        help="evaluate the checkpoint of the lowest validation loss, instead of the newest",
    )
    parser.add_argument("--data", metavar="DATA", help="other data of the same tokenizer [the run's]")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompts",
        metavar="FILE_OR_N",
        help="complete the prompts in a file, one per line (text, or .jsonl with the key `prompt`), or N beginnings of "
        "validation documents",
    )
    prompts.add_argument("--questions", dest="prompts", help=argparse.SUPPRESS)  # an earlier name
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="maximum length of a completion [the run's completion_tokens]"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="of completions; 0 always takes the most likely token [0]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")
    parser.add_argument("--mlflow", action="store_true", help="log each evaluation to MLflow, once")
    parser.add_argument(
        "--compare", nargs="+", type=Path, default=[], metavar="RUN", help="print a table of RUN and these runs"
    )
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    return options


def _check_options(parser: Parser, options: argparse.Namespace) -> None:
    if options.json and options.compare:
        parser.error("--json prints evaluations, and --compare prints a table; leave one of them out")
    if options.run is None and not options.compare:
        parser.error("no run is given, expected RUN, or --compare RUN RUN")
    for name in ("all", "prompts", "mlflow", "tokens", "temperature"):
        if (value := getattr(options, name)) is None or value is False:
            continue
        if options.run is None:
            parser.error(
                f"--{name} needs a run to evaluate, and --compare alone evaluates none; put RUN before --compare"
            )
        if name in ("tokens", "temperature") and options.prompts is None:
            parser.error(
                f"--{name} applies to completions, and there are no prompts; add --prompts FILE or --prompts N"
            )
    for name in ("prompts", "tokens"):
        value = str(getattr(options, name))
        if value.removeprefix("-").isdecimal() and int(value) < 1:
            parser.error(f"--{name} must be at least 1, got {value}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
