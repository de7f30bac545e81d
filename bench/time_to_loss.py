"""How soon a validation loss is reached: our trainer's recipes, and nanoGPT, on the same bytes, in turn.

    NANOGPT_DIR=... python bench/time_to_loss.py shards/tinyshakespeare_char --preset shakespeare-cpu --seeds 3

One evaluator reads the weights that each run left at its marks: the same windows, in fp32, for all; nanoGPT's weights in our GPT-2, whose
loss must be its own model's. The target is the lowest loss that nanoGPT reaches, the highest of its seeds', or `--target`. A run has
reached it at the first mark at or below it which the next mark confirms, or which is its last. Without NANOGPT_DIR only ours run, and
`--target` is needed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from measure import fresh_folder, positive, print_table
from peer_nanogpt_train import PROBE_WINDOWS
from trainers import (
    NANOGPT,
    NANOGPT_CPU,
    SMALL,
    Mark,
    Trained,
    in_rotation,
    load,
    nanogpt_checkout,
    parse,
    print_place,
    require_same_loss,
    run_folio,
    run_nanogpt,
)

from builds import open_builds
from data import ValidationData
from device import make_autocast
from evaluation import evaluate

EVALUATION_TOKENS = 1 << 16  # of a forward pass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What runs: nanoGPT's settings, and a config and settings for each of our recipes; marks every so many steps."""

    nanogpt: tuple[str, ...]
    nanogpt_interval: int
    folio: dict[str, tuple[str, ...]]
    folio_interval: dict[str, int]


PLAIN = ("configs/plain_shakespeare_char.py", "--device=cpu", *SMALL, "--max_steps=200", "--warmup_steps=20")
MUON = (*PLAIN, "--arch=modern", "--optimizer=muon")
RATES = (
    *MUON,
    "--embedding_learning_rate=0.3",
    "--learning_rate=0.015",
    "--min_lr=0.0015",
    "--beta1=0.8",
    "--beta2=0.95",
    "--weight_decay=0",
)
WHOLE = ("configs/shakespeare_char_cpu.py", "--device=cpu")
LADDER = {
    "GPT-2, AdamW": PLAIN,
    "modern, AdamW": (*PLAIN, "--arch=modern"),
    "+ Muon": MUON,
    "+ rates for embedding and head": RATES,
    "+ a line down to nothing, no warmup": (*RATES, "--schedule=linear", "--min_lr=0", "--warmup_steps=0"),
    "+ Muon's rate 0.03, its momentum 0.9": (*WHOLE, "--n_head=4"),
    "+ 2 heads: the whole": WHOLE,
    "whole, 24 windows a step, 100 steps": (*WHOLE, "--batch_size=24", "--max_steps=100"),
    "whole, 6 windows a step, 400 steps": (*WHOLE, "--batch_size=6", "--max_steps=400"),
    "whole, cosine": (*WHOLE, "--schedule=cosine"),
    "whole, warmup of 20 steps": (*WHOLE, "--warmup_steps=20"),
    "whole, Muon's momentum 0.95": (*WHOLE, "--muon_momentum=0.95"),
    "whole, weight decay 0.1": (*WHOLE, "--weight_decay=0.1"),
    "whole, head's rate 0.005": (*WHOLE, "--learning_rate=0.005"),
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
    losses: list[float]
    num_windows: int  # that each loss is the mean of

    def reached(self, target: float) -> Mark | None:
        """The first mark at or below `target` that the next one confirms."""
        below = [loss <= target for loss in self.losses]
        for mark, is_below, is_confirmed in zip(self.run.marks, below, [*below[1:], True], strict=True):
            if is_below and is_confirmed:
                return mark
        return None

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training until then, without compilation."""
        mark = self.reached(target)
        return None if mark is None else mark.elapsed_s - self.run.compiled_in_steps_s


def measure_curve(run: Trained, build: Path, *, device: torch.device) -> Curve:
    """Every mark's loss on the whole validation split, in windows of the run's block_size."""
    builds = open_builds(str(build))
    data = ValidationData(builds, replace(run.config, eval_tokens=None), device=device)
    batch_size = max(EVALUATION_TOKENS // run.config.block_size, 1)
    losses = []
    for mark in run.marks:
        model = load(run, mark, builds.vocab_size).to(device)
        evaluation = evaluate(model, data, batch_size=batch_size, autocast=make_autocast("fp32", device))
        losses.append(evaluation.loss)
    require_same_loss(run, evaluation.losses[:PROBE_WINDOWS].mean().item())
    return Curve(run=run, losses=losses, num_windows=data.num_windows)


def run_all(preset: Preset, build: Path, scratch: Path, *, seeds: int, nanogpt: Path | None) -> dict[str, list[Curve]]:
    """Every trainer once a seed, in turn; evaluated when all have run, so that nothing else is in a run's way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs: dict[str, Callable[[int], Trained]] = {}
    for number, (name, arguments) in enumerate(preset.folio.items()):
        jobs[name] = partial(_run_ours, name, arguments, build, scratch / str(number), preset.folio_interval[name])
    if nanogpt:
        jobs[NANOGPT] = partial(_run_theirs, nanogpt, preset, build, scratch)
    runs: dict[str, list[Trained]] = {name: [] for name in jobs}
    for seed in range(1, seeds + 1):
        for name in in_rotation(list(jobs), seed - 1):
            run = jobs[name](seed)
            runs[name].append(run)
            last = run.marks[-1]
            print(f"  {name}, seed {seed}: {last.elapsed_s:.1f} s for {last.step:,} steps", file=sys.stderr, flush=True)
    return {name: [measure_curve(run, build, device=device) for run in of_name] for name, of_name in runs.items()}


def _run_ours(name: str, arguments: Sequence[str], build: Path, scratch: Path, interval: int, seed: int) -> Trained:
    return run_folio(name, arguments, build=build, folder=scratch / str(seed), seed=seed, interval=interval)


def _run_theirs(nanogpt: Path, preset: Preset, build: Path, scratch: Path, seed: int) -> Trained:
    folder = scratch / f"nanogpt-{seed}"
    return run_nanogpt(nanogpt, preset.nanogpt, build=build, folder=folder, seed=seed, interval=preset.nanogpt_interval)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation, of one value without."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{deviation}"


def print_curves(curves: dict[str, list[Curve]], target: float) -> None:
    """A row for each trainer: what it took to the target, and, over its whole run, what it ended with."""
    header = [
        "trainer",
        "parameters",
        "seconds to target",
        "times sooner than nanoGPT",
        "with start and compilation",
        "start s",
        "compile s",
        "steps",
    ]
    header += ["tokens", "tokens/s", "whole run s", "loss at its end"]
    rows = [header]
    seconds = {name: [curve.seconds_to(target) for curve in of_name] for name, of_name in curves.items()}
    for name, of_name in curves.items():
        first, marks = of_name[0].run, [curve.reached(target) for curve in of_name]
        row = [name, f"{first.num_parameters:,}"]
        if None in marks:
            row += [f"not reached by {marks.count(None)} of {len(marks)}", *[""] * 6]
        else:
            took = [value for value in seconds[name] if value is not None]
            whole = [
                mark.elapsed_s + curve.run.start_s + curve.run.compiled_before_s for mark, curve in zip(marks, of_name, strict=True) if mark
            ]
            theirs = [value for value in seconds.get(NANOGPT, []) if value is not None]
            row += [spread(took, 1), f"{statistics.mean(theirs) / statistics.mean(took):.1f}" if theirs else "not measured"]
            row += [spread(whole, 1), spread([c.run.start_s for c in of_name], 1), spread([c.run.compilation_s for c in of_name], 1)]
            steps = [float(mark.step) for mark in marks if mark]
            row += [spread(steps, 0), f"{statistics.mean(steps) * first.tokens_per_step:,.0f}"]
        row += [f"{statistics.median(c.run.tokens_per_step / c.run.step_s for c in of_name):,.0f}"]
        row += [spread([c.run.marks[-1].elapsed_s for c in of_name], 1), spread([c.losses[-1] for c in of_name], 4)]
        rows.append(row)
    print_table(rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--target", type=float, help="a validation loss in nats")


def main() -> None:
    arguments = parse(__doc__, list(PRESETS), add_options)
    nanogpt = nanogpt_checkout()
    if nanogpt is None and arguments.target is None:
        sys.exit("error: NANOGPT_DIR is not set, wanted nanoGPT's checkout, or --target")
    with fresh_folder(arguments.scratch) as scratch:
        curves = run_all(PRESETS[arguments.preset], arguments.build, scratch, seeds=arguments.seeds, nanogpt=nanogpt)
    target = arguments.target if arguments.target is not None else max(min(curve.losses) for curve in curves[NANOGPT])
    num_windows, *others = {curve.num_windows for of_name in curves.values() for curve in of_name}
    if others:
        sys.exit(f"error: runs were judged on {num_windows:,} and {others[0]:,} windows; give all of them one block_size")
    print_place(arguments.preset, nanogpt)
    print(f"seeds 1 to {arguments.seeds}; target: {target:.4f} on {num_windows:,} windows\n")
    print_curves(curves, target)


if __name__ == "__main__":
    main()
