"""Turn documents directly into blocks of tokens, without shards on the disk.

Memory does not grow with the input, and a stream can resume at any block.
"""

from preprocess.stream.batches import ValidationBlocks, batches, masked_batches, masked_blocks, validation_blocks
from preprocess.stream.corpus import StreamCorpus, open_corpus
from preprocess.stream.retries import Retries
from preprocess.stream.token_stream import TokenStream

__all__ = [
    "Retries",
    "StreamCorpus",
    "TokenStream",
    "ValidationBlocks",
    "batches",
    "masked_batches",
    "masked_blocks",
    "open_corpus",
    "validation_blocks",
]
