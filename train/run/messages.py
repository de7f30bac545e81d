"""Lines that a run prints at its start and at its end, and what it says if memory does not suffice."""

from __future__ import annotations

from train.config import Config
from train.core.device import describe_device, device_peak_flops
from train.core.memory import peak_memory_bytes
from train.core.settings import format_value
from train.optim import schedule_factor
from train.run.checkpoint import Checkpoint
from train.run.checkpoint_info import CheckpointInfo
from train.run.console import format_rate
from train.run.context import Run
from train.run.logger import StepCost
from train.run.state import TrainingState

# Settings that a resumed run may change, but that change the rounding of the results or the dropout.
ROUNDING_SETTINGS = ("precision", "device", "batch_size", "gradient_accumulation_steps", "compile", "num_threads")


def step_cost(run: Run, state: TrainingState) -> StepCost:
    """Return the work of an optimizer step of all processes, and the peak rate of their devices."""
    peak = device_peak_flops(run.device, run.config.precision)
    return StepCost(
        tokens_per_step=run.config.windows_per_step * run.config.block_size,
        flops_per_token=state.model.flops_per_token(),
        peak_flops=None if peak is None else peak * run.world.size,
        memory_bytes=lambda: peak_memory_bytes(run.device),
    )


def describe_start(run: Run, state: TrainingState, cost: StepCost) -> list[str]:
    """Return two lines: the data, and the model with its device."""
    num_tokens = "an unknown number of" if run.data.train.num_tokens is None else f"{run.data.train.num_tokens:,}"
    device = f"on {describe_device(run.device)} in {run.config.precision}"
    processes = f", {run.world.size} processes" if run.world.size > 1 else ""
    processes += " with a sharded model" if state.is_sharded else ""
    mfu = ", MFU n/a: the peak rate of the device is not known" if cost.peak_flops is None else ""
    num_windows = run.data.val.num_windows
    validation = f"{num_windows:,} validation windows" if num_windows else "no validation documents, so no evaluations"
    return [
        f"{run.source.name}: {num_tokens} training tokens, {validation}",
        f"{state.model.num_parameters:,} parameters, {cost.tokens_per_step:,} tokens per step, "
        f"{device}{processes}{mfu}",
    ]


def describe_continuation(checkpoint: Checkpoint, config: Config) -> str:
    """Return one line: the checkpoint from which the run continues, what changes, and what a raised max_steps means."""
    info = checkpoint.info
    line = f"continuing after step {info.step:,}, from {checkpoint.folder}"
    if changes := list_rounding_changes(info.config, config):
        line += f"; {', '.join(changes)}: the losses from here on differ slightly from those without this change"
    if config.optimizer == "muon" and not info.has_muon_by_head:
        line += "; Muon updates the matrices of all heads as one, as in the version of Folio that began the run"
    if not info.is_extended_by(config):
        return line
    return f"{line}; max_steps is raised from {info.config.max_steps:,} to {config.max_steps:,}: " + (
        describe_longer_schedule(info, config)
    )


def list_rounding_changes(before: Config, after: Config) -> list[str]:
    """Return `key old → new` for each of ROUNDING_SETTINGS that differs. Of a device only the type counts."""
    changes = []
    for key in ROUNDING_SETTINGS:
        old, new = (format_value(getattr(config, key)) for config in (before, after))
        if key == "device":
            old, new = old.partition(":")[0], new.partition(":")[0]
        if old != new:
            changes.append(f"{key} {old} → {new}")
    return changes


def describe_longer_schedule(info: CheckpointInfo, config: Config) -> str:
    """Return how the learning rate goes on after the finished run of the checkpoint `info`."""
    last, now, end = (
        format_rate(settings.learning_rate * schedule_factor(step, settings))
        for step, settings in ((info.step - 1, info.config), (info.step, config), (config.max_steps - 1, config))
    )
    return (
        f"the learning rate follows the schedule of {config.max_steps:,} steps, so it changes from {last} to {now}, "
        f"and ends at {end}"
    )


def describe_too_large(run: Run) -> str:
    """Return the error message for a model that does not fit the memory."""
    return (
        f"the model and a batch of 1 × {run.config.block_size:,} do not fit the memory of {run.device}; use a "
        "smaller model or block_size, or --gradient_checkpointing=true"
    )


def describe_too_large_shard(run: Run, micro_batch: int) -> str:
    """Return the error message for a sharded model of which a pass does not fit the memory."""
    return (
        f"process {run.world.rank} has too little memory on {run.device} for a pass of {micro_batch:,} windows; with "
        "parallel = fsdp no smaller pass is tried: halve batch_size and double gradient_accumulation_steps, or use "
        "more processes or --gradient_checkpointing=true"
    )


def describe_out_of_memory(state: TrainingState) -> str:
    """Return the error message for memory that is exhausted during training."""
    return (
        f"out of memory on {state.device} after step {state.step:,}, with {state.micro_batch or 0:,} windows "
        "per forward pass; run the same command with half the batch_size and twice the "
        "gradient_accumulation_steps: it continues from the last checkpoint"
    )


def describe_end(run: Run, state: TrainingState, *, signum: int, is_saved: bool) -> str:
    """Return one line: why the run ended, and what is on the disk."""
    step, max_steps, early_stopping = state.step, run.config.max_steps, state.early_stopping
    if signum and step < max_steps:
        saved = "saved" if is_saved else "not saved because the last updates were not finite"
        return f"stopped after step {step:,} of {max_steps:,}, {saved}; run the same command again to continue"
    reason = "finished"
    if step < max_steps:
        reason = f"stopped early ({early_stopping.num_since} evaluations without an improvement beyond noise)"
    num_skipped = int(state.skipped[0])
    skipped = f"; the last {num_skipped:,} updates were not finite and were skipped" if num_skipped else ""
    best = ""
    if early_stopping.best_step is not None:
        best = (
            f"; the lowest validation loss was {early_stopping.best_loss:.4f}, after step {early_stopping.best_step:,}"
        )
    return f"{reason} after step {step:,}; the model is in {run.config.out_dir}{skipped}{best}"
