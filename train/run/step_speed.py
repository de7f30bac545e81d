"""How long an optimizer step of a model takes on this machine, measured with random tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from train.config import Config
from train.core.device import make_autocast, synchronize
from train.model.base import evaluation_mode
from train.optim import update
from train.run.state import new_state

NUM_WARMUP_STEPS = 1  # libraries choose kernels and allocate workspaces
MIN_STEPS = 2


def measure_step(
    config: Config,
    vocab_size: int,
    device: torch.device,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[float, float]:
    """Return the seconds of an optimizer step of `config`, and those of a forward pass of its batch.

    All windows of a step are in one forward pass. Steps are repeated for about `seconds`. Only new
    weights are changed, and files are neither read nor written. Raises an out-of-memory error if
    the model or the batch does not fit.
    """
    state = new_state(config, vocab_size, device=device)
    autocast = make_autocast(config.precision, device)
    shape = config.windows_per_step, config.block_size + 1
    windows = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    ids, targets = windows[:, :-1], windows[:, 1:]
    documents = torch.zeros_like(ids) if config.mask_documents else None

    def step() -> None:
        with autocast:
            loss, _ = state.model(ids, targets, documents)
        state.scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip or math.inf)
        update(state.optimizers, loss.isfinite())
        state.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate() -> None:
        with evaluation_mode(state.model), autocast:
            state.model(ids, targets, documents)

    return _repeat(step, device, seconds=seconds, clock=clock), _repeat(evaluate, device, seconds=0, clock=clock)


def _repeat(work: Callable[[], None], device: torch.device, *, seconds: float, clock: Callable[[], float]) -> float:
    """Return the mean seconds of `work`, which is repeated for `seconds` after it has run once."""
    for _ in range(NUM_WARMUP_STEPS):
        work()
    synchronize(device)
    began, count = clock(), 0
    while count < MIN_STEPS or clock() - began < seconds:
        work()
        synchronize(device)
        count += 1
    return (clock() - began) / count
