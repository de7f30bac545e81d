"""What is found out in seconds before a run that takes hours: whether it can end well, what a step needs, how long all will take."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from builds import Builds
from checkpoint import CHECKPOINTS_DIR
from config import Config
from data import TrainingData, ValidationData, largest_micro_batch, share_of_step
from device import make_autocast
from distributed import World
from memory import available_bytes, kept_bytes
from optim import update
from preprocess.errors import FolioError
from preprocess.shards.format import SPLITS
from state import Training, training_tensors
from tracking import spell_duration

# What torch says of memory on the devices that have no error of their own for it.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
# What a backward pass takes at its peak, of what the forward pass has kept: it frees from behind while it makes gradients.
BACKWARD_FACTOR = 1.25
SLOW_TRIAL_S = 20.0  # a first trial that takes as long is not repeated for a better estimate


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found: how many windows a forward pass can take, and lines that tell what was checked."""

    micro_batch: int
    lines: list[str]


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY))


def preflight(config: Config, builds: Builds, training: Training, data: tuple[TrainingData, ValidationData], *, world: World) -> Preflight:
    """Check what can be known before the first step, and try one. Leaves `training` as it was.

    Raises FolioError where the run could not end well, MisuseError where a step cannot be shared out.
    """
    checkpoint_bytes = _checkpoint_bytes(training)
    if world.is_main:
        _require_disk(config, checkpoint_bytes)
    share = share_of_step(config.windows_per_step, world)
    micro_batch, micro_s = _fit(config, training, data, share=share, world=world)
    step_s = micro_s * (share // micro_batch)
    evaluation_s = _evaluation_s(config, training, data[1], micro_batch=micro_batch, world=world)
    lines = [
        _describe_builds(builds),
        _describe_steps(config, data[0]),
        f"{config.keep_checkpoints + 1} checkpoints of {checkpoint_bytes / 1e6:,.1f} MB and one in the making fit the disk",
        _describe_memory(config, training, micro_batch=micro_batch, share=share, world=world),
        _describe_time(config, training, step_s=step_s, evaluation_s=evaluation_s),
    ]
    return Preflight(micro_batch=micro_batch, lines=[f"preflight: {line}" for line in lines])


def _describe_builds(builds: Builds) -> str:
    shards = [entry for build in builds.builds for split in SPLITS for entry in build.manifest["splits"][split]["shards"]]
    highest = max((entry["max_id"] for entry in shards), default=-1)  # opening a build has refused one beyond its vocabulary
    return f"{builds.name}: {len(shards):,} shards are there in full size, the highest id is {highest:,} of {builds.vocab_size:,}"


def _describe_steps(config: Config, data: TrainingData) -> str:
    tokens = config.max_steps * config.windows_per_step * config.block_size
    times = tokens / data.num_tokens
    warmup = (
        f"the learning rate rises for {config.warmup_steps:,} of them" if config.warmup_steps else "the learning rate begins at its highest"
    )
    return f"{config.max_steps:,} steps read {tokens:,} tokens, {times:,.2f} times the training tokens; {warmup}"


def _checkpoint_bytes(training: Training) -> int:
    tensors = [*training.model.state_dict().values(), *training_tensors(training).values()]
    return sum(tensor.nbytes for tensor in tensors)


def _require_disk(config: Config, checkpoint_bytes: int) -> None:
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


def _fit(config: Config, training: Training, data: tuple[TrainingData, ValidationData], *, share: int, world: World) -> tuple[int, float]:
    """The largest micro-batch, up to batch_size, that every process has the memory for, and seconds for one: halved until it fits."""
    micro_batch = largest_micro_batch(share, min(config.batch_size, windows_that_fit(config, training, data[0])))
    while True:
        micro_s = _try(partial(_trial, config, training, data[0], micro_batch=micro_batch), training)
        if not world.highest(micro_s is None):
            break
        if micro_batch == 1:
            raise FolioError(too_large(config, training.device))
        micro_batch = largest_micro_batch(share, micro_batch // 2)
    assert micro_s is not None
    return micro_batch, micro_s


def windows_that_fit(config: Config, training: Training, data: TrainingData) -> int:
    """How many windows this machine's memory holds a forward and a backward pass of; on a GPU, which can be asked by trying: any number.

    A system that has promised more than it has ends the process that takes it, without a word: so it is not tried.
    """
    if training.device.type == "cuda":
        return config.batch_size
    batch = data.batch(training.num_samples, 1)
    with make_autocast(config.precision, training.device):
        window_bytes = kept_bytes(training.model, batch) * BACKWARD_FACTOR
    gradient_bytes = sum(p.nbytes for p in training.model.parameters())
    return max(int((available_bytes() - gradient_bytes) // window_bytes), 1)


def too_large(config: Config, device: torch.device) -> str:
    return (
        f"the model and a batch of 1 × {config.block_size:,} do not fit the memory of {device}; "
        "take a smaller model or block_size, or --gradient_checkpointing=true"
    )


def _try(trial: Callable[[], float], training: Training) -> float | None:
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
    return None


def _trial(config: Config, training: Training, data: TrainingData, *, micro_batch: int) -> float:
    """Seconds for a micro-batch, forward and backward, and an update that is refused, so that it changes nothing.

    The second time counts: the first also compiles, or finds its kernels.
    """
    autocast = make_autocast(config.precision, training.device)
    elapsed_s = 0.0
    for _ in range(2):
        _wait(training.device)
        began = time.monotonic()
        ids, targets, documents = data.batch(training.num_samples, micro_batch)
        with autocast:
            loss = training.model(ids, targets, documents).mean()
        training.scaler.scale(loss).backward()
        update(training.optimizers, torch.zeros((), dtype=torch.bool, device=training.device))
        training.model.zero_grad(set_to_none=True)
        _wait(training.device)
        elapsed_s = time.monotonic() - began
        if elapsed_s > SLOW_TRIAL_S:
            break
    return elapsed_s


def _evaluation_s(config: Config, training: Training, data: ValidationData, *, micro_batch: int, world: World) -> float:
    """Seconds that an evaluation will take, from one of its batches."""
    training.model.eval()
    try:
        for numbers, (ids, targets, documents) in data.batches(micro_batch, rank=world.rank, num_ranks=world.size):
            began = time.monotonic()
            with torch.no_grad(), make_autocast(config.precision, training.device):
                training.model(ids, targets, documents)
            _wait(training.device)
            return (time.monotonic() - began) * data.num_windows / world.size / len(numbers)
    finally:
        training.model.train()
    return 0.0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def _describe_memory(config: Config, training: Training, *, micro_batch: int, share: int, world: World) -> str:
    parts = list(_memory_parts(config, micro_batch=micro_batch, share=share, world=world))
    if training.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(training.device)
        peak = torch.cuda.max_memory_allocated(training.device)
        parts.append(f"one needs {peak / 1e9:,.1f} GB of {total / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are left")
    return "; ".join(parts)


def _memory_parts(config: Config, *, micro_batch: int, share: int, world: World) -> Iterator[str]:
    halved = micro_batch < largest_micro_batch(share, config.batch_size)
    if halved:
        yield f"memory holds no batch of {config.batch_size:,} windows: they are cut smaller, with the same tokens a step"
    where = f" in each of {world.size} processes" if world.size > 1 else ""
    yield f"forward passes a step{where}: {share // micro_batch:,}, of {micro_batch:,} windows"


def _describe_time(config: Config, training: Training, *, step_s: float, evaluation_s: float) -> str:
    steps = config.max_steps - training.step
    evaluations = steps // config.eval_interval + 1
    total_s = steps * step_s + evaluations * evaluation_s
    return (
        f"about {spell_duration(total_s)}: {steps:,} steps of {step_s:.3g} s, "
        f"{evaluations:,} evaluations of {evaluation_s:.3g} s ({evaluations * evaluation_s / max(total_s, 1e-9):.0%} of the time)"
    )
