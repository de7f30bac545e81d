"""Read the model and the tokenizer that `folio serve` uses, by means of transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cli.serving.utils import Modality
from transformers.utils import logging as transformers_logging

from preprocess.errors import FolioError, first_line, shorten
from train.run.modeling_folio import FolioModernConfig, FolioModernForCausalLM
from train.serving.requests import RequestError
from train.serving.served_model import ServedModel

# As many are always encoded: a normalizer may remove most characters.
MIN_CHARACTERS, MIN_MESSAGES = 1 << 16, 1000


class LoadedModel:
    """A model and its tokenizer in memory. To transformers' handlers, it is a manager of models."""

    def __init__(self, served: ServedModel, device: torch.device) -> None:
        """Read the folder of `served`. Raises FolioError if transformers cannot read it."""
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.served = served
        self.tokenizer, self.model = _read_folder(served.folder)
        self.model = self.model.to(device).eval()
        self.context = _find_context(self.model, self.tokenizer, served.folder)
        longest = max(map(len, self.tokenizer.get_vocab()), default=1)  # in characters; a token of bytes has more
        self.max_characters = max(MIN_CHARACTERS, self.context * longest)
        self.has_chat_template = self.tokenizer.chat_template is not None
        self.created = int(time.time())

    def get_model_modality(self, model: Any, processor: Any = None) -> Modality:
        """Return that the model reads and writes text."""
        return Modality.LLM

    def check_texts(self, texts: list[str], *, are_messages: bool) -> None:
        """Raise RequestError if the texts certainly do not fit the context, or if the tokenizer cannot encode one.

        Encoding 4 MB takes seconds, in which no other request is answered, and hundreds of megabytes.
        Messages have no control tokens.
        """
        num_characters, max_messages = sum(map(len, texts)), max(MIN_MESSAGES, self.context)
        if num_characters > self.max_characters or len(texts) > max_messages:
            raise RequestError(
                f"{len(texts):,} texts with {num_characters:,} characters do not fit the model's context of "
                f"{self.context:,} tokens; shorten them"
            )
        for text in texts:
            try:
                self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=are_messages)
            except Exception as e:  # the class that the library tokenizers raises
                raise RequestError(f"the tokenizer cannot encode the text {shorten(text)!r}: {first_line(e)}") from e


def _read_folder(folder: Path) -> tuple[Any, Any]:
    """Return the tokenizer and the model in `folder`, without running code from it and without downloads.

    A model with a token shift is computed by Folio's own copy of the code in its folder.
    """
    AutoConfig.register(FolioModernConfig.model_type, FolioModernConfig, exist_ok=True)
    AutoModelForCausalLM.register(FolioModernConfig, FolioModernForCausalLM, exist_ok=True)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as e:  # transformers, tokenizers and safetensors have no common class of errors
        raise FolioError(f"transformers cannot load {folder} ({first_line(e)}); export the model again") from e
    if names := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise FolioError(f"{folder} has no weights that fit {shorten(str(names[0]))}; export the model again")
    return tokenizer, model


def _find_context(model: Any, tokenizer: Any, folder: Path) -> int:
    context = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    if type(context) is not int or context > 1 << 31:
        raise FolioError(f"{folder} does not say how long the context is; set max_position_embeddings in config.json")
    return context
