"""Batches of blocks for a training loop, and the fixed blocks for its validation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from preprocess.errors import MisuseError
from preprocess.stream.corpus import StreamCorpus
from preprocess.stream.retries import Retries
from preprocess.stream.token_stream import TokenStream

Batch = tuple[np.ndarray, np.ndarray]  # inputs and targets, (B, T) each, of the stream's dtype
# input_ids, attention_mask and labels, int64, as `pad_documents` of preprocess.shards.torch_dataset returns them
MaskedBlocks = dict[str, np.ndarray]
IGNORE_INDEX = -100  # a label that torch's cross_entropy and the models of Hugging Face ignore


def batches(stream: TokenStream, batch_size: int) -> Iterator[Batch]:
    """Yield inputs and targets, (batch_size, block_size) each, of the stream's dtype.

    Both are views of one array. No batch is read ahead, so between two batches
    `stream.state_dict()` is the position of the training loop. A last batch with fewer blocks is
    dropped. Raises MisuseError if `batch_size` is below 1, and the errors of the stream.
    """
    _check_batch_size(batch_size)
    while len(blocks := list(itertools.islice(stream, batch_size))) == batch_size:
        tokens = np.stack(blocks)  # (B, T + 1)
        yield tokens[:, :-1], tokens[:, 1:]


def masked_blocks(stream: TokenStream) -> Iterator[MaskedBlocks]:
    """Yield every block as a dict of three arrays, (block_size + 1,) int64 each.

    `input_ids` are the tokens. `attention_mask` is 0 at padding, else 1. `labels` are the input
    ids, not shifted, as the models of Hugging Face expect, and −100 at padding. Padding is
    determined by position, not by id, so the end-of-text token of a document is a target even if
    padding has the same id. No block is read ahead. Raises the errors of the stream.
    """
    for block in stream:
        length = len(block) - stream.block_padding
        input_ids = block.astype(np.int64)
        attention_mask, labels = np.ones_like(input_ids), input_ids.copy()
        attention_mask[length:], labels[length:] = 0, IGNORE_INDEX
        yield {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def masked_batches(stream: TokenStream, batch_size: int) -> Iterator[MaskedBlocks]:
    """Yield the blocks of `masked_blocks` in batches.

    Each of the three arrays is (batch_size, block_size + 1) int64. The last batch may have fewer
    blocks, so with tail "pad" every token is in a batch. Raises MisuseError if `batch_size` is
    below 1, and the errors of the stream.
    """
    _check_batch_size(batch_size)
    masked = masked_blocks(stream)
    while blocks := list(itertools.islice(masked, batch_size)):
        yield {key: np.stack([block[key] for block in blocks]) for key in blocks[0]}


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise MisuseError(f"batch_size must be a whole number of 1 or more, got {batch_size!r}")


@dataclass(frozen=True)
class ValidationBlocks:
    """The fixed blocks that every evaluation reads."""

    blocks: np.ndarray  # (N, block_size + 1) of the corpus' dtype
    num_tokens: int  # of the documents that were encoded for the blocks
    num_text_bytes: int  # of the same documents; converts nats per token to bits per byte, together with num_tokens


def validation_blocks(
    corpus: StreamCorpus, *, block_size: int, eval_tokens: int | None, retries: Retries | None = None
) -> ValidationBlocks:
    """Return the first `eval_tokens` // block_size blocks (at least one) of the validation split.

    Without `eval_tokens`, all blocks of the split are returned. They are in the order of the
    documents, and every rank gets the same blocks. With a small `val_fraction`, most documents are
    read and discarded: with 0.001, a thousand times the validation text is read, but not encoded.
    Raises MisuseError for an invalid argument, and FolioError if the split has less than one block
    or cannot be read.
    """
    stream = TokenStream(corpus, block_size=block_size, split="val", stream_buffer=0, retries=retries)
    max_blocks = None if eval_tokens is None else max(eval_tokens // block_size, 1)
    collected = bytearray()  # grows in place; a list of arrays that are then joined needs twice the memory, or more
    for block in itertools.islice(stream, max_blocks):
        collected += block.data
    blocks = np.frombuffer(collected, corpus.dtype).reshape(-1, block_size + 1)
    return ValidationBlocks(blocks, stream.num_tokens, stream.num_text_bytes)
