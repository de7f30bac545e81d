"""Measure training steps: tokens per second beside nanoGPT, the parts of a step, and the time to read a batch.

    NANOGPT_DIR=... python bench/step_time.py shards/tinyshakespeare_char --preset shakespeare-cpu

Prints three tables:

1. Tokens per second of both trainers as users run them, in turn. A run's rate is the median over the
   intervals between its snapshots.
2. The parts of a step. The steps of both trainers alternate in one process, and the process waits
   for the device after each part, so the parts add up to slightly more than a step takes.
3. The time to read a batch from 400 million tokens: Folio's TrainingData and nanoGPT's `get_batch`.

Without NANOGPT_DIR only Folio runs. `--preset gpt2-vocabulary-cpu` shows the cost of a head with
50,257 ids; BUILD must use GPT-2's tokenizer.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import math
import os
import runpy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from bench.lib.measure import ROOT, fresh_folder
from bench.lib.options import parse_positive
from bench.lib.report import print_table
from bench.lib.trainers import NANOGPT, NANOGPT_CPU, SMALL, TrainingRun, parse_settings, run_all, write_data
from bench.lib.training_options import Options, parse_options, print_environment, run_bench
from preprocess.errors import FolioError
from preprocess.shards.windows import RandomWindows
from train.config import Config, load_config
from train.core.distributed import World
from train.data.batches import Prefetcher, TrainingData
from train.data.builds import Builds, open_builds
from train.model import make_model
from train.optim import update
from train.run.context import Run, open_run
from train.run.state import new_state

NUM_TOKENS = 400_000_000
BATCH_SHAPES = ((8, 256), (12, 1024), (64, 1024))  # (windows, tokens)
WARM_UP_STEPS, CONSECUTIVE_STEPS = 5, 10
MAX_PART_STEPS = 100  # steps of each trainer in the second table
NUM_CALLS = 1000
NUM_MATRIX_PRODUCTS = 20
MATRIX_SIZE = {"cuda": 8192, "cpu": 2048}
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of both trainers for the same model and batch; each run has `steps`, with a snapshot per `interval`."""

    nanogpt: tuple[str, ...]
    folio: dict[str, tuple[str, ...]]
    steps: int
    interval: int


WIDER = ("--block_size=256", "--batch_size=16")
GPT2 = (
    "--n_layer=12",
    "--n_head=12",
    "--n_embd=768",
    "--block_size=1024",
    "--batch_size=64",
    "--gradient_accumulation_steps=1",
)
PRESETS = {
    "shakespeare-cpu": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL),
        folio={
            "Folio, plain": ("configs/plain_shakespeare_char.py", "--device=cpu", *SMALL),
            "Folio": ("configs/shakespeare_char_cpu.py", "--device=cpu"),
        },
        steps=300,
        interval=20,
    ),
    "gpt2-gpu": Preset(
        nanogpt=(*GPT2, "--dropout=0.0"),
        folio={
            "Folio, plain": ("configs/plain_gpt2_124m.py", "--device=cuda", "--compile=true", *GPT2),
            "Folio": ("configs/gpt2_124m.py", "--device=cuda", "--compile=true", "--decay_steps=20", *GPT2),
        },
        steps=60,
        interval=10,
    ),
    "gpt2-vocabulary-cpu": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL, *WIDER),
        folio={
            "Folio, plain": ("configs/plain_shakespeare_char.py", "--device=cpu", *SMALL, *WIDER),
            "Folio": ("configs/shakespeare_char_cpu.py", "--device=cpu", *WIDER),
        },
        steps=8,
        interval=2,
    ),
    "smoke": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL),
        folio={"Folio": ("configs/shakespeare_char_cpu.py", "--device=cpu")},
        steps=8,
        interval=4,
    ),
}


# 1. Tokens per second


def print_rates(runs: dict[str, list[TrainingRun]], *, vocab_size: int, matrix_flops_per_s: float) -> None:
    """Print the rates. The ratio is the median over the turns, followed by the smallest and the largest."""
    rates = {name: [run.tokens_per_step / run.step_s for run in of_trainer] for name, of_trainer in runs.items()}
    head = ["trainer", "parameters", "tokens/s of each run", "median", "ms per step", "× nanoGPT"]
    rows = [[*head, "of the matrix rate", "peak MB"]]
    for name, of_trainer in runs.items():
        rate = median(rates[name])
        ratios = [folio / nanogpt for folio, nanogpt in zip(rates[name], rates.get(NANOGPT, []), strict=False)]
        peaks = [run.peak_memory_bytes for run in of_trainer if run.peak_memory_bytes is not None]
        rows.append(
            [
                name,
                f"{of_trainer[0].num_parameters:,}",
                " ".join(f"{r:,.0f}" for r in rates[name]),
                f"{rate:,.0f}",
                f"{of_trainer[0].tokens_per_step / rate * 1e3:.1f}",
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else NOT_MEASURED,
                f"{rate * count_flops_per_token(of_trainer[0].config, vocab_size) / matrix_flops_per_s:.0%}",
                f"{max(peaks) / 1e6:,.0f}" if peaks else "n/a",
            ]
        )
    print_table(rows)


def count_flops_per_token(config: Config, vocab_size: int) -> float:
    """Return the floating-point operations per token as train.py counts them, for both trainers."""
    with torch.device("meta"):
        return make_model(config, vocab_size).flops_per_token()


def measure_matrix_rate(device: torch.device, precision: str) -> float:
    """Return the floating-point operations per second of a product of two square matrices."""
    size = MATRIX_SIZE[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))  # (size, size)
    times = StepTimes(device)
    for _ in range(NUM_MATRIX_PRODUCTS):
        with times.measure("product"):
            a @ b
    return 2.0 * size**3 / (times.median_ms("product") / 1e3)


# 2. The parts of a step


class StepTimes:
    """Milliseconds of each part of the steps of one trainer."""

    def __init__(self, device: torch.device) -> None:
        self._ms: dict[str, list[float]] = {}
        self._device = device

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Measure the block as a part of a step, from an idle device to an idle device."""
        self._synchronize()
        begin = perf_counter()
        yield
        self._synchronize()
        self._ms.setdefault(part, []).append((perf_counter() - begin) * 1e3)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @property
    def parts(self) -> list[str]:
        return list(self._ms)

    def median_ms(self, part: str) -> float:
        return median(self._ms[part])

    def clear(self) -> None:
        self._ms.clear()


Step = Callable[[StepTimes], None]  # runs one training step and measures its parts


def make_folio_step(run: Run) -> Step:
    """Return `optimizer_step` of train/train.py, divided into parts.

    It has one micro-batch and a constant learning rate.
    """
    config = run.config
    state = new_state(config, run.source.vocab_size, device=run.device)
    prefetcher = Prefetcher(
        run.data.train, windows_per_step=config.batch_size, micro_batch=config.batch_size, world=run.world
    )
    if config.compile:
        state.model.compile()

    def step(times: StepTimes) -> None:
        with times.measure("data"):
            ids, targets, documents = prefetcher.take(state.num_samples)
        with times.measure("forward and loss"), run.autocast:
            loss, _ = state.model(ids, targets, documents)
        with times.measure("backward"):
            state.scaler.scale(loss).backward()
        with times.measure("clipping"):
            for optimizer in state.optimizers:
                state.scaler.unscale_(optimizer)
            grad_norm = clip_grad_norm_(state.model.parameters(), config.grad_clip or math.inf)
        with times.measure("optimizer"):
            update(state.optimizers, loss.isfinite() & grad_norm.isfinite())
            state.scaler.update()
            for optimizer in state.optimizers:
                optimizer.zero_grad(set_to_none=True)
        state.num_samples += config.batch_size

    return step


def make_nanogpt_step(nanogpt: Path, folder: Path, settings: Sequence[str]) -> Step:
    """Return a step of nanoGPT's training loop, with its model and optimizer, divided into parts."""
    variables = run_until_training(nanogpt, folder, settings)
    model, raw_model, optimizer, scaler = (variables[name] for name in ("model", "raw_model", "optimizer", "scaler"))

    def step(times: StepTimes) -> None:
        with times.measure("data"):
            ids, targets = variables["get_batch"]("train")
        with times.measure("forward and loss"), variables["ctx"]:
            _, loss = model(ids, targets)
        with times.measure("backward"):
            scaler.scale(loss).backward()
        with times.measure("clipping"):
            scaler.unscale_(optimizer)
            clip_grad_norm_(raw_model.parameters(), variables["grad_clip"])
        with times.measure("optimizer"):
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    return step


def run_until_training(nanogpt: Path, folder: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Run nanoGPT's train.py to the end of its first evaluation, of no batch, and return its globals.

    `folder` has its data.
    """
    argv, cwd, import_path = sys.argv, Path.cwd(), sys.path[:]
    # A later setting replaces an earlier one, so these follow the preset's.
    forced_settings = ["--eval_only=True", "--eval_iters=0", f"--dataset={folder}", f"--out_dir={folder}"]
    sys.argv = ["train.py", *settings, *forced_settings]
    sys.path[0] = str(nanogpt)
    os.chdir(nanogpt)
    try:
        with redirect_stdout(sys.stderr):
            return runpy.run_path("train.py", run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, import_path
        os.chdir(cwd)


def measure_parts(steps: dict[str, Step], *, device: torch.device, num_steps: int) -> dict[str, StepTimes]:
    """Measure `num_steps` steps of each trainer, CONSECUTIVE_STEPS of one and then of the next."""
    times = {name: StepTimes(device) for name in steps}
    for name, step in steps.items():
        for _ in range(WARM_UP_STEPS):
            step(times[name])
        times[name].clear()
    for _ in range(0, num_steps, CONSECUTIVE_STEPS):
        for name, step in steps.items():
            for _ in range(CONSECUTIVE_STEPS):
                step(times[name])
    return times


def print_parts(times: dict[str, StepTimes]) -> None:
    """Print the median of each part. The ratio is that of the sums."""
    parts = next(iter(times.values())).parts
    rows = [["trainer", *(f"{part}, ms" for part in parts), "sum", "data share", "× nanoGPT"]]
    medians = {name: [of_trainer.median_ms(part) for part in parts] for name, of_trainer in times.items()}
    for name, part_ms in medians.items():
        step_ms = sum(part_ms)
        data_share = part_ms[parts.index("data")] / step_ms
        ratio = f"{sum(medians[NANOGPT]) / step_ms:.2f}" if NANOGPT in medians else NOT_MEASURED
        rows.append([name, *(f"{ms:.2f}" for ms in part_ms), f"{step_ms:.2f}", f"{data_share:.2%}", ratio])
    print_table(rows)


# 3. The time to read a batch


def measure_batches(builds: Builds, scratch: Path, *, num_tokens: int, nanogpt: Path | None) -> list[list[str]]:
    """Return a table of microseconds per batch on the CPU, from the tokens of `builds` repeated up to `num_tokens`.

    Each shape is measured twice: many calls in a row, and Folio's and nanoGPT's calls in turn, so
    that each finds the caches filled by the other. In training the model fills them.
    """
    tokens = np.concatenate([np.asarray(shard.tokens) for shard in builds.builds[0].shards("train")]).astype(np.uint16)
    folder = scratch / "tokens"
    folder.mkdir()
    for split in ("train", "val"):
        np.resize(tokens, num_tokens).tofile(folder / f"{split}.bin")
    make_nanogpt_reader = load_nanogpt_reader(nanogpt, folder) if nanogpt else None
    mapped = np.asarray(np.memmap(folder / "train.bin", dtype="<u2", mode="r"))
    mapped[:: 1 << 11].max()  # touches every page
    rows = [["batch", "calls", "Folio, µs", "nanoGPT, µs", "speed-up"]]
    for batch_size, block_size in BATCH_SHAPES:
        readers = [make_folio_reader(builds, mapped, batch_size, block_size)]
        if make_nanogpt_reader:
            readers.append(make_nanogpt_reader(batch_size, block_size))
        for order, num_consecutive in (("in a row", NUM_CALLS // 10), ("in turn", 1)):
            folio_us, *nanogpt_us = measure_calls(readers, num_consecutive=num_consecutive)
            cells = [f"{us:,.0f}" for us in nanogpt_us] + [f"{us / folio_us:.1f}" for us in nanogpt_us]
            rows.append(
                [f"{batch_size}×{block_size}", order, f"{folio_us:,.0f}", *(cells or [NOT_MEASURED, NOT_MEASURED])]
            )
    return rows


def load_nanogpt_reader(nanogpt: Path, folder: Path) -> Callable[[int, int], Callable[[], object]]:
    """Return a function of (batch_size, block_size) that returns nanoGPT's `get_batch` on the CPU."""
    sizes = ("--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=1")
    get_batch = run_until_training(nanogpt, folder, [*sizes, "--compile=False", "--device=cpu"])["get_batch"]

    def make_reader(batch_size: int, block_size: int) -> Callable[[], object]:
        get_batch.__globals__.update(batch_size=batch_size, block_size=block_size)
        return lambda: get_batch("train")

    return make_reader


def make_folio_reader(builds: Builds, tokens: np.ndarray, batch_size: int, block_size: int) -> Callable[[], object]:
    """Return a function that reads the next training samples, with `tokens` instead of the build's."""
    config = Config(data=builds.name, out_dir="none", block_size=block_size, batch_size=batch_size)
    data = TrainingData(builds, config, device=torch.device("cpu"))
    data._split.parts[0].tokens = [tokens]
    data._orders = [RandomWindows([len(tokens)], block_size, seed=1)]
    first_samples = iter(range(0, 1 << 40, batch_size))
    return lambda: data.batch(next(first_samples), batch_size)


def measure_calls(functions: list[Callable[[], object]], *, num_consecutive: int) -> list[float]:
    """Return the median microseconds per call of each function, called `num_consecutive` times in a row each."""
    us: list[list[float]] = [[] for _ in functions]
    for _ in range(NUM_CALLS // num_consecutive):
        for function, of_function in zip(functions, us, strict=True):
            for _ in range(num_consecutive):
                begin = perf_counter()
                function()
                of_function.append((perf_counter() - begin) * 1e6)
    return [median(of_function) for of_function in us]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeat", type=parse_positive, default=5, help="runs of each trainer (default: 5)")
    parser.add_argument(
        "--num-tokens",
        type=parse_positive,
        default=NUM_TOKENS,
        help=f"tokens from which batches are read; each takes 4 bytes of disk (default: {NUM_TOKENS:,})",
    )


def check_options(arguments: argparse.Namespace, _: Path | None) -> None:
    """Raise FolioError if the tokens are fewer than a window or do not fit on the disk."""
    min_tokens = max(block_size for _, block_size in BATCH_SHAPES) + 1
    if arguments.num_tokens < min_tokens:
        raise FolioError(f"--num-tokens must be at least {min_tokens:,} for a batch, got {arguments.num_tokens:,}")
    needed_bytes, free_bytes = 2 * 2 * arguments.num_tokens, shutil.disk_usage(arguments.scratch).free
    if needed_bytes > free_bytes:
        raise FolioError(
            f"{needed_bytes / 1e6:,.0f} MB are needed in {arguments.scratch}, but {free_bytes / 1e6:,.0f} MB are free; "
            "choose another --scratch, or fewer --num-tokens"
        )


def open_runs(preset: Preset, options: Options) -> dict[str, Run]:
    """Return the Run of each of Folio's recipes."""
    return {
        name: open_run(
            load_config(ROOT / config_file, parse_settings(settings) | {"data": str(options.build.folder)}), World()
        )
        for name, (config_file, *settings) in preset.folio.items()
    }


def main() -> None:
    options = parse_options(__doc__, PRESETS, add_options, check_options)
    preset = PRESETS[options.arguments.preset]
    print_environment(options.arguments.preset, options.nanogpt)
    builds = open_builds(str(options.build.folder))
    with fresh_folder(options.scratch) as scratch:
        recipes = {
            name: [*arguments, f"--max_steps={preset.steps}", "--warmup_steps=0"]
            for name, arguments in preset.folio.items()
        }
        nanogpt_arguments = [*preset.nanogpt, f"--max_iters={preset.steps}"]
        intervals = dict.fromkeys([*recipes, NANOGPT], preset.interval)
        training_runs = run_all(
            recipes, nanogpt_arguments, options, scratch, num_turns=options.arguments.repeat, intervals=intervals
        )
        runs = open_runs(preset, options)
        steps = {name: make_folio_step(run) for name, run in runs.items()}
        if options.nanogpt:
            write_data(options.build, scratch / "data")
            steps[NANOGPT] = make_nanogpt_step(options.nanogpt, scratch / "data", preset.nanogpt)
        *_, last_run = runs.values()
        times = measure_parts(steps, device=last_run.device, num_steps=min(preset.steps, MAX_PART_STEPS))
        matrix_flops_per_s = measure_matrix_rate(last_run.device, last_run.config.precision)
        print_rates(training_runs, vocab_size=builds.vocab_size, matrix_flops_per_s=matrix_flops_per_s)
        print()
        print_parts(times)
        print(flush=True)
        num_tokens = options.arguments.num_tokens
        print_table(measure_batches(builds, scratch, num_tokens=num_tokens, nanogpt=options.nanogpt))


if __name__ == "__main__":
    run_bench(main)
