"""A run that is ready for its first optimizer step, without the command that trains it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from train.config import load_config
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.run.captured_step import CapturedStep
from train.run.context import Run, open_run
from train.run.state import TrainingState, new_state
from train.train import clip_and_update, forward_backward


@contextmanager
def one_process_group(backend: str) -> Iterator[None]:
    """Initialize torch.distributed with this process alone, which can then shard a model."""
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def prepare_steps(config_path: Path, *, is_sharded: bool = False) -> tuple[Run, TrainingState, Prefetcher]:
    """Open the run of a config."""
    run = open_run(load_config(config_path, {}), World())
    config = run.config
    state = new_state(config, run.source.vocab_size, device=run.device, is_sharded=is_sharded)
    prefetcher = Prefetcher(
        run.data.train, windows_per_step=config.windows_per_step, micro_batch=config.batch_size, world=run.world
    )
    return run, state, prefetcher


def make_captured_step(run: Run, state: TrainingState, prefetcher: Prefetcher) -> CapturedStep:
    """Return a captured step as training makes it."""
    return CapturedStep(
        run,
        state,
        prefetcher,
        forward_backward=partial(forward_backward, run, state, state.model),
        clip_and_update=partial(clip_and_update, run, state),
    )
