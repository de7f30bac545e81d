"""Train a GPT on a build: `python train/train.py configs/small.py [--key=value ...] [--restart] [--help]`.

The same command continues a run that was interrupted. On CPU it then writes the same losses to the last bit.
Several processes: `torchrun --nproc_per_node=8 train/train.py configs/small.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import contextlib
import dataclasses
import functools
import os
from typing import Any

# Before torch reads it: libgomp's threads spin for each other, and where another process wants a core too, they spin in
# its way. On 2 cores: 13,700 tokens/s on an idle machine with either value; beside one busy process 6,900, not 4,100.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")

from train.config import Command, Config, load_config, parse_command_line, print_help
from train.core.cli import run_command, warn

if __name__ == "__main__" and {"--help", "-h"} & {*sys.argv}:  # before torch, whose import takes seconds
    sys.exit(run_command(print_help, []))

import torch
from torch import nn

from preprocess.errors import FolioError, MisuseError, one_line
from preprocess.shards.files import canonical_json, sha256_bytes
from train.core.device import (
    choose_device,
    choose_precision,
    describe_device,
    device_peak_flops,
    make_autocast,
    peak_memory_bytes,
    set_matmul_precision,
)
from train.core.distributed import World, init_processes
from train.core.memory import keep_freed_memory
from train.data.batches import Data, Prefetcher
from train.data.streams import DataSource, open_data_source, open_data_splits
from train.model.sampler import control_tokens
from train.run.after_step import Loop, take_step
from train.run.checkpoint import Checkpoint, restore
from train.run.init_from import initialize
from train.run.metrics import METRICS_FILE, Report, Work, read_rows
from train.run.preflight import Preflight, is_out_of_memory, preflight, ran_out_of_memory, too_large
from train.run.run_dir import find_start, forget, locked, tidy, what_is_finished, write_run
from train.run.signals import StopRequest
from train.run.state import Training, broadcast_state, new_training
from train.run.validation import EarlyStopping
from train.trackers.client import check_trackers, tell_the_rest

OF_EACH_PROCESS = ("data", "out_dir", "device")  # settings in which processes on several machines may differ


def main(arguments: list[str]) -> int:
    command = parse_command_line(arguments)
    if command.help or command.config_path is None:
        return print_help(arguments)
    config = load_config(command.config_path, command.overrides)
    with init_processes(by_cuda=config.device != "cpu" and torch.cuda.is_available()) as world:
        device = choose_device(config.device, local_rank=world.local_rank, num_local=world.num_local)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif device.type == "cpu":
            keep_freed_memory()
        precision = choose_precision(config.precision, device)
        set_matmul_precision(precision)
        config = dataclasses.replace(config, device=str(device), precision=precision)
        builds = open_data_source(config.data, world=world)
        control_tokens(builds.manifest, config)  # for what it refuses: an author of no sample in the build
        data = open_data_splits(builds, config, device=device, world=world)
        with locked(Path(config.out_dir)) if world.is_main else contextlib.nullcontext():
            return run(command, config, builds, data=data, world=world, device=device)


def run(command: Command, config: Config, builds: DataSource, *, data: Data, world: World, device: torch.device) -> int:
    """Begin or continue the run that lives in out_dir. Returns the exit status."""
    _check_same(config, builds, world)
    world.run_on_main(lambda: check_trackers(config.track))
    start = world.run_on_main(lambda: find_start(config, builds, restart=command.restart, warn=warn))
    finished = what_is_finished(start, config) if start else None
    if world.all_reduce_max(finished is not None):
        if world.is_main:
            tell_trackers(config, builds)
        print(one_line(finished or ""), end="\n" if finished else "")
        return 0
    try:
        # All that can fail is made before anything in out_dir changes.
        training = begin(config, builds, data=data, start=start, world=world, device=device)
        if world.is_main:
            for note in builds.notes:
                warn(note)
            print("\n".join(config.lines()), flush=True)
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

    world.run_on_main(write)
    try:
        return train(
            config, builds, training=training, wrapped=wrapped, data=data, start=start, found=found, world=world
        )
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise FolioError(ran_out_of_memory(training)) from e


def tell_trackers(config: Config, builds: DataSource) -> None:
    """Of a run that is finished: what trackers were not told of it."""
    out_dir, say = Path(config.out_dir), functools.partial(print, flush=True)
    rows = read_rows(out_dir / METRICS_FILE)
    for name in tell_the_rest(config.track, out_dir, about=_about(config, builds), rows=rows, say=say, warn=warn):
        say(f"{name} is told what it was not told before")


def _about(config: Config, builds: DataSource) -> dict[str, Any]:
    """What trackers are told of a run."""
    return {"config": config.as_dict(), "build_id": builds.build_id, "build_name": builds.name}


def _check_same(config: Config, builds: DataSource, world: World) -> None:
    """Raise MisuseError where processes would train different things."""
    settings = {key: value for key, value in config.as_dict().items() if key not in OF_EACH_PROCESS}
    told = [settings, builds.build_id, torch.__version__]
    if not world.all_equal(int(sha256_bytes(canonical_json(told))[:12], 16)):
        raise MisuseError(
            f"process {world.rank} was started with settings, a build or a torch of its own; start all with the same ones "
            f"(here build_id {builds.build_id[:12]}, torch {torch.__version__})"
        )


def begin(
    config: Config, builds: DataSource, *, data: Data, start: Checkpoint | None, world: World, device: torch.device
) -> Training:
    """Training as the seed makes it, as it was at `start`, or with the weights that `init_from` names; in all processes alike."""
    vocab_size = world.all_reduce_max(start.vocab_size if start else builds.vocab_size)
    training = new_training(config, vocab_size, device=device)

    def load() -> None:
        if start is not None:
            restore(start, training)
            if config.resume != "auto":  # what was best there is not here
                training.early_stopping = EarlyStopping()
            if start.origin.settings["batch_size"] != config.batch_size:
                training.micro_batch = None
        elif config.init_from is not None:
            initialize(training.model, config, builds, warn=warn)

    world.run_on_main(load)
    broadcast_state(training, world)
    if training.step > 0:
        if training.streams is not None and len(training.streams) != world.size:
            num_then = len(training.streams)
            raise MisuseError(
                f"the run was of {num_then} processes, and a stream cannot be shared anew among {world.size}; continue it with torchrun "
                f"--nproc_per_node={num_then}, or take its weights into another --out_dir, by --init_from"
            )
        data.train.go_to(training.streams[world.rank] if training.streams is not None else None)
    return training


def train(
    config: Config,
    builds: DataSource,
    *,
    training: Training,
    wrapped: nn.Module,
    data: Data,
    start: Checkpoint | None,
    found: Preflight,
    world: World,
) -> int:
    """From the step that `training` is at to max_steps, or until a signal or patience ends it. Returns the exit status."""
    autocast = make_autocast(config.precision, training.device)
    prefetcher = Prefetcher(
        data.train, windows_per_step=config.windows_per_step, micro_batch=found.micro_batch, world=world
    )
    work, about = _work(config, training, world), _about(config, builds)
    out_dir = Path(config.out_dir) if world.is_main else None
    first_step, signum = start.step if start else -1, 0
    with Report(
        out_dir, step=first_step, max_steps=config.max_steps, work=work, track=config.track, about=about
    ) as report:
        loop = Loop(
            config,
            builds,
            training=training,
            data=data,
            prefetcher=prefetcher,
            report=report,
            autocast=autocast,
            world=world,
        )
        with StopRequest(training, world) as stop:
            report.say(
                "\n".join(
                    [*found.lines, *_first_words(config, builds, training=training, data=data, work=work, world=world)]
                )
            )
            if start is not None:
                report.say(f"continuing after step {start.step:,}, from {start.folder}")
            if training.step > 0 and config.resume != "auto":  # from here on the run stands on its own
                loop.save_everything()
            if training.step == 0:
                loop.evaluate()
            while training.step < config.max_steps and not loop.is_stopping:
                outcome = take_step(training, wrapped, prefetcher, config, autocast=autocast, world=world)
                # The signal is read once: one that comes after this is for the next step. All processes heed one's.
                signum = world.all_reduce_max(stop.signum)
                loop.follow(outcome, is_stopping=bool(signum))
        report.say(_last_words(training, config, signum=signum, is_saved=not loop.is_saving))
        if signum and training.step < config.max_steps:
            report.stopped()
            return 128 + signum
        report.say(f"evaluations took {report.evaluation_share:.1%} of the time")
        loop.sample()
        return 0


def _first_words(
    config: Config, builds: DataSource, *, training: Training, data: Data, work: Work, world: World
) -> list[str]:
    """What is trained, and on what."""
    num_tokens = "no end of" if data.train.num_tokens is None else f"{data.train.num_tokens:,}"
    where = f"on {describe_device(training.device)} in {config.precision}" + (
        f", {world.size} processes" if world.size > 1 else ""
    )
    where += ", MFU n/a: its peak is not known" if work.peak_flops is None else ""
    return [
        f"{builds.name}: {num_tokens} training tokens, {data.val.num_windows:,} validation windows",
        f"{training.model.num_parameters:,} parameters, {work.tokens_per_step:,} tokens a step, {where}",
    ]


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
    step, watch = training.step, training.early_stopping
    if signum and step < config.max_steps:
        saved = "saved" if is_saved else "the last updates were not finite, so that it was not saved"
        return f"stopped after step {step:,} of {config.max_steps:,}, {saved}; go on with --resume=auto"
    reason = (
        "finished"
        if step == config.max_steps
        else f"stopped early, {watch.num_since} evaluations without an improvement beyond noise,"
    )
    refused = int(training.skipped[0])
    left_out = f"; the last {refused:,} updates were not finite and are left out" if refused else ""
    best = (
        ""
        if watch.best_step is None
        else f"; the lowest validation loss was {watch.best_loss:.4f}, after step {watch.best_step:,}"
    )
    return f"{reason} after step {step:,}; the model is in {config.out_dir}{left_out}{best}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
