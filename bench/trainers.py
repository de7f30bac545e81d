"""Compare trainers on one build at one size of the model: tokens per second, memory, CPU time, time to a loss.

    NANOGPT_DIR=... python bench/trainers.py shards/tinyshakespeare_char --litgpt-python PYTHON \
        --nanochat-python PYTHON --nanochat-dir CHECKOUT

Each trainer runs for the same number of steps of the same number of tokens, in its own process and
with its own data loader, which is given the tokens of the build. They run in turn, and each turn
begins with another one. What is the same for all: the number of layers, width, context and batch;
no dropout, fp32, no compilation (unless --compile); the first validation windows, and the function
that computes their loss while the clock is stopped. Each process reports the SHA-256 of the tokens
that it read, which must be those of the build.

What differs: the trainers with AdamW have the plain recipe of nanoGPT, with the schedule shortened
to --steps; Folio's modern recipe and nanochat have their own. nanochat's rule for learning rates
was made for batches of half a million tokens: at 768 tokens it divides them by 26. The row
`nanochat, rates ×26` undoes that.

A trainer whose Python or checkout is not given is "not measured".
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib.util
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from bench.baselines.nanogpt_train import PROBE_WINDOWS
from bench.lib.measure import fresh_folder
from bench.lib.options import add_scratch_option, parse_path, parse_positive
from bench.lib.peers import Point, Result, Task, compute_loss, digest, read_result, read_tokens, write_task
from bench.lib.report import print_table
from bench.lib.trainer_process import run_trainer
from bench.lib.trainers import (
    NANOGPT,
    NANOGPT_CPU,
    SMALL,
    TrainingRun,
    check_probe_loss,
    load_snapshot,
    parse_settings,
    rotate,
    run_folio,
    run_nanogpt,
    write_data,
)
from bench.lib.training_options import check_vocabulary, find_nanogpt, print_environment, run_bench
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from train.core.memory import keep_freed_memory
from train.model.base import LanguageModel, evaluation_mode

NUM_POINTS = 10  # evaluations per run
WARMUP_FRACTION = 0.1
NANOCHAT_REFERENCE_TOKENS = 1 << 19  # per step: base_train.py multiplies its rates by the root of the ratio to it
NANOCHAT_RATES = {"embedding-lr": 0.3, "unembedding-lr": 0.008, "matrix-lr": 0.02, "scalar-lr": 0.5}  # its defaults
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The build, the task, and the options of the command line."""

    build: Build
    task: Task
    options: argparse.Namespace


Run = Callable[[Path], Result]  # trains in a folder


def make_task(build: Build, options: argparse.Namespace) -> Task:
    shape = {name: int(value) for name, value in parse_settings(SMALL).items() if name != "dropout"}
    return Task(
        vocab_size=build.vocab_size,
        **shape,
        steps=options.steps,
        warmup_steps=max(round(WARMUP_FRACTION * options.steps), 1),
        interval=options.steps // NUM_POINTS,
        num_windows=options.eval_windows,
        seed=options.seed,
    )


def list_trainers(setting: Setting) -> dict[str, Run | None]:
    """Return how each trainer is run, by its name in the table; None if it cannot be."""
    options, nanogpt = setting.options, find_nanogpt()
    has_nanochat = options.nanochat_python and options.nanochat_dir
    batch_tokens = setting.task.batch_size * setting.task.block_size
    factor = (NANOCHAT_REFERENCE_TOKENS / batch_tokens) ** 0.5
    rates = [f"--{name}={rate * factor}" for name, rate in NANOCHAT_RATES.items()]

    def peer(script: str, python: Path | None, *arguments: str) -> Run | None:
        if python is None:
            return None
        return lambda folder: run_peer(setting, folder, [str(python), script, str(folder), *arguments])

    def nanochat(*arguments: str) -> Run | None:
        python = options.nanochat_python if has_nanochat else None
        return peer("bench/baselines/nanochat_train.py", python, str(options.nanochat_dir), *arguments)

    return {
        "Folio, plain": lambda folder: run_plain(setting, folder),
        "Folio, modern": lambda folder: run_modern(setting, folder),
        NANOGPT: (lambda folder: run_and_evaluate_nanogpt(setting, folder, nanogpt)) if nanogpt else None,
        "litgpt": peer("bench/baselines/litgpt_train.py", options.litgpt_python),
        "nanochat": nanochat(),
        f"nanochat, rates ×{factor:.0f}": nanochat(*rates),
        "Hugging Face Trainer": peer("bench/baselines/huggingface_train.py", options.huggingface_python),
    }


def run_plain(setting: Setting, folder: Path) -> Result:
    """Run Folio with nanoGPT's model and recipe."""
    task = setting.task
    warmup = f"--warmup_steps={task.warmup_steps}"
    return run_recipe(setting, folder, ("configs/plain_shakespeare_char.py", *SMALL, warmup))


def run_modern(setting: Setting, folder: Path) -> Result:
    """Run Folio with its modern model and Muon, as configs/shakespeare_char_cpu.py has them."""
    return run_recipe(setting, folder, ("configs/shakespeare_char_cpu.py",))


def run_recipe(setting: Setting, folder: Path, recipe: Sequence[str]) -> Result:
    task = setting.task
    arguments = [*recipe, "--device=cpu", f"--max_steps={task.steps}", f"--compile={setting.options.compile}"]
    run = run_folio("", arguments, build=setting.build, folder=folder / "run", seed=task.seed, interval=task.interval)
    return evaluate_snapshots(setting, run, folder)


def run_and_evaluate_nanogpt(setting: Setting, folder: Path, nanogpt: Path) -> Result:
    task = setting.task
    length = (f"--max_iters={task.steps}", f"--lr_decay_iters={task.steps}", f"--warmup_iters={task.warmup_steps}")
    arguments = (*NANOGPT_CPU, *SMALL, *length, f"--compile={setting.options.compile}")
    run = run_nanogpt(
        nanogpt, arguments, build=setting.build, folder=folder / "run", seed=task.seed, interval=task.interval
    )
    return evaluate_snapshots(setting, run, folder)


def evaluate_snapshots(setting: Setting, run: TrainingRun, folder: Path) -> Result:
    """Return the result of a run that left snapshots of its weights."""
    tokens, task = read_tokens(folder, "val"), setting.task
    points = []
    for snapshot in run.snapshots:
        model = load_snapshot(run, snapshot, task.vocab_size)
        loss = evaluate(model, tokens, task)
        points.append(Point(step=snapshot.step, elapsed_s=snapshot.elapsed_s, loss=loss))
    check_probe_loss(run, evaluate(model, tokens, replace(task, num_windows=PROBE_WINDOWS)))
    return Result(
        num_parameters=run.num_parameters,
        points=points,
        start_up_s=run.start_up_s + run.compiled_before_s,
        cpu_s=run.cpu_s,
        peak_bytes=run.peak_memory_bytes,
        digests={},  # the tokens are the build's by construction
    )


def evaluate(model: LanguageModel, tokens: np.ndarray, task: Task) -> float:
    with evaluation_mode(model):
        return compute_loss(lambda ids: model.logits(model.features(ids)), tokens, task)


def run_peer(setting: Setting, folder: Path, command: Sequence[str]) -> Result:
    """Run a script of bench/baselines that records its own result, and check the tokens that it read."""
    write_task(setting.task, folder)
    # nanochat and litgpt compile without being asked.
    environment = {} if setting.options.compile else {"TORCHDYNAMO_DISABLE": "1"}
    run_trainer(list(command), folder / "log.txt", environment=environment)
    result = read_result(folder)
    for split, found in result.digests.items():
        expected = digest(np.concatenate([shard.tokens for shard in setting.build.shards(split)]))
        if found != expected:
            raise FolioError(f"{command[1]} read other tokens of {split} than those of the build")
    return result


def run_in_turn(setting: Setting, trainers: dict[str, Run], scratch: Path) -> dict[str, list[Result]]:
    """Run every trainer once per turn."""
    results: dict[str, list[Result]] = {name: [] for name in trainers}
    names = list(trainers)
    for turn in range(setting.options.repeat):
        for name in rotate(names, turn):
            folder = scratch / f"{names.index(name)}-{turn}"
            write_data(setting.build, folder)
            result = trainers[name](folder)
            results[name].append(result)
            last = result.points[-1]
            print(f"  {name}: {last.elapsed_s:.1f} s, loss {last.loss:.4f}", file=sys.stderr, flush=True)
    return results


def find_target(points: Sequence[Point], target: float) -> Point | None:
    """Return the first point at or below `target`, or None."""
    return next((point for point in points if point.loss <= target), None)


def choose_target(results: dict[str, list[Result]]) -> float:
    """Return the loss that nanoGPT reaches in every turn, or else the first trainer does."""
    reference = results.get(NANOGPT) or next(iter(results.values()))
    return max(min(point.loss for point in result.points) for result in reference)


def tokens_per_s(result: Result, task: Task) -> float:
    """Return the median rate of the intervals between evaluations."""
    times = [0.0, *(point.elapsed_s for point in result.points)]
    step_s = median(b - a for a, b in itertools.pairwise(times)) / task.interval
    return task.batch_size * task.block_size / step_s


def make_row(name: str, results: Sequence[Result], task: Task, target: float) -> dict[str, str]:
    """Return the row of a trainer by column head: medians over the turns."""
    training_s, total_s = [], []
    for result in results:
        if point := find_target(result.points, target):
            training_s.append(point.elapsed_s)
            total_s.append(result.start_up_s + point.elapsed_s)
    is_reached = len(training_s) == len(results)
    cpu_s = [result.cpu_s for result in results if result.cpu_s is not None]
    peaks = [result.peak_bytes for result in results if result.peak_bytes is not None]
    rates = [tokens_per_s(result, task) for result in results]
    return {
        "trainer": name,
        "parameters": f"{results[0].num_parameters:,}",
        "tokens/s": f"{median(rates):,.0f}" + (f" ({min(rates):,.0f} to {max(rates):,.0f})" if len(rates) > 1 else ""),
        "CPU ms per step": f"{median(cpu_s) / task.steps * 1e3:.1f}" if cpu_s else "n/a",
        "peak MB": f"{max(peaks) / 1e6:,.0f}" if peaks else "n/a",
        "final loss": f"{median(result.points[-1].loss for result in results):.4f}",
        f"training to {target:.4f}, s": f"{median(training_s):.1f}" if is_reached else "not reached",
        "start-up, s": f"{median(result.start_up_s for result in results):.1f}",
        "total, s": f"{median(total_s):.1f}" if is_reached else "not reached",
    }


def print_results(results: dict[str, list[Result]], names: Sequence[str], task: Task, target: float) -> None:
    """Print the table, with a row of "not measured" for each of `names` that has no result."""
    rows = {name: make_row(name, of_trainer, task, target) for name, of_trainer in results.items()}
    head = list(next(iter(rows.values())))
    missing = [NOT_MEASURED, *[""] * (len(head) - 2)]
    print_table([head, *(list(rows[name].values()) if name in rows else [name, *missing] for name in names)])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="a build's folder or name")
    parser.add_argument("--steps", type=parse_positive, default=200, help="of each trainer (default: 200)")
    parser.add_argument("--repeat", type=parse_positive, default=1, help="turns (default: 1)")
    parser.add_argument("--seed", type=parse_positive, default=1, help="(default: 1)")
    parser.add_argument("--peers", help="first letters of the trainers to run, such as nanoGPT,litgpt (default: all)")
    parser.add_argument("--threads", type=parse_positive, help="OMP_NUM_THREADS (default: each trainer's choice)")
    parser.add_argument("--compile", action="store_true", help="compile the models of all that can")
    parser.add_argument("--target", type=float, help="a validation loss in nats (default: nanoGPT's)")
    parser.add_argument("--eval-windows", type=parse_positive, default=256, help="validation windows (default: 256)")
    has_transformers = importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate")
    default = Path(sys.executable) if has_transformers else None
    parser.add_argument("--huggingface-python", type=parse_path, default=default, help="(default: this one)")
    parser.add_argument("--litgpt-python", type=parse_path, help="a Python that has litgpt")
    parser.add_argument("--nanochat-python", type=parse_path, help="a Python that has nanochat's dependencies")
    parser.add_argument("--nanochat-dir", type=parse_path, help="a checkout of nanochat")
    add_scratch_option(parser)
    options = parser.parse_args()
    if options.steps % NUM_POINTS:
        parser.error(f"--steps must be a multiple of {NUM_POINTS}, got {options.steps}")
    return options


def main() -> None:
    options = parse_options()
    build = Build(options.build)
    check_vocabulary(build)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    setting = Setting(build=build, task=make_task(build, options), options=options)
    trainers = list_trainers(setting)
    chosen = tuple(options.peers.split(",")) if options.peers else ("",)
    runs = {name: run for name, run in trainers.items() if run and name.startswith(chosen)}
    if not runs:
        raise FolioError(f"--peers {options.peers} names none of: {', '.join(n for n, run in trainers.items() if run)}")
    keep_freed_memory()
    with fresh_folder(options.scratch) as scratch:
        results = run_in_turn(setting, runs, scratch)
    print_environment(f"{options.steps} steps", find_nanogpt())
    task = setting.task
    print(f"{build.folder.name}: {task.vocab_size:,} ids; loss on {task.num_windows} windows of {task.block_size}\n")
    print_results(results, list(trainers), task, options.target or choose_target(results))


if __name__ == "__main__":
    run_bench(main)
