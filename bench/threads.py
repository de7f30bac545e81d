"""Measure what the choice of threads of a CPU run is worth, alone and beside busy processes.

    python bench/threads.py shards/tinyshakespeare_char --repeat 2

Trains for a few steps with each number of threads and each GOMP_SPINCOUNT, and with those that
`train.py` chooses itself, while 0, 1 and 2 processes compute without pause. Prints tokens per
second, and the choice as a fraction of the best setting.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from bench.lib.measure import ROOT
from bench.lib.options import add_scratch_option, parse_positive
from bench.lib.report import TRAINING_LIBRARIES, describe_machine, format_versions, print_table
from bench.lib.trainers import SMALL
from bench.lib.training_options import run_bench
from train.core.threads import NUM_THREADS, SPIN_COUNT, count_cores
from train.run.metrics import METRICS_FILE, open_rows

RECIPES = {
    "plain": ("configs/plain_shakespeare_char.py", *SMALL),
    "modern": ("configs/shakespeare_char_cpu.py",),
}
SPIN_COUNTS = (1_000, 5_000, 20_000, 300_000)
CHOSEN = "chosen by train.py"
BUSY_LOOP = "while True: pass"
LOG_INTERVAL = 5


def list_settings() -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    """Return the arguments and the environment variables of each setting, by its name."""
    settings: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {CHOSEN: ((), {})}
    num_threads = count_cores()
    for spin_count in SPIN_COUNTS:
        name = f"{num_threads} threads, {SPIN_COUNT}={spin_count}"
        settings[name] = ((f"--num_threads={num_threads}",), {SPIN_COUNT: str(spin_count)})
    while num_threads > 1:
        num_threads //= 2
        settings[f"{num_threads} thread{'s' * (num_threads > 1)}"] = ((f"--num_threads={num_threads}",), {})
    return settings


def train(
    build: Path, recipe: str, setting: tuple[tuple[str, ...], dict[str, str]], options: argparse.Namespace
) -> float:
    """Train once, and return the median of the logged tokens per second."""
    arguments, variables = setting
    out_dir = options.scratch / "threads"
    shutil.rmtree(out_dir, ignore_errors=True)
    environment = {key: value for key, value in os.environ.items() if key not in (NUM_THREADS, SPIN_COUNT)}
    fixed = (f"--data={build}", f"--out_dir={out_dir}", "--device=cpu", f"--max_steps={options.steps}")
    intervals = (f"--log_interval={LOG_INTERVAL}", "--eval_tokens=64", "--completion_tokens=1", "--warmup_steps=0")
    command = [sys.executable, "train/train.py", *RECIPES[recipe], *fixed, *intervals, *arguments, "--quiet"]
    subprocess.run(command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)} | variables, check=True)
    rates = [row.values.get("tokens_per_s") for row in open_rows(out_dir / METRICS_FILE)]
    shutil.rmtree(out_dir)
    return median(rate for rate in rates if rate)


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Let `number` processes compute without pause inside the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="the folder of a build of characters")
    parser.add_argument("--repeat", type=parse_positive, default=2, help="runs of each setting (default: 2)")
    parser.add_argument("--steps", type=parse_positive, default=60, help="steps of a run (default: 60)")
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2], help="numbers of busy processes")
    add_scratch_option(parser)
    options = parser.parse_args()
    build, settings = options.build.resolve(), list_settings()
    print(f"{describe_machine()}; {format_versions(TRAINING_LIBRARIES)}\n")
    for recipe in RECIPES:
        rows = [["setting", *(f"beside {busy} busy" for busy in options.busy)]]
        rates: dict[str, list[float]] = {name: [] for name in settings}
        for busy in options.busy:
            with busy_processes(busy):
                turns = [
                    {name: train(build, recipe, settings[name], options) for name in settings}
                    for _ in range(options.repeat)
                ]
            for name in settings:
                rates[name].append(median(turn[name] for turn in turns))
        rows += [[name, *(f"{rate:,.0f}" for rate in of_setting)] for name, of_setting in rates.items()]
        best = [max(column) for column in zip(*rates.values(), strict=True)]
        shares = [f"{rate / top:.0%}" for rate, top in zip(rates[CHOSEN], best, strict=True)]
        print(f"{recipe}, tokens/s:\n")
        print_table([*rows, [f"{CHOSEN}, share of the best", *shares]])
        print()


if __name__ == "__main__":
    run_bench(main)
