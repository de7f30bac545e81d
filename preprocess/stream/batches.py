"""Blocks as a training loop takes them: batches of inputs and targets, and a fixed list to validate on."""

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
    """Blocks of `stream`, `batch_size` at a time, none read ahead: between two batches, `stream.state_dict()` is where the loop stands.

    Fewer blocks at the end make no batch. Both arrays are views of one. Raises as the stream does.
    """
    if batch_size < 1:
        raise MisuseError(f"batch_size is {batch_size:,}, wanted 1 or more")
    while len(blocks := list(itertools.islice(stream, batch_size))) == batch_size:
        tokens = np.stack(blocks)
        yield tokens[:, :-1], tokens[:, 1:]


@dataclass(frozen=True)
class ValidationBlocks:
    """The fixed blocks that every evaluation reads."""

    blocks: np.ndarray  # (N, block_size + 1) of the corpus' dtype
    num_tokens: int  # of the documents that were read for them
    num_text_bytes: int  # of the same: their ratio makes bits per byte of nats per token


def validation_blocks(
    corpus: StreamCorpus, *, block_size: int, eval_tokens: int | None, retries: Retries | None = None
) -> ValidationBlocks:
    """The first `eval_tokens` // block_size blocks of the validation side, at least one, in the documents' order; None: all of it.

    The same for every rank, for it is shared with none. Where few documents validate many are read to find them: of a `val_fraction`
    of 0.001 a thousand times the text; none of the others is encoded. Raises FolioError where there is not one block.
    """
    stream = TokenStream(corpus, block_size=block_size, split="val", stream_buffer=0, retries=retries)
    most = None if eval_tokens is None else max(eval_tokens // block_size, 1)
    blocks = np.stack(list(itertools.islice(stream, most)))
    return ValidationBlocks(blocks, stream.num_tokens, stream.num_text_bytes)
