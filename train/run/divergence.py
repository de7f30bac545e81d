"""Numbers that are not finite: skip updates, roll back to the last checkpoint, or give up.

A single update whose loss or gradient is not finite is skipped on the device. After several in a
row, or if the validation loss is not finite, the run returns to its newest checkpoint. It then
continues with the next samples and does not repeat those after the checkpoint. If training diverges
again from the same checkpoint, the run fails.
"""

from __future__ import annotations

import math

import torch

from preprocess.errors import FolioError
from train.core.cli import warn
from train.model.base import evaluation_mode
from train.run.checkpoint import Checkpoint, find_newest_checkpoint, restore, share_checkpoint
from train.run.context import Run
from train.run.logger import RunLogger
from train.run.state import TrainingState, load_in_all


def find_update_problem(state: TrainingState, num_skipped: int) -> str | None:
    """Return a description of the problem if too many updates in a row were skipped, else None."""
    return f"{num_skipped} updates in a row were not finite" if num_skipped >= state.max_skipped else None


@torch.no_grad()
def find_weights_problem(run: Run, state: TrainingState) -> str | None:
    """Return a description of the problem if the loss of some validation windows is not finite.

    Training samples are used if there are no validation windows. Return None if the loss is finite.
    Even finite updates can lead to such weights. One window would be enough, but the model is
    compiled for a whole micro-batch.
    """
    micro_batch = state.micro_batch or 1
    _, batch = next(run.data.val.batches(micro_batch), (None, None))
    if batch is None:
        batch = run.data.train.trial_batch(micro_batch)
    with evaluation_mode(state.model), run.autocast:
        loss = float(state.model(*batch)[0])
    is_bad = run.world.all_reduce_max(not math.isfinite(loss))
    return "the loss of a window is not finite" if is_bad else None


def roll_back(run: Run, state: TrainingState, logger: RunLogger, *, problem: str, previous_rollback: int | None) -> int:
    """Restore the newest checkpoint, except its position in the samples, and return its step.

    `problem` is the reason, for messages. `previous_rollback` is the step that the last rollback
    returned to, if any. Raises FolioError if there is no checkpoint, or if it is that of
    `previous_rollback`.
    """
    from_step, num_samples, num_skipped = state.step, state.num_samples, state.skipped[1].clone()
    micro_batch, num_threads = state.micro_batch, state.num_threads

    def find_other_checkpoint() -> Checkpoint:
        checkpoint = find_newest_checkpoint(run.out_dir, warn)
        if checkpoint is not None and checkpoint.info.step != previous_rollback:
            return checkpoint
        again = "" if checkpoint is None else f", again since the rollback to step {previous_rollback:,}"
        raise FolioError(
            f"{problem}{again} at step {from_step:,}: training has diverged; lower learning_rate (now "
            f"{run.config.learning_rate:g}) or raise warmup_steps, and start again with --restart"
        )

    checkpoint = run.world.run_on_main(find_other_checkpoint)
    if state.is_sharded:
        checkpoint = share_checkpoint(checkpoint, run.world)

    def load() -> None:
        assert checkpoint is not None
        restore(checkpoint, state)

    load_in_all(run.world, state, load)
    skipped_samples = num_samples - state.num_samples
    state.num_samples, state.micro_batch, state.num_threads = num_samples, micro_batch, num_threads
    state.skipped[1] = num_skipped
    logger.log_rollback(state.step, from_step=from_step, skipped_samples=skipped_samples)
    logger.print(
        f"{problem}: rolled back from step {from_step:,} to the checkpoint of step {state.step:,}, skipping the "
        f"{skipped_samples:,} samples between them"
    )
    return state.step
