"""Measure whether one learning rate serves models of all widths.

    python bench/width.py shards/tinyshakespeare_char
    python bench/width.py shards/tinyshakespeare_char --recipes gpt2 --unscaled

Trains each recipe at each width, with all its learning rates times each multiplier, and prints the
validation losses. All runs of a recipe have the same steps, batches and validation windows. With
`--unscaled`, the rates do not follow the width (base_width none). The rates serve a width if the
multiplier 1 is within a factor of 2 of the best one, and its loss within 0.02 of the lowest.

The runs are short, and one follows the other in this process: nothing is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import dataclasses
from collections.abc import Sequence

import torch

from bench.lib.measure import ROOT
from bench.lib.options import parse_positive
from bench.lib.report import TRAINING_LIBRARIES, describe_machine, format_versions, print_table
from bench.lib.trainers import parse_settings
from train.config import Config, load_config
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.run.context import open_run
from train.run.state import new_state
from train.run.validation import evaluate
from train.train import optimizer_step

HEAD_SIZE = 64
SETTINGS = ("--block_size=64", "--dropout=0", "--eval_tokens=16384", "--device=cpu")
NO_AUTHOR = ("--completion_author=none", "--completion_city=none", "--completion_year=none")
# The config of each recipe, and its settings here.
RECIPES = {
    "modern": ("configs/shakespeare_char_cpu.py", ("--n_layer=1", "--max_steps=150")),
    "gpt2": ("configs/demo.py", ("--n_layer=2", "--batch_size=4", "--max_steps=400", "--warmup_steps=40", *NO_AUTHOR)),
}
RATES = ("learning_rate", "min_lr", "embedding_learning_rate", "muon_learning_rate")


def make_config(recipe: str, width: int, arguments: argparse.Namespace) -> Config:
    """Return the settings of `recipe` at `width`, with the multiplier 1."""
    path, settings = RECIPES[recipe]
    settings = (*SETTINGS, *settings, f"--n_embd={width}", f"--n_head={max(width // HEAD_SIZE, 1)}")
    if arguments.steps is not None:
        settings += f"--max_steps={arguments.steps}", "--warmup_steps=0"
    if arguments.unscaled:
        settings += ("--base_width=none",)
    return load_config(ROOT / path, parse_settings((*settings, f"--data={arguments.build}")))


def multiply_rates(config: Config, multiplier: float) -> Config:
    """Return `config` with `multiplier` times its learning rates. Rates that are not used are not changed."""
    used = RATES if config.optimizer == "muon" else RATES[:-1]
    rates = {key: getattr(config, key) for key in used}
    return dataclasses.replace(config, **{key: rate * multiplier for key, rate in rates.items() if rate is not None})


def train(config: Config) -> float:
    """Return the validation loss after a run with these settings."""
    run = open_run(config, World(), quiet=True)
    config = run.config
    state = new_state(config, run.source.vocab_size, device=run.device)
    prefetcher = Prefetcher(
        run.data.train, windows_per_step=config.windows_per_step, micro_batch=config.windows_per_step, world=run.world
    )
    while state.step < config.max_steps:
        optimizer_step(run, state, state.model, prefetcher)
    return evaluate(state.model, run.data.val, batch_size=config.windows_per_step, autocast=run.autocast).loss


def format_row(recipe: str, width: int, losses: dict[float, float]) -> list[str]:
    """Return the row of a table. `losses`: multiplier → validation loss."""
    best = min(losses, key=losses.__getitem__)
    excess = f"{losses[1.0] - losses[best]:.3f}" if 1.0 in losses else "not measured"
    return [recipe, f"{width:,}", *(f"{loss:.3f}" for loss in losses.values()), f"{best:g}", excess]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="a build's folder or name")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="(default: all)")
    parser.add_argument("--widths", nargs="+", type=parse_positive, default=[64, 128, 256, 512])
    parser.add_argument("--multipliers", nargs="+", type=float, default=[0.25, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--steps", type=parse_positive, help="of each run, without warmup (default: the recipe's)")
    parser.add_argument("--threads", type=parse_positive, default=torch.get_num_threads())
    parser.add_argument("--unscaled", action="store_true", help="the same rates for all widths (base_width none)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"{describe_machine()}\n{format_versions(TRAINING_LIBRARIES)}\n", flush=True)
    rows = [["recipe", "width", *(f"× {m:g}" for m in options.multipliers), "best", "× 1 − best"]]
    for recipe in options.recipes:
        for width in options.widths:
            config = make_config(recipe, width, options)
            losses = {}
            for multiplier in options.multipliers:
                losses[multiplier] = train(multiply_rates(config, multiplier))
                print(f"{recipe} {width} × {multiplier:g}: {losses[multiplier]:.4f}", file=sys.stderr, flush=True)
            rows.append(format_row(recipe, width, losses))
    print_table(rows)


if __name__ == "__main__":
    main()
