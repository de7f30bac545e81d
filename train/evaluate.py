"""The loss on the fixed validation windows, what follows from it, and whether it still falls."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data import ValidationData
from distributed import World

LARGEST_EXPONENT = 700  # beyond, exp is more than a float holds
# Standard errors of the difference that an improvement must exceed: by chance, one in forty does.
NOISE = 2.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Losses are in nats a token. `stderr` is of the mean over windows; None where there is one window."""

    loss: float
    stderr: float | None
    bits_per_byte: float | None  # None where the split has no text, only control tokens
    losses: Tensor = field(compare=False)  # (W,) float32 on the CPU, each window's mean

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < LARGEST_EXPONENT else math.inf


@torch.no_grad()
def evaluate(
    model: nn.Module, data: ValidationData, *, batch_size: int, autocast: AbstractContextManager[object], world: World | None = None
) -> Evaluation:
    """Mean loss over every target of every window, under the precision of training (`autocast`); shared out among `world`.

    Draws nothing from any random generator, and leaves the model in the mode it was in.
    """
    world = world or World()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        losses = torch.zeros(data.num_windows, device=device)
        for numbers, (ids, targets, documents) in data.batches(batch_size, rank=world.rank, num_ranks=world.size):
            with autocast:
                losses[torch.from_numpy(numbers).to(device)] = model(ids, targets, documents)
    finally:
        model.train(was_training)
    return summarize(world.sum(losses).cpu(), data)


def summarize(losses: Tensor, data: ValidationData) -> Evaluation:
    """`losses`: (W,) float32, the mean of each window. Windows are equally long, so their mean weighs every token alike."""
    exact, count = losses.double(), len(losses)
    loss = exact.mean().item()
    stderr = exact.std().item() / math.sqrt(count) if count > 1 else None
    bits_per_token = loss / math.log(2)
    bits_per_byte = bits_per_token * data.split_tokens / data.split_text_bytes if data.split_text_bytes else None
    return Evaluation(loss=loss, stderr=stderr, bits_per_byte=bits_per_byte, losses=losses)


def is_better(losses: Tensor, than: Tensor) -> bool:
    """Whether the loss is lower by more than noise. Both: (W,), of the same windows, whose differences vary far less than they do.

    A window that is hard is hard for both: of two evaluations of one run, the standard error of the mean difference is a
    small part of either one's own.
    """
    gain = (than - losses).double()  # (W,)
    stderr = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return gain.mean().item() > NOISE * stderr


@dataclass
class Watch:
    """The best evaluation so far, and how many there were since one that beat the ones before beyond noise."""

    best_step: int | None = None
    best_loss: float = math.inf
    num_since: int = 0
    reference: Tensor | None = None  # (W,) float32: the windows' losses in the last evaluation that was better beyond noise

    def see(self, step: int, evaluation: Evaluation) -> bool:
        """Take note of an evaluation; returns whether its loss is the lowest so far."""
        if not math.isfinite(evaluation.loss):
            return False
        if self.reference is None or len(self.reference) != len(evaluation.losses) or is_better(evaluation.losses, self.reference):
            self.reference, self.num_since = evaluation.losses, 0
        else:
            self.num_since += 1
        if evaluation.loss >= self.best_loss:
            return False
        self.best_step, self.best_loss = step, evaluation.loss
        return True

    def is_out_of(self, patience: int | None) -> bool:
        return patience is not None and self.num_since >= patience
