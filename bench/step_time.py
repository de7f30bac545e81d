"""Where a training step's time goes, how many tokens a second that makes beside nanoGPT, and how soon a batch is there.

    NANOGPT_DIR=... python bench/step_time.py shards/tinyshakespeare_char --preset shakespeare-cpu

Three tables. Tokens a second: both trainers as they are run, in turn, the median over the stretches between their marks. Shares: our
step with the device waited for after each part, so that the parts add up to a little more than a step. Batches: ours and nanoGPT's
`get_batch`, of 400 million tokens. Without NANOGPT_DIR only ours run. `--preset gpt2-vocabulary-cpu` shows what a head of 50,257 ids
takes, for which BUILD has to be one in GPT-2's BPE.
"""

from __future__ import annotations

import argparse
import os
import runpy
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from measure import ROOT, fresh_folder, positive, print_table
from trainers import (
    NANOGPT,
    NANOGPT_CPU,
    SMALL,
    Trained,
    in_rotation,
    nanogpt_checkout,
    parse,
    print_place,
    run_folio,
    run_nanogpt,
    settings_of,
)

from builds import Builds, open_builds
from config import Config, load_config
from data import Feed, TrainingData
from device import choose_device, choose_precision, make_autocast, set_matmul_precision
from distributed import World
from memory import keep_freed_memory
from model import make_model
from optim import update
from preprocess.shards.windows import RandomWindows
from state import new_training

NUM_TOKENS = 400_000_000
SHAPES = ((8, 256), (12, 1024), (64, 1024))
WARM_UP = 5  # steps
ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The same model and batch for both; `steps` of each run, a mark every `interval`."""

    nanogpt: tuple[str, ...]
    folio: dict[str, tuple[str, ...]]
    steps: int
    interval: int


WIDER = ("--block_size=256", "--batch_size=16")
GPT2 = ("--n_layer=12", "--n_head=12", "--n_embd=768", "--block_size=1024", "--batch_size=64", "--gradient_accumulation_steps=1")
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


def run_in_turn(preset: Preset, build: Path, scratch: Path, *, repeat: int, nanogpt: Path | None) -> dict[str, list[Trained]]:
    """Every trainer `repeat` times."""
    runs: dict[str, list[Trained]] = {name: [] for name in [*preset.folio, *([NANOGPT] if nanogpt else [])]}
    for turn in range(repeat):
        for name in in_rotation(list(runs), turn):
            common = {"build": build, "folder": scratch / f"{list(runs).index(name)}-{turn}", "seed": turn + 1, "interval": preset.interval}
            if name in preset.folio:
                run = run_folio(name, [*preset.folio[name], f"--max_steps={preset.steps}", "--warmup_steps=0"], **common)
            else:
                assert nanogpt is not None
                run = run_nanogpt(nanogpt, [*preset.nanogpt, f"--max_iters={preset.steps}"], **common)
            runs[name].append(run)
        print(f"  turn {turn + 1} of {repeat}", file=sys.stderr, flush=True)
    return runs


def print_speed(runs: dict[str, list[Trained]], *, vocab_size: int, matrix_flops: float) -> None:
    theirs = statistics.median(run.tokens_per_step / run.step_s for run in runs[NANOGPT]) if NANOGPT in runs else None
    rows = [["trainer", "parameters", "tokens/s of each run", "median", "ms a step", "× nanoGPT", "of the matrix rate", "peak MB"]]
    for name, of_name in runs.items():
        speeds = [run.tokens_per_step / run.step_s for run in of_name]
        speed = statistics.median(speeds)
        row = [name, f"{of_name[0].num_parameters:,}", " ".join(f"{s:,.0f}" for s in speeds), f"{speed:,.0f}"]
        row += [f"{of_name[0].tokens_per_step / speed * 1e3:.1f}", f"{speed / theirs:.2f}" if theirs else "not measured"]
        row += [f"{speed * flops_per_token(of_name[0], vocab_size) / matrix_flops:.0%}"]
        rows.append([*row, f"{max(run.peak_memory_bytes for run in of_name) / 1e6:,.0f}"])
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


def time_parts(config: Config, builds: Builds, *, device: torch.device, steps: int) -> dict[str, list[float]]:
    """What train.py's take_step does, part by part."""
    if device.type == "cpu":
        keep_freed_memory()
    training = new_training(config, builds.vocab_size, device=device)
    world, parts = World(), Parts(device)
    data = TrainingData(builds, config, device=device)
    feed = Feed(data, windows_per_step=config.batch_size, micro_batch=config.batch_size, world=world)
    model = torch.compile(training.model) if config.compile else training.model
    autocast = make_autocast(config.precision, device)
    for step in range(WARM_UP + steps):
        with parts.timed("data"):
            feed.prepare(step * config.batch_size)
            ids, targets, documents = feed.take(step * config.batch_size)
        with parts.timed("forward and loss"), autocast:
            loss = model(ids, targets, documents).mean()
        with parts.timed("backward"):
            training.scaler.scale(loss).backward()
        with parts.timed("clipping"):
            norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.grad_clip or float("inf"))
        with parts.timed("optimizer"):
            update(training.optimizers, loss.isfinite() & norm.isfinite())
            for optimizer in training.optimizers:
                optimizer.zero_grad(set_to_none=True)
    return {name: ms[WARM_UP:] for name, ms in parts.ms.items()}


def print_parts(by_recipe: dict[str, dict[str, list[float]]]) -> None:
    names = list(next(iter(by_recipe.values())))
    rows = [["recipe", *(f"{name}, ms" for name in names), "sum", "data's share"]]
    for recipe, parts in by_recipe.items():
        medians = [statistics.median(parts[name]) for name in names]
        share = medians[names.index("data")] / sum(medians)
        rows.append([recipe, *(f"{m:.2f}" for m in medians), f"{sum(medians):.2f}", f"{share:.2%}"])
    print_table(rows)


def nanogpt_batches(nanogpt: Path, folder: Path) -> Callable[[int, int], Callable[[], object]]:
    """Its get_batch: train.py is run up to its first evaluation, after which it ends, and leaves its functions."""
    tiny = (
        "--n_layer=1",
        "--n_head=1",
        "--n_embd=8",
        "--block_size=8",
        "--batch_size=1",
        "--eval_iters=1",
        "--compile=False",
        "--device=cpu",
    )
    argv, cwd, first = sys.argv, Path.cwd(), sys.path[0]
    sys.argv, sys.path[0] = ["train.py", "--eval_only=True", f"--dataset={folder}", f"--out_dir={folder}", *tiny], str(nanogpt)
    os.chdir(nanogpt)
    ours = sys.modules.pop("model")  # theirs has the same name
    try:
        with redirect_stdout(sys.stderr):
            get_batch = runpy.run_path("train.py", run_name="__main__")["get_batch"]
    finally:
        sys.modules["model"] = ours
        sys.argv, sys.path[0] = argv, first
        os.chdir(cwd)

    def batches(batch_size: int, block_size: int) -> Callable[[], object]:
        get_batch.__globals__.update(batch_size=batch_size, block_size=block_size)
        return lambda: get_batch("train")

    return batches


def time_batches(build: Path, scratch: Path, *, num_tokens: int, nanogpt: Path | None) -> list[list[str]]:
    """Microseconds of a batch on the CPU: the median of many. BUILD's tokens, repeated up to `num_tokens`.

    Each shape twice: many batches in a row, as such functions are timed everywhere, and ours and theirs by turns, where each finds the
    caches full of the other's. In training they are full of the model's.
    """
    builds = open_builds(str(build))
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
        jobs = [folio_batches(builds, mapped, batch_size, block_size), *([theirs(batch_size, block_size)] if theirs else [])]
        for calls, in_a_row in (("in a row", ROUNDS // 10), ("by turns", 1)):
            took = time_jobs(jobs, in_a_row=in_a_row)
            ratio = f"{took[1] / took[0]:.1f}" if theirs else "not measured"
            rows.append([f"{batch_size}×{block_size}", calls, f"{took[0]:,.0f}", f"{took[1]:,.0f}" if theirs else "not measured", ratio])
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
    parser.add_argument("--num-tokens", type=positive, default=NUM_TOKENS, help="that batches are drawn from")


def main() -> None:
    arguments = parse(__doc__, list(PRESETS), add_options)
    preset = PRESETS[arguments.preset]
    nanogpt = nanogpt_checkout()
    print_place(arguments.preset, nanogpt)
    builds = open_builds(str(arguments.build))
    with fresh_folder(arguments.scratch) as scratch:
        runs = run_in_turn(preset, arguments.build, scratch, repeat=arguments.repeat, nanogpt=nanogpt)
        parts = {}
        for name, (path, *settings) in preset.folio.items():
            config = load_config(ROOT / path, settings_of(settings) | {"data": str(arguments.build)})
            device = choose_device(config.device)
            config = replace(config, device=str(device), precision=choose_precision(config.precision, device))
            set_matmul_precision(config.precision)
            parts[name] = time_parts(config, builds, device=device, steps=min(preset.steps, 100))
        print_speed(
            runs,
            vocab_size=builds.vocab_size,
            matrix_flops=matrix_rate(device, config.precision, size=8192 if device.type == "cuda" else 2048),
        )
        print()
        print_parts(parts)
        print()
        print_table(time_batches(arguments.build, scratch, num_tokens=arguments.num_tokens, nanogpt=nanogpt))


if __name__ == "__main__":
    main()
