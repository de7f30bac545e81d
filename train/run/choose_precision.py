"""Choose between float32 and bfloat16 on a CPU by measuring both.

Processors with AMX or AVX512-BF16 multiply bfloat16 matrices two to six times as fast as float32
matrices. However, the operations between the products convert numbers, which takes time. Small models
become slower and large models faster. With the setting `precision = "auto"`, the preflight therefore
measures a pass in each precision.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from train.config import Config
from train.core.device import make_autocast
from train.run.context import Run

NUM_PASSES = 3  # in each precision, after a first one
MAX_PASS_S = 60.0  # if a pass in float32 takes longer, only one pass in each precision is measured
MIN_PASS_S = 0.25  # in float32; smaller models gain little, and keep the same results as on other machines
MIN_SPEEDUP = 1.15  # of bfloat16; a smaller one does not justify the rounding
MAX_DIFFERENCE = 0.01  # of the losses of a batch, relative to the loss in float32


def has_fast_bfloat16() -> bool:
    """Return whether the CPU has instructions for products of bfloat16 matrices."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_cpu_precision(run: Run, trial_loss: Callable[[], float]) -> str:
    """Set the precision of `run` to bf16 if a pass is clearly faster with it and has the same loss.

    `trial_loss`: computes a training pass in `run.autocast` and returns its loss. Returns a line that
    reports the speed of both.
    """
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    losses = {}
    for _ in range(1 + NUM_PASSES):  # alternating, because the speed of a machine changes
        for precision, of_precision in times.items():
            run.autocast = make_autocast(precision, run.device)
            began = time.monotonic()
            losses[precision] = trial_loss()
            of_precision.append(time.monotonic() - began)
        if times["fp32"][0] > MAX_PASS_S:
            break
    seconds = {precision: min(of_precision) for precision, of_precision in times.items()}
    ratio = seconds["fp32"] / seconds["bf16"]
    is_equal = abs(losses["bf16"] - losses["fp32"]) <= MAX_DIFFERENCE * abs(losses["fp32"])
    is_worth_it = seconds["fp32"] >= MIN_PASS_S and ratio >= MIN_SPEEDUP
    precision = "bf16" if is_worth_it and is_equal else "fp32"
    run.autocast = make_autocast(precision, run.device)
    run.config = dataclasses.replace(run.config, precision=precision)
    note = "" if is_equal else f", but its loss is {losses['bf16']:.3f} instead of {losses['fp32']:.3f}"
    return (
        f"precision {precision}: a pass in bf16 is {ratio:.2f} times as fast as the {seconds['fp32']:.2g} s in fp32"
        f"{note}"
    )


def keep_precision(run: Run, saved: Config) -> None:
    """Use the precision of `saved`, the settings of the run that continues, if it could be chosen again.

    A run that was on another device continues in fp32: this CPU may be slow in the precision of a GPU,
    and has no tf32.
    """
    if run.can_choose_precision:
        run.can_choose_precision = False
        precision = saved.precision if saved.device == "cpu" else "fp32"
        run.config = dataclasses.replace(run.config, precision=precision)
        run.autocast = make_autocast(precision, run.device)
