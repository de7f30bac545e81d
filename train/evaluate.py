"""How good a run's checkpoints are, on the whole validation split: `python train/evaluate.py RUN [--all] [--questions N] …`.

RUN/evaluations.jsonl                    a row an evaluation, written when it is complete; the same one is never made twice
RUN/evaluations/<step>-<key>.safetensors the loss of each window, by which two runs are compared: `--compare RUN RUN …`
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import dataclasses
import functools
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
from train.evaluation.comparison import check_comparable, compare, format_loss, spell
from train.evaluation.job import Asked, Job, perform, prepare
from train.evaluation.list_checkpoints import checkpoints_of, folder_of, pass_over
from train.evaluation.mlflow_runs import log_evaluation
from train.evaluation.prompts import read_prompts
from train.evaluation.results import Row, append_row, losses_of, read_evaluations
from train.run.checkpoint import CheckpointError
from train.run.metrics import format_perplexity
from train.run.run_dir import EVALUATIONS_DIR, LOCK_FILE
from train.trackers.client import check_trackers

STOPPED = "stopped; what is evaluated is kept, and the same command goes on with the rest"


def evaluate_run(
    run: Path, which: str, asked: Asked, *, device: torch.device, log: Callable[[Path, Row], bool] | None
) -> tuple[Path, Row]:
    """Evaluate the checkpoints of `run` that `which` names, newest, best or all, unless they have been; tell all about it.

    `log` takes each row, of before or of now, somewhere else, and returns whether it was not there yet. Returns the run's folder
    and the last row. Raises MisuseError for what does not fit, FolioError where no checkpoint can be evaluated.
    """
    out_dir, once = folder_of(run), functools.cache(warn)
    # Opened once for all checkpoints: a stream's validation text takes a pass over all of it.
    open_text, open_windows = (
        functools.cache(functools.partial(open_data_source, world=World())),
        functools.cache(functools.partial(_open_windows, device=device)),
    )
    num_new, last = 0, None
    with _alone(out_dir):
        for checkpoint in checkpoints_of(run, which):
            try:
                job = prepare(checkpoint, asked, device=device, open_data_source=open_text, warn=once)
                row, is_new = _evaluate(job, open_windows, out_dir)
            except CheckpointError as e:
                if which != "all" and (checkpoint.folder.exists() or checkpoint.folder == run):
                    raise
                pass_over(e)
                continue
            if log and log(out_dir, row):
                print(f"step {row['step']:,} is logged to MLflow", flush=True)
            num_new, last = num_new + is_new, row
            if which != "all":
                break
    if last is None:
        raise FolioError(f"no checkpoint of {run} can be evaluated; train again, or restore one")
    if not num_new:
        print("nothing was left to evaluate")
    return out_dir, last


def _evaluate(
    job: Job, open_windows: Callable[[DataSource, Config], ValidationWindows], out_dir: Path
) -> tuple[Row, bool]:
    """The row of an evaluation, told, and whether there was anything to do for it."""
    before = next((row for row in read_evaluations(out_dir) if row["key"] == job.key), None)
    if before is not None and losses_of(out_dir, before) is not None:
        _tell(before, "  (evaluated before)")
        return before, False
    if before is not None:
        tell = functools.partial(_tell, more="  (evaluated before; the losses of its windows were missing)")
        perform(dataclasses.replace(job, questions=[]), open_windows(job.source, job.config), out_dir, tell=tell)
        return before, True
    row = perform(job, open_windows(job.source, job.config), out_dir, tell=_tell)
    append_row(out_dir, row)
    for number, each in enumerate(row["answers"], start=1):
        print(printable(f"question {number}: {each['prompt']}\nanswer {number}: {each['answer']}"), flush=True)
    return row, True


def _tell(row: Row, more: str = "") -> None:
    print(one_line(describe(row)) + more, flush=True)


def _open_windows(source: DataSource, config: Config, *, device: torch.device) -> ValidationWindows:
    if isinstance(source, StreamedText):
        print(f"reading {one_line(source.name)} to its end for all of its validation text", flush=True)
    return open_validation(source, config, device=device)


@contextmanager
def _alone(out_dir: Path) -> Iterator[None]:
    """Hold the evaluations of a run for this process; a process that trains in it goes on meanwhile."""
    (out_dir / EVALUATIONS_DIR).mkdir(exist_ok=True)
    try:
        with FileLock(out_dir / EVALUATIONS_DIR / LOCK_FILE, timeout=0):
            yield
    except Timeout as e:
        raise FolioError(f"another process is evaluating {out_dir}; wait until it ends") from e


def describe(row: Row) -> str:
    """An evaluation in a line."""
    texts = [
        f"step {row['step']:,}",
        f"val loss {format_loss(row)}",
        f"perplexity {format_perplexity(row['perplexity'])}",
    ]
    texts += [f"bits per byte {spell(row['bits_per_byte'], '.4f')}"]
    return "  ".join(
        [*texts, f"{row['num_windows']:,} windows of {row['data']}, in {row['precision']} on {row['device']}"]
    )


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    runs: list[Path] = options.compare
    if options.run is None:
        build_id = None if options.data is None else open_data_source(options.data, world=World()).build_id
    else:
        asked = Asked(
            data=options.data,
            num_questions=options.questions or 0,
            prompts=read_prompts(options.prompts) if options.prompts else (),
            completion_tokens=options.tokens,
            temperature=options.temperature or 0.0,
        )
        which = "all" if options.all else "best" if options.best else "newest"
        if runs:  # now, not after an hour
            check_comparable(folder_of(options.run), runs)
        if options.mlflow:
            check_trackers(["mlflow"], named_by="--mlflow")
        log = log_evaluation if options.mlflow else None
        with log_when_stopped(STOPPED):
            out_dir, row = evaluate_run(options.run, which, asked, device=choose_device(options.device), log=log)
        runs, build_id = [out_dir, *runs], row["build_id"]
    if options.compare:
        print(compare(runs, best=options.best, build_id=build_id, width=shutil.get_terminal_size().columns))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python train/evaluate.py",
        description="The loss of a run's checkpoints on the whole validation split; each is evaluated once.",
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="the out_dir of a run, or a checkpoint in it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every checkpoint, not the newest")
    which.add_argument(
        "--best", action="store_true", help="the checkpoint of the lowest validation loss, not the newest"
    )
    parser.add_argument("--data", metavar="DATA", help="other data of the same tokenizer [the run's]")
    asking = parser.add_mutually_exclusive_group()
    asking.add_argument(
        "--questions", type=int, metavar="N", help="have the beginnings of N validation documents continued"
    )
    asking.add_argument(
        "--prompts", type=Path, metavar="FILE", help="have prompts continued, one a line: text, or .jsonl with `prompt`"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="tokens of an answer at most [the run's completion_tokens]"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="of answers; 0 always takes the likeliest token [0]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")
    parser.add_argument("--mlflow", action="store_true", help="log each evaluation to MLflow, once")
    parser.add_argument(
        "--compare", nargs="+", type=Path, default=[], metavar="RUN", help="a table of the evaluations of these and RUN"
    )
    options = parser.parse_args(arguments)
    if options.run is None and not options.compare:
        parser.error("no run is named, wanted RUN, or --compare RUN RUN")
    is_asking = options.questions is not None or options.prompts is not None
    for name in ("all", "questions", "prompts", "mlflow", "tokens", "temperature"):
        if (value := getattr(options, name)) is None or value is False:
            continue
        if options.run is None:
            parser.error(f"--{name} evaluates, and --compare alone does not; name the RUN to evaluate before --compare")
        if name in ("tokens", "temperature") and not is_asking:
            parser.error(f"--{name} is of answers, and nothing is asked; add --questions N or --prompts FILE")
    for name in ("questions", "tokens"):
        if (number := getattr(options, name)) is not None and number < 1:
            parser.error(f"--{name} is {number}, wanted 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
