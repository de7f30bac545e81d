"""The architectures by the names that the setting `arch` gives them."""

from __future__ import annotations

from train.config import Config
from train.model.base import LanguageModel
from train.model.gpt2 import GPT2
from train.model.modern import Modern

ARCHITECTURES: dict[str, type[LanguageModel]] = {"gpt2": GPT2, "modern": Modern}


def make_model(config: Config, vocab_size: int) -> LanguageModel:
    """A new model, its weights drawn from torch's generator. `vocab_size` is exact."""
    return ARCHITECTURES[config.arch](config, vocab_size)
