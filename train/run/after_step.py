"""What follows an optimizer step: logging, evaluation, a checkpoint, a completion.

The intervals are settings. The host waits for the device only after a step that one of them
selects, and after every CHECK_INTERVAL-th step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from preprocess.console import Activity
from preprocess.errors import FolioError
from preprocess.shards.runs import SETTINGS_FILE, VOCABULARY_DIR, is_run
from train.config import Config
from train.data.batches import Prefetcher
from train.model.sampler import complete
from train.run.context import Run
from train.run.divergence import find_weights_problem
from train.run.logger import RunLogger
from train.run.run_dir import write_run
from train.run.save_checkpoint import origin_of, save
from train.run.state import TrainingState
from train.run.validation import Evaluation, evaluate

CHECK_INTERVAL = 10  # the maximum number of steps between two checks whether the device has skipped updates


@dataclass(frozen=True, kw_only=True)
class Due:
    """What follows a step.

    Except for `log`, it must be the same in all processes, or they would wait for each other
    forever. `log` only reads values, so it may follow the clock of a process.
    """

    log: bool
    evaluate: bool
    save: bool
    complete: bool
    check: bool

    @property
    def anything(self) -> bool:
        return self.log or self.evaluate or self.save or self.complete or self.check


def due_after(step: int, config: Config, *, seconds_since_log: float = 0.0) -> Due:
    """Return what follows optimizer step number `step`, counted from 1.

    If log_interval is in seconds, only a step after which the host waits for the device anyway is
    logged, so that the clock decides neither the speed nor when a run returns to a checkpoint.
    """
    is_last = step == config.max_steps
    if (seconds := config.log_interval_s) is None:
        is_logged = step % int(config.log_interval) == 0
    else:
        is_logged = step % CHECK_INTERVAL == 0 and seconds_since_log >= seconds
    return Due(
        log=is_last or is_logged,
        evaluate=is_last or step % config.eval_interval == 0,
        save=is_last or step % config.checkpoint_interval == 0,
        complete=config.completion_interval is not None and step % config.completion_interval == 0 and not is_last,
        check=step % CHECK_INTERVAL == 0,
    )


def evaluate_and_log(run: Run, state: TrainingState, logger: RunLogger, *, batch_size: int) -> Evaluation:
    """Return the evaluation of the current weights, computed by all processes, and log it."""
    num_windows = -(-run.data.val.num_windows // run.world.size)
    shown = Activity("evaluating", total=num_windows, unit="windows")
    with logger.evaluating(), run.console.show(shown) as activity:
        evaluation = evaluate(
            state.model,
            run.data.val,
            batch_size=batch_size,
            autocast=run.autocast,
            world=run.world,
            count=activity.count,
        )
    logger.log_evaluation(state.step, evaluation)
    return evaluation


def find_evaluation_problem(evaluation: Evaluation) -> str | None:
    """Return a description of the problem if the validation loss is not finite, else None."""
    return None if math.isfinite(evaluation.loss) else f"the validation loss is {evaluation.loss}"


def update_early_stopping(run: Run, state: TrainingState, evaluation: Evaluation) -> tuple[bool, bool]:
    """Record `evaluation`. Return whether it is the best so far, and whether patience is exhausted.

    Only the main process records it; all processes return its answer.
    """
    world, early_stopping = run.world, state.early_stopping
    is_best = world.all_reduce_max(world.is_main and early_stopping.update(state.step, evaluation))
    is_exhausted = world.all_reduce_max(world.is_main and early_stopping.is_exhausted(run.config.patience))
    return bool(is_best), bool(is_exhausted)


def check_and_save(run: Run, state: TrainingState, prefetcher: Prefetcher, logger: RunLogger) -> str | None:
    """Save a checkpoint and return None, or describe the problem if the weights have no finite loss."""
    with logger.pause(), run.console.activity("saving a checkpoint"):
        problem = find_weights_problem(run, state)
        if not problem:
            logger.sync()
            save_checkpoint(run, state, prefetcher)
    return problem


def save_checkpoint(run: Run, state: TrainingState, prefetcher: Prefetcher) -> None:
    """Save a checkpoint, in the main process or, if the state is sharded, in all processes.

    Raises FolioError if it cannot be written, or if files of the run were deleted meanwhile.
    """
    config, world = run.config, run.world
    resume_state = run.data.train.resume_state(prefetcher.first_sample(state.num_samples, 0))
    state.streams = None if resume_state is None else world.gather(resume_state)
    was_complete = is_run(run.out_dir)  # what the main process finds counts
    save(state, run.out_dir, origin=origin_of(config, run.source), keep=config.keep_checkpoints, world=world)
    world.run_on_main(lambda: _check_run(run, state, was_complete=was_complete))


def _check_run(run: Run, state: TrainingState, *, was_complete: bool) -> None:
    out_dir = run.out_dir
    if not was_complete:
        write_run(run.config, run.source)
        raise FolioError(
            f"{out_dir} was deleted or moved while this run wrote to it, or its {SETTINGS_FILE} or {VOCABULARY_DIR}/ "
            f"was; step {state.step:,} is saved there now, with the settings and the rows of metrics; run the same "
            "command again: it continues from there"
        )


def log_completion(run: Run, state: TrainingState, logger: RunLogger) -> None:
    """Log a completion of the prompt. If it fails, print why; the run continues.

    There is none if the state is sharded, because no process has the whole model.
    """
    if not run.world.is_main or state.is_sharded:
        return
    with logger.pause():
        try:
            with run.console.activity("writing a completion"):
                text = complete(state.model, run.out_dir / VOCABULARY_DIR, run.source.manifest, config=run.config)
            logger.log_completion(state.step, text)
        except FolioError as e:
            logger.print(f"no completion: {e}")
