"""The loss on the fixed validation windows, what follows from it, and whether it still falls."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from train.core.distributed import World
from train.data.batches import ValidationWindows
from train.model.base import evaluation_mode

LARGEST_EXPONENT = 700  # beyond, exp is more than a float holds
# Standard errors of the difference that an improvement must exceed: by chance, one in forty does.
NOISE = 2.0


@dataclass(frozen=True, kw_only=True)
class Strata:
    """Which windows come from which build, and the share of each build: evaluations weigh builds as training does."""

    source: np.ndarray  # (W,) the number of each window's build
    shares: tuple[float, ...]

    def means(self, values: Tensor) -> list[float]:
        """The mean of `values`, (W,), over the windows of each build."""
        return [part.mean().item() for part in self._parts(values)]

    def mean_and_stderr(self, values: Tensor) -> tuple[float, float | None]:
        """The mean of `values`, (W,), and its standard error, of a stratified sample; None where a build has one window."""
        parts = self._parts(values)
        mean = math.fsum(share * part.mean().item() for share, part in zip(self.shares, parts, strict=True))
        if min(map(len, parts)) < 2:
            return mean, None
        variance = math.fsum(
            share**2 * part.var().item() / len(part) for share, part in zip(self.shares, parts, strict=True)
        )
        return mean, math.sqrt(variance)

    def _parts(self, values: Tensor) -> list[Tensor]:
        exact = values.double()
        return [exact[torch.from_numpy(self.source == number)] for number in range(len(self.shares))]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Losses are in nats a token. `stderr` is of the mean over windows; None where a build has one window."""

    loss: float
    stderr: float | None
    bits_per_byte: float | None  # None where a split has no text, only control tokens
    by_build: dict[str, float]  # the loss on each build of a mixture; of one build: empty
    losses: Tensor = field(compare=False)  # (W,) float32 on the CPU, each window's mean
    strata: Strata = field(compare=False)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < LARGEST_EXPONENT else math.inf


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ValidationWindows,
    *,
    batch_size: int,
    autocast: AbstractContextManager[object],
    world: World | None = None,
) -> Evaluation:
    """Mean loss over every target of every window, under the precision of training (`autocast`); shared out among `world`.

    Draws nothing from any random generator, and leaves the model in the mode it was in.
    """
    world = world or World()
    device = next(model.parameters()).device
    losses = torch.zeros(data.num_windows, device=device)
    with evaluation_mode(model):
        for numbers, (ids, targets, documents) in data.batches(batch_size, rank=world.rank, num_ranks=world.size):
            with autocast:
                _, losses[torch.from_numpy(numbers).to(device)] = model(ids, targets, documents)
    return summarize(world.all_reduce_sum(losses).cpu(), data)


def summarize(losses: Tensor, data: ValidationWindows) -> Evaluation:
    """`losses`: (W,) float32, the mean of each window. Windows are equally long, so their mean weighs every token alike."""
    strata = Strata(source=data.source, shares=data.shares)
    loss, stderr = strata.mean_and_stderr(losses)
    means = strata.means(losses)
    by_build = dict(zip(data.names, means, strict=True)) if len(means) > 1 else {}
    bits_per_byte = None
    if all(split["text_bytes"] for split in data.splits):
        per_byte = (
            mean / math.log(2) * split["tokens"] / split["text_bytes"]
            for mean, split in zip(means, data.splits, strict=True)
        )
        bits_per_byte = math.fsum(share * bits for share, bits in zip(data.shares, per_byte, strict=True))
    return Evaluation(
        loss=loss, stderr=stderr, bits_per_byte=bits_per_byte, by_build=by_build, losses=losses, strata=strata
    )


def is_better(losses: Tensor, than: Tensor, strata: Strata) -> bool:
    """Whether the loss is lower by more than noise. Both: (W,), of the same windows, whose differences vary far less than they do.

    A window that is hard is hard for both: of two evaluations of one run, the standard error of the mean difference is a
    small part of either one's own.
    """
    gain, stderr = strata.mean_and_stderr(than - losses)
    return gain > NOISE * (stderr or 0.0)


@dataclass
class EarlyStopping:
    """The best evaluation so far, and how many there were since one that beat the ones before beyond noise."""

    best_step: int | None = None
    best_loss: float = math.inf
    num_since: int = 0
    reference: Tensor | None = (
        None  # (W,) float32: the windows' losses in the last evaluation that was better beyond noise
    )

    def see(self, step: int, evaluation: Evaluation) -> bool:
        """Take note of an evaluation; returns whether its loss is the lowest so far."""
        if not math.isfinite(evaluation.loss):
            return False
        if (
            self.reference is None
            or len(self.reference) != len(evaluation.losses)
            or is_better(evaluation.losses, self.reference, evaluation.strata)
        ):
            self.reference, self.num_since = evaluation.losses, 0
        else:
            self.num_since += 1
        if evaluation.loss >= self.best_loss:
            return False
        self.best_step, self.best_loss = step, evaluation.loss
        return True

    def is_out_of(self, patience: int | None) -> bool:
        return patience is not None and self.num_since >= patience
