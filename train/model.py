"""The architectures by the names that the setting `arch` gives them."""

from __future__ import annotations

from config import Config
from gpt2 import GPT2
from language_model import LanguageModel
from modern import Modern

ARCHITECTURES: dict[str, type[LanguageModel]] = {"gpt2": GPT2, "modern": Modern}


def make_model(config: Config, vocab_size: int) -> LanguageModel:
    """A new model, its weights drawn from torch's generator. `vocab_size` is exact."""
    return ARCHITECTURES[config.arch](config, vocab_size)
