"""The training loop: a step, and what follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from preprocess.errors import FolioError
from train.config import Config
from train.core.distributed import World
from train.data.batches import Data, Prefetcher, dropout_seed
from train.data.streams import DataSource
from train.model.sampler import sample_text
from train.optim import schedule_factor, set_learning_rate, update
from train.run.checkpoint import origin_of, save
from train.run.divergence import refused_too_often, roll_back, unfit_to_save
from train.run.metrics import Report
from train.run.run_dir import VOCABULARY_DIR, is_run, write_run
from train.run.state import Training
from train.run.validation import Evaluation, evaluate

CHECK_INTERVAL = 10  # steps after which the host asks the device at least whether its numbers are still finite


@dataclass(frozen=True, kw_only=True)
class Due:
    """What a step is followed by: the same in all processes, or they would wait for each other for ever."""

    logging: bool
    evaluating: bool
    saving: bool
    sampling: bool
    checking: bool

    @classmethod
    def after(cls, step: int, config: Config, *, is_stopping: bool) -> Due:
        is_last = step == config.max_steps
        return cls(
            logging=is_last or step % config.log_interval == 0,
            evaluating=is_last or step % config.eval_interval == 0,
            saving=is_last or is_stopping or step % config.checkpoint_interval == 0,
            sampling=config.completion_interval is not None and step % config.completion_interval == 0 and not is_last,
            checking=step % CHECK_INTERVAL == 0,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of a step: loss and gradient norm, () each, still on the device, and the share of the highest learning rate it took."""

    loss: Tensor
    grad_norm: Tensor
    rate: float


def take_step(
    training: Training,
    wrapped: nn.Module,
    prefetcher: Prefetcher,
    config: Config,
    *,
    autocast: torch.autocast,
    world: World,
) -> Outcome:
    """The gradients of a step's samples, a micro-batch at a time, then an update, unless a number is not finite.

    Nothing in it waits for the device.
    """
    optimizers, scaler = training.optimizers, training.scaler
    rate = schedule_factor(training.step, config)
    set_learning_rate(optimizers, rate)
    loss = torch.zeros((), device=training.device)  # summed where it is
    for micro in range(prefetcher.accumulation):
        first_sample = prefetcher.first_sample(training.num_samples, micro)
        ids, targets, documents = prefetcher.take(first_sample)
        if config.dropout:
            torch.manual_seed(dropout_seed(config.seed, first_sample))
        world.set_gradient_sync(wrapped, is_last=micro == prefetcher.accumulation - 1)
        with autocast:
            mean_loss, _ = wrapped(ids, targets, documents)
            micro_loss = mean_loss / prefetcher.accumulation
        scaler.scale(micro_loss).backward()
        loss += micro_loss.detach()
        prefetcher.prepare(prefetcher.first_sample(training.num_samples, micro + 1))  # while the device computes
    loss = world.all_reduce_sum(loss) / world.size
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.grad_clip or math.inf)
    is_good = loss.isfinite() & grad_norm.isfinite()
    update(optimizers, is_good)
    scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    training.skipped.copy_(
        torch.stack([torch.where(is_good, 0, training.skipped[0] + 1), training.skipped[1] + ~is_good])
    )
    training.step += 1
    training.num_samples += config.windows_per_step
    return Outcome(loss=loss, grad_norm=grad_norm, rate=rate)


class Loop:
    """What becomes of a run step by step: rows, evaluations, checkpoints, samples, and the way back where training has diverged."""

    def __init__(
        self,
        config: Config,
        builds: DataSource,
        *,
        training: Training,
        data: Data,
        prefetcher: Prefetcher,
        report: Report,
        autocast: torch.autocast,
        world: World,
    ) -> None:
        self._config, self._builds, self._training, self._data, self._feed = config, builds, training, data, prefetcher
        self._report, self._autocast, self._world = report, autocast, world
        self._came_back_to: int | None = None
        self.is_saving = self.is_stopping = (
            False  # whether a checkpoint is due, now or when one can be; whether this step is the last
        )

    def follow(self, outcome: Outcome, *, is_stopping: bool) -> None:
        """All that is due after a step. Raises FolioError where training has diverged and cannot go back."""
        training, config, step = self._training, self._config, self._training.step
        self.is_stopping = is_stopping
        due = Due.after(step, config, is_stopping=is_stopping)
        self.is_saving |= due.saving
        if not (self.is_saving or due.logging or due.evaluating or due.sampling or due.checking):
            return
        refused, all_refused = training.skipped.tolist()
        trouble = refused_too_often(training, refused)
        if due.logging and not trouble:
            values = {"loss": outcome.loss.item(), "grad_norm": outcome.grad_norm.item()}
            self._report.training(
                step, learning_rate=config.learning_rate * outcome.rate, skipped_updates=all_refused, **values
            )
        if due.evaluating and not trouble:
            trouble = self._watch(is_good=refused == 0)
        # While updates are refused, the weights may be what is wrong: what is saved then could be no good.
        if self.is_saving and not trouble and (refused == 0 or step == config.max_steps):
            trouble = self._save()
        if trouble:
            before, world = self._came_back_to, self._world
            self._came_back_to = roll_back(
                training, config, trouble=trouble, before=before, world=world, report=self._report
            )
            self.is_saving = False
        elif due.sampling:
            self.sample()

    def evaluate(self) -> Evaluation:
        """On all processes, with its row."""
        training = self._training
        with self._report.evaluating():
            size, world = self._feed.micro_batch, self._world
            evaluation = evaluate(training.model, self._data.val, batch_size=size, autocast=self._autocast, world=world)
        self._report.evaluation(training.step, evaluation)
        return evaluation

    def _watch(self, *, is_good: bool) -> str | None:
        """Evaluate; what is best, or was so long ago that patience is out, is to be saved. Returns what is wrong."""
        training, world = self._training, self._world
        evaluation = self.evaluate()
        if not math.isfinite(evaluation.loss):
            return f"the validation loss is {evaluation.loss}"
        if is_good:
            # The main process alone watches: what follows from it is the same in all.
            self.is_saving |= bool(
                world.all_reduce_max(world.is_main and training.early_stopping.see(training.step, evaluation))
            )
            self.is_stopping |= bool(
                world.all_reduce_max(world.is_main and training.early_stopping.is_out_of(self._config.patience))
            )
            self.is_saving |= self.is_stopping
        return None

    def _save(self) -> str | None:
        """Save, unless something is wrong with the weights, which it returns."""
        with self._report.pause():
            trouble = unfit_to_save(self._training, self._data.val, autocast=self._autocast, world=self._world)
            if not trouble:
                self._report.sync()
                self.save_everything()
                self.is_saving = False
        return trouble

    def save_everything(self) -> None:
        """A checkpoint, by the main process. Raises FolioError where the run's folder is not there any more."""
        training, world = self._training, self._world
        state = self._data.train.state_at(self._feed.first_sample(training.num_samples, 0))
        training.streams = None if state is None else world.gather(state)
        world.run_on_main(self._save_now)

    def _save_now(self) -> None:
        config, out_dir = self._config, Path(self._config.out_dir)
        was_there = is_run(out_dir)
        save(self._training, out_dir, origin=origin_of(config, self._builds), keep=config.keep_checkpoints)
        if not was_there:
            write_run(config, self._builds)
            raise FolioError(
                f"{out_dir} was deleted or moved while this run wrote into it; step {self._training.step:,} is saved there now, "
                "the rows of metrics are lost; run the same command again, it continues from there"
            )

    def sample(self) -> None:
        """Print a sample, or why there is none: a run that trained well does not fail for it."""
        if not self._world.is_main:
            return
        training, config, builds = self._training, self._config, self._builds
        with self._report.pause():
            try:
                text = sample_text(
                    training.model, Path(config.out_dir) / VOCABULARY_DIR, builds.manifest, config=config
                )
                self._report.sample(training.step, text)
            except FolioError as e:
                self._report.say(f"no sample: {e}")
