"""The loss on the fixed validation windows, and what follows from it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from data import ValidationData

LARGEST_EXPONENT = 700  # beyond, exp is more than a float holds


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Losses are in nats a token. `stderr` is of the mean over windows; None where there is one window."""

    loss: float
    stderr: float | None
    bits_per_byte: float | None  # None where the split has no text, only control tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < LARGEST_EXPONENT else math.inf


@torch.no_grad()
def evaluate(model: nn.Module, data: ValidationData, *, autocast: AbstractContextManager[object]) -> Evaluation:
    """Mean loss over every target of every window, under the precision of training (`autocast`).

    Draws nothing from any random generator, and leaves the model in the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        with autocast:
            losses = torch.cat([model(ids, targets) for ids, targets in data])  # (W,)
    finally:
        model.train(was_training)
    return summarize(losses.double().cpu(), data)


def summarize(losses: torch.Tensor, data: ValidationData) -> Evaluation:
    """`losses`: (W,) float64, the mean of each window. Windows are equally long, so their mean weighs every token alike."""
    loss, count = losses.mean().item(), len(losses)
    stderr = losses.std().item() / math.sqrt(count) if count > 1 else None
    bits_per_token = loss / math.log(2)
    bits_per_byte = bits_per_token * data.split_tokens / data.split_text_bytes if data.split_text_bytes else None
    return Evaluation(loss=loss, stderr=stderr, bits_per_byte=bits_per_byte)
