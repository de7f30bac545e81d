"""Find the best size of a model for a text and a time: the runs that the rules of --minutes are fitted to.

For each text, time and width, the bench measures how much CPU time a step of that model takes on one
core, trains it for as many steps as fit the time, and evaluates it. CPU time is used because other
processes change it little. `--variants` are further settings, to compare a longer context, another
batch or dropout at the same time. Each run appends one JSON object to `--results`, and a run that is
in it already is not repeated. So the ladder can be interrupted, and extended.

    python bench/size_ladder.py shards/NAME ... --seconds 20 60 180 --widths 64 128 192 256
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from typing import Any

import torch

from bench.lib.measure import ROOT
from bench.lib.options import add_scratch_option, parse_path, parse_positive
from bench.lib.report import describe_machine, print_table
from preprocess.shards.format import Build
from train.config import load_config
from train.run.metrics import METRICS_FILE, open_rows
from train.run.plan import BATCH_FACTOR, choose_rates, choose_shape, flops_per_token
from train.run.step_speed import measure_step

CONFIG = "configs/modern_recipe.py"
EVAL_TOKENS = 30_000
CALIBRATION_S = 1.5  # CPU seconds
NEVER = 10**6  # an interval of more steps than any run has
Result = dict[str, Any]


def settings_for(width: int, *, tokens: float, variant: dict[str, str]) -> dict[str, Any]:
    """Return the settings of a run that reads about `tokens` tokens."""
    block_size = int(variant.get("block_size", 128))
    batch_tokens = float(variant.get("batch_factor", 1)) * BATCH_FACTOR * tokens**0.5
    batch_size = max(round(batch_tokens / block_size), 1)
    steps = max(int(tokens / (batch_size * block_size)), 1)
    chosen = {"block_size": block_size, "batch_size": batch_size, "max_steps": steps}
    others = {key: value for key, value in variant.items() if key not in ("block_size", "batch_factor")}
    return {**choose_shape(width), **choose_rates(width, steps), **chosen, **others}


def train(build: Path, settings: dict[str, Any], scratch: Path) -> float:
    """Train once, and return the bits per byte at the end."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    fixed = {"data": build, "out_dir": scratch / "run", "eval_interval": NEVER, "checkpoint_interval": NEVER}
    fixed |= {"eval_tokens": EVAL_TOKENS, "completion_tokens": 1, "keep_checkpoints": 1}
    arguments = [f"--{key}={value}" for key, value in {**fixed, **settings}.items()]
    command = [sys.executable, "train/train.py", CONFIG, "--quiet", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    bits = [
        row.values["bits_per_byte"] for row in open_rows(scratch / "run" / METRICS_FILE) if "val_loss" in row.values
    ]
    shutil.rmtree(scratch)
    return float(bits[-1])


def tokens_per_cpu_s(settings: dict[str, Any], vocab_size: int) -> float:
    """Return how many tokens a run with `settings` reads in a second of one core."""
    overrides = {key: str(value) for key, value in settings.items()}
    config = load_config(ROOT / CONFIG, {"data": "none", "precision": "fp32", **overrides})
    device = torch.device("cpu")
    step_s, _ = measure_step(config, vocab_size, device, seconds=CALIBRATION_S, clock=time.process_time)
    return config.windows_per_step * config.block_size / step_s


def run_ladder(options: argparse.Namespace) -> Iterable[Result]:
    """Yield the result of every run of the ladder, from the file of results if it is there."""
    known = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    names = ("text", "seconds", "width", "variant")
    for seconds, build, width, variant in itertools.product(
        options.seconds, options.builds, options.widths, options.variants
    ):
        key = dict(zip(names, (build.name, seconds, width, variant), strict=True))
        found = next((result for result in known if key.items() <= result.items()), None)
        if found is None:
            found = measure(build, key, options.scratch / "size_ladder")
            known.append(found)
            with options.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), file=sys.stderr, flush=True)
        yield found


def measure(build: Path, key: Result, scratch: Path) -> Result:
    """Calibrate and train the run `key`, and return it with what was measured."""
    variant = dict(pair.split("=", 1) for pair in key["variant"].split(",") if pair)
    vocab_size, rate = Build(build).vocab_size, 8000.0
    for _ in range(2):  # the batch depends on the tokens, and the speed on the batch
        settings = settings_for(key["width"], tokens=rate * key["seconds"], variant=variant)
        rate = tokens_per_cpu_s(settings, vocab_size)
    settings = settings_for(key["width"], tokens=rate * key["seconds"], variant=variant)
    bits = train(build, settings, scratch)
    tokens = settings["max_steps"] * settings["batch_size"] * settings["block_size"]
    flops = flops_per_token(settings, settings["block_size"], vocab_size)
    return {**key, **settings, "tokens": tokens, "flops_per_token": flops, "bits_per_byte": bits}


def print_results(results: list[Result]) -> None:
    """Print a table with a row for each text, time and variant, and a column for each width."""
    widths = sorted({result["width"] for result in results})
    rows = [["text", "variant", "seconds", *map(str, widths)]]
    cells = {(r["text"], r["variant"], r["seconds"], r["width"]): r["bits_per_byte"] for r in results}
    for row in dict.fromkeys(key[:3] for key in cells):
        values = {width: cells[*row, width] for width in widths if (*row, width) in cells}
        best = min(values.values())
        columns = [format_bits(values.get(width), best) for width in widths]
        rows.append([*map(str, row), *columns])
    print_table(rows)


def format_bits(bits: float | None, best: float) -> str:
    """Return a cell of the table; the best value is bold."""
    text = "" if bits is None else f"{bits:.4f}"
    return f"**{text}**" if bits == best else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", type=parse_path, help="folders of builds")
    parser.add_argument("--seconds", nargs="+", type=parse_positive, default=[10, 30, 90])
    parser.add_argument("--widths", nargs="+", type=parse_positive, default=[64, 128, 192, 256])
    parser.add_argument("--variants", nargs="+", default=[""], help="settings such as block_size=256,dropout=0.1")
    parser.add_argument("--results", type=parse_path, default=Path("size_ladder.jsonl"), help="(default: %(default)s)")
    add_scratch_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = list(run_ladder(options))
    print(describe_machine())
    print_results(results)


if __name__ == "__main__":
    main()
