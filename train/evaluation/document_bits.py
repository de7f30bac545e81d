"""Measure the bits per byte that a checkpoint needs for a document, for the filter `perplexity` of `preprocess`.

A filter decides by a threshold, so the value of a document must be the same, to its last bit, in every
batch and with any number of workers. The sums in a matrix product are added in an order that depends on the shapes
of the matrices and on the number of threads. So every forward pass is of one document, on the CPU, in float32,
and by one thread. Another type of processor or version of PyTorch may return other last bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from preprocess.errors import FolioError
from preprocess.shards.files import canonical_json, sha256_bytes
from train.core.cli import warn
from train.core.device import make_autocast
from train.evaluation.scoring import ScoringSettings, find_document_start, score
from train.model import make_model
from train.model.base import LanguageModel
from train.model.sampler import load_text_tokenizer
from train.run.checkpoint import Checkpoint, check_shapes, find_checkpoint, load_model
from train.run.run_dir import vocabulary_of

# Besides the weights, what decides the result.
SETTINGS = ("arch", "token_shift", "n_layer", "n_head", "n_embd", "block_size", "mask_documents")


class DocumentBits:
    """Measures documents with the model and the tokenizer of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises MisuseError if the run has no tokenizer, and FolioError if a file is damaged."""
        config, (folder, manifest) = checkpoint.info.config, vocabulary_of(checkpoint)
        check_shapes(checkpoint, config)
        self._model = _load_model(checkpoint)
        self._start = find_document_start(manifest, mask_documents=config.mask_documents)
        self._tokenizer = load_text_tokenizer(folder, manifest)

    def measure(self, text: str) -> float | None:
        """Return the bits per UTF-8 byte of `text`, or None if the tokenizer cannot encode it.

        The text begins as a document does in training. Its end is not predicted. If nothing predicts its first token
        (eot = none and no bos), that token has 0 bits. An empty text has 0 bits. Raises FolioError if the model's
        output is not finite.
        """
        if not text:
            return 0.0
        try:
            ids: list[int] = self._tokenizer.encode_text(text).tolist()
        except FolioError:  # a character that is missing from the vocabulary of a `char` tokenizer
            return None
        # The first token can be predicted from a token to which later tokens do not attend (`mask_documents`), so it
        # needs a separate forward pass.
        cut = 0 if self._start.ids else 1
        requests = [(self._start.ids or ids[:cut], ids[cut:])]
        if cut and self._start.before:
            requests.append((self._start.before, ids[:cut]))
        settings = ScoringSettings(batch_size=1, autocast=make_autocast("fp32", torch.device("cpu")))
        with _one_thread():
            nats = -sum(each.log_probability for each in score(self._model, requests, settings))
        return nats / math.log(2) / len(text.encode())


def find_run_model(run: Path) -> tuple[Path, str]:
    """Return the folder of the newest checkpoint of `run`, or of the checkpoint `run`, and its SHA-256.

    The SHA-256 is that of the weights, the tokenizer and the settings that decide the result. Raises MisuseError if
    there is no checkpoint, and FolioError if it is damaged.
    """
    checkpoint = find_checkpoint(run, warn)
    return checkpoint.folder, _hash(checkpoint)


@functools.lru_cache(maxsize=2)
def load_document_scorer(folder: Path, sha256: str) -> DocumentBits:
    """Return the model of a checkpoint. It is cached for other filters by the same model.

    Raises FolioError if its hash is not `sha256`, unless that is empty.
    """
    checkpoint = find_checkpoint(folder, warn)
    if sha256 and _hash(checkpoint) != sha256:
        raise FolioError(f"the model {folder} has changed since the command began; run the command again")
    return DocumentBits(checkpoint)


def _hash(checkpoint: Checkpoint) -> str:
    info, (_, manifest) = checkpoint.info, vocabulary_of(checkpoint)
    facts = {
        "weights": info.model_sha256,
        "tokenizer": info.origin.tokenizer_sha256,
        "vocab_size": info.vocab_size,
        "settings": {name: getattr(info.config, name) for name in SETTINGS},
        "document": [manifest.recipe.get("bos"), manifest.bos_id, manifest.recipe.get("eot"), manifest.eot_id],
    }
    return sha256_bytes(canonical_json(facts))


def _load_model(checkpoint: Checkpoint) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):  # a new model has random weights; a run that streams text needs the numbers
        model = make_model(checkpoint.info.config, checkpoint.info.vocab_size)
    with torch.no_grad():
        load_model(checkpoint, model)
    return model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
