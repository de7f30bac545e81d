"""Checks before a run: disk, memory, and a trial step from which the run's time is estimated.

The preflight finds the micro-batch, the number of windows of one forward pass: the largest divisor
of a process's windows per step that is at most batch_size and fits the memory. A step then
accumulates the gradients of several passes, with the same samples and the same result.

The device determines how the limit of memory is found. On a GPU a pass that needs too much memory
raises an error, so passes are tried, each with at most half the windows of the one before. On a CPU
the system promises more memory than it has, and later kills the process without a message. There,
the peaks of three small passes are measured, and the peak of larger passes is extrapolated from
them.

The trial computes a forward and backward pass and an update that is skipped, so it changes neither
weights nor moments.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from preprocess.console import format_duration
from preprocess.errors import FolioError, format_quantity
from train.config import Config
from train.core.device import synchronize
from train.core.memory import PeakMemory, available_bytes, is_out_of_memory, translate_out_of_memory
from train.core.threads import NUM_THREADS
from train.data.batches import largest_micro_batch, windows_per_process
from train.data.mixed_split import Batch
from train.model.base import evaluation_mode
from train.optim import update
from train.run.checkpoint import CHECKPOINTS_DIR
from train.run.choose_precision import choose_cpu_precision, has_fast_bfloat16
from train.run.choose_threads import choose_num_threads
from train.run.context import Run
from train.run.messages import describe_too_large, describe_too_large_shard
from train.run.state import TrainingState, checkpoint_bytes

# The fraction of the available memory that tensors may take on a CPU. In glibc's heap, aligned
# blocks of some megabytes leave holes that the next blocks do not fit into, so a process takes up
# to 1.8 times the memory of its tensors (measured).
USABLE_FRACTION = 0.5
PROBE_TOKENS = 1024  # of the smallest pass that is measured
MAX_REPEATED_TRIAL_S = 20.0  # a first trial that takes longer is not repeated for a better estimate


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Measured times in seconds."""

    pass_s: float  # a forward and backward pass of a micro-batch, with an update
    window_evaluation_s: float  # the evaluation of one window
    compilation_s: float  # compiling both; 0 if it was not measured


def preflight(run: Run, state: TrainingState, model: nn.Module) -> list[str]:
    """Check disk and memory, set `state.micro_batch` and the number of threads, and return lines that report them.

    `model` is state.model as `World.wrap` returned it. With the setting `compile`, the model is
    compiled. Nothing else in `state` changes. Raises FolioError if disk or memory do not suffice,
    and MisuseError if a step's windows cannot be divided among the processes.
    """
    config, world = run.config, run.world
    if state.num_threads is not None and config.num_threads is None and run.device.type == "cpu":
        torch.set_num_threads(state.num_threads)  # of the run that is continued
    num_bytes = checkpoint_bytes(state)
    world.run_on_main(lambda: _check_disk(config, num_bytes))
    num_windows = windows_per_process(config.windows_per_step, world)
    precision_line = _choose_precision(run, state, num_windows=num_windows)
    with run.console.activity("preflight: measuring memory"):
        max_windows = -world.all_reduce_max(-estimate_max_windows(run, state))
    if config.compile:  # after the estimate, whose sizes are not those of training
        _compile(state)
    micro_batch, trial = _find_micro_batch(run, state, model, num_windows=num_windows, max_windows=max_windows)
    threads_line, trial = _choose_threads(run, state, model, micro_batch=micro_batch, trial=trial)
    lines = [
        run.source.describe(),
        _describe_steps(run),
        f"{config.keep_checkpoints + 1} checkpoints of {num_bytes / 1e6:,.1f} MB and one being written fit the disk",
        *_describe_memory(run, micro_batch=micro_batch, num_windows=num_windows),
        *threads_line,
        *precision_line,
        *([f"compiled in {trial.compilation_s:.1f} s"] if config.compile else []),
        _describe_time(run, state, trial, num_passes=num_windows // micro_batch),
    ]
    state.micro_batch = micro_batch
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)  # the run reports its own peak
    return [f"preflight: {line}" for line in lines]


def _compile(state: TrainingState) -> None:
    """Compile the model, when it is called next.

    If it is sharded, its blocks are compiled: before and after each, FSDP's hooks gather and free
    weights, and torch.compile does not trace them. Blocks with equal shapes share the compiled code.
    """
    for module in state.model.h if state.is_sharded else (state.model,):
        module.compile()


def _check_disk(config: Config, checkpoint_bytes: int) -> None:
    """Raise FolioError unless all kept checkpoints, and one being written, fit the disk."""
    out_dir = Path(config.out_dir)
    folder = next(path for path in (out_dir.absolute(), *out_dir.absolute().parents) if path.exists())
    existing = sum(file.stat().st_size for file in (out_dir / CHECKPOINTS_DIR).rglob("*") if file.is_file())
    needed, free = (config.keep_checkpoints + 2) * checkpoint_bytes - existing, shutil.disk_usage(folder).free
    if needed > free:
        raise FolioError(
            f"the checkpoints in {config.out_dir} will need {needed / 1e6:,.1f} MB more, but "
            f"{free / 1e6:,.1f} MB are free; free some, lower keep_checkpoints (now "
            f"{config.keep_checkpoints}), or choose another --out_dir"
        )


def _find_micro_batch(
    run: Run, state: TrainingState, model: nn.Module, *, num_windows: int, max_windows: int
) -> tuple[int, Trial]:
    """Return the largest micro-batch that fits the memory of every process, and its trial.

    It is at most batch_size and `max_windows`, and is halved until it fits. If the memory of a CPU
    did not suffice, it is halved once more than necessary, because the holes in the heap change
    from step to step. If the state is sharded, a batch that does not fit is an error: the other
    processes would wait in the middle of a pass for the one that is out of memory.
    """
    config = run.config
    has_margin = True
    micro_batch = largest_micro_batch(num_windows, min(config.batch_size, max_windows))
    previous = state.micro_batch
    if previous and previous < micro_batch and num_windows % previous == 0:
        micro_batch = previous  # memory was scarce before; another size would change the dropout
    while True:
        trying = "compiling the model, and trying" if config.compile else "trying"
        with run.console.activity(f"preflight: {trying} a pass of {format_quantity(micro_batch, 'window')}"):
            run_trial = partial(_run_trial, run, state, model, micro_batch=micro_batch)
            if state.is_sharded:
                with translate_out_of_memory(partial(describe_too_large_shard, run, micro_batch)):
                    return micro_batch, run_trial()
            trial = _try(run_trial, state)
        if not run.world.all_reduce_max(trial is None):
            if has_margin or micro_batch == 1 or run.device.type != "cpu":
                break
            has_margin = True
        elif micro_batch == 1:
            raise FolioError(describe_too_large(run))
        else:
            has_margin = False
        micro_batch = largest_micro_batch(num_windows, micro_batch // 2)
        if config.compile:
            torch.compiler.reset()  # or the next size would be compiled with dynamic shapes
    assert trial is not None
    return micro_batch, trial


def _choose_precision(run: Run, state: TrainingState, *, num_windows: int) -> list[str]:
    """Choose between fp32 and bf16 if that is possible. Return a line about it, if any."""
    if not run.can_choose_precision or not has_fast_bfloat16():
        return []
    block_size = run.config.block_size
    micro_batch = largest_micro_batch(num_windows, min(run.config.batch_size, max(PROBE_TOKENS // block_size, 1)))
    with run.console.activity("preflight: choosing the precision"):
        return [choose_cpu_precision(run, partial(_trial_pass, run, state, state.model, micro_batch=micro_batch))]


def _choose_threads(
    run: Run, state: TrainingState, model: nn.Module, *, micro_batch: int, trial: Trial
) -> tuple[list[str], Trial]:
    """Choose the number of threads unless it is known. Return a line about it, if any, and a trial with it."""
    config = run.config
    if run.device.type != "cpu" or run.world.size > 1:
        return [], trial
    is_known = config.num_threads is not None or state.num_threads is not None or NUM_THREADS in os.environ
    lines = []
    if not is_known and not config.compile:  # a compiled model is compiled for a number of threads
        before = torch.get_num_threads()
        with run.console.activity("preflight: choosing the number of threads"):
            trial_pass = partial(_trial_pass, run, state, model, micro_batch=micro_batch)
            lines = [choose_num_threads(trial_pass, pass_s=trial.pass_s)]
            if torch.get_num_threads() != before:
                trial = _run_trial(run, state, model, micro_batch=micro_batch)
    state.num_threads = torch.get_num_threads()
    return lines, trial


def estimate_max_windows(run: Run, state: TrainingState) -> int:
    """Return an estimate of how many windows of a pass fit this machine's memory.

    On a CUDA GPU it is batch_size, because passes are tried there instead, and if the state is
    sharded, because `_find_micro_batch` does not choose then.
    """
    if run.device.type == "cuda" or state.is_sharded:
        return run.config.batch_size
    num_windows = max(PROBE_TOKENS // run.config.block_size, 1)
    sizes = [num_windows, 2 * num_windows, 4 * num_windows]
    peaks = []
    for size in sizes:
        with PeakMemory() as memory:
            _trial_pass(run, state, state.model, micro_batch=size)
        peaks.append(memory.peak_bytes)
    # Between two sizes the loss can switch to its kernel, which needs less memory, so that their
    # difference says little about a window. It cannot switch twice: one of the two slopes is right.
    slopes = [(peaks[i + 1] - peaks[i]) // (sizes[i + 1] - sizes[i]) for i in range(2)]
    window_bytes = max(*slopes, 1)
    fixed_bytes = max(peak - size * window_bytes for size, peak in zip(sizes, peaks, strict=True))
    usable_bytes = available_bytes() * USABLE_FRACTION / run.world.num_local
    return max(int((usable_bytes - fixed_bytes) // window_bytes), 1)


def _try(trial: Callable[[], Trial], state: TrainingState) -> Trial | None:
    """Return the result of `trial`, or None if it ran out of memory."""
    try:
        return trial()
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
    # Not in the handler, whose exception keeps the tensors of the trial alive.
    state.model.zero_grad(set_to_none=True)
    if state.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(state.device)
    return None


def _run_trial(run: Run, state: TrainingState, model: nn.Module, *, micro_batch: int) -> Trial:
    """Return the times of a trial pass and of the evaluation of one batch.

    Both are measured twice and the second measurement is used, because the first includes compiling
    or selecting kernels. If the model is not compiled and the first pass takes longer than
    MAX_REPEATED_TRIAL_S, they are measured once.
    """
    # Do not average gradients: if one process runs out of memory, the others would wait for it.
    run.world.set_gradient_sync(model, is_last=False)
    indices, batch = next(run.data.val.batches(micro_batch), (None, None))
    passes_s: list[float] = []
    evaluations_s: list[float] = []
    for _ in range(2):
        passes_s.append(_time(run.device, lambda: _trial_pass(run, state, model, micro_batch=micro_batch)))
        evaluations_s.append(0.0 if batch is None else _time(run.device, partial(_evaluate_batch, run, state, batch)))
        is_long = passes_s[0] > MAX_REPEATED_TRIAL_S
        if state.is_sharded:  # all processes take part in each pass
            is_long = bool(run.world.all_reduce_max(is_long))
        if is_long and not run.config.compile:
            break
    compilation_s = passes_s[0] - passes_s[-1] + evaluations_s[0] - evaluations_s[-1]
    window_s = evaluations_s[-1] / len(indices) if indices is not None else 0.0
    return Trial(pass_s=passes_s[-1], window_evaluation_s=window_s, compilation_s=max(compilation_s, 0.0))


def _trial_pass(run: Run, state: TrainingState, model: nn.Module, *, micro_batch: int) -> float:
    """Compute a micro-batch forward and backward, and an update that is skipped. Return the loss."""
    batch = run.data.train.trial_batch(micro_batch)
    with run.autocast:
        loss, _ = model(*batch)
    state.scaler.scale(loss).backward()
    update(state.optimizers, torch.zeros((), dtype=torch.bool, device=state.device))
    state.model.zero_grad(set_to_none=True)
    return float(loss.detach())


@torch.no_grad()
def _evaluate_batch(run: Run, state: TrainingState, batch: Batch) -> None:
    with evaluation_mode(state.model), run.autocast:
        state.model(*batch)


def _time(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes, including what it started on the device."""
    synchronize(device)
    began = time.monotonic()
    work()
    synchronize(device)
    return time.monotonic() - began


def _describe_steps(run: Run) -> str:
    config, data = run.config, run.data.train
    num_windows = config.max_steps * config.windows_per_step
    tokens = num_windows * config.block_size
    read = f"read {tokens:,} tokens"
    if data.num_tokens:
        read += f", {tokens / data.num_tokens:,.2f} times the training tokens"
    if data.packed:
        num_rows = sum(rows.windows_per_epoch for rows in data.packed)
        padding = 1 - sum(rows.num_targets for rows in data.packed) / (num_rows * config.block_size)
        num_epochs = f"{num_windows / data.windows_per_epoch:,.2f} epochs of " if data.windows_per_epoch else ""
        read = f"read {num_epochs}{num_rows:,} rows with whole documents and {padding:.1%} padding"
    counted = data.num_loss_tokens
    masked = (
        ""
        if counted is None or not data.num_tokens
        else (
            f"; the loss counts {counted / data.num_tokens:.1%} of {'the training tokens' if data.packed else 'them'}"
        )
    )
    warmup = f"{config.warmup_steps:,} steps of warmup" if config.warmup_steps else "no warmup"
    return f"{config.max_steps:,} steps {read}{masked}; {warmup}"


def _describe_memory(run: Run, *, micro_batch: int, num_windows: int) -> Iterator[str]:
    batch_size, size = run.config.batch_size, run.world.size
    if micro_batch < largest_micro_batch(num_windows, batch_size):
        yield (
            f"memory does not hold a batch of {batch_size:,} windows: "
            "smaller ones are used, with the same tokens per step"
        )
    elif micro_batch < min(num_windows, batch_size):
        yield (
            f"{num_windows:,} windows cannot be divided into passes of {batch_size:,}; a batch_size that "
            "divides them is faster"
        )
    where = f" in each of {size} processes" if size > 1 else ""
    passes = "1 forward pass" if num_windows == micro_batch else f"{num_windows // micro_batch:,} forward passes"
    yield f"{passes} per step{where}, of {micro_batch:,} windows each"
    if run.device.type == "cuda":
        _, total = torch.cuda.mem_get_info(run.device)
        peak = torch.cuda.max_memory_allocated(run.device)
        yield f"a step needs {peak / 1e9:,.1f} GB of the GPU's {total / 1e9:,.1f} GB"


def _describe_time(run: Run, state: TrainingState, trial: Trial, *, num_passes: int) -> str:
    config = run.config
    step_s = trial.pass_s * num_passes
    evaluation_s = trial.window_evaluation_s * run.data.val.num_windows / run.world.size
    num_steps = config.max_steps - state.step
    # One evaluation before the first step, one after every eval_interval steps, and one after the
    # last.
    num_evaluations = -(-config.max_steps // config.eval_interval) - state.step // config.eval_interval
    num_evaluations = (num_evaluations + (state.step == 0)) * run.has_validation
    total_s = num_steps * step_s + num_evaluations * evaluation_s
    share = num_evaluations * evaluation_s / max(total_s, 1e-9)
    return (
        f"about {format_duration(total_s)}: {num_steps:,} steps of {step_s:.3g} s, "
        f"{num_evaluations:,} evaluations of {evaluation_s:.3g} s ({share:.0%} of the time)"
    )
