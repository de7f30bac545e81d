"""Train a GPT on a build: `python train/train.py configs/small.py [--key=value ...] [--restart] [--help]`.

The same command continues a run that was interrupted. On CPU it then writes the same losses to the last bit.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import torch

from checkpoint import Checkpoint, Origin, Training, remove_leftovers, restore, save
from command import run_command
from config import Config, describe_settings, load_config, parse_command_line
from data import TrainingData, ValidationData, Windows
from device import choose_device, choose_precision, describe_device, make_autocast
from evaluate import evaluate
from model import GPT
from optim import learning_rate_at, make_optimizer, set_learning_rate
from preprocess.errors import FolioError, printable
from preprocess.shards.files import readable_json, write_durable
from preprocess.shards.format import Build
from run_folder import SETTINGS_FILE, find_start, forget, locked
from sample import control_tokens, sample_text
from tracking import Report


def main(arguments: list[str]) -> int:
    command = parse_command_line(arguments)
    if command.help or command.config_path is None:
        print(describe_settings())
        return 0
    config = load_config(command.config_path, command.overrides)

    # Everything that can be wrong is looked at before anything is written.
    device = choose_device(config.device)
    choose_precision(config.precision, device)
    build = Build(config.data)
    for split in ("train", "val"):
        Windows(build, split, block_size=config.block_size)
    control_tokens(build.manifest, config)

    out_dir = Path(config.out_dir)
    with locked(out_dir):
        start = find_start(config, build, restart=command.restart, warn=_warn)
        if start is not None and start.step >= config.max_steps:
            print(
                printable(f"{out_dir} is finished: all {config.max_steps:,} steps are done, nothing is left to do; --restart trains again")
            )
            return 0
        if command.restart:
            forget(out_dir)
        remove_leftovers(out_dir)
        write_durable(out_dir / SETTINGS_FILE, readable_json(config.as_dict()))
        try:
            return train(config, build, device=device, start=start)
        except torch.OutOfMemoryError as e:
            raise FolioError(
                f"the model and a batch of {config.batch_size} × {config.block_size} do not fit the memory of {device}; "
                "halve batch_size and double gradient_accumulation_steps, which changes no step, or take a smaller model"
            ) from e


def train(config: Config, build: Build, *, device: torch.device, start: Checkpoint | None) -> int:
    """From `start`, or from step 0, to max_steps, or to the step in which a signal came. Returns the exit status."""
    out_dir, max_steps, accumulation = Path(config.out_dir), config.max_steps, config.gradient_accumulation_steps
    precision = choose_precision(config.precision, device)
    autocast = make_autocast(precision, device)
    origin = Origin(settings=config.as_dict(), build_id=build.build_id)

    # The first weights are drawn on the CPU, so that they are the same on every device.
    torch.manual_seed(config.seed)
    model = GPT(config, start.vocab_size if start else build.vocab_size).to(device)
    if config.compile:
        model.compile()
    optimizer = make_optimizer(model, config, device=device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    training = Training(model=model, optimizer=optimizer, scaler=scaler, device=device)
    if start is not None:
        restore(start, training)

    train_data, val_data = TrainingData(build, config, device=device), ValidationData(build, config, device=device)
    tokens_per_step = config.batch_size * accumulation * config.block_size
    last_row = start.step if start else -1
    report = Report(out_dir, step=last_row, max_steps=max_steps, tokens_per_step=tokens_per_step)
    with report, StopRequest(training) as stop:
        report.say("\n".join(config.lines()))
        report.say(f"{build.name}: {train_data.num_tokens:,} training tokens, {val_data.num_windows:,} validation windows")
        report.say(f"{model.num_parameters:,} parameters, {tokens_per_step:,} tokens a step, on {describe_device(device)} in {precision}")
        if start is not None:
            report.say(f"continuing after step {start.step:,}, from {start.folder}")
            if config.resume != "auto":  # from another run: now this one stands on its own
                save(training, out_dir, origin=origin, keep=config.keep_checkpoints)
        else:
            with report.pause():
                report.evaluation(0, evaluate(model, val_data, autocast=autocast))

        batch_number = training.step * accumulation
        ids, targets = train_data.batch(batch_number)
        while training.step < max_steps:
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
            is_saving = is_last or is_stopping or step % config.checkpoint_interval == 0
            if is_logging or is_saving:  # a loss that is not finite must neither go on for long nor be saved
                values = {"loss": loss.item(), "grad_norm": grad_norm.item()}
                _require_finite(values, step, config=config, may_overflow=scaler.is_enabled())
            if is_logging:
                report.training(step, learning_rate=learning_rate, **values)
            with report.pause():
                if is_last or step % config.eval_interval == 0:
                    result = evaluate(model, val_data, autocast=autocast)
                    report.evaluation(step, result)
                    _require_finite({"val_loss": result.loss}, step, config=config, may_overflow=False)
                    training.best_val_loss = min(result.loss, training.best_val_loss or math.inf)
                if is_saving:
                    report.sync()
                    folder = save(training, out_dir, origin=origin, keep=config.keep_checkpoints)
                if config.sample_interval and step % config.sample_interval == 0 and not is_last:
                    show_sample(report, model, build=build, config=config)
            if is_stopping:
                break

        if training.step < max_steps:
            report.say(
                f"stopped after step {training.step:,} of {max_steps:,}, saved in {out_dir}; with resume=auto the same command continues"
            )
        else:
            report.say(f"finished after step {training.step:,}; the model is in {folder}")
            show_sample(report, model, build=build, config=config)
        return 128 + stop.signum if stop.signum else 0


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
        os.write(sys.stderr.fileno(), f"\nfinishing step {self._training.step + 1:,}, saving; once more to abort\n".encode())


def show_sample(report: Report, model: GPT, *, build: Build, config: Config) -> None:
    """Print a sample, or why there is none: a run that trained well does not fail for it."""
    try:
        report.say(f"\n{sample_text(model, build, config=config)}\n")
    except FolioError as e:
        report.say(f"no sample: {e}")


def _require_finite(values: dict[str, float], step: int, *, config: Config, may_overflow: bool) -> None:
    """`may_overflow`: fp16 skips an update whose gradients overflow, and goes on with a smaller scale."""
    for name, value in values.items():
        if not math.isfinite(value) and not (name == "grad_norm" and may_overflow):
            raise FolioError(
                f"the {name} is {value} at step {step:,}, wanted a finite number: training has diverged; "
                f"lower learning_rate (now {config.learning_rate:g}) or raise warmup_steps, and begin again with --restart"
            )


def _warn(line: str) -> None:
    print("warning:", printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
