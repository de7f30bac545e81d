"""The validation loss, its standard error, and early stopping that ignores noise.

Every evaluation of a run reads the same windows. Two evaluations are compared window by window: a
hard window has a high loss in both, so the standard error of the mean difference is much smaller
than that of either loss. An evaluation counts as an improvement if its loss is lower by more than
two standard errors of the difference, which happens by chance about once in forty times.

Shapes: W validation windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from train.core.distributed import World
from train.data.batches import ValidationWindows
from train.data.mixed_split import Batch
from train.model.base import evaluation_mode

MAX_EXPONENT = 700  # math.exp overflows above about 709
MIN_STANDARD_ERRORS = 2.0  # by which an improvement must exceed 0


@dataclass(frozen=True, kw_only=True)
class Strata:
    """The build of each window, and the share of each build in training, by which means are weighted."""

    build_index: np.ndarray  # (W,) int64
    shares: tuple[float, ...]  # with the sum 1

    def means(self, values: Tensor) -> list[float]:
        """Return the mean of `values`, (W,), over the windows of each build, as a list by build."""
        return [part.mean().item() for part in self._parts(values)]

    def mean_and_stderr(self, values: Tensor) -> tuple[float, float | None]:
        """Return the weighted mean of `values`, (W,), and its standard error (stratified sampling).

        The standard error is None if a build has only one window.
        """
        parts = self._parts(values)
        mean = math.fsum(share * part.mean().item() for share, part in zip(self.shares, parts, strict=True))
        if min(map(len, parts)) < 2:
            return mean, None
        variances = (part.var().item() / len(part) for part in parts)
        variance = math.fsum(share**2 * value for share, value in zip(self.shares, variances, strict=True))
        return mean, math.sqrt(variance)

    def _parts(self, values: Tensor) -> list[Tensor]:
        exact = values.double()
        return [exact[torch.from_numpy(self.build_index == index)] for index in range(len(self.shares))]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation. Losses are in nats per token."""

    loss: float
    stderr: float | None  # the standard error of `loss`; None if a build has only one window
    bits_per_byte: float | None  # None with a loss mask, or if a validation split has no text, only control tokens
    by_build: dict[str, float]  # the loss on each build of a mixture; empty for one build
    losses: Tensor = field(compare=False)  # (W,) float32 on the CPU, of each window; their mean is the loss
    strata: Strata = field(compare=False)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < MAX_EXPONENT else math.inf


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ValidationWindows,
    *,
    batch_size: int,
    autocast: AbstractContextManager[object],
    world: World | None = None,
    count: Callable[[int], None] = lambda num_windows: None,
) -> Evaluation:
    """Compute the loss of every window of `data`, and return the Evaluation.

    `autocast` is the context of the forward passes, the same as in training. The windows are
    divided among the processes of `world`; all return the same. `count` is called with the number of
    windows of each forward pass of this process. Uses no random numbers. The model is in evaluation
    mode meanwhile.
    """
    world = world or World()
    device = next(model.parameters()).device
    losses = torch.zeros(data.num_windows, device=device)  # (W,)
    with evaluation_mode(model):
        for indices, (ids, targets, documents) in _equal_passes(data, batch_size, world):
            with autocast:
                _, row_losses = model(ids, targets, documents)
            losses[torch.from_numpy(indices).to(device)] = row_losses[: len(indices)]
            count(len(indices))
    losses = world.all_reduce_sum(losses).cpu()
    if data.loss_fractions is not None:  # the mean is then over the targets that count
        losses /= torch.from_numpy(_mean_fractions(data))
    return summarize(losses, data)


def _equal_passes(data: ValidationWindows, batch_size: int, world: World) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield the window numbers and the batch of each of this process's passes: as many as every other has.

    A process that has fewer windows repeats a batch, without window numbers: a sharded model can only
    be called by all processes at once. The others compute meanwhile, so this takes no time.
    """
    batches = data.batches(batch_size, rank=world.rank, num_ranks=world.size)
    batch: Batch | None = None
    for _ in range(math.ceil(math.ceil(data.num_windows / world.size) / batch_size)):
        indices, batch = next(batches, (np.empty(0, np.int64), batch))
        if batch is None:
            _, batch = next(data.batches(batch_size))
        yield indices, batch


def summarize(losses: Tensor, data: ValidationWindows) -> Evaluation:
    """Return the Evaluation of `losses`, (W,) float32: the sum of each window's losses per target.

    All windows have the same length, so the mean over windows weighs every token equally. With a
    loss mask, the sum of a window is divided by the average number of targets that count in a window
    of its build. The mean is then that of all targets that count. Its standard error is that of a
    ratio of two means (Cochran 1977, "Sampling Techniques", chapter 6).
    """
    strata = Strata(build_index=data.build_index, shares=data.shares)
    loss, stderr = strata.mean_and_stderr(losses)
    means = strata.means(losses)
    if data.loss_fractions is not None:
        excess = torch.from_numpy(data.loss_fractions / _mean_fractions(data) - 1)  # (W,) of targets that count
        _, stderr = strata.mean_and_stderr(losses - torch.tensor(means)[torch.from_numpy(data.build_index)] * excess)
    return Evaluation(
        loss=loss,
        stderr=stderr,
        bits_per_byte=_bits_per_byte(means, data),
        by_build=dict(zip(data.names, means, strict=True)) if len(means) > 1 else {},
        losses=losses,
        strata=strata,
    )


def _mean_fractions(data: ValidationWindows) -> np.ndarray:
    """Return, for each window, the mean of `data.loss_fractions` over its build: (W,) float64, above 0."""
    assert data.loss_fractions is not None
    num_windows = np.bincount(data.build_index)
    means: np.ndarray = np.bincount(data.build_index, weights=data.loss_fractions) / num_windows
    return means[data.build_index]


def _bits_per_byte(means: list[float], data: ValidationWindows) -> float | None:
    """Convert each build's mean loss in nats per token, and return the weighted mean in bits per byte."""
    if data.loss_fractions is not None or not all(size.text_bytes for size in data.sizes):
        return None
    tokens_per_byte = [size.num_tokens / size.text_bytes for size in data.sizes]
    bits = (mean / math.log(2) * ratio for mean, ratio in zip(means, tokens_per_byte, strict=True))
    return math.fsum(share * value for share, value in zip(data.shares, bits, strict=True))


def is_better(losses: Tensor, reference: Tensor, strata: Strata) -> bool:
    """Return whether the mean of `losses` is lower than that of `reference` by more than noise.

    Both are (W,), the losses of the same windows.
    """
    gain, stderr = strata.mean_and_stderr(reference - losses)
    return gain > MIN_STANDARD_ERRORS * (stderr or 0.0)


@dataclass
class EarlyStopping:
    """The best evaluation, and the number of evaluations since an improvement beyond noise."""

    best_step: int | None = None
    best_loss: float = math.inf
    num_since: int = 0
    reference: Tensor | None = None  # (W,) float32: the losses of the last improvement beyond noise

    def update(self, step: int, evaluation: Evaluation) -> bool:
        """Record an evaluation. Return whether its loss is the lowest so far."""
        if not math.isfinite(evaluation.loss):
            return False
        losses = evaluation.losses
        is_comparable = self.reference is not None and len(self.reference) == len(losses)
        if self.reference is None or not is_comparable or is_better(losses, self.reference, evaluation.strata):
            self.reference, self.num_since = losses, 0
        else:
            self.num_since += 1
        if evaluation.loss >= self.best_loss:
            return False
        self.best_step, self.best_loss = step, evaluation.loss
        return True

    def is_exhausted(self, patience: int | None) -> bool:
        """Return whether `patience` evaluations in a row were no improvement beyond noise."""
        return patience is not None and self.num_since >= patience
