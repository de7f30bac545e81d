"""Train a GPT on a build: `python train/train.py configs/small.py [--key=value ...] [--restart] [--help]`.

The same command continues a run that was interrupted. On CPU it then writes the same losses to the last bit.
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

import torch

from checkpoint import Checkpoint, Training, restore, save
from command import run_command, warn
from config import Config, describe_settings, load_config, parse_command_line
from data import TrainingData, ValidationData
from device import choose_device, choose_precision, describe_device, make_autocast
from evaluate import evaluate
from model import GPT
from optim import learning_rate_at, make_optimizer, set_learning_rate
from preprocess.errors import FolioError, one_line
from preprocess.shards.files import readable_json, write_durable
from preprocess.shards.format import Build
from run_folder import SETTINGS_FILE, find_start, forget, locked, origin_of, tidy
from sample import control_tokens, sample_text
from tracking import Report

# What torch says of memory on the devices that have no error of their own for it.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
SMALLEST_SCALE = 1e-4  # of fp16's gradient scaler


def main(arguments: list[str]) -> int:
    command = parse_command_line(arguments)
    if command.help or command.config_path is None:
        print(describe_settings())
        return 0
    config = load_config(command.config_path, command.overrides)
    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    config = dataclasses.replace(config, device=str(device), precision=choose_precision(config.precision, device))
    build = Build(config.data)
    data = TrainingData(build, config, device=device), ValidationData(build, config, device=device)
    control_tokens(build.manifest, config)
    out_dir = Path(config.out_dir)
    with locked(out_dir):
        start = find_start(config, build, restart=command.restart, warn=warn)
        if start is not None and start.step >= config.max_steps:
            print(
                one_line(f"{out_dir} is finished: all {config.max_steps:,} steps are done, nothing is left to do; --restart trains again")
            )
            return 0
        try:
            # All that can fail is made before anything in out_dir changes.
            training = set_up(config, build, device=device, start=start)
            data[0].batch(0)
            if command.restart:
                forget(out_dir)
            tidy(out_dir)
            write_durable(out_dir / SETTINGS_FILE, readable_json(config.as_dict()))
            return train(config, build, training=training, data=data, start=start)
        except (MemoryError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and not any(words in str(e) for words in OUT_OF_MEMORY):
                raise
            raise FolioError(
                f"the model and a batch of {config.batch_size:,} × {config.block_size:,} do not fit the memory of {device}; "
                "halve batch_size and double gradient_accumulation_steps, which changes no step, or take a smaller model"
            ) from e


def set_up(config: Config, build: Build, *, device: torch.device, start: Checkpoint | None) -> Training:
    """Model, optimizer and scaler, as the seed makes them or as they were at `start`."""
    # The first weights are drawn on the CPU, so that they are the same on every device.
    torch.manual_seed(config.seed)
    model = GPT(config, start.vocab_size if start else build.vocab_size).to(device)
    if config.compile:
        model.compile()
    optimizer = make_optimizer(model, config, device=device)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    training = Training(model=model, optimizer=optimizer, scaler=scaler, device=device)
    if start is not None:
        restore(start, training)
    return training


def train(config: Config, build: Build, *, training: Training, data: tuple[TrainingData, ValidationData], start: Checkpoint | None) -> int:
    """From the step that `training` is at to max_steps, or to the step in which a signal came. Returns the exit status."""
    out_dir, max_steps, accumulation = Path(config.out_dir), config.max_steps, config.gradient_accumulation_steps
    model, optimizer, scaler, device = training.model, training.optimizer, training.scaler, training.device
    train_data, val_data = data
    autocast = make_autocast(config.precision, device)
    origin = origin_of(config, build)
    tokens_per_step = config.batch_size * accumulation * config.block_size
    last_row = start.step if start else -1
    with Report(out_dir, step=last_row, max_steps=max_steps, tokens_per_step=tokens_per_step) as report:
        with StopRequest(training) as stop:
            report.say("\n".join(config.lines()))
            report.say(f"{build.name}: {train_data.num_tokens:,} training tokens, {val_data.num_windows:,} validation windows")
            where = f"on {describe_device(device)} in {config.precision}"
            report.say(f"{model.num_parameters:,} parameters, {tokens_per_step:,} tokens a step, {where}")
            with report.pause():
                if start is None:
                    report.evaluation(0, evaluate(model, val_data, autocast=autocast))
                else:
                    report.say(f"continuing after step {start.step:,}, from {start.folder}")
                    if config.resume != "auto":  # from here on the run stands on its own
                        save(training, out_dir, origin=origin, keep=config.keep_checkpoints)

            batch_number = training.step * accumulation
            ids, targets = train_data.batch(batch_number)
            is_stopping = False
            while training.step < max_steps and not is_stopping:
                learning_rate = learning_rate_at(training.step, config)
                set_learning_rate(optimizer, learning_rate)
                loss = torch.zeros((), device=device)  # summed where it is: reading it would wait for the device
                for _ in range(accumulation):
                    with autocast:
                        micro_loss = model(ids, targets).mean() / accumulation
                    scaler.scale(micro_loss).backward()
                    loss += micro_loss.detach()
                    batch_number += 1
                    ids, targets = train_data.batch(batch_number)  # prepared while the device computes
                scaler.unscale_(optimizer)
                grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                training.step += 1

                # The signal is read once: one that comes after this is for the next step.
                step, is_last, is_stopping = training.step, training.step == max_steps, bool(stop.signum)
                is_logging = is_last or step % config.log_interval == 0
                is_evaluating = is_last or step % config.eval_interval == 0
                is_saving = is_last or is_stopping or step % config.checkpoint_interval == 0
                if is_logging or is_evaluating or is_saving:  # a loss that is not finite must neither go on for long nor be saved
                    values = {"loss": loss.item(), "grad_norm": grad_norm.item()}
                    _require_finite(values, step, config=config, scaler=scaler)
                if is_logging:
                    report.training(step, learning_rate=learning_rate, **values)
                with report.pause():
                    if is_evaluating:
                        report.evaluation(step, evaluate(model, val_data, autocast=autocast))
                    if is_saving:
                        report.sync()
                        save(training, out_dir, origin=origin, keep=config.keep_checkpoints)
                    if config.sample_interval and step % config.sample_interval == 0 and not is_last:
                        show_sample(report, model, build=build, config=config)

        if training.step < max_steps:
            report.say(f"stopped after step {training.step:,} of {max_steps:,} and saved; go on with --resume=auto")
            return 128 + stop.signum
        report.say(f"finished after step {training.step:,}; the model is in {out_dir}")
        show_sample(report, model, build=build, config=config)
        return 0


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


def show_sample(report: Report, model: GPT, *, build: Build, config: Config) -> None:
    """Print a sample, or why there is none: a run that trained well does not fail for it."""
    try:
        report.say(f"\n{sample_text(model, build, config=config)}\n")
    except FolioError as e:
        report.say(f"no sample: {e}")


def _require_finite(values: dict[str, float], step: int, *, config: Config, scaler: torch.amp.GradScaler) -> None:
    """fp16 skips an update whose gradients overflow, and goes on with a smaller scale, until that is next to nothing."""
    may_overflow = scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE
    for name, value in values.items():
        if not math.isfinite(value) and not (name == "grad_norm" and may_overflow):
            raise FolioError(
                f"the {name} is {value} at step {step:,}, wanted a finite number: training has diverged; "
                f"lower learning_rate (now {config.learning_rate:g}) or raise warmup_steps, and begin again with --restart"
            )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
