"""The setting `minutes`: measure this machine, choose the settings of a run, and correct its length.

The schedule of the learning rate must end when the time ends, and a run must continue exactly after
an interruption. So the number of steps is fixed before the first step, as if the user had set it, and
is recorded with the other settings in settings.json and in every checkpoint. The speed that was
measured for some seconds may not last: other programs start, and laptops get slower when they are
hot. After CORRECTIONS of its steps, the run therefore computes the number of steps once more from its
speed since the last correction, and records that. A run that is continued keeps the number it has.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import JsonObject, parse_json, read_small_file
from preprocess.shards.manifest import SPLITS
from preprocess.shards.runs import SETTINGS_FILE
from train.config import Config, config_from_saved
from train.core.clock import slowdown, take_start
from train.core.device import describe_device, synchronize
from train.core.distributed import World
from train.core.memory import available_bytes, is_out_of_memory
from train.data.builds import Builds
from train.data.streams import DataSource, open_data_source
from train.run.checkpoint import find_newest_checkpoint
from train.run.console import format_duration
from train.run.context import Run, TimeLimit, prepare_device
from train.run.logger import RunLogger
from train.run.plan import (
    BYTES_PER_PARAMETER,
    MAX_EPOCHS,
    PLANNED,
    Limits,
    Plan,
    Settings,
    Speed,
    Text,
    check_text,
    correct_steps,
    make_plan,
)
from train.run.run_dir import write_run
from train.run.state import TrainingState
from train.run.step_speed import measure_step

TARGET = 0.985  # of the time, because what is not foreseen usually takes time
MAX_MEASUREMENTS = 6
MEASUREMENT_SHARE, MAX_MEASUREMENT_S = 0.005, 2.0  # of the time, for each measurement
MAX_MEASUREMENTS_SHARE = 0.06  # of the time, after which no further measurement begins
MIN_SHARE_LEFT = 0.2  # of the time that a plan is made for, even if the imports took longer
SIMILAR_BATCH = 1.5  # batches whose tokens per second are taken to be equal differ by at most this factor
USABLE_FRACTION = 0.5  # of the free memory, for weights and optimizers; activations need the rest
CORRECTIONS = (0.04, 0.2, 0.4, 0.6, 0.8, 0.92)  # fractions of the steps after which their number is corrected
# Steps for a correction; a few may all have been slow because another program began to run. A run of fewer than 100
# steps is corrected after a tenth of them: its steps are long, and if they are slower than planned, it ends late.
MIN_TIMED_STEPS, MIN_TIMED_FRACTION = 10, 0.1
MIN_CORRECTION = 0.015  # smaller changes are not worth a checkpoint
COMPLETION_S_PER_LAYER = 4e-4  # of a generated token
EXIT_S = 0.5  # the end of the process
# Before the first measurement, which is then of a small model.
GUESS = Speed(settings={}, flops_per_token=5e6, tokens_per_s=1e4, evaluation_tokens_per_s=3e4)


def check_given(config: Config, given: Iterable[str]) -> None:
    """Raise MisuseError if a setting contradicts `minutes`."""
    for key in ("max_steps", "num_epochs"):
        if key in given and getattr(config, key) is not None:
            raise MisuseError(
                f"minutes is {config.minutes:g} and {key} is {getattr(config, key):,}, but minutes determines the "
                "number of steps; set one of them (a config of your own for minutes: base = 'own.py')"
            )
    for key, default in (("init_from", None), ("resume", "auto")):
        value = getattr(config, key)
        if value not in (default, "never"):
            raise MisuseError(
                f"minutes is {config.minutes:g}, which chooses the size of a new model, but {key} is {value!r:.80}, "
                "whose size is given; set max_steps instead of minutes"
            )


def plan_run(
    config: Config, given: set[str], world: World, *, restart: bool, quiet: bool
) -> tuple[Config, TimeLimit | None]:
    """Return `config` with the settings that `minutes` determines, and when the run must end.

    `given` are the settings that must not change. There is no time limit without `minutes`, and for
    a run that is continued, which keeps its settings. Raises the errors of `check_given` and
    `make_plan`, and those of opening the data.
    """
    if config.minutes is None:
        return config, None
    check_given(config, given)
    deadline = take_start() + TARGET * 60 * config.minutes
    can_continue = not restart and config.resume == "auto"
    saved = world.broadcast(world.run_on_main(lambda: _read_saved(config)) if can_continue else None)
    settings = saved or world.broadcast(world.run_on_main(lambda: _choose(config, given, world, deadline, quiet=quiet)))
    free = {key: settings[key] for key in PLANNED if key not in given and key in settings}
    return dataclasses.replace(config, **free), None if saved else TimeLimit(deadline)


def _read_saved(config: Config) -> JsonObject | None:
    """Return the settings of the run in out_dir if it can be continued, else None."""
    out_dir = Path(config.out_dir)
    checkpoint = find_newest_checkpoint(out_dir, lambda line: None)  # it is opened again, with its warnings
    if checkpoint is not None:
        return checkpoint.info.config.as_dict()
    path = out_dir / SETTINGS_FILE
    if not path.exists():
        return None
    try:
        saved = config_from_saved(parse_json(read_small_file(path)), str(path))
    except ValueError as e:
        raise FolioError(f"{path} is not JSON ({e}); start again with --restart, or choose another --out_dir") from e
    return saved.as_dict()


def _choose(config: Config, given: set[str], world: World, deadline: float, *, quiet: bool) -> Settings:
    """Measure the speed of this machine, print the plan, and return its settings."""
    config, device = prepare_device(config, world)
    text = describe_text(open_data_source(config.data, world=world, stream_shards=config.stream_shards))
    check_text(text)
    if not quiet:
        name = describe_device(device)
        print(f"plan: measuring the speed of {name}, to choose a model for {config.minutes:g} min", flush=True)
    measurement = Measurement(config, text, world, device)
    plan = measurement.find_plan({key: getattr(config, key) for key in PLANNED if key in given}, deadline)
    if not quiet:
        print("\n".join(f"plan: {line}" for line in describe_plan(plan, text)), flush=True)
    return plan.settings


def describe_text(source: DataSource) -> Text:
    """Return the size of the data."""
    vocab_size, name = source.vocab_size, source.name
    if not isinstance(source, Builds):
        return Text(train_tokens=None, val_tokens=None, consecutive_tokens=None, vocab_size=vocab_size, name=name)
    splits = {split: [build.manifest.splits[split] for build in source.builds] for split in SPLITS}
    longest = [
        max((shard.tokens for shard in entry.shards), default=0)
        for split, entries in splits.items()
        for entry in entries
        if entry.documents or split == "train"
    ]
    return Text(
        train_tokens=sum(entry.tokens for entry in splits["train"]),
        val_tokens=sum(entry.tokens for entry in splits["val"]),
        consecutive_tokens=min(longest),
        vocab_size=vocab_size,
        name=name,
    )


class Measurement:
    """Measures models until the plan is one that has been measured."""

    def __init__(self, config: Config, text: Text, world: World, device: torch.device) -> None:
        self._config, self._text, self._world, self._device = config, text, world, device
        self._speeds: list[Speed] = []
        self._total_s = 60 * (config.minutes or 0)  # the measurements may take a part of it
        free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
        self._memory_bytes = USABLE_FRACTION * free_bytes / (1 if device.type == "cuda" else world.num_local)

    def find_plan(self, given: Settings, deadline: float) -> Plan:
        """Return the plan for the time until `deadline`, and measure what it needs."""
        seconds = min(MEASUREMENT_SHARE * self._total_s, MAX_MEASUREMENT_S)
        began = time.monotonic()
        for _ in range(MAX_MEASUREMENTS):
            if self._speeds and time.monotonic() - began > MAX_MEASUREMENTS_SHARE * self._total_s:
                break
            plan = self._plan(given, deadline)
            if any(_is_similar(speed.settings, plan.settings) for speed in self._speeds):
                return plan
            speed = self._measure(plan, seconds)
            if speed is None:  # out of memory
                self._memory_bytes = plan.num_parameters * BYTES_PER_PARAMETER - 1.0
            else:
                self._speeds.append(speed)
        if not self._speeds:
            raise FolioError(f"no model fits the memory of {self._device}; free some, or set the sizes and max_steps")
        plans = [self._plan(given | {"n_embd": speed.settings["n_embd"]}, deadline) for speed in self._speeds]
        return min(plans, key=lambda plan: plan.relative_loss)

    def _plan(self, given: Settings, deadline: float) -> Plan:
        config = self._config
        limits = Limits(
            seconds=max(deadline - time.monotonic() - at_end_s(config), MIN_SHARE_LEFT * self._total_s),
            memory_bytes=self._memory_bytes,
            max_params=config.max_params,
            has_muon=config.arch == "modern" and config.optimizer == "muon",
            world_size=self._world.size,
        )
        return make_plan(self._text, limits, self._speeds or [GUESS], given)

    def _measure(self, plan: Plan, seconds: float) -> Speed | None:
        """Return the speed of the planned model, or None if a single window does not fit the memory."""
        settings, num_processes = plan.settings, self._world.size
        num_windows = max(settings["batch_size"] // num_processes, 1)
        while num_windows:
            changes = settings | {"batch_size": num_windows, "gradient_accumulation_steps": 1}
            config = dataclasses.replace(self._config, **changes)
            times = self._try(config, seconds)
            if times is not None:
                tokens = num_windows * config.block_size * num_processes
                return Speed(
                    settings=settings,
                    flops_per_token=plan.flops_per_token,
                    tokens_per_s=tokens / times[0],
                    evaluation_tokens_per_s=tokens / times[1],
                )
            num_windows //= 2
        return None

    def _try(self, config: Config, seconds: float) -> tuple[float, float] | None:
        """Return the seconds of a step and of an evaluation, or None if they ran out of memory."""
        try:
            return measure_step(config, self._text.vocab_size, self._device, seconds=seconds)
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e):
                raise
            return None
        finally:
            if self._device.type == "cuda":  # reserved memory would count as that of the run
                torch.cuda.empty_cache()


def _is_similar(measured: Settings, planned: Settings) -> bool:
    """Return whether the speed of the planned model is that of the measured one."""
    ratio = measured["batch_size"] / planned["batch_size"]
    is_same = all(measured[key] == planned[key] for key in ("n_layer", "n_embd", "block_size", "dropout"))
    return is_same and 1 / SIMILAR_BATCH <= ratio <= SIMILAR_BATCH


def describe_plan(plan: Plan, text: Text) -> list[str]:
    """Return lines that say what was chosen and why."""
    settings = plan.settings
    windows = settings["batch_size"] * settings["gradient_accumulation_steps"]
    repeats = "" if plan.epochs is None else f", {plan.epochs:,.1f} times the text"
    model = (
        f"{plan.num_parameters:,} parameters ({settings['n_layer']} layers of width "
        f"{settings['n_embd']}, context {settings['block_size']})"
    )
    steps = (
        f"{settings['max_steps']:,} steps of {windows * settings['block_size']:,} tokens at {plan.tokens_per_s:,.0f} "
        f"tokens/s read {plan.tokens:,} tokens{repeats}, with dropout {settings['dropout']:g}"
    )
    reason = "in this time, a larger model would read too few tokens, and a smaller one learn too little from each"
    if plan.is_limited_by_text:
        seconds = plan.tokens / plan.tokens_per_s
        reason = (
            f"{text.name} is short for this time: the run ends after about {format_duration(seconds)}, because it "
            "would hardly learn from reading the text more often"
        )
    return [f"{model}; {reason}", steps]


def at_end_s(config: Config) -> float:
    """Return about how many seconds the completion and the end of the process take after the last step."""
    return slowdown() * (EXIT_S + config.completion_tokens * config.n_layer * COMPLETION_S_PER_LAYER)


def is_correction_due(limit: TimeLimit, step: int, max_steps: int, num_timed_steps: int) -> bool:
    """Return whether the number of steps is corrected after `step`, `num_timed_steps` after the last correction."""
    if limit.num_corrections == len(CORRECTIONS):
        return False
    if num_timed_steps < min(MIN_TIMED_STEPS, MIN_TIMED_FRACTION * max_steps):
        return False
    return step >= CORRECTIONS[limit.num_corrections] * max_steps


def correct_length(run: Run, state: TrainingState, logger: RunLogger) -> bool:
    """Correct max_steps of `run` if that is due after the last step. Return whether it has changed.

    All processes must call this, after the same steps.
    """
    config, limit = run.config, run.time_limit
    if limit is None or state.step >= config.max_steps:
        return False
    if not is_correction_due(limit, state.step, config.max_steps, logger.timer.num_timed_steps(state.step)):
        return False
    limit.num_corrections += 1
    synchronize(run.device)
    max_steps = run.world.broadcast(_corrected_steps(run, state, logger, limit))
    if abs(max_steps / config.max_steps - 1) < MIN_CORRECTION:
        return False
    run.config = dataclasses.replace(config, max_steps=max_steps)
    logger.set_max_steps(max_steps)
    logger.print(f"plan: {max_steps:,} steps instead of {config.max_steps:,} fit {config.minutes:g} min")
    run.world.run_on_main(lambda: write_run(run.config, run.source))
    return True


def _corrected_steps(run: Run, state: TrainingState, logger: RunLogger, limit: TimeLimit) -> int:
    config, timer, num_tokens = run.config, logger.timer, run.data.train.num_tokens
    pauses_per_step = 1 / config.eval_interval + 1 / config.checkpoint_interval
    max_steps = correct_steps(
        state.step,
        seconds_left=limit.deadline - time.monotonic() - at_end_s(config) - 2 * timer.mean_pause_s,
        step_s=timer.split(state.step) + timer.mean_pause_s * pauses_per_step,
        interval=config.eval_interval,
    )
    max_tokens = math.inf if num_tokens is None else MAX_EPOCHS * num_tokens
    most = max(int(min(max_tokens / (config.windows_per_step * config.block_size), 1e18)), config.max_steps)
    return min(max_steps, most)
