"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from config import Config

FUSED_DEVICES = ("cuda", "cpu")


def make_optimizer(model: nn.Module, config: Config, *, device: torch.device) -> torch.optim.AdamW:
    """AdamW over `model`: matrices and embeddings decay, biases and norms do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = device.type in FUSED_DEVICES
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def learning_rate_at(step: int, config: Config) -> float:
    """The rate of the update that follows `step` updates: linear warmup, then a cosine from learning_rate to min_lr."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(config.max_steps - 1 - config.warmup_steps, 1)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))) * (config.learning_rate - config.min_lr)
