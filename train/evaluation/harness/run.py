"""Evaluate checkpoints of a run on tasks of lm-evaluation-harness, and store the results."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from preprocess.errors import FolioError
from train.core.cli import warn
from train.core.device import set_matmul_precision
from train.core.memory import translate_out_of_memory
from train.evaluation.harness.language_model import HarnessModel
from train.evaluation.harness.library import HARNESS_VERSION, LoadedTasks, evaluate_model, load_tasks
from train.evaluation.harness.rows import EvaluatedModel, TaskRow, make_rows
from train.evaluation.job import choose_batch_size, choose_supported_precision
from train.evaluation.select_checkpoints import iter_checkpoints, warn_skipped
from train.run.checkpoint import Checkpoint
from train.run.checkpoint_info import CheckpointError
from train.run.sampling import open_trained_model

REPORT_INTERVAL_S = 30.0


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The settings of an evaluation on tasks. None means the default of the harness or the run."""

    names: tuple[str, ...]  # names of tasks, and paths of YAML files
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int | None = None


def evaluate_tasks(
    run: Path, which: str, settings: TaskSettings, *, device: torch.device, note: Callable[[str], None]
) -> Iterator[list[TaskRow]]:
    """Yield the rows of each selected checkpoint of `run`, as soon as they are computed.

    `which` is "newest", "best" or "all". `note` is called with lines about the progress. Raises the errors
    of `load_tasks`, and FolioError if no checkpoint can be evaluated.
    """
    note = _keep_stdout(note)
    loaded = load_tasks(settings.names, num_fewshot=settings.num_fewshot, note=note)
    has_rows = False
    for checkpoint in iter_checkpoints(run, which):
        try:
            rows = _evaluate(checkpoint, loaded, settings, device=device, note=note)
        except CheckpointError as e:
            if which != "all":
                raise
            warn_skipped(e)
            continue
        has_rows = True
        yield rows
    if not has_rows:
        raise FolioError(f"no checkpoint of {run} can be evaluated; train again, or restore one")


def _evaluate(
    checkpoint: Checkpoint,
    loaded: LoadedTasks,
    settings: TaskSettings,
    *,
    device: torch.device,
    note: Callable[[str], None],
) -> list[TaskRow]:
    saved, info = checkpoint.info.config, checkpoint.info
    precision = choose_supported_precision(saved.precision, device, warn=warn)
    config = dataclasses.replace(saved, device=str(device), precision=precision)
    set_matmul_precision(precision)
    no_memory = f"the model and a single text do not fit the memory of {device}; use another --device"
    with translate_out_of_memory(lambda: no_memory):
        trained = open_trained_model(checkpoint, config)
        batch_size = settings.batch_size or choose_batch_size(info, config)
        model = HarnessModel(trained, batch_size=batch_size, report=_make_report(note))
        results = evaluate_model(model, loaded, limit=settings.limit, warn=warn)
    evaluated = EvaluatedModel(
        step=info.step,
        model_sha256=info.model_sha256,
        block_size=config.block_size,
        precision=precision,
        device=str(device),
    )
    return make_rows(results, evaluated, limit=settings.limit, files=loaded.files, lm_eval_version=HARNESS_VERSION)


def _make_report(note: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return a function that notes the progress every REPORT_INTERVAL_S seconds."""
    last = time.monotonic()

    def report(num_done: int, num_windows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_INTERVAL_S:
            last = time.monotonic()
            note(f"{num_done:,} of {num_windows:,} texts are done")

    return report


def _keep_stdout(note: Callable[[str], None]) -> Callable[[str], None]:
    """Return `note`, printing to what is stdout now, also while the output of the harness is discarded."""
    stdout = sys.stdout

    def keep(line: str) -> None:
        with contextlib.redirect_stdout(stdout):
            note(line)

    return keep
