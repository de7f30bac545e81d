"""Where a training step's time goes, how many tokens a second that makes beside nanoGPT, and how soon a batch is there.

    NANOGPT_DIR=... python bench/step_time.py shards/tinyshakespeare_char --preset shakespeare-cpu

Three tables. Tokens a second: both trainers as they are run, in turn, the median over the stretches between their marks. Shares: their
steps, in turn within one process, with the device waited for after each part, so that the parts add up to a little more than a step;
freed memory goes back to the system there, which `train.py` on a CPU does not allow. Batches: ours and nanoGPT's
`get_batch`, of 400 million tokens. Without NANOGPT_DIR only ours run. `--preset gpt2-vocabulary-cpu` shows what a head of 50,257 ids
takes, for which BUILD has to be one in GPT-2's BPE.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import runpy
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from bench.lib.measure import ROOT, fresh_folder, positive, print_table
from bench.lib.trainers import (
    NANOGPT,
    NANOGPT_CPU,
    SMALL,
    Trained,
    parse,
    print_place,
    run_all,
    run_bench,
    settings_of,
    write_data,
)
from preprocess.errors import FolioError
from preprocess.shards.windows import RandomWindows
from train.config import Config, load_config
from train.core.device import choose_device, choose_precision, make_autocast, set_matmul_precision
from train.core.distributed import World
from train.data.batches import Prefetcher, TrainingData
from train.data.builds import Builds, open_builds
from train.model import make_model
from train.optim import update
from train.run.state import new_training

NUM_TOKENS = 400_000_000
SHAPES = ((8, 256), (12, 1024), (64, 1024))
WARM_UP, IN_A_ROW = 5, 10  # steps
ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The same model and batch for both; `steps` of each run, a mark every `interval`."""

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


def print_speed(runs: dict[str, list[Trained]], *, vocab_size: int, matrix_flops: float) -> None:
    """The ratio is the median of those of the turns, beside the least and the most."""
    speeds = {name: [run.tokens_per_step / run.step_s for run in of_name] for name, of_name in runs.items()}
    rows = [
        [
            "trainer",
            "parameters",
            "tokens/s of each run",
            "median",
            "ms a step",
            "× nanoGPT",
            "of the matrix rate",
            "peak MB",
        ]
    ]
    for name, of_name in runs.items():
        speed = statistics.median(speeds[name])
        ratios = [ours / theirs for ours, theirs in zip(speeds[name], speeds.get(NANOGPT, []), strict=False)]
        row = [name, f"{of_name[0].num_parameters:,}", " ".join(f"{s:,.0f}" for s in speeds[name]), f"{speed:,.0f}"]
        row += [f"{of_name[0].tokens_per_step / speed * 1e3:.1f}"]
        row += [
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "not measured"
        ]
        row += [f"{speed * flops_per_token(of_name[0], vocab_size) / matrix_flops:.0%}"]
        peaks = [run.peak_memory_bytes for run in of_name if run.peak_memory_bytes is not None]
        rows.append([*row, f"{max(peaks) / 1e6:,.0f}" if peaks else "n/a"])
    print_table(rows)


def flops_per_token(run: Trained, vocab_size: int) -> float:
    """By the trainer's own count, for all alike."""
    with torch.device("meta"):
        return make_model(run.config, vocab_size).flops_per_token()


def matrix_rate(device: torch.device, precision: str, *, size: int) -> float:
    """Floating-point operations a second of a square matrix product: the median of 20."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    took = []
    for _ in range(20):
        wait(device)
        began = perf_counter()
        a @ b
        wait(device)
        took.append(perf_counter() - began)
    return 2.0 * size**3 / statistics.median(took)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """Milliseconds of each part of a step, one step after the other."""

    def __init__(self, device: torch.device) -> None:
        self.ms: dict[str, list[float]] = {}
        self._device = device

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        wait(self._device)
        began = perf_counter()
        yield
        wait(self._device)
        self.ms.setdefault(name, []).append((perf_counter() - began) * 1e3)


Step = Callable[[Parts], None]  # takes a training step, and the time of each part of it


def folio_step(config: Config, builds: Builds, *, device: torch.device) -> Step:
    """What train.py's take_step does, part by part."""
    training = new_training(config, builds.vocab_size, device=device)
    data = TrainingData(builds, config, device=device)
    prefetcher = Prefetcher(data, windows_per_step=config.batch_size, micro_batch=config.batch_size, world=World())
    model = torch.compile(training.model) if config.compile else training.model
    autocast = make_autocast(config.precision, device)
    first = iter(range(0, 1 << 40, config.batch_size))

    def step(parts: Parts) -> None:
        with parts.timed("data"):
            ids, targets, documents = prefetcher.take(next(first))
        with parts.timed("forward and loss"), autocast:
            loss, _ = model(ids, targets, documents)
        with parts.timed("backward"):
            training.scaler.scale(loss).backward()
        with parts.timed("clipping"):
            norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.grad_clip or float("inf"))
        with parts.timed("optimizer"):
            update(training.optimizers, loss.isfinite() & norm.isfinite())
            for optimizer in training.optimizers:
                optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt_step(nanogpt: Path, folder: Path, settings: Sequence[str]) -> Step:
    """What its loop does, with its own model and optimizer."""
    theirs = run_up_to_training(nanogpt, folder, settings)
    model, raw, optimizer, scaler = (theirs[name] for name in ("model", "raw_model", "optimizer", "scaler"))

    def step(parts: Parts) -> None:
        with parts.timed("data"):
            ids, targets = theirs["get_batch"]("train")
        with parts.timed("forward and loss"), theirs["ctx"]:
            _, loss = model(ids, targets)
        with parts.timed("backward"):
            scaler.scale(loss).backward()
        with parts.timed("clipping"):
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(raw.parameters(), theirs["grad_clip"])
        with parts.timed("optimizer"):
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    return step


def time_parts(steps: dict[str, Step], *, device: torch.device, num_steps: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each part of `num_steps` steps of each, IN_A_ROW of one and then of the next: in one process all fare alike."""
    parts = {name: Parts(device) for name in steps}
    for name, step in steps.items():
        for _ in range(WARM_UP):
            step(parts[name])
        parts[name].ms.clear()
    for _ in range(0, num_steps, IN_A_ROW):
        for name, step in steps.items():
            for _ in range(IN_A_ROW):
                step(parts[name])
    return {name: of_name.ms for name, of_name in parts.items()}


def print_parts(by_trainer: dict[str, dict[str, list[float]]]) -> None:
    """Medians. The ratio is that of the sums."""
    names = list(next(iter(by_trainer.values())))
    rows = [["trainer", *(f"{name}, ms" for name in names), "sum", "data's share", "× nanoGPT"]]
    sums = {trainer: sum(statistics.median(parts[name]) for name in names) for trainer, parts in by_trainer.items()}
    for trainer, parts in by_trainer.items():
        medians = [statistics.median(parts[name]) for name in names]
        share = medians[names.index("data")] / sums[trainer]
        ratio = f"{sums[NANOGPT] / sums[trainer]:.2f}" if NANOGPT in sums else "not measured"
        rows.append([trainer, *(f"{m:.2f}" for m in medians), f"{sums[trainer]:.2f}", f"{share:.2%}", ratio])
    print_table(rows)


def run_up_to_training(nanogpt: Path, folder: Path, settings: Sequence[str]) -> dict[str, Any]:
    """nanoGPT's train.py, up to its first evaluation, after which it ends, and leaves its variables. `folder` has its data."""
    argv, cwd, first = sys.argv, Path.cwd(), sys.path[0]
    # Settings replace those before them: a config file comes first, and none evaluates for long.
    sys.argv = [
        "train.py",
        *settings,
        "--eval_only=True",
        "--eval_iters=1",
        f"--dataset={folder}",
        f"--out_dir={folder}",
    ]
    sys.path[0] = str(nanogpt)
    os.chdir(nanogpt)
    ours = sys.modules.pop("model")  # theirs has the same name
    try:
        with redirect_stdout(sys.stderr):
            return runpy.run_path("train.py", run_name="__main__")
    finally:
        sys.modules["model"] = ours
        sys.argv, sys.path[0] = argv, first
        os.chdir(cwd)


def nanogpt_batches(nanogpt: Path, folder: Path) -> Callable[[int, int], Callable[[], object]]:
    """Its get_batch, on the CPU."""
    sizes = ("--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=1")
    get_batch = run_up_to_training(nanogpt, folder, [*sizes, "--compile=False", "--device=cpu"])["get_batch"]

    def batches(batch_size: int, block_size: int) -> Callable[[], object]:
        get_batch.__globals__.update(batch_size=batch_size, block_size=block_size)
        return lambda: get_batch("train")

    return batches


def time_batches(builds: Builds, scratch: Path, *, num_tokens: int, nanogpt: Path | None) -> list[list[str]]:
    """Microseconds of a batch on the CPU: the median of many. The build's tokens, repeated up to `num_tokens`.

    Each shape twice: many batches in a row, as such functions are timed everywhere, and ours and theirs by turns, where each finds the
    caches full of the other's. In training they are full of the model's.
    """
    tokens = np.concatenate([np.asarray(shard.tokens) for shard in builds.builds[0].shards("train")]).astype(np.uint16)
    folder = scratch / "tokens"
    folder.mkdir()
    for split in ("train", "val"):
        np.resize(tokens, num_tokens).tofile(folder / f"{split}.bin")
    theirs = nanogpt_batches(nanogpt, folder) if nanogpt else None
    mapped = np.asarray(np.memmap(folder / "train.bin", dtype="<u2", mode="r"))
    mapped[:: 1 << 11].max()  # meets every page
    rows = [["batch", "calls", "Folio µs", "nanoGPT µs", "times as fast"]]
    for batch_size, block_size in SHAPES:
        jobs = [
            folio_batches(builds, mapped, batch_size, block_size),
            *([theirs(batch_size, block_size)] if theirs else []),
        ]
        for calls, in_a_row in (("in a row", ROUNDS // 10), ("by turns", 1)):
            took = time_jobs(jobs, in_a_row=in_a_row)
            ratio = f"{took[1] / took[0]:.1f}" if theirs else "not measured"
            rows.append(
                [
                    f"{batch_size}×{block_size}",
                    calls,
                    f"{took[0]:,.0f}",
                    f"{took[1]:,.0f}" if theirs else "not measured",
                    ratio,
                ]
            )
    return rows


def folio_batches(builds: Builds, tokens: np.ndarray, batch_size: int, block_size: int) -> Callable[[], object]:
    """Training samples as train.py draws them, `tokens` in the place of the build's own."""
    config = Config(data=builds.name, out_dir="none", block_size=block_size, batch_size=batch_size)
    data = TrainingData(builds, config, device=torch.device("cpu"))
    data._mixed.parts[0].tokens = [tokens]
    data._orders = [RandomWindows([len(tokens)], block_size, seed=1)]
    first = iter(range(0, 1 << 40, batch_size))
    return lambda: data.batch(next(first), batch_size)


def time_jobs(jobs: list[Callable[[], object]], *, in_a_row: int) -> list[float]:
    """Median microseconds of each job: ROUNDS calls, `in_a_row` of one job and then of the next."""
    took: list[list[float]] = [[] for _ in jobs]
    for _ in range(ROUNDS // in_a_row):
        for job, of_job in zip(jobs, took, strict=True):
            for _ in range(in_a_row):
                began = perf_counter()
                job()
                of_job.append((perf_counter() - began) * 1e6)
    return [statistics.median(of_job) for of_job in took]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeat", type=positive, default=5)
    parser.add_argument(
        "--num-tokens", type=positive, default=NUM_TOKENS, help="that batches are drawn from; four bytes of disk each"
    )


def check_options(own: argparse.Namespace, _: Path | None) -> None:
    """Raise FolioError for a number of tokens that holds no window, or that the disk does not."""
    least = max(block_size for _, block_size in SHAPES) + 1
    if own.num_tokens < least:
        raise FolioError(f"--num-tokens is {own.num_tokens:,}, a batch wants {least:,} or more")
    need, free = 2 * 2 * own.num_tokens, shutil.disk_usage(own.scratch).free
    if need > free:
        raise FolioError(
            f"{need / 1e6:,.0f} MB are needed, {own.scratch} has {free / 1e6:,.0f} MB free; give another --scratch, or fewer --num-tokens"
        )


def main() -> None:
    options = parse(__doc__, PRESETS, add_options, check_options)
    own, preset = options.own, PRESETS[options.own.preset]
    print_place(own.preset, options.nanogpt)
    builds = open_builds(str(options.build.folder))
    with fresh_folder(options.scratch) as scratch:
        folio = {
            name: [*recipe, f"--max_steps={preset.steps}", "--warmup_steps=0"] for name, recipe in preset.folio.items()
        }
        nanogpt, intervals = (
            [*preset.nanogpt, f"--max_iters={preset.steps}"],
            dict.fromkeys([*folio, NANOGPT], preset.interval),
        )
        runs = run_all(folio, nanogpt, options, scratch, turns=own.repeat, intervals=intervals)
        steps: dict[str, Step] = {}
        for name, (path, *settings) in preset.folio.items():
            config = load_config(ROOT / path, settings_of(settings) | {"data": str(options.build.folder)})
            device = choose_device(config.device)
            config = replace(config, device=str(device), precision=choose_precision(config.precision, device))
            set_matmul_precision(config.precision)
            steps[name] = folio_step(config, builds, device=device)
        if options.nanogpt:
            write_data(options.build, scratch / "data")
            steps[NANOGPT] = nanogpt_step(options.nanogpt, scratch / "data", preset.nanogpt)
        parts = time_parts(steps, device=device, num_steps=min(preset.steps, 100))
        size = 8192 if device.type == "cuda" else 2048
        print_speed(runs, vocab_size=builds.vocab_size, matrix_flops=matrix_rate(device, config.precision, size=size))
        print()
        print_parts(parts)
        print(flush=True)
        print_table(time_batches(builds, scratch, num_tokens=own.num_tokens, nanogpt=options.nanogpt))


if __name__ == "__main__":
    run_bench(main)
