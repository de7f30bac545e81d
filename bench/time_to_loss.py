"""Measure how soon Folio's recipes and nanoGPT reach a validation loss, on the same data, in turn.

    NANOGPT_DIR=... python bench/time_to_loss.py shards/tinyshakespeare_char --preset shakespeare-cpu --seeds 3

Each run leaves snapshots of its weights. Afterwards one evaluator computes the loss of all of them:
on the same windows and in fp32. nanoGPT's weights are loaded into Folio's GPT2, and the loss of
nanoGPT's model must be the same. The target is the lowest loss that each of nanoGPT's seeds reaches,
or `--target`. A run has reached the target at its first snapshot at or below it that the next
snapshot confirms, or that is the last one. Without NANOGPT_DIR only Folio runs, and `--target` is
required.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bench.baselines.nanogpt_train import PROBE_WINDOWS
from bench.lib.measure import fresh_folder
from bench.lib.options import parse_positive
from bench.lib.report import print_table
from bench.lib.trainers import (
    NANOGPT,
    NANOGPT_CPU,
    SMALL,
    Snapshot,
    TrainingRun,
    check_probe_loss,
    load_snapshot,
    run_all,
)
from bench.lib.training_options import parse_options, print_environment, run_bench
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from train.core.device import make_autocast
from train.core.memory import keep_freed_memory
from train.data.batches import ValidationData
from train.data.builds import open_builds
from train.run.validation import evaluate

TOKENS_PER_FORWARD_PASS = 1 << 14  # of an evaluation


@dataclass(frozen=True, kw_only=True)
class Preset:
    """nanoGPT's settings, and a config file and settings for each recipe of Folio; the intervals are steps."""

    nanogpt: tuple[str, ...]
    nanogpt_interval: int  # between snapshots
    folio: dict[str, tuple[str, ...]]
    folio_intervals: dict[str, int]


PLAIN = ("configs/plain_shakespeare_char.py", "--device=cpu", *SMALL, "--max_steps=200", "--warmup_steps=20")
MODERN = (*PLAIN, "--arch=modern", "--token_shift=true")
MUON = (*MODERN, "--optimizer=muon")
EMBEDDING = (*MUON, "--embedding_learning_rate=0.3")
HEAD = (*EMBEDDING, "--learning_rate=0.015", "--min_lr=0.0015")
BETAS = (*HEAD, "--beta1=0.8", "--beta2=0.95", "--weight_decay=0")
COMPLETE = ("configs/shakespeare_char_cpu.py", "--device=cpu")
LADDER = {
    "GPT-2, AdamW": PLAIN,
    "modern, AdamW": MODERN,
    "+ Muon for the matrices of the blocks": MUON,
    "+ embedding learning rate 0.3": EMBEDDING,
    "+ head learning rate 0.015": HEAD,
    "+ β 0.8 and 0.95, no weight decay": BETAS,
    "+ linear decay to 0, no warmup": (*BETAS, "--schedule=linear", "--min_lr=0", "--warmup_steps=0"),
    "+ Muon learning rate 0.03, momentum 0.9": (*COMPLETE, "--n_head=4"),
    "+ 2 heads: complete recipe": COMPLETE,
    "complete, 24 windows per step, 100 steps": (*COMPLETE, "--batch_size=24", "--max_steps=100"),
    "complete, 6 windows per step, 400 steps": (*COMPLETE, "--batch_size=6", "--max_steps=400"),
    "complete, cosine schedule": (*COMPLETE, "--schedule=cosine"),
    "complete, warmup of 20 steps": (*COMPLETE, "--warmup_steps=20"),
    "complete, Muon momentum 0.95": (*COMPLETE, "--muon_momentum=0.95"),
    "complete, weight decay 0.1": (*COMPLETE, "--weight_decay=0.1"),
    "complete, head learning rate 0.005": (*COMPLETE, "--learning_rate=0.005"),
    "complete, bf16": (*COMPLETE, "--precision=bf16"),
}
PRESETS = {
    # The configuration for a laptop in nanoGPT's README.
    "shakespeare-cpu": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL, "--max_iters=2000", "--lr_decay_iters=2000"),
        nanogpt_interval=100,
        folio={
            "Folio": ("configs/shakespeare_char_cpu.py", "--device=cpu"),
            "Folio, plain": ("configs/plain_shakespeare_char.py", "--device=cpu", *SMALL, "--max_steps=2000"),
        },
        folio_intervals={"Folio": 10, "Folio, plain": 100},
    ),
    # The configuration for one GPU in nanoGPT's README; both are compiled.
    "shakespeare-gpu": Preset(
        nanogpt=("config/train_shakespeare_char.py",),
        nanogpt_interval=100,
        folio={
            "Folio": ("configs/shakespeare_char.py", "--device=cuda", "--compile=true"),
            "Folio, plain": ("configs/plain_shakespeare_char.py", "--device=cuda", "--compile=true"),
        },
        folio_intervals={"Folio": 50, "Folio, plain": 100},
    ),
    # The same, but neither is compiled. nanoGPT's lowest loss comes before its step 2,600; until there
    # its learning rates are those of the complete run.
    "shakespeare-gpu-eager": Preset(
        nanogpt=("config/train_shakespeare_char.py", "--compile=False", "--max_iters=2600"),
        nanogpt_interval=200,
        folio={"Folio": ("configs/shakespeare_char.py", "--device=cuda")},
        folio_intervals={"Folio": 25},
    ),
    # What each part of the recipe gives in the same number of steps, one change after the other; then changes to the
    # complete recipe that were not kept.
    "ladder": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL, "--max_iters=200", "--lr_decay_iters=200", "--warmup_iters=20"),
        nanogpt_interval=200,
        folio=LADDER,
        folio_intervals=dict.fromkeys(LADDER, 200),
    ),
    "smoke": Preset(
        nanogpt=(*NANOGPT_CPU, *SMALL, "--max_iters=8", "--lr_decay_iters=8"),
        nanogpt_interval=4,
        folio={"Folio": ("configs/shakespeare_char_cpu.py", "--device=cpu", "--max_steps=8", "--warmup_steps=2")},
        folio_intervals={"Folio": 4},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A run and the validation loss of each of its snapshots, in nats."""

    run: TrainingRun
    losses: list[float]
    num_windows: int  # of which each loss is the mean

    def find_target(self, target: float) -> Snapshot | None:
        """Return the first snapshot at or below `target` that the next one confirms, or None."""
        is_below = [loss <= target for loss in self.losses]
        for snapshot, is_reached, is_confirmed in zip(self.run.snapshots, is_below, [*is_below[1:], True], strict=True):
            if is_reached and is_confirmed:
                return snapshot
        return None

    def training_s_to(self, target: float) -> float | None:
        """Return the seconds of training to `target` without compilation, or None if it is not reached."""
        snapshot = self.find_target(target)
        return None if snapshot is None else snapshot.elapsed_s - self.run.compiled_in_steps_s

    def total_s_to(self, target: float) -> float | None:
        """Return the seconds from the start of the process to `target`, without evaluations and saving."""
        training_s = self.training_s_to(target)
        return None if training_s is None else self.run.start_up_s + self.run.compilation_s + training_s


def compute_curve(run: TrainingRun, build: Build, *, device: torch.device) -> Curve:
    """Return the losses of all snapshots on the full validation split, in windows of the run's block_size."""
    builds = open_builds(str(build.folder))
    data = ValidationData(builds, replace(run.config, eval_tokens=None), device=device)
    batch_size = max(TOKENS_PER_FORWARD_PASS // run.config.block_size, 1)
    losses = []
    for snapshot in run.snapshots:
        model = load_snapshot(run, snapshot, builds.vocab_size).to(device)
        evaluation = evaluate(model, data, batch_size=batch_size, autocast=make_autocast("fp32", device))
        losses.append(evaluation.loss)
    check_probe_loss(run, evaluation.losses[:PROBE_WINDOWS].mean().item())
    return Curve(run=run, losses=losses, num_windows=data.num_windows)


def list_points(curve: Curve) -> list[tuple[int, float, float]]:
    """Return the step, the seconds of training and the loss of each snapshot."""
    pairs = zip(curve.run.snapshots, curve.losses, strict=True)
    return [(snapshot.step, snapshot.elapsed_s, loss) for snapshot, loss in pairs]


def choose_target(losses: Sequence[Sequence[float]]) -> float:
    """Return the lowest loss that every run reaches and that its next snapshot confirms.

    `losses`: for each run, the loss of each snapshot.
    """
    return max(min(max(pair) for pair in zip(of_run, [*of_run[1:], of_run[-1]], strict=True)) for of_run in losses)


def format_mean(values: Sequence[float | None], digits: int) -> str:
    """Return the mean ± the standard deviation; None is a target that was not reached."""
    reached = [value for value in values if value is not None]
    if len(reached) < len(values):
        return f"not reached by {len(values) - len(reached)} of {len(values)}"
    deviation = f" ± {statistics.stdev(reached):,.{digits}f}" if len(reached) > 1 else ""
    return f"{statistics.mean(reached):,.{digits}f}{deviation}"


def format_speedup(folio_s: Sequence[float | None], nanogpt_s: Sequence[float | None]) -> str:
    """Return the ratio of nanoGPT's mean to Folio's, and the smallest and largest ratio of a seed.

    Each sequence has the seconds to the target of each seed, or None if it was not reached.
    """
    if not nanogpt_s:
        return "not measured"
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(folio_s, nanogpt_s, strict=True)
        if ours is not None and theirs is not None
    ]
    if len(pairs) < len(folio_s):
        return "n/a"
    ratios = [theirs / ours for ours, theirs in pairs]
    mean_ratio = sum(theirs for _, theirs in pairs) / sum(ours for ours, _ in pairs)
    return f"{mean_ratio:.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def make_row(curves: Sequence[Curve], nanogpt_curves: Sequence[Curve], target: float) -> dict[str, str]:
    """Return a trainer's row of the table by column head: what it needed to reach the target, and its final loss."""
    runs = [curve.run for curve in curves]
    first = runs[0]
    training_s, total_s = [c.training_s_to(target) for c in curves], [c.total_s_to(target) for c in curves]
    nanogpt_training_s = [curve.training_s_to(target) for curve in nanogpt_curves]
    nanogpt_total_s = [curve.total_s_to(target) for curve in nanogpt_curves]
    snapshots = [curve.find_target(target) for curve in curves]
    steps = [None if snapshot is None else float(snapshot.step) for snapshot in snapshots]
    tokens = [None if num_steps is None else num_steps * first.tokens_per_step for num_steps in steps]
    return {
        "trainer": first.name,
        "parameters": f"{first.num_parameters:,}",
        "training to target, s": format_mean(training_s, 1),
        "speed-up": format_speedup(training_s, nanogpt_training_s),
        "start-up, s": format_mean([run.start_up_s for run in runs], 1),
        "compilation, s": format_mean([run.compilation_s for run in runs], 1),
        "total to target, s": format_mean(total_s, 1),
        "total speed-up": format_speedup(total_s, nanogpt_total_s),
        "steps to target": format_mean(steps, 0),
        "tokens to target": format_mean(tokens, 0),
        "tokens/s": f"{statistics.median(run.tokens_per_step / run.step_s for run in runs):,.0f}",
        "full run, s": format_mean([run.snapshots[-1].elapsed_s for run in runs], 1),
        "lowest loss": format_mean([min(curve.losses) for curve in curves], 4),
        "final loss": format_mean([curve.losses[-1] for curve in curves], 4),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=parse_positive, default=3, help="runs of each trainer (default: 3)")
    parser.add_argument("--target", type=float, help="a validation loss in nats (default: nanoGPT's)")
    parser.add_argument(
        "--curves", type=Path, help="write step, seconds and loss of every snapshot to this file, as JSON"
    )


def check_options(arguments: argparse.Namespace, nanogpt: Path | None) -> None:
    """Raise FolioError if there is no usable target."""
    if arguments.target is not None and not 0 < arguments.target < math.inf:
        raise FolioError(f"--target must be a validation loss in nats such as 1.9, got {arguments.target}")
    if nanogpt is None and arguments.target is None:
        raise FolioError("there is no target: NANOGPT_DIR is not set; set it to nanoGPT's checkout, or pass --target")


def main() -> None:
    options = parse_options(__doc__, PRESETS, add_options, check_options)
    preset, num_seeds = PRESETS[options.arguments.preset], options.arguments.seeds
    intervals = preset.folio_intervals | {NANOGPT: preset.nanogpt_interval}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    with fresh_folder(options.scratch) as scratch:
        runs = run_all(preset.folio, preset.nanogpt, options, scratch, num_turns=num_seeds, intervals=intervals)
        # Evaluate after all runs, so that evaluations do not slow down a run.
        curves = {
            name: [compute_curve(run, options.build, device=device) for run in of_trainer]
            for name, of_trainer in runs.items()
        }
    if options.arguments.curves:
        points = {name: [list_points(curve) for curve in of_trainer] for name, of_trainer in curves.items()}
        options.arguments.curves.write_text(json.dumps(points))
    nanogpt_curves = curves.get(NANOGPT, [])
    target = options.arguments.target or choose_target([curve.losses for curve in nanogpt_curves])
    num_windows, *others = {curve.num_windows for of_trainer in curves.values() for curve in of_trainer}
    if others:
        raise FolioError(
            f"the runs were evaluated on {num_windows:,} and {others[0]:,} windows; give all of them one block_size"
        )
    print_environment(options.arguments.preset, options.nanogpt)
    print(f"seeds 1 to {num_seeds}; target: {target:.4f} on {num_windows:,} windows\n")
    rows = [make_row(of_trainer, nanogpt_curves, target) for of_trainer in curves.values()]
    print_table([list(rows[0]), *(list(row.values()) for row in rows)])


if __name__ == "__main__":
    run_bench(main)
