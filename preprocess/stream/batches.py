"""Batches of blocks for a training loop, and the fixed blocks for its validation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.errors import MisuseError
from preprocess.stream.corpus import StreamCorpus
from preprocess.stream.reading import Retries
from preprocess.stream.token_stream import TokenStream

Batch = tuple[np.ndarray, np.ndarray]  # inputs and targets, (B, T) each, of the stream's dtype


def batches(stream: TokenStream, batch_size: int) -> Iterator[Batch]:
    """Yield inputs and targets, (batch_size, block_size) each: views of one array.

    No batch is read ahead, so between two batches `stream.state_dict()` is the state of the loop. A
    last batch with fewer blocks is dropped. Raises MisuseError if `batch_size` is below 1, and the
    errors of the stream.
    """
    if batch_size < 1:
        raise MisuseError(f"batch_size must be 1 or more, got {batch_size:,}")
    while len(blocks := list(itertools.islice(stream, batch_size))) == batch_size:
        tokens = np.stack(blocks)  # (B, T + 1)
        yield tokens[:, :-1], tokens[:, 1:]


@dataclass(frozen=True)
class ValidationBlocks:
    """The fixed blocks that every evaluation reads."""

    blocks: np.ndarray  # (N, block_size + 1) of the corpus' dtype
    num_tokens: int  # of the documents that were encoded for the blocks
    num_text_bytes: int  # of the same documents: with num_tokens it converts nats per token to bits per byte


def validation_blocks(
    corpus: StreamCorpus, *, block_size: int, eval_tokens: int | None, retries: Retries | None = None
) -> ValidationBlocks:
    """Return the first `eval_tokens` // block_size blocks (at least one) of the validation split.

    Without `eval_tokens`, all blocks of the split are returned. They are in the order of the
    documents, and every rank gets the same blocks. With a small `val_fraction` most documents are
    read and discarded: with 0.001 a thousand times the validation text is read, but not encoded.
    Raises FolioError if the split has less than one block.
    """
    stream = TokenStream(corpus, block_size=block_size, split="val", stream_buffer=0, retries=retries)
    max_blocks = None if eval_tokens is None else max(eval_tokens // block_size, 1)
    blocks = np.stack(list(itertools.islice(stream, max_blocks)))
    return ValidationBlocks(blocks, stream.num_tokens, stream.num_text_bytes)
