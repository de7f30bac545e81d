"""The architectures, under the names that the setting `arch` accepts.

To add one: write a subclass of `train.model.base.LanguageModel` in a file of this folder and add
one line to ARCHITECTURES. The optimizer, checkpoints, sampling and export use only what
`LanguageModel` documents.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the settings list these names, and `--help` must not wait for torch
    from train.config import Config
    from train.model.base import LanguageModel

# Name of the architecture → module and class.
ARCHITECTURES = {
    "gpt2": ("train.model.gpt2", "GPT2"),
    "modern": ("train.model.modern", "Modern"),
}


def get_architecture(name: str) -> type[LanguageModel]:
    """Return the model class of the architecture `name`. Raises KeyError for an unknown name."""
    module, class_name = ARCHITECTURES[name]
    architecture: type[LanguageModel] = getattr(importlib.import_module(module), class_name)
    return architecture


def make_model(config: Config, vocab_size: int) -> LanguageModel:
    """Return a new model in float32 whose weights are drawn from torch's default generator.

    `vocab_size` is the number of ids without padding; the model pads it (see `train.model.base`).
    """
    return get_architecture(config.arch)(config, vocab_size)
