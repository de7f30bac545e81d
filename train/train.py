"""Train a GPT: `python train/train.py configs/small.py [--key=value ...] [--restart] [--help]`.

Read this file from top to bottom. main() opens the data and the device. setup() creates or restores
the training state. train() starts the log, runs training_loop() and prints the result.
optimizer_step() is one update, by forward_backward() and clip_and_update(). Two objects are passed
along: `run` holds what stays the same (configuration, data, device, processes, autocast), `state`
what training changes (model, optimizers, counters).

The same command resumes an interrupted run. On a CPU it then logs the same losses, bit for bit, as
a run without an interruption. On several GPUs: `torchrun --nproc_per_node=8 train/train.py CONFIG`.
"""

from __future__ import annotations

import contextlib
import math
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started by path: the folder train/ would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("train")

import torch
from torch import Tensor, nn

from preprocess.errors import MisuseError
from train.command_line import advise_on_missing_build, is_help_request, parse_command_line, print_help
from train.config import list_given, load_config
from train.core.cli import warn
from train.core.distributed import init_processes
from train.core.memory import translate_out_of_memory
from train.core.sharding import whole
from train.data.batches import Prefetcher, dropout_seed
from train.data.mixed_split import Batch
from train.optim import schedule_factor, set_learning_rate, update
from train.run.after_step import (
    check_and_save,
    due_after,
    evaluate_and_log,
    find_evaluation_problem,
    log_completion,
    save_checkpoint,
    update_early_stopping,
)
from train.run.captured_step import CapturedStep, can_capture_step
from train.run.checkpoint import Checkpoint, restore, share_checkpoint
from train.run.choose_precision import keep_precision
from train.run.context import Run, open_run
from train.run.divergence import find_update_problem, roll_back
from train.run.finished import report_finished
from train.run.init_from import initialize
from train.run.logger import RunLogger
from train.run.messages import (
    describe_continuation,
    describe_end,
    describe_out_of_memory,
    describe_start,
    describe_too_large,
    step_cost,
)
from train.run.preflight import preflight
from train.run.run_dir import check_shared, find_start, lock_run_dir, prepare_run_dir
from train.run.signals import StopRequest, end_at_once
from train.run.state import StepResult, TrainingState, load_in_all, new_state
from train.run.time_limit import correct_length, plan_run
from train.run.validation import EarlyStopping


def main(arguments: list[str]) -> int:
    """Train the run that the command line describes. Return the exit status."""
    if is_help_request(arguments):
        return print_help(arguments)
    command = parse_command_line(arguments)
    config = load_config(command.config_path, command.overrides)
    given = list_given(command.config_path, command.overrides)
    use_cuda = config.device != "cpu" and torch.cuda.is_available()
    with init_processes(use_cuda=use_cuda) as world, advise_on_missing_build(command.config_path):
        config, limit = plan_run(config, given, world, restart=command.restart, quiet=command.quiet)
        run = open_run(config, world, quiet=command.quiet, time_limit=limit)
        with lock_run_dir(run.out_dir) if world.is_main else contextlib.nullcontext():
            checkpoint = world.run_on_main(
                lambda: find_start(run.config, run.source, restart=command.restart, warn=warn)
            )
            if report_finished(run, checkpoint, arguments):
                return 0
            # Do everything that can fail before anything in out_dir changes.
            with translate_out_of_memory(lambda: describe_too_large(run)), end_at_once(), run.console.activity("setup"):
                state, model, lines = setup(run, checkpoint)
            world.run_on_main(lambda: prepare_run_dir(run.config, run.source, restart=command.restart))
            with translate_out_of_memory(lambda: describe_out_of_memory(state)):
                return train(run, state, model, checkpoint, lines)


def setup(run: Run, checkpoint: Checkpoint | None) -> tuple[TrainingState, nn.Module, list[str]]:
    """Create the training state, load `checkpoint` or init_from into it, and run the preflight.

    `checkpoint` is given in the main process only. Returns the state, state.model as `World.wrap`
    returns it for data parallelism, and the lines of the preflight. With parallel = fsdp, each
    process has, reads and saves its rows of the state.
    """
    if checkpoint:
        keep_precision(run, checkpoint.info.config)
    config, world = run.config, run.world
    vocab_size = world.all_reduce_max(checkpoint.info.vocab_size if checkpoint else run.source.vocab_size)
    if run.is_sharded:
        check_shared(run.out_dir, world)
        checkpoint = share_checkpoint(checkpoint, world)
    state = new_state(config, vocab_size, device=run.device, is_sharded=run.is_sharded)
    load_in_all(world, state, lambda: load_weights(run, state, checkpoint))
    if state.step > 0:
        restore_data_position(run, state)
    if world.is_main:
        for line in run.source.warnings:
            warn(line)
        run.console.line("\n".join([*config.describe_changes(), *run.notes]))
    model = world.wrap(state.model, run.device)
    return state, model, preflight(run, state, model)


def load_weights(run: Run, state: TrainingState, checkpoint: Checkpoint | None) -> None:
    """Load `checkpoint`, or the weights that init_from names, or leave the random weights."""
    config = run.config
    if checkpoint is not None:
        restore(checkpoint, state)
        if config.resume != "auto":  # a new run from another run's checkpoint, without that run's best one
            state.early_stopping, state.num_threads = EarlyStopping(), None
        if checkpoint.info.config.batch_size != config.batch_size:
            state.micro_batch = None
    elif config.init_from is not None:
        initialize(state.model, config, run.source, warn=warn if run.world.is_main else lambda line: None)


def restore_data_position(run: Run, state: TrainingState) -> None:
    """Restore the position in a stream. Builds have none: their samples depend on the number only.

    Raises MisuseError if the number of processes has changed, or if the data is of another kind.
    """
    streams, world = state.streams, run.world
    if streams is not None and len(streams) != world.size:
        raise MisuseError(
            f"the run had {len(streams)} processes, and its stream cannot be divided among {world.size}; "
            f"continue it with torchrun --nproc_per_node={len(streams)}, or start a run in another --out_dir "
            "with its weights, by --init_from"
        )
    run.data.train.restore(streams[world.rank] if streams is not None else None)


def train(
    run: Run, state: TrainingState, model: nn.Module, checkpoint: Checkpoint | None, preflight_lines: list[str]
) -> int:
    """Train, and print a completion at the end. Return the exit status."""
    cost = step_cost(run, state)
    first_step = checkpoint.info.step if checkpoint else -1
    with RunLogger(run.info, cost, step=first_step, is_main=run.world.is_main, console=run.console) as logger:
        with StopRequest(state, run.world) as stop:
            logger.print("\n".join([*preflight_lines, *describe_start(run, state, cost)]))
            if checkpoint is not None:
                logger.print(describe_continuation(checkpoint, run.config))
            signum, is_saved = training_loop(run, state, model, logger, stop)
        logger.print(describe_end(run, state, signum=signum, is_saved=is_saved))
        if signum and state.step < run.config.max_steps:
            logger.mark_stopped()
            return 128 + signum
        logger.print(f"evaluations took {logger.evaluation_share:.1%} of the time")
        if not stop.signum:  # after a signal during the last step the run is complete and should end soon
            log_completion(run, state, logger)
        return 0


def training_loop(
    run: Run, state: TrainingState, model: nn.Module, logger: RunLogger, stop: StopRequest
) -> tuple[int, bool]:
    """Train from `state.step` to max_steps, or until a signal or early stopping.

    Return the number of the signal, or 0, and whether the last weights were saved.
    """
    config, world = run.config, run.world
    micro_batch = state.micro_batch or 1
    prefetcher = Prefetcher(
        run.data.train, windows_per_step=config.windows_per_step, micro_batch=micro_batch, world=world
    )
    if state.step > 0 and config.resume != "auto":
        save_checkpoint(run, state, prefetcher)  # from here on the run does not need the other run
    if state.step == 0 and run.has_validation:
        evaluate_and_log(run, state, logger, batch_size=micro_batch)
    is_stopping = is_saving = False  # is_saving: a checkpoint is due, and may have to wait for finite updates
    previous_rollback, signum = None, 0
    captured_step = None
    if can_capture_step(run, state, prefetcher):
        compute, apply = partial(forward_backward, run, state, model), partial(clip_and_update, run, state)
        captured_step = CapturedStep(run, state, prefetcher, forward_backward=compute, clip_and_update=apply)
    while state.step < config.max_steps and not is_stopping:
        # A captured step is the same kernels in a CUDA graph, started all at once.
        result = captured_step.take() if captured_step else optimizer_step(run, state, model, prefetcher)
        # Read once, agreed on by all processes: a later signal belongs to the next step.
        signum = world.all_reduce_max(stop.signum)
        is_stopping = signum > 0
        is_corrected = correct_length(run, state, logger)
        config = run.config  # with another max_steps if it was corrected
        due = due_after(state.step, config, seconds_since_log=logger.seconds_since_log)
        logger.count_step(state.step, result.loss, is_logged=due.log)
        is_saving |= due.save or is_stopping or is_corrected
        if not (is_saving or due.anything):
            continue  # the host has not waited for the device

        num_skipped, total_skipped = state.skipped.tolist()
        problem = find_update_problem(state, num_skipped)
        if due.log and not problem:
            logger.log_step(
                state.step,
                loss=result.loss.item(),
                learning_rate=config.learning_rate * result.learning_rate_factor,
                grad_norm=result.grad_norm.item(),
                skipped_updates=total_skipped,
            )
        if due.evaluate and run.has_validation and not problem:
            evaluation = evaluate_and_log(run, state, logger, batch_size=micro_batch)
            problem = find_evaluation_problem(evaluation)
            if not problem and num_skipped == 0:
                is_best, is_exhausted = update_early_stopping(run, state, evaluation)
                is_stopping |= is_exhausted
                is_saving |= is_best or is_stopping
        # While updates are skipped the weights may be the cause, so they are not saved, except
        # at the end.
        if is_saving and not problem and (num_skipped == 0 or state.step == config.max_steps):
            problem = check_and_save(run, state, prefetcher, logger)
            is_saving = bool(problem)
        if problem:
            previous_rollback = roll_back(run, state, logger, problem=problem, previous_rollback=previous_rollback)
            is_saving = False
        elif due.complete and not is_stopping:
            log_completion(run, state, logger)
    return signum, not is_saving


def optimizer_step(run: Run, state: TrainingState, model: nn.Module, prefetcher: Prefetcher) -> StepResult:
    """Compute the gradients of a step's samples, one micro-batch at a time, and update the weights.

    The update is skipped if the loss or a gradient is not finite. The host does not wait for the
    device.
    """
    config, world = run.config, run.world
    factor = schedule_factor(state.step, config)
    set_learning_rate(state.optimizers, factor)
    loss = torch.zeros((), device=state.device)
    divisor = prefetcher.loss_divisor(state.num_samples)
    for micro in range(prefetcher.num_micro_batches):
        first_sample = prefetcher.first_sample(state.num_samples, micro)
        batch = prefetcher.take(first_sample)
        if config.dropout:
            torch.manual_seed(dropout_seed(config.seed, first_sample))
        world.set_gradient_sync(model, is_last=micro == prefetcher.num_micro_batches - 1)
        loss += forward_backward(run, state, model, batch, divisor)
        prefetcher.prepare(prefetcher.first_sample(state.num_samples, micro + 1))  # while the device computes
    loss = world.all_reduce_sum(loss) / world.size
    grad_norm = clip_and_update(run, state, loss)
    state.step += 1
    state.num_samples += config.windows_per_step
    return StepResult(loss=loss, grad_norm=grad_norm, learning_rate_factor=factor)


def forward_backward(run: Run, state: TrainingState, model: nn.Module, batch: Batch, divisor: float | Tensor) -> Tensor:
    """Add the gradients of a micro-batch. Return its part of the step's loss, () float32."""
    ids, targets, documents = batch  # (B, T) each; documents only if masked
    with run.autocast:
        mean_loss, _ = model(ids, targets, documents)
        micro_loss: Tensor = mean_loss / divisor
    state.scaler.scale(micro_loss).backward()
    return micro_loss.detach()


def clip_and_update(run: Run, state: TrainingState, loss: Tensor) -> Tensor:
    """Clip the gradients, and update if loss and gradients are finite. Return the unclipped norm, ()."""
    scaler = state.scaler
    for optimizer in state.optimizers:
        scaler.unscale_(optimizer)
    grad_norm = whole(nn.utils.clip_grad_norm_(state.model.parameters(), run.config.grad_clip or math.inf))
    is_finite = loss.isfinite() & grad_norm.isfinite()
    update(state.optimizers, is_finite)
    scaler.update()
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    in_a_row, total = state.skipped
    state.skipped.copy_(torch.stack([torch.where(is_finite, 0, in_a_row + 1), total + ~is_finite]))
    return grad_norm
