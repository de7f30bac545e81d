"""How soon a validation loss is reached: our trainer's recipes, and nanoGPT, on the same bytes, in turn.

    NANOGPT_DIR=... python bench/time_to_loss.py shards/tinyshakespeare_char --preset shakespeare-cpu --seeds 3

One evaluator reads the weights that each run left at its marks: the same windows, in fp32, for all; nanoGPT's weights in our GPT-2, whose
loss must be its own model's. The target is the lowest loss that each of nanoGPT's seeds reaches, or `--target`. A run has reached it at
the first mark at or below it which the next mark confirms, or which is its last. Without NANOGPT_DIR only ours run, and `--target` is
needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bench.baselines.nanogpt_train import PROBE_WINDOWS
from bench.lib.measure import fresh_folder, positive, print_table
from bench.lib.trainers import (
    NANOGPT,
    NANOGPT_CPU,
    SMALL,
    Mark,
    Trained,
    check_same_loss,
    load,
    parse,
    print_place,
    run_all,
    run_bench,
)
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from train.core.device import make_autocast
from train.core.memory import keep_freed_memory
from train.data.batches import ValidationData
from train.data.builds import open_builds
from train.run.validation import evaluate

EVALUATION_TOKENS = 1 << 14  # of a forward pass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What runs: nanoGPT's settings, and a config and settings for each of our recipes; marks every so many steps."""

    nanogpt: tuple[str, ...]
    nanogpt_interval: int
    folio: dict[str, tuple[str, ...]]
    folio_interval: dict[str, int]


PLAIN = ("configs/plain_shakespeare_char.py", "--device=cpu", *SMALL, "--max_steps=200", "--warmup_steps=20")
MUON = (*PLAIN, "--arch=modern", "--optimizer=muon")
EMBEDDING = (*MUON, "--embedding_learning_rate=0.3")
HEAD = (*EMBEDDING, "--learning_rate=0.015", "--min_lr=0.0015")
BETAS = (*HEAD, "--beta1=0.8", "--beta2=0.95", "--weight_decay=0")
WHOLE = ("configs/shakespeare_char_cpu.py", "--device=cpu")
LADDER = {
    "GPT-2, AdamW": PLAIN,
    "modern, AdamW": (*PLAIN, "--arch=modern"),
    "+ Muon for the blocks' matrices": MUON,
    "+ the embedding's rate 0.3": EMBEDDING,
    "+ the head's rate 0.015": HEAD,
    "+ β 0.8 and 0.95, no weight decay": BETAS,
    "+ a line down to nothing, no warmup": (*BETAS, "--schedule=linear", "--min_lr=0", "--warmup_steps=0"),
    "+ Muon's rate 0.03, its momentum 0.9": (*WHOLE, "--n_head=4"),
    "+ 2 heads: the whole": WHOLE,
    "whole, 24 windows a step, 100 steps": (*WHOLE, "--batch_size=24", "--max_steps=100"),
    "whole, 6 windows a step, 400 steps": (*WHOLE, "--batch_size=6", "--max_steps=400"),
    "whole, cosine": (*WHOLE, "--schedule=cosine"),
    "whole, warmup of 20 steps": (*WHOLE, "--warmup_steps=20"),
    "whole, Muon's momentum 0.95": (*WHOLE, "--muon_momentum=0.95"),
    "whole, weight decay 0.1": (*WHOLE, "--weight_decay=0.1"),
    "whole, head's rate 0.005": (*WHOLE, "--learning_rate=0.005"),
    "whole, bf16": (*WHOLE, "--precision=bf16"),
}
PRESETS = {
    # nanoGPT's README: the configuration for a laptop.
    "shakespeare-cpu": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL, "--max_iters=2000", "--lr_decay_iters=2000"),
        nanogpt_interval=100,
        folio={
            "Folio": ("configs/shakespeare_char_cpu.py", "--device=cpu"),
            "Folio, plain": ("configs/plain_shakespeare_char.py", "--device=cpu", *SMALL, "--max_steps=2000"),
        },
        folio_interval={"Folio": 10, "Folio, plain": 100},
    ),
    # nanoGPT's README: the configuration for one GPU; both compiled.
    "shakespeare-gpu": Preset(
        nanogpt=("config/train_shakespeare_char.py",),
        nanogpt_interval=100,
        folio={
            "Folio": ("configs/shakespeare_char.py", "--device=cuda", "--compile=true"),
            "Folio, plain": ("configs/plain_shakespeare_char.py", "--device=cuda", "--compile=true"),
        },
        folio_interval={"Folio": 50, "Folio, plain": 100},
    ),
    # What each part of the recipe gives, in as many steps, one change after the other; then changes to the whole that were not kept.
    "ladder": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL, "--max_iters=200", "--lr_decay_iters=200", "--warmup_iters=20"),
        nanogpt_interval=200,
        folio=LADDER,
        folio_interval=dict.fromkeys(LADDER, 200),
    ),
    "smoke": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL, "--max_iters=8", "--lr_decay_iters=8"),
        nanogpt_interval=4,
        folio={"Folio": ("configs/shakespeare_char_cpu.py", "--device=cpu", "--max_steps=8", "--warmup_steps=2")},
        folio_interval={"Folio": 4},
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A run and the validation loss at each of its marks, in nats."""

    run: Trained
    rejects: list[float]
    num_windows: int  # that each loss is the mean of

    def reached(self, target: float) -> Mark | None:
        """The first mark at or below `target` that the next one confirms."""
        below = [loss <= target for loss in self.rejects]
        for mark, is_below, is_confirmed in zip(self.run.marks, below, [*below[1:], True], strict=True):
            if is_below and is_confirmed:
                return mark
        return None

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training until then, without compilation."""
        mark = self.reached(target)
        return None if mark is None else mark.elapsed_s - self.run.compiled_in_steps_s

    def all_seconds_to(self, target: float) -> float | None:
        """Seconds from the start of the process until then, evaluation_mode and saving left out."""
        seconds = self.seconds_to(target)
        return None if seconds is None else self.run.start_s + self.run.compilation_s + seconds


def measure_curve(run: Trained, build: Build, *, device: torch.device) -> Curve:
    """Every mark's loss on the whole validation split, in windows of the run's block_size."""
    builds = open_builds(str(build.folder))
    data = ValidationData(builds, replace(run.config, eval_tokens=None), device=device)
    batch_size = max(EVALUATION_TOKENS // run.config.block_size, 1)
    rejects = []
    for mark in run.marks:
        model = load(run, mark, builds.vocab_size).to(device)
        evaluation = evaluate(model, data, batch_size=batch_size, autocast=make_autocast("fp32", device))
        rejects.append(evaluation.loss)
    check_same_loss(run, evaluation.rejects[:PROBE_WINDOWS].mean().item())
    return Curve(run=run, rejects=rejects, num_windows=data.num_windows)


def choose_target(rejects: Sequence[Sequence[float]]) -> float:
    """The lowest loss that every run reaches and its next mark confirms. `rejects`: of each run, one a mark."""
    return max(min(max(pair) for pair in zip(of_run, [*of_run[1:], of_run[-1]], strict=True)) for of_run in rejects)


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean ± standard deviation, of one value without; None is a target that was not reached."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"not reached by {len(values) - len(known)} of {len(values)}"
    deviation = f" ± {statistics.stdev(known):,.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):,.{digits}f}{deviation}"


HEADER = (
    "trainer", "parameters", "seconds to target", "times sooner than nanoGPT", "start s", "compile s", "with both, s", "times sooner",
    "steps", "tokens", "tokens/s", "whole run s", "lowest loss", "loss at its end",
)  # fmt: skip


def print_curves(curves: dict[str, list[Curve]], target: float) -> None:
    """A row for each trainer: what it took to the target, and, over its whole run, what it ended with."""
    rows, theirs = [HEADER], curves.get(NANOGPT, [])
    for name, of_name in curves.items():
        runs = [curve.run for curve in of_name]
        row = [
            name,
            f"{runs[0].num_parameters:,}",
            spread([c.seconds_to(target) for c in of_name], 1),
            times_sooner(of_name, theirs, target),
        ]
        row += [spread([run.start_s for run in runs], 1), spread([run.compilation_s for run in runs], 1)]
        row += [
            spread([c.all_seconds_to(target) for c in of_name], 1),
            times_sooner(of_name, theirs, target, with_start=True),
        ]
        steps = [None if mark is None else float(mark.step) for mark in (curve.reached(target) for curve in of_name)]
        row += [spread(steps, 0), spread([None if s is None else s * runs[0].tokens_per_step for s in steps], 0)]
        row += [f"{statistics.median(run.tokens_per_step / run.step_s for run in runs):,.0f}"]
        row += [spread([run.marks[-1].elapsed_s for run in runs], 1), spread([min(c.rejects) for c in of_name], 4)]
        rows.append((*row, spread([c.rejects[-1] for c in of_name], 4)))
    print_table(rows)


def times_sooner(ours: Sequence[Curve], theirs: Sequence[Curve], target: float, *, with_start: bool = False) -> str:
    """The mean of nanoGPT's seconds to `target` by the mean of ours, and the least and the most of a seed's."""
    pairs = [
        [c.all_seconds_to(target) if with_start else c.seconds_to(target) for c in curves] for curves in (ours, theirs)
    ]
    a, b = ([s for s in seconds if s is not None] for seconds in pairs)
    if not theirs or len(a) + len(b) < len(ours) + len(theirs):
        return "n/a" if theirs else "not measured"
    ratios = [their_s / our_s for our_s, their_s in zip(a, b, strict=True)]
    return f"{statistics.mean(b) / statistics.mean(a):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--target", type=float, help="a validation loss in nats")


def check_options(own: argparse.Namespace, nanogpt: Path | None) -> None:
    """Raise FolioError for options that lead nowhere."""
    if own.target is not None and not 0 < own.target < math.inf:
        raise FolioError(f"--target is {own.target}, wanted a validation loss in nats such as 1.9")
    if nanogpt is None and own.target is None:
        raise FolioError("NANOGPT_DIR is not set, wanted nanoGPT's checkout, or --target")


def main() -> None:
    options = parse(__doc__, PRESETS, add_options, check_options)
    preset, seeds = PRESETS[options.own.preset], options.own.seeds
    intervals = preset.folio_interval | {NANOGPT: preset.nanogpt_interval}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    with fresh_folder(options.scratch) as scratch:
        runs = run_all(preset.folio, preset.nanogpt, options, scratch, turns=seeds, intervals=intervals)
        # When all have run, so that nothing else is in a run's way.
        curves = {
            name: [measure_curve(run, options.build, device=device) for run in of_name]
            for name, of_name in runs.items()
        }
    target = options.own.target or choose_target([curve.rejects for curve in curves[NANOGPT]])
    num_windows, *others = {curve.num_windows for of_name in curves.values() for curve in of_name}
    if others:
        raise FolioError(
            f"runs were judged on {num_windows:,} and {others[0]:,} windows; give all of them one block_size"
        )
    print_place(options.own.preset, options.nanogpt)
    print(f"seeds 1 to {seeds}; target: {target:.4f} on {num_windows:,} windows\n")
    print_curves(curves, target)


if __name__ == "__main__":
    run_bench(main)
