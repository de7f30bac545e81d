"""Evaluate checkpoints on the whole validation split.

    python train/evaluate.py RUN [--all | --best] [--prompts FILE_OR_N] [--compare RUN …]
    python train/evaluate.py RUN [--all | --best] --tasks TASK[,TASK…] [--limit N] [--num-fewshot N]

By default the newest checkpoint is evaluated. Each evaluation appends a row to
RUN/evaluations.jsonl. If the file already has a row of the same evaluation, that row is printed and
nothing is computed. The losses of the windows are stored in RUN/evaluations/, so that `--compare`
can compare runs window by window.

With `--tasks`, the model answers the questions of benchmarks instead; train/evaluation/harness/ has
that.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("evaluate")

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from filelock import FileLock, Timeout

from preprocess.errors import FolioError
from train.config import Config, expand_data
from train.core.arguments import Parser, make_path_parser, parse_number, parse_whole_number
from train.core.cli import log_when_stopped, warn
from train.core.device import choose_device
from train.core.distributed import World
from train.core.paths import parse_path
from train.data.batches import ValidationWindows
from train.data.streams import DataSource, StreamedText, open_data_source, open_validation
from train.evaluation.comparison import check_comparable, compare_runs
from train.evaluation.job import EvaluationJob, EvaluationSettings, prepare_job, run_job
from train.evaluation.mlflow_runs import log_evaluation
from train.evaluation.output import Output
from train.evaluation.prompts import read_prompts
from train.evaluation.results import (
    EvaluationRow,
    append_evaluation,
    append_rows,
    find_last_times,
    read_evaluations,
    read_losses_of_row,
)
from train.evaluation.select_checkpoints import find_run_dir, iter_checkpoints, warn_skipped
from train.run.checkpoint_info import CheckpointError
from train.run.run_dir import EVALUATIONS_DIR, LOCK_FILE, TASKS_FILE
from train.trackers.check import check_trackers

TASK_OPTIONS = {"limit": 1, "num_fewshot": 0, "batch_size": 1}  # name → smallest value
STOPPED = "stopped; the evaluations so far are saved, run the same command again to continue"


def main(arguments: list[str]) -> int:
    """Evaluate or compare the runs that the command line names. Return the exit status."""
    options = _parse(arguments)
    runs: list[Path] = options.compare
    if options.tasks:
        return _evaluate_tasks(options)
    if options.run is None:
        build_id = None if options.data is None else open_data_source(options.data, world=World()).build_id
    else:
        which = "all" if options.all else "best" if options.best else "newest"
        if runs:
            check_comparable(find_run_dir(options.run), runs)
        if options.mlflow:
            check_trackers(["mlflow"], option="--mlflow")
        settings, device = _make_settings(options), choose_device("auto" if options.device is None else options.device)
        with log_when_stopped(STOPPED):
            log = log_evaluation if options.mlflow else None
            output = Output(quiet=options.quiet, json=options.json)
            out_dir, row = evaluate_run(options.run, which, settings, device=device, log=log, output=output)
        runs, build_id = [out_dir, *runs], row.build_id
    if options.compare:
        compare_runs(runs, best=options.best, build_id=build_id).print()
    return 0


def _evaluate_tasks(options: argparse.Namespace) -> int:
    """Evaluate the selected checkpoints on tasks of lm-evaluation-harness, and print and store the results."""
    out_dir = find_run_dir(options.run)
    try:
        from train.evaluation.harness.run import TaskSettings, evaluate_tasks  # takes seconds, and needs an extra
    except ImportError as e:
        raise FolioError(
            f"--tasks needs the library lm-evaluation-harness ({e!s:.120}); pip install 'folio-lm[eval]'"
        ) from e
    settings = TaskSettings(
        names=options.tasks, num_fewshot=options.num_fewshot, limit=options.limit, batch_size=options.batch_size
    )
    device = choose_device("auto" if options.device is None else options.device)
    which = "all" if options.all else "best" if options.best else "newest"
    output = Output(quiet=options.quiet, json=options.json)
    with log_when_stopped(STOPPED), _lock_evaluations(out_dir):
        for rows in evaluate_tasks(options.run, which, settings, device=device, note=output.note):
            append_rows(out_dir / TASKS_FILE, [row.as_dict() for row in rows])
            output.tasks(rows)
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
    """Evaluate the selected checkpoints, except those with a stored result, and print all results.

    `run` is a run directory or a checkpoint in it. `which` is "newest", "best" or "all". `log` is
    called with the run directory and each row, old or new, and returns whether it has logged the
    row now. Returns the run directory and the last row. Raises MisuseError if an argument does not
    fit, and FolioError if no checkpoint can be evaluated.
    """
    out_dir, warn_once = find_run_dir(run), functools.cache(warn)
    # Open the data once for all checkpoints: the whole text of a stream must be read to find its
    # validation text.
    open_source = functools.cache(functools.partial(open_data_source, world=World()))
    open_windows = functools.cache(functools.partial(_open_windows, device=device, output=output))
    num_new, last = 0, None
    with _lock_evaluations(out_dir):
        for checkpoint in iter_checkpoints(run, which):
            try:
                with output.console.activity("opening the data"):
                    job = prepare_job(checkpoint, settings, device=device, open_data_source=open_source, warn=warn_once)
                job = dataclasses.replace(job, console=output.console)
                row, is_new = _evaluate(job, open_windows, out_dir, output)
            except CheckpointError as e:
                if which != "all":
                    raise
                warn_skipped(e)
                continue
            if log and row.num_windows and log(out_dir, row):
                output.note(f"step {row.step:,} is logged to MLflow")
            num_new, last = num_new + is_new, row
    if last is None:
        raise FolioError(f"no checkpoint of {run} can be evaluated; train again, or restore one")
    if not num_new:
        output.note("nothing was left to evaluate")
    return out_dir, last


def _evaluate(
    job: EvaluationJob, open_windows: Callable[[DataSource, Config], ValidationWindows], out_dir: Path, output: Output
) -> tuple[EvaluationRow, bool]:
    """Print the row of an evaluation. Return it, and whether anything had to be computed for it."""

    def run(job: EvaluationJob, known: EvaluationRow | None, note: str = "") -> EvaluationRow:
        log = functools.partial(output.losses, note=note)
        windows = lambda: open_windows(job.open_source(), job.config)  # noqa: E731
        return run_job(job, out_dir, known=known, open_windows=windows, log=log)

    stored = read_evaluations(out_dir)
    if job.is_stream and job.times_sha256 is None:  # without its text, the newest losses count
        job = dataclasses.replace(job, times_sha256=find_last_times(stored, job.loss_inputs))
    rows = [row for row in stored if row.losses_file == job.loss_inputs.losses_file]
    has_losses = bool(rows) and read_losses_of_row(out_dir, rows[0]) is not None
    row = next((row for row in rows if row.key == job.key), None)
    is_new = row is None or not has_losses
    if row is None:
        known = rows[0] if has_losses else _check_data(job)
        row = run(job, known)
        if row.num_windows:
            append_evaluation(out_dir, row)
    elif has_losses:
        output.losses(row, "  (evaluated before)")
    else:
        run(dataclasses.replace(job, prompts=[]), None, "  (evaluated before; the losses of its windows were missing)")
    output.completions(row)
    output.json_row(row)
    return row, is_new


def _check_data(job: EvaluationJob) -> EvaluationRow | None:
    """Return None if the data can be opened, else a row without a loss, for completions only.

    Raises FolioError if the data cannot be opened and there are no prompts to complete.
    """
    try:
        job.open_source()
    except FolioError as e:
        if not job.prompts:
            raise
        warn(f"{e}; the prompts are completed without computing a loss, and nothing is stored")
        return job.make_row_without_loss()
    return None


def _open_windows(source: DataSource, config: Config, *, device: torch.device, output: Output) -> ValidationWindows:
    if isinstance(source, StreamedText):
        output.note(f"reading all of {source.name} for its validation text")
    with output.console.activity("opening the validation text"):
        return open_validation(source, config, device=device)


@contextmanager
def _lock_evaluations(out_dir: Path) -> Iterator[None]:
    """Let only one process at a time evaluate a run. Another process can train the run meanwhile.

    Raises FolioError if another process is evaluating it.
    """
    (out_dir / EVALUATIONS_DIR).mkdir(exist_ok=True)
    try:
        with FileLock(out_dir / EVALUATIONS_DIR / LOCK_FILE, timeout=0):
            yield
    except Timeout as e:
        raise FolioError(f"another process is evaluating {out_dir}; wait until it ends") from e


def _make_settings(options: argparse.Namespace) -> EvaluationSettings:
    prompts: int | Path = options.prompts or 0
    return EvaluationSettings(
        data=options.data,
        num_prompts=prompts if isinstance(prompts, int) else 0,
        prompts=() if isinstance(prompts, int) else read_prompts(prompts),
        completion_tokens=options.tokens,
        temperature=options.temperature or 0.0,
    )


def _parse_prompts(text: str) -> int | Path:
    """Return the number of prompts, or the path of a file of prompts."""
    return parse_whole_number(text) if text.removeprefix("-").isdecimal() else parse_path(text, "--prompts")


def _parse_data(text: str) -> str:
    return expand_data(text, "--data")


def _parse_tasks(text: str) -> tuple[str, ...]:
    """Return the names of tasks, separated by commas. Raises ArgumentTypeError if one is empty."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names of tasks, separated by commas, got {text!r:.80}")
    return names


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python train/evaluate.py",
        description="Compute the loss of a run's checkpoints on the whole validation split; each is evaluated once.",
        json=True,
    )
    run, other_run = make_path_parser("RUN"), make_path_parser("--compare")
    help_of_run = "a run, by its out_dir, or a checkpoint in it"
    parser.add_argument("run", nargs="?", type=run, metavar="RUN", help=help_of_run)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="evaluate every checkpoint, instead of the newest")
    which.add_argument(
        "--best",
        action="store_true",
        help="evaluate the checkpoint with the lowest validation loss, instead of the newest",
    )
    parser.add_argument("--data", type=_parse_data, metavar="DATA", help="data with the same tokenizer [the run's]")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompts",
        type=_parse_prompts,
        metavar="FILE_OR_N",
        help="complete the prompts in a file, one per line (text, or .jsonl with the key `prompt`), or N beginnings of "
        "validation documents",
    )
    prompts.add_argument("--questions", type=_parse_prompts, dest="prompts", help=argparse.SUPPRESS)  # an earlier name
    help_of_tokens = "maximum number of tokens per completion [the run's]"
    parser.add_argument("--tokens", type=parse_whole_number, metavar="N", help=help_of_tokens)
    parser.add_argument(
        "--temperature", type=parse_number, metavar="X", help="of completions; 0 takes the most likely token [0]"
    )
    parser.add_argument("--device", help="auto, cpu, mps, cuda or cuda:N [auto]")
    parser.add_argument("--mlflow", action="store_true", help="log each evaluation to MLflow, once")
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        type=other_run,
        default=[],
        metavar="RUN",
        help="print a table of RUN and these runs",
    )
    add_number = functools.partial(parser.add_argument, type=parse_whole_number, metavar="N")
    parser.add_argument(
        "--tasks",
        type=_parse_tasks,
        metavar="TASK[,TASK...]",
        help="evaluate on tasks of lm-evaluation-harness instead: names such as hellaswag, or paths of .yaml files",
    )
    add_number("--limit", help="maximum number of examples of each task [all]")
    add_number("--num_fewshot", help="number of solved examples before each question [the task's]")
    add_number("--batch_size", help="texts of block_size tokens in a forward pass; of shorter ones, more [the run's]")
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    return options


def _check_options(parser: Parser, options: argparse.Namespace) -> None:
    for name, min_value in TASK_OPTIONS.items():
        value = getattr(options, name)
        if value is not None and not options.tasks:
            parser.error(f"--{name} applies to tasks; add --tasks TASK")
        if value is not None and value < min_value:
            parser.error(f"--{name} must be at least {min_value}, got {value}")
    if options.tasks:
        if options.run is None:
            parser.error("--tasks needs a run to evaluate; put RUN before --tasks")
        for name in ("data", "prompts", "compare", "mlflow", "tokens", "temperature"):
            if getattr(options, name):
                parser.error(f"--{name} cannot be combined with --tasks; run the command twice")
    if options.json and options.compare:
        parser.error("--json prints evaluations, and --compare prints a table; leave one of them out")
    if options.run is None and not options.compare:
        parser.error("no run is given, expected RUN, or --compare RUN RUN")
    for name in ("all", "prompts", "mlflow", "tokens", "temperature", "device"):
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
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
