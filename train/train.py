"""Train a GPT on a build: `python train/train.py configs/small.py [--key=value ...] [--restart] [--help]`.

The same command continues a run that was interrupted. On CPU it then writes the same losses to the last bit.
Several processes: `torchrun --nproc_per_node=8 train/train.py configs/small.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
from pathlib import Path
from types import FrameType

# Before torch reads it: libgomp's threads spin for each other, and where another process wants a core too, they spin in
# its way. On 2 cores: 13,700 tokens/s on an idle machine with either value; beside one busy process 6,900, not 4,100.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")

from config import Command, Config, describe_settings, load_config, parse_command_line

if __name__ == "__main__" and {"--help", "-h"} & {*sys.argv}:  # before torch, whose import takes seconds
    print(describe_settings())
    sys.exit(0)

import torch

from builds import Builds, open_builds
from checkpoint import Checkpoint, newest, origin_of, restore, save
from command import run_command, warn
from data import Feed, TrainingData, ValidationData, dropout_seed
from device import (
    choose_device,
    choose_precision,
    describe_device,
    device_peak_flops,
    make_autocast,
    peak_memory_bytes,
    set_matmul_precision,
)
from distributed import World, joined
from evaluate import Watch, evaluate
from optim import schedule_factor, set_learning_rate, update
from preflight import Preflight, is_out_of_memory, preflight, too_large
from preprocess.errors import FolioError, one_line
from pretrained import initialize
from run_folder import find_start, forget, locked, tidy, write_run
from sample import control_tokens, sample_text
from state import Training, copy_from_main, new_training
from tracking import Report, Work

CHECK_INTERVAL = 10  # steps after which the host asks the device at least whether its numbers are still finite


def main(arguments: list[str]) -> int:
    command = parse_command_line(arguments)
    if command.help or command.config_path is None:
        print(describe_settings())
        return 0
    config = load_config(command.config_path, command.overrides)
    with joined() as world:
        device = choose_device(config.device, local_rank=world.local_rank, num_local=world.num_local)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        precision = choose_precision(config.precision, device)
        set_matmul_precision(precision)
        config = dataclasses.replace(config, device=str(device), precision=precision)
        builds = open_builds(config.data)
        control_tokens(builds.manifest, config)
        data = TrainingData(builds, config, device=device), ValidationData(builds, config, device=device)
        with locked(Path(config.out_dir)) if world.is_main else contextlib.nullcontext():
            return run(command, config, builds, data=data, world=world, device=device)


def run(
    command: Command, config: Config, builds: Builds, *, data: tuple[TrainingData, ValidationData], world: World, device: torch.device
) -> int:
    """Begin or continue the run that lives in out_dir. Returns the exit status."""
    out_dir = Path(config.out_dir)
    start = find_start(config, builds, restart=command.restart, warn=warn) if world.is_main else None
    if world.highest(_is_finished(start, config)):
        return 0
    try:
        # All that can fail is made before anything in out_dir changes.
        vocab_size = world.highest(start.vocab_size if start else builds.vocab_size)
        training = new_training(config, vocab_size, device=device)
        if start is not None:
            restore(start, training)
            if config.resume != "auto":  # what was best there is not here
                training.watch = Watch()
        elif config.init_from is not None and world.is_main:
            initialize(training.model, config, builds, warn=warn)
        copy_from_main(training, world)
        if config.compile:
            training.model.compile()
        found = preflight(config, builds, training, data, world=world)
        if world.is_main:
            if command.restart:
                forget(out_dir)
            tidy(out_dir)
            write_run(config, builds)
        return train(config, builds, training=training, data=data, start=start, found=found, world=world)
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise FolioError(too_large(config, device)) from e


def _is_finished(start: Checkpoint | None, config: Config) -> bool:
    """Whether nothing is left to do, which is then said."""
    if start is None:
        return False
    if start.step >= config.max_steps:
        print(
            one_line(
                f"{config.out_dir} is finished: all {config.max_steps:,} steps are done, nothing is left to do; --restart trains again"
            )
        )
        return True
    if config.resume == "auto" and config.patience is not None and start.num_since >= config.patience:
        print(
            one_line(
                f"{config.out_dir} stopped early, after step {start.step:,}: {start.num_since} evaluations without an improvement "
                f"beyond noise; a higher --patience goes on, --restart trains again"
            )
        )
        return True
    return False


def train(
    config: Config,
    builds: Builds,
    *,
    training: Training,
    data: tuple[TrainingData, ValidationData],
    start: Checkpoint | None,
    found: Preflight,
    world: World,
) -> int:
    """From the step that `training` is at to max_steps, or until a signal or patience ends it. Returns the exit status."""
    out_dir, max_steps, windows_per_step = Path(config.out_dir), config.max_steps, config.windows_per_step
    model, optimizers, scaler, device = training.model, training.optimizers, training.scaler, training.device
    wrapped = world.wrap(model, device)
    train_data, val_data = data
    autocast = make_autocast(config.precision, device)
    origin = origin_of(config, builds)
    feed = Feed(train_data, windows_per_step=windows_per_step, micro_batch=found.micro_batch, world=world)
    work = _work(config, training, world)
    last_row = start.step if start else -1
    with Report(out_dir if world.is_main else None, step=last_row, max_steps=max_steps, work=work) as report, StopRequest(training) as stop:
        report.say("\n".join([*config.lines(), *found.lines]))
        report.say(f"{builds.name}: {train_data.num_tokens:,} training tokens, {val_data.num_windows:,} validation windows")
        where = f"on {describe_device(device)} in {config.precision}" + (f", {world.size} processes" if world.size > 1 else "")
        where += ", MFU n/a: its peak is not known" if work.peak_flops is None else ""
        report.say(f"{model.num_parameters:,} parameters, {work.tokens_per_step:,} tokens a step, {where}")
        if start is not None:
            report.say(f"continuing after step {start.step:,}, from {start.folder}")
            if config.resume != "auto" and world.is_main:  # from here on the run stands on its own
                save(training, out_dir, origin=origin, keep=config.keep_checkpoints)
        if training.step == 0:
            with report.evaluating():
                report.evaluation(0, evaluate(model, val_data, batch_size=found.micro_batch, autocast=autocast, world=world))

        came_back_to: int | None = None
        is_saving = is_stopping = False
        signum = 0
        while training.step < max_steps and not is_stopping:
            # The step: gradients of its samples, a micro-batch at a time, then an update unless a number is not finite.
            factor = schedule_factor(training.step, config)
            set_learning_rate(optimizers, factor)
            loss = torch.zeros((), device=device)  # summed where it is: reading it would wait for the device
            for micro in range(feed.accumulation):
                first_sample = feed.first_sample(training.num_samples, micro)
                ids, targets, documents = feed.take(first_sample)
                if config.dropout:
                    torch.manual_seed(dropout_seed(config.seed, first_sample))
                world.will_average(wrapped, is_last=micro == feed.accumulation - 1)
                with autocast:
                    micro_loss = wrapped(ids, targets, documents).mean() / feed.accumulation
                scaler.scale(micro_loss).backward()
                loss += micro_loss.detach()
                feed.prepare(feed.first_sample(training.num_samples, micro + 1))  # while the device computes
            loss = world.sum(loss) / world.size
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
            is_good = loss.isfinite() & grad_norm.isfinite()
            update(optimizers, is_good)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            training.skipped.copy_(torch.stack([torch.where(is_good, 0, training.skipped[0] + 1), training.skipped[1] + ~is_good]))
            training.step += 1
            training.num_samples += windows_per_step

            # The signal is read once: one that comes after this is for the next step. All processes heed one's.
            step, is_last, signum = training.step, training.step == max_steps, world.highest(stop.signum)
            is_stopping = bool(signum)
            is_logging = is_last or step % config.log_interval == 0
            is_evaluating = is_last or step % config.eval_interval == 0
            is_saving |= is_last or is_stopping or step % config.checkpoint_interval == 0
            if not (is_logging or is_evaluating or is_saving or step % CHECK_INTERVAL == 0):
                continue
            in_a_row, skipped_updates = training.skipped.tolist()
            if in_a_row >= training.most_skipped:
                came_back_to = go_back(training, out_dir, world=world, report=report, before=came_back_to, config=config)
                is_saving = is_stopping
                continue
            if is_logging:
                values = {"loss": loss.item(), "grad_norm": grad_norm.item()}
                report.training(step, learning_rate=config.learning_rate * factor, skipped_updates=skipped_updates, **values)
            if is_evaluating:
                with report.evaluating():
                    evaluation = evaluate(model, val_data, batch_size=found.micro_batch, autocast=autocast, world=world)
                report.evaluation(step, evaluation)
                if is_last and not math.isfinite(evaluation.loss):
                    raise FolioError(diverged(config, step, f"the validation loss is {evaluation.loss}"))
                # The main process alone watches: what follows is the same in all.
                is_saving |= bool(world.highest(world.is_main and training.watch.see(step, evaluation)))
                is_stopping |= bool(world.highest(world.is_main and training.watch.is_out_of(config.patience)))
                is_saving |= is_stopping
            # While updates are refused, the weights may be what is wrong: what is saved then could be no good.
            if is_saving and (in_a_row == 0 or is_last):
                with report.pause():
                    report.sync()
                    if world.is_main:
                        save(training, out_dir, origin=origin, keep=config.keep_checkpoints)
                is_saving = False
            if config.sample_interval and step % config.sample_interval == 0 and not is_last:
                with report.pause():
                    show_sample(report, training, builds=builds, config=config, world=world)

        step, watch = training.step, training.watch
        best = "" if watch.best_step is None else f"; the lowest validation loss was {watch.best_loss:.4f}, after step {watch.best_step:,}"
        if signum and step < max_steps:
            saved = "the last updates were not finite, so that it was not saved" if is_saving else "saved"
            report.say(f"stopped after step {step:,} of {max_steps:,}, {saved}; go on with --resume=auto")
            return 128 + signum
        reason = "finished" if step == max_steps else f"stopped early, {watch.num_since} evaluations without an improvement beyond noise,"
        report.say(f"{reason} after step {step:,}; the model is in {out_dir}{best}")
        report.say(f"evaluations took {report.evaluation_share:.1%} of the time")
        show_sample(report, training, builds=builds, config=config, world=world)
        return 0


def _work(config: Config, training: Training, world: World) -> Work:
    peak = device_peak_flops(training.device, config.precision)
    return Work(
        tokens_per_step=config.windows_per_step * config.block_size,
        flops_per_token=training.model.flops_per_token(),
        peak_flops=None if peak is None else peak * world.size,
        memory_bytes=lambda: peak_memory_bytes(training.device),
    )


def go_back(training: Training, out_dir: Path, *, world: World, report: Report, before: int | None, config: Config) -> int:
    """Return to the newest checkpoint, but go on with the samples that come next. Returns its step.

    Raises FolioError where there is none, or where it is the one that the run came back to `before`: then it would not help.
    """
    from_step, num_samples = training.step, training.num_samples
    checkpoint = newest(out_dir, warn) if world.is_main else None
    step = world.highest(-1 if checkpoint is None else checkpoint.step)
    reason = f"{training.most_skipped} updates in a row were not finite"
    if step < 0 or step == before:
        raise FolioError(diverged(config, from_step, reason + ("" if step < 0 else f", again since the return to step {before:,}")))
    if checkpoint is not None:
        restore(checkpoint, training)
    copy_from_main(training, world)
    skipped_samples = num_samples - training.num_samples
    training.num_samples = num_samples
    report.went_back(step, from_step=from_step, skipped_samples=skipped_samples)
    report.say(
        f"{reason}: back from step {from_step:,} to the checkpoint of step {step:,}, without the {skipped_samples:,} samples between"
    )
    return step


def diverged(config: Config, step: int, reason: str) -> str:
    return (
        f"{reason} at step {step:,}: training has diverged; "
        f"lower learning_rate (now {config.learning_rate:g}) or raise warmup_steps, and begin again with --restart"
    )


class StopRequest:
    """Signals while training: the first asks for an end after the step, the second ends the process at once."""

    def __init__(self, training: Training) -> None:
        self.signum = 0
        self._training = training
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        # Not by print: the signal may have come in the middle of one, and a buffered stream cannot be entered twice.
        with contextlib.suppress(OSError):  # `2>&1 | tee` died of the same Ctrl-C
            os.write(2, f"\nfinishing step {self._training.step + 1:,}, saving; once more to abort\n".encode())


def show_sample(report: Report, training: Training, *, builds: Builds, config: Config, world: World) -> None:
    """Print a sample, or why there is none: a run that trained well does not fail for it."""
    if not world.is_main:
        return
    try:
        report.say(f"\n{sample_text(training.model, builds.vocabulary, config=config)}\n")
    except FolioError as e:
        report.say(f"no sample: {e}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
