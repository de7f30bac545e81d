"""Tiny models and ids for the tests of `train/model/`."""

from __future__ import annotations

import pytest
import torch

from train.config import Config
from train.model import ARCHITECTURES, make_model
from train.model.base import LanguageModel

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
VOCAB_SIZE = 31
SHIFTED = "modern with token shift"
all_architectures = pytest.mark.parametrize("arch", [*ARCHITECTURES, SHIFTED])


def make_config(**settings: object) -> Config:
    if settings.get("arch") == SHIFTED:
        settings |= {"arch": "modern", "token_shift": True}
    return Config(**({"data": "x", "out_dir": "y", **SIZES} | settings))  # type: ignore[arg-type]


def make_new_model(arch: str, **settings: object) -> LanguageModel:
    """Return a model as training starts with it."""
    torch.manual_seed(0)
    return make_model(make_config(arch=arch, **settings), VOCAB_SIZE)


def make_random_model(arch: str, **settings: object) -> LanguageModel:
    """Return a model in which every weight matters: weights that start at zero are drawn too."""
    model = make_new_model(arch, **settings)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(1))
