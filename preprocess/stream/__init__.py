"""Documents straight to blocks of tokens: nothing on the disk, memory that does not grow with the source, and any place to go on from."""

from preprocess.stream.batches import ValidationBlocks, batches, validation_blocks
from preprocess.stream.corpus import StreamCorpus, open_corpus
from preprocess.stream.reading import Retries
from preprocess.stream.token_stream import TokenStream

__all__ = ["Retries", "StreamCorpus", "TokenStream", "ValidationBlocks", "batches", "open_corpus", "validation_blocks"]
