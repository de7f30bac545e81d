"""Train a GPT on a build: `python train/train.py configs/small.py [--key=value ...] [--restart] [--help]`.

The same command continues a run that was interrupted. On CPU it then writes the same losses to the last bit.
Several processes: `torchrun --nproc_per_node=8 train/train.py configs/small.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch reads it: libgomp's threads spin for each other, and where another process wants a core too, they spin in
# its way. On 2 cores: 13,700 tokens/s on an idle machine with either value; beside one busy process 6,900, not 4,100.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")

from command import run_command, warn
from config import Command, Config, load_config, parse_command_line, print_help

if __name__ == "__main__" and {"--help", "-h"} & {*sys.argv}:  # before torch, whose import takes seconds
    sys.exit(run_command(print_help, []))

import torch
from torch import Tensor, nn

from checkpoint import Checkpoint, origin_of, restore, save
from data import Data, Feed, dropout_seed
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
from divergence import go_back, refused_too_often, unfit_to_save
from evaluation import Watch, evaluate
from memory import keep_freed_memory
from optim import schedule_factor, set_learning_rate, update
from preflight import Preflight, is_out_of_memory, preflight, ran_out_of_memory, too_large
from preprocess.errors import FolioError, MisuseError, one_line
from preprocess.shards.files import canonical_json, sha256_bytes
from pretrained import initialize
from run_folder import VOCABULARY_DIR, find_start, forget, is_run, locked, tidy, what_is_finished, write_run
from sample import control_tokens, sample_text
from signals import StopRequest
from state import Training, copy_from_main, new_training
from streams import Source, open_samples, open_source
from trackers import require_trackers, tell_the_rest
from tracking import METRICS_FILE, Report, Work, read_rows

CHECK_INTERVAL = 10  # steps after which the host asks the device at least whether its numbers are still finite
OF_EACH_PROCESS = ("data", "out_dir", "device")  # settings in which processes on several machines may differ


def main(arguments: list[str]) -> int:
    command = parse_command_line(arguments)
    if command.help or command.config_path is None:
        return print_help(arguments)
    config = load_config(command.config_path, command.overrides)
    with joined(by_cuda=config.device != "cpu" and torch.cuda.is_available()) as world:
        device = choose_device(config.device, local_rank=world.local_rank, num_local=world.num_local)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif device.type == "cpu":
            keep_freed_memory()
        precision = choose_precision(config.precision, device)
        set_matmul_precision(precision)
        config = dataclasses.replace(config, device=str(device), precision=precision)
        builds = open_source(config.data, world=world)
        control_tokens(builds.manifest, config)  # for what it refuses: an author of no sample in the build
        data = open_samples(builds, config, device=device, world=world)
        with locked(Path(config.out_dir)) if world.is_main else contextlib.nullcontext():
            return run(command, config, builds, data=data, world=world, device=device)


def run(command: Command, config: Config, builds: Source, *, data: Data, world: World, device: torch.device) -> int:
    """Begin or continue the run that lives in out_dir. Returns the exit status."""
    _require_same(config, builds, world)
    world.by_main(lambda: require_trackers(config.track))
    start = world.by_main(lambda: find_start(config, builds, restart=command.restart, warn=warn))
    finished = what_is_finished(start, config) if start else None
    if world.highest(finished is not None):
        if world.is_main:
            tell_trackers(config, builds)
        print(one_line(finished or ""), end="\n" if finished else "")
        return 0
    if world.is_main:
        for note in builds.notes:
            warn(note)
        print("\n".join(config.lines()), flush=True)
    try:
        # All that can fail is made before anything in out_dir changes.
        training = begin(config, builds, data=data, start=start, world=world, device=device)
        wrapped = world.wrap(training.model, device)
        found = preflight(config, builds, training, data, wrapped=wrapped, world=world)
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise FolioError(too_large(config, device)) from e

    def write() -> None:
        if command.restart:
            forget(Path(config.out_dir))
        tidy(Path(config.out_dir))
        write_run(config, builds)

    world.by_main(write)
    try:
        return train(config, builds, training=training, wrapped=wrapped, data=data, start=start, found=found, world=world)
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise FolioError(ran_out_of_memory(training)) from e


def tell_trackers(config: Config, builds: Source) -> None:
    """Of a run that is finished: what trackers were not told of it."""
    out_dir, say = Path(config.out_dir), functools.partial(print, flush=True)
    rows = read_rows(out_dir / METRICS_FILE)
    for name in tell_the_rest(config.track, out_dir, about=_about(config, builds), rows=rows, say=say, warn=warn):
        say(f"{name} is told what it was not told before")


def _about(config: Config, builds: Source) -> dict[str, Any]:
    """What trackers are told of a run."""
    return {"config": config.as_dict(), "build_id": builds.build_id, "build_name": builds.name}


def _require_same(config: Config, builds: Source, world: World) -> None:
    """Raise MisuseError where processes would train different things."""
    settings = {key: value for key, value in config.as_dict().items() if key not in OF_EACH_PROCESS}
    told = [settings, builds.build_id, torch.__version__]
    if not world.is_same(int(sha256_bytes(canonical_json(told))[:12], 16)):
        raise MisuseError(
            f"process {world.rank} was started with settings, a build or a torch of its own; start all with the same ones "
            f"(here build_id {builds.build_id[:12]}, torch {torch.__version__})"
        )


def begin(config: Config, builds: Source, *, data: Data, start: Checkpoint | None, world: World, device: torch.device) -> Training:
    """Training as the seed makes it, as it was at `start`, or with the weights that `init_from` names; in all processes alike."""
    vocab_size = world.highest(start.vocab_size if start else builds.vocab_size)
    training = new_training(config, vocab_size, device=device)

    def load() -> None:
        if start is not None:
            restore(start, training)
            if config.resume != "auto":  # what was best there is not here
                training.watch = Watch()
            if start.origin.settings["batch_size"] != config.batch_size:
                training.micro_batch = None
        elif config.init_from is not None:
            initialize(training.model, config, builds, warn=warn)

    world.by_main(load)
    copy_from_main(training, world)
    if training.step > 0:
        if training.streams is not None and len(training.streams) != world.size:
            num_then = len(training.streams)
            raise MisuseError(
                f"the run was of {num_then} processes, and a stream cannot be shared anew among {world.size}; continue it with torchrun "
                f"--nproc_per_node={num_then}, or take its weights into another --out_dir, by --init_from"
            )
        data.train.go_to(training.streams[world.rank] if training.streams is not None else None)
    return training


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
            sampling=config.sample_interval is not None and step % config.sample_interval == 0 and not is_last,
            checking=step % CHECK_INTERVAL == 0,
        )


def train(
    config: Config,
    builds: Source,
    *,
    training: Training,
    wrapped: nn.Module,
    data: Data,
    start: Checkpoint | None,
    found: Preflight,
    world: World,
) -> int:
    """From the step that `training` is at to max_steps, or until a signal or patience ends it. Returns the exit status."""
    model, device = training.model, training.device
    autocast = make_autocast(config.precision, device)
    feed = Feed(data.train, windows_per_step=config.windows_per_step, micro_batch=found.micro_batch, world=world)
    work = _work(config, training, world)
    out_dir, last_row = Path(config.out_dir), start.step if start else -1

    def save_everything() -> None:
        state = data.train.state_at(feed.first_sample(training.num_samples, 0))
        training.streams = None if state is None else world.gather(state)
        world.by_main(save_now)

    def save_now() -> None:
        was_there = is_run(out_dir)
        save(training, out_dir, origin=origin_of(config, builds), keep=config.keep_checkpoints)
        if not was_there:
            write_run(config, builds)
            raise FolioError(
                f"{out_dir} was deleted or moved while this run wrote into it; step {training.step:,} is saved there now, "
                "the rows of metrics are lost; run the same command again, it continues from there"
            )

    about = _about(config, builds)
    main_dir = out_dir if world.is_main else None
    with Report(main_dir, step=last_row, max_steps=config.max_steps, work=work, track=config.track, about=about) as report:
        came_back_to: int | None = None
        is_saving = is_stopping = False
        signum = 0
        with StopRequest(training, world) as stop:
            report.say("\n".join(found.lines))
            num_tokens = "no end of" if data.train.num_tokens is None else f"{data.train.num_tokens:,}"
            report.say(f"{builds.name}: {num_tokens} training tokens, {data.val.num_windows:,} validation windows")
            where = f"on {describe_device(device)} in {config.precision}" + (f", {world.size} processes" if world.size > 1 else "")
            where += ", MFU n/a: its peak is not known" if work.peak_flops is None else ""
            report.say(f"{model.num_parameters:,} parameters, {work.tokens_per_step:,} tokens a step, {where}")
            if start is not None:
                report.say(f"continuing after step {start.step:,}, from {start.folder}")
            if training.step > 0 and config.resume != "auto":  # from here on the run stands on its own
                save_everything()
            if training.step == 0:
                with report.evaluating():
                    report.evaluation(0, evaluate(model, data.val, batch_size=found.micro_batch, autocast=autocast, world=world))
            while training.step < config.max_steps and not is_stopping:
                outcome = take_step(training, wrapped, feed, config, autocast=autocast, world=world)
                # The signal is read once: one that comes after this is for the next step. All processes heed one's.
                step, signum = training.step, world.highest(stop.signum)
                is_stopping = bool(signum)
                due = Due.after(step, config, is_stopping=is_stopping)
                is_saving |= due.saving
                if not (is_saving or due.logging or due.evaluating or due.sampling or due.checking):
                    continue
                refused, all_refused = training.skipped.tolist()
                trouble = refused_too_often(training, refused)
                if due.logging and not trouble:
                    values = {"loss": outcome.loss.item(), "grad_norm": outcome.grad_norm.item()}
                    report.training(step, learning_rate=config.learning_rate * outcome.rate, skipped_updates=all_refused, **values)
                if due.evaluating and not trouble:
                    with report.evaluating():
                        evaluation = evaluate(model, data.val, batch_size=found.micro_batch, autocast=autocast, world=world)
                    report.evaluation(step, evaluation)
                    if not math.isfinite(evaluation.loss):
                        trouble = f"the validation loss is {evaluation.loss}"
                    elif refused == 0:
                        # The main process alone watches: what follows from it is the same in all.
                        is_saving |= bool(world.highest(world.is_main and training.watch.see(step, evaluation)))
                        is_stopping |= bool(world.highest(world.is_main and training.watch.is_out_of(config.patience)))
                        is_saving |= is_stopping
                # While updates are refused, the weights may be what is wrong: what is saved then could be no good.
                if is_saving and not trouble and (refused == 0 or step == config.max_steps):
                    with report.pause():
                        trouble = unfit_to_save(training, data.val, autocast=autocast, world=world)
                        if not trouble:
                            report.sync()
                            save_everything()
                            is_saving = False
                if trouble:
                    came_back_to = go_back(training, config, trouble=trouble, before=came_back_to, world=world, report=report)
                    is_saving = False
                elif due.sampling:
                    with report.pause():
                        show_sample(report, training, builds=builds, config=config, world=world)

        report.say(_last_words(training, config, signum=signum, is_saved=not is_saving))
        if signum and training.step < config.max_steps:
            report.stopped()
            return 128 + signum
        report.say(f"evaluations took {report.evaluation_share:.1%} of the time")
        show_sample(report, training, builds=builds, config=config, world=world)
        return 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of a step: loss and gradient norm, () each, still on the device, and the share of the highest learning rate it took."""

    loss: Tensor
    grad_norm: Tensor
    rate: float


def take_step(training: Training, wrapped: nn.Module, feed: Feed, config: Config, *, autocast: torch.autocast, world: World) -> Outcome:
    """The gradients of a step's samples, a micro-batch at a time, then an update, unless a number is not finite.

    Nothing in it waits for the device.
    """
    optimizers, scaler = training.optimizers, training.scaler
    rate = schedule_factor(training.step, config)
    set_learning_rate(optimizers, rate)
    loss = torch.zeros((), device=training.device)  # summed where it is
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
    grad_norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.grad_clip or math.inf)
    is_good = loss.isfinite() & grad_norm.isfinite()
    update(optimizers, is_good)
    scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    training.skipped.copy_(torch.stack([torch.where(is_good, 0, training.skipped[0] + 1), training.skipped[1] + ~is_good]))
    training.step += 1
    training.num_samples += config.windows_per_step
    return Outcome(loss=loss, grad_norm=grad_norm, rate=rate)


def _work(config: Config, training: Training, world: World) -> Work:
    peak = device_peak_flops(training.device, config.precision)
    return Work(
        tokens_per_step=config.windows_per_step * config.block_size,
        flops_per_token=training.model.flops_per_token(),
        peak_flops=None if peak is None else peak * world.size,
        memory_bytes=lambda: peak_memory_bytes(training.device),
    )


def _last_words(training: Training, config: Config, *, signum: int, is_saved: bool) -> str:
    """How the run ended, and what is on the disk."""
    step, watch = training.step, training.watch
    if signum and step < config.max_steps:
        saved = "saved" if is_saved else "the last updates were not finite, so that it was not saved"
        return f"stopped after step {step:,} of {config.max_steps:,}, {saved}; go on with --resume=auto"
    reason = (
        "finished" if step == config.max_steps else f"stopped early, {watch.num_since} evaluations without an improvement beyond noise,"
    )
    refused = int(training.skipped[0])
    left_out = f"; the last {refused:,} updates were not finite and are left out" if refused else ""
    best = "" if watch.best_step is None else f"; the lowest validation loss was {watch.best_loss:.4f}, after step {watch.best_step:,}"
    return f"{reason} after step {step:,}; the model is in {config.out_dir}{left_out}{best}"


def show_sample(report: Report, training: Training, *, builds: Source, config: Config, world: World) -> None:
    """Print a sample, or why there is none: a run that trained well does not fail for it."""
    if not world.is_main:
        return
    try:
        report.sample(training.step, sample_text(training.model, Path(config.out_dir) / VOCABULARY_DIR, builds.manifest, config=config))
    except FolioError as e:
        report.say(f"no sample: {e}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
