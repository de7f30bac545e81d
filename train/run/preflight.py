"""What is found out in seconds before a run that takes hours: whether it can end well, what a step needs, how long all will take."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from preprocess.errors import FolioError
from train.config import Config
from train.core.device import make_autocast
from train.core.distributed import World
from train.core.memory import PeakMemory, available_bytes
from train.data.batches import Batch, Data, TrainingSamples, largest_micro_batch, share_of_step
from train.data.streams import DataSource
from train.model.base import evaluation_mode
from train.optim import update
from train.run.checkpoint import CHECKPOINTS_DIR
from train.run.metrics import format_duration
from train.run.state import Training, training_tensors

# What torch says of memory on the devices that have no error of their own for it.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Storage size calculation overflowed",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# How much of the memory of a CPU to plan with: in glibc's heap, aligned blocks of some megabytes leave holes that the next ones of their
# size do not fit, so that a process takes up to 1.8 times what its tensors do (measured).
USABLE_FRACTION = 0.5
TRIED_TOKENS = 1024
SLOW_TRIAL_S = 20.0  # a first trial that takes as long is not repeated for a better estimate


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found: how many windows a forward pass can take, and lines that tell what was checked."""

    micro_batch: int
    lines: list[str]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Seconds for a forward and backward pass with an update, for a batch of an evaluation, per window, and what came before both once."""

    pass_s: float
    window_evaluation_s: float
    compilation_s: float


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def preflight(
    config: Config, builds: DataSource, training: Training, data: Data, *, wrapped: nn.Module, world: World
) -> Preflight:
    """Check what can be known before the first step, and try one of `wrapped`, the model as processes share it.

    Leaves `training` as it was, but for `micro_batch`, and the model compiled where the settings ask for it.
    Raises FolioError where the run could not end well, MisuseError where a step cannot be shared out.
    """
    checkpoint_bytes = _checkpoint_bytes(training)
    world.run_on_main(lambda: _check_disk(config, checkpoint_bytes))
    share = share_of_step(config.windows_per_step, world)
    most = -world.all_reduce_max(-windows_that_fit(config, training, data, world=world))
    if config.compile:  # not before: other sizes than those of training would be compiled for
        training.model.compile()
    micro_batch, trial = _fit(config, training, data, share=share, most=most, wrapped=wrapped, world=world)
    evaluation_s = trial.window_evaluation_s * data.val.num_windows / world.size
    lines = [
        builds.describe(),
        _describe_steps(config, data.train),
        f"{config.keep_checkpoints + 1} checkpoints of {checkpoint_bytes / 1e6:,.1f} MB and one in the making fit the disk",
        *_describe_memory(config, training, micro_batch=micro_batch, share=share, world=world),
        *([f"compiled in {trial.compilation_s:.1f} s"] if config.compile else []),
        _describe_time(config, training, step_s=trial.pass_s * (share // micro_batch), evaluation_s=evaluation_s),
    ]
    training.micro_batch = micro_batch
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(training.device)  # the run tells its own
    return Preflight(micro_batch=micro_batch, lines=[f"preflight: {line}" for line in lines])


def _describe_steps(config: Config, data: TrainingSamples) -> str:
    tokens = config.max_steps * config.windows_per_step * config.block_size
    times = "" if data.num_tokens is None else f", {tokens / data.num_tokens:,.2f} times the training tokens"
    warmup = (
        f"the learning rate rises for {config.warmup_steps:,} of them"
        if config.warmup_steps
        else "the learning rate begins at its highest"
    )
    return f"{config.max_steps:,} steps read {tokens:,} tokens{times}; {warmup}"


def _checkpoint_bytes(training: Training) -> int:
    tensors = [*training.model.state_dict().values(), *training_tensors(training).values()]
    return sum(tensor.nbytes for tensor in tensors)


def _check_disk(config: Config, checkpoint_bytes: int) -> None:
    """Raise FolioError unless the last checkpoints, the best, and one that is being written fit beside what is on the disk."""
    folder = _existing(Path(config.out_dir))
    there = sum(file.stat().st_size for file in (Path(config.out_dir) / CHECKPOINTS_DIR).rglob("*") if file.is_file())
    need, free = (config.keep_checkpoints + 2) * checkpoint_bytes - there, shutil.disk_usage(folder).free
    if need > free:
        raise FolioError(
            f"the checkpoints in {config.out_dir} will need {need / 1e6:,.1f} MB more, {free / 1e6:,.1f} MB are free there; "
            f"free some, lower keep_checkpoints (now {config.keep_checkpoints}), or choose another --out_dir"
        )


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _fit(
    config: Config, training: Training, data: Data, *, share: int, most: int, wrapped: nn.Module, world: World
) -> tuple[int, Trial]:
    """The largest micro-batch up to batch_size and `most` that every process has the memory for, halved until it fits, and its trial.

    Where a CPU's memory did not suffice, half of what just fitted: a step later the heap has other holes.
    """
    has_room = True  # as far as is known
    micro_batch = largest_micro_batch(share, min(config.batch_size, most))
    before = training.micro_batch
    if (
        before and before < micro_batch and share % before == 0
    ):  # memory was scarce; with another, dropout would draw other numbers
        micro_batch = before
    while True:
        trial = _try(
            partial(_trial, config, training, data, micro_batch=micro_batch, wrapped=wrapped, world=world), training
        )
        if not world.all_reduce_max(trial is None):
            if has_room or micro_batch == 1 or training.device.type != "cpu":
                break
            has_room = True
        elif micro_batch == 1:
            raise FolioError(too_large(config, training.device))
        else:
            has_room = False
        micro_batch = largest_micro_batch(share, micro_batch // 2)
        if config.compile:
            torch.compiler.reset()  # or the next size would be compiled for any size
    assert trial is not None
    return micro_batch, trial


def windows_that_fit(config: Config, training: Training, data: Data, *, world: World) -> int:
    """How many windows this machine's memory holds a pass of; on a GPU, which can be asked by trying: any number.

    A system that has promised more than it has ends the process that takes it, without a word: so it is not tried.
    """
    if training.device.type == "cuda":
        return config.batch_size
    few = max(TRIED_TOKENS // config.block_size, 1)  # from here on, memory grows evenly with the windows
    peaks = []
    for num_windows in (few, 2 * few):
        with PeakMemory() as memory:
            _pass(config, training, data, training.model, micro_batch=num_windows)
        peaks.append(memory.peak_bytes)
    window_bytes = max((peaks[1] - peaks[0]) // few, 1)
    usable_bytes = available_bytes() * USABLE_FRACTION / world.num_local
    return max(int((usable_bytes - (peaks[0] - few * window_bytes)) // window_bytes), 1)


def too_large(config: Config, device: torch.device) -> str:
    return (
        f"the model and a batch of 1 × {config.block_size:,} do not fit the memory of {device}; "
        "take a smaller model or block_size, or --gradient_checkpointing=true"
    )


def ran_out_of_memory(training: Training) -> str:
    return (
        f"out of memory on {training.device} after step {training.step:,}, with {training.micro_batch or 0:,} windows a forward pass; "
        "run the same command with half the batch_size and twice the gradient_accumulation_steps: it continues from the last checkpoint"
    )


def _try(trial: Callable[[], Trial], training: Training) -> Trial | None:
    """What `trial` returns, or None where memory did not suffice for it."""
    try:
        return trial()
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
    # Outside of the handler, whose error holds on to the tensors of the trial.
    training.model.zero_grad(set_to_none=True)
    if training.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(training.device)
    return None


def _trial(
    config: Config, training: Training, data: Data, *, micro_batch: int, wrapped: nn.Module, world: World
) -> Trial:
    """The second time counts: the first also compiles, or finds its kernels."""
    world.set_gradient_sync(
        wrapped, is_last=False
    )  # where one process has too little memory, the others must not wait for it
    numbers, batch = next(data.val.batches(micro_batch, rank=world.rank, num_ranks=world.size), (None, None))
    passes_s: list[float] = []
    evaluations_s: list[float] = []
    for _ in range(2):
        passes_s.append(
            _timed(training.device, lambda: _pass(config, training, data, wrapped, micro_batch=micro_batch))
        )
        evaluations_s.append(
            0.0 if batch is None else _timed(training.device, partial(_evaluate_batch, config, training, batch))
        )
        if passes_s[0] > SLOW_TRIAL_S and not config.compile:
            break
    compilation_s = passes_s[0] - passes_s[-1] + evaluations_s[0] - evaluations_s[-1]
    window_s = evaluations_s[-1] / len(numbers) if numbers is not None else 0.0
    return Trial(pass_s=passes_s[-1], window_evaluation_s=window_s, compilation_s=max(compilation_s, 0.0))


def _pass(config: Config, training: Training, data: Data, wrapped: nn.Module, *, micro_batch: int) -> None:
    """A micro-batch, forward and backward, and an update that is refused, so that it changes nothing."""
    ids, targets, documents = data.train.trial_batch(micro_batch)
    with make_autocast(config.precision, training.device):
        loss, _ = wrapped(ids, targets, documents)
    training.scaler.scale(loss).backward()
    update(training.optimizers, torch.zeros((), dtype=torch.bool, device=training.device))
    training.model.zero_grad(set_to_none=True)


@torch.no_grad()
def _evaluate_batch(config: Config, training: Training, batch: Batch) -> None:
    with evaluation_mode(training.model), make_autocast(config.precision, training.device):
        training.model(*batch)


def _timed(device: torch.device, work: Callable[[], None]) -> float:
    _wait(device)
    began = time.monotonic()
    work()
    _wait(device)
    return time.monotonic() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def _describe_memory(
    config: Config, training: Training, *, micro_batch: int, share: int, world: World
) -> Iterator[str]:
    if micro_batch < largest_micro_batch(share, config.batch_size):
        yield f"memory holds no batch of {config.batch_size:,} windows: they are cut smaller, with the same tokens a step"
    elif micro_batch < min(share, config.batch_size):
        yield f"{share:,} windows cannot be cut evenly into passes of {config.batch_size:,}; a batch_size that divides them is faster"
    where = f" in each of {world.size} processes" if world.size > 1 else ""
    yield f"forward passes a step{where}: {share // micro_batch:,}, of {micro_batch:,} windows"
    if training.device.type == "cuda":
        _, total = torch.cuda.mem_get_info(training.device)
        peak = torch.cuda.max_memory_allocated(training.device)
        yield f"a step needs {peak / 1e9:,.1f} GB of the GPU's {total / 1e9:,.1f} GB"


def _describe_time(config: Config, training: Training, *, step_s: float, evaluation_s: float) -> str:
    steps = config.max_steps - training.step
    # After each eval_interval steps, after the last step, and before the first.
    evaluations = (
        -(-config.max_steps // config.eval_interval) - training.step // config.eval_interval + (training.step == 0)
    )
    total_s = steps * step_s + evaluations * evaluation_s
    return (
        f"about {format_duration(total_s)}: {steps:,} steps of {step_s:.3g} s, "
        f"{evaluations:,} evaluations of {evaluation_s:.3g} s ({evaluations * evaluation_s / max(total_s, 1e-9):.0%} of the time)"
    )
