"""When numbers are no longer finite: back to the last checkpoint, on with other samples; and when that does not help, the end."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from preprocess.errors import FolioError
from train.config import Config
from train.core.cli import warn
from train.core.distributed import World
from train.data.batches import ValidationWindows
from train.model.base import evaluation_mode
from train.run.checkpoint import Checkpoint, find_newest_checkpoint, restore
from train.run.metrics import Report
from train.run.state import Training, broadcast_state


def refused_too_often(training: Training, refused: int) -> str | None:
    """What is wrong where `refused` updates in a row are so many that training has diverged."""
    return f"{refused} updates in a row were not finite" if refused >= training.most_skipped else None


@torch.no_grad()
def unfit_to_save(
    training: Training, data: ValidationWindows, *, autocast: AbstractContextManager[object], world: World
) -> str | None:
    """What is wrong where the weights give validation windows no finite loss: a last, finite update can have ruined them.

    One window would do; a micro-batch of them is what the model is compiled for.
    """
    loss = 0.0
    if world.is_main:
        _, (ids, targets, documents) = next(data.batches(training.micro_batch or 1))
        with evaluation_mode(training.model), autocast:
            loss = float(training.model(ids, targets, documents)[0])
    return "the loss of a validation window is not finite" if world.all_reduce_max(not math.isfinite(loss)) else None


def roll_back(
    training: Training, config: Config, *, trouble: str, before: int | None, world: World, report: Report
) -> int:
    """Return to the newest checkpoint, but go on with the samples that come next. Returns its step.

    Raises FolioError where there is none, or where it is the one that the run came back to `before`: then it would not help.
    """
    from_step, num_samples, num_skipped = training.step, training.num_samples, training.skipped[1].clone()

    def find() -> Checkpoint:
        checkpoint = find_newest_checkpoint(Path(config.out_dir), warn)
        if checkpoint is not None and checkpoint.step != before:
            return checkpoint
        again = "" if checkpoint is None else f", again since the return to step {before:,}"
        raise FolioError(
            f"{trouble}{again} at step {from_step:,}: training has diverged; "
            f"lower learning_rate (now {config.learning_rate:g}) or raise warmup_steps, and begin again with --restart"
        )

    checkpoint = world.run_on_main(find)
    if checkpoint is not None:
        restore(checkpoint, training)
    broadcast_state(training, world)
    step, left_out = training.step, num_samples - training.num_samples
    training.num_samples = num_samples
    training.skipped[1] = num_skipped
    report.rolled_back(step, from_step=from_step, skipped_samples=left_out)
    report.say(
        f"{trouble}: back from step {from_step:,} to the checkpoint of step {step:,}, without the {left_out:,} samples between"
    )
    return step
