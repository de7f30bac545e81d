"""A corpus as shuffled blocks of tokens, with a small state from which it resumes.

Blocks. The tokens of the documents are joined and cut into blocks of block_size + 1, so each token
is in exactly one block. A block is the inputs and targets of one sample. Its first token is not a
target of any sample: 1 in block_size + 1 tokens. (Blocks that overlap by one token would avoid
that, but use the shared token twice.)

Shuffling. A stream cannot shuffle what it has not read, so it shuffles within a buffer. The usual
shuffle buffer returns a random element and replaces it by the next one. Its content depends on its
whole history, so its state is the content: with 10,000 blocks of 1,024 tokens, 20 MB. Here
`stream_buffer` consecutive blocks are a group, and a group is returned in the order of a
permutation keyed by (seed, number of the group). For each block of a group that is returned, a
block of the next group is read. So the content of the buffer follows from the seed and the number
of blocks returned. The state is small: the cursor at which the group begins, and how many of its
blocks have been returned. The cost: when a stream resumes, the group is read and encoded again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs import input_files
from preprocess.recipes.schema import Recipe
from preprocess.shards.permutation import keyed_hash, permute
from preprocess.stream.corpus import StreamCorpus, open_corpus
from preprocess.stream.encoding import Chunk, ChunkEncoder
from preprocess.stream.reading import SIDE_OF_SPLIT, Cursor, DocumentReader, Share
from preprocess.stream.retries import Retries
from preprocess.stream.state import Identity, Position, StreamState, make_state, parse_state

SHUFFLE_KEY = 0x5F17  # makes the order of blocks independent of the shares, which have the same seed
MAX_BUFFERED_BLOCKS = 1 << 24  # their order alone takes 8 bytes per block
TAILS = ("drop", "pad")
WRONG_POSITION = (
    "the state of the stream begins in a document that the files do not have; "
    "restore the files if they were changed, or use another checkpoint"
)


class TokenStream(Iterator[np.ndarray]):
    """An iterator over blocks: arrays (block_size + 1,) of `dtype`, which the caller may modify.

    `num_tokens`, `num_text_bytes` and `num_documents` count what was encoded since the stream was
    opened, failed, or loaded a state. `num_padded` is the number of padding tokens, which are at
    the end of one block of the last group. `block_padding` is the number of padding tokens at the
    end of the block that was returned last; `masked_blocks` uses it to make masks.
    """

    def __init__(
        self,
        corpus: StreamCorpus | Recipe | str | Path,
        *,
        block_size: int,
        split: Literal["train", "val"] = "train",
        seed: int = 0,
        stream_buffer: int = 10_000,
        tail: Literal["drop", "pad"] = "drop",
        rank: int = 0,
        world_size: int = 1,
        worker: int = 0,
        num_workers: int = 1,
        epochs: int | None = 1,
        retries: Retries | None = None,
    ) -> None:
        """`corpus` is an open corpus, or an argument for `open_corpus`.

        `seed` determines the order of blocks and the division into shares, so it must be the same
        for all shares. `stream_buffer` blocks are shuffled together; 0 or 1 keeps the order of the
        documents. With `tail` "drop", the tokens after the last whole block are dropped; with
        "pad", they become a block that is filled with padding tokens. The stream reads the share of
        worker `worker` (of `num_workers`) of rank `rank` (of `world_size`). `epochs` is the number
        of passes over the corpus, None for no limit; a block may contain the end of one pass and
        the start of the next. `retries` says how temporary read errors are handled.

        Raises MisuseError for invalid arguments, and the errors of `open_corpus`.
        """
        self.corpus = corpus if isinstance(corpus, StreamCorpus) else open_corpus(corpus)
        self.block_size, self.dtype = block_size, self.corpus.dtype
        _check_integer("block_size", block_size, 1, 1 << 32)
        _check_integer("stream_buffer", stream_buffer, 0, MAX_BUFFERED_BLOCKS)
        _check_integer("world_size", world_size, 1, 1 << 16)
        _check_integer("num_workers", num_workers, 1, 1 << 16)
        _check_integer("rank", rank, 0, world_size - 1)
        _check_integer("worker", worker, 0, num_workers - 1)
        _check_integer("seed", seed, 0, (1 << 64) - 1)
        if epochs is not None:
            _check_integer("epochs", epochs, 1, 1 << 32)
        for name, value, allowed in (("split", split, tuple(SIDE_OF_SPLIT)), ("tail", tail, TAILS)):
            if value not in allowed:
                raise MisuseError(f"{name} must be {' or '.join(allowed)}, got {value!r}")
        self._pad_id = _find_pad_id(self.corpus) if tail == "pad" else None
        self._seed, self._group_size = seed, max(stream_buffer, 1)
        share = Share(rank, world_size, worker, num_workers)
        if share.num_shares == 1 and (num_loader_workers := _count_loader_workers()) > 1:
            self.corpus.log(
                f"each of the {num_loader_workers} workers of the DataLoader reads all documents; pass "
                "worker=info.id, num_workers=info.num_workers with info = torch.utils.data.get_worker_info()"
            )
        self._reader = DocumentReader(self.corpus, split, share, seed, epochs, retries or Retries())
        # States contain the identity of their stream. A stream rejects a state with another one.
        self._identity: Identity = {
            "corpus": self.corpus.sha256,
            "block_size": block_size,
            "split": split,
            "seed": seed,
            "stream_buffer": self._group_size,
            "tail": tail,
            **asdict(share),
            "epochs": epochs,
            "piece_bytes": input_files.PARTITION_BYTES,
        }
        self._times_sha256 = self.corpus.times_sha256
        self._restart(Position())

    def _restart(self, position: Position) -> None:
        """Discard the buffer, and continue at `position`."""
        self._group_start, self._group = position.group_start, position.group
        self._num_drawn = position.num_drawn
        self._next_starts: dict[int, Cursor] = {}  # group number -> its first token, for groups after this one
        self._current: list[np.ndarray | None] = []  # blocks of this group in reading order, cleared when returned
        self._upcoming: list[np.ndarray | None] = []  # blocks of the next group
        self._order: list[int] = []  # index in `_current` of each block to return
        self.num_tokens = self.num_text_bytes = self.num_documents = self.num_padded = self.block_padding = 0
        self._padded_block: np.ndarray | None = None  # the block that ends with padding, once it has been read
        self._blocks: Iterator[np.ndarray] | None = None  # yields all blocks in reading order

    @property
    def _position(self) -> Position:
        return Position(self._group_start, self._group, self._num_drawn)

    @property
    def num_blocks(self) -> int:
        """The number of blocks returned, including those before a loaded state."""
        return self._group * self._group_size + self._num_drawn

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> np.ndarray:
        """Return the next block.

        Raises FolioError if reading fails, or if the text has no block: it has no document, or is
        shorter than one block and `tail` is "drop". After a failure, the next call reads the group
        again, so no block is lost.
        """
        try:
            self._prepare()
        except BaseException:
            self._restart(self._position)
            raise
        if self._num_drawn >= len(self._current):
            raise StopIteration
        index = self._order[self._num_drawn]
        block = self._current[index]
        assert block is not None
        self._current[index] = None
        self._num_drawn += 1
        self.block_padding = self.num_padded if block is self._padded_block else 0
        return block

    def _prepare(self) -> None:
        """Read until the next block is available, and one block of the next group per block returned."""
        if self._blocks is None:
            self._blocks = self._read_blocks(self._group_start, self._group)
            self._fill(self._current, self._group_size)
            if not self._current and not self.num_blocks:
                raise FolioError(self._explain_no_block())
            self._order = self._shuffle(self._group, len(self._current))
            for index in self._order[: self._num_drawn]:
                self._current[index] = None
        self._fill(self._upcoming, self._num_drawn)
        if self._num_drawn == len(self._current) and self._upcoming:
            self._start_next_group()

    def _explain_no_block(self) -> str:
        split, share = self._reader.split, self._reader.share
        advice = ["choose a smaller block_size", *(["a larger val_fraction"] if split == "val" else [])]
        advice += ["fewer processes and workers"] if share.num_shares > 1 else []
        return (
            f"the {split} split of {self.corpus.name} has {self.num_tokens:,} tokens for this stream, too few for a "
            f"block of {self.block_size + 1:,}; {' or '.join(advice)}"
        )

    def _fill(self, blocks: list[np.ndarray | None], size: int) -> None:
        assert self._blocks is not None
        while len(blocks) < size and (block := next(self._blocks, None)) is not None:
            blocks.append(block)

    def _start_next_group(self) -> None:
        self._group, self._num_drawn = self._group + 1, 0
        self._current, self._upcoming = self._upcoming, []
        self._order = self._shuffle(self._group, len(self._current))
        self._group_start = self._next_starts.pop(self._group)

    def _shuffle(self, group: int, size: int) -> list[int]:
        """Return the order in which the `size` blocks of a group are returned."""
        if size <= 1:
            return [0] * size
        key = keyed_hash(self._seed ^ SHUFFLE_KEY, np.array([group], np.uint64))
        order = permute(np.arange(size, dtype=np.uint64), size, np.full(size, key[0], np.uint64))
        return order.astype(np.int64).tolist()

    def _read_blocks(self, start: Cursor, group: int) -> Iterator[np.ndarray]:
        """Yield all blocks in reading order from `start`, the cursor at which `group` begins.

        The cursors at which later groups begin are stored in `_next_starts`.
        """
        width = self.block_size + 1
        rest = np.empty(0, self.dtype)  # tokens that do not fill a block yet
        skip = start.offset  # tokens of the first document that belong to the group before
        first_block = group * self._group_size  # number of the next block
        encoder = ChunkEncoder(self.corpus)
        for selected in self._reader.read(start):
            for chunk in encoder.encode(selected):
                self.num_tokens += len(chunk.ids)
                self.num_text_bytes += chunk.text_bytes
                self.num_documents += len(chunk.ends)
                if skip and (selected.cursor(0, skip) != start or skip > chunk.ends[0]):
                    raise FolioError(WRONG_POSITION)
                tokens = np.concatenate([rest, chunk.ids[skip:]])
                yield from self._cut_blocks(chunk, tokens, first_block)
                num_blocks = len(tokens) // width
                rest, first_block, skip = tokens[num_blocks * width :].copy(), first_block + num_blocks, 0
                del chunk, tokens  # a document may have 64 million ids, and so may the next one
        if skip:
            raise FolioError(WRONG_POSITION)
        if self._pad_id is not None and len(rest):
            self.num_padded = width - len(rest)
            self._padded_block = np.concatenate([rest, np.full(self.num_padded, self._pad_id, self.dtype)])
            yield self._padded_block

    def _cut_blocks(self, chunk: Chunk, tokens: np.ndarray, first_block: int) -> Iterator[np.ndarray]:
        """Yield the whole blocks of `tokens`, at whose end are the ids of `chunk`.

        Blocks are copies: a view would keep all tokens in memory until its block leaves the buffer.
        `first_block` is the number of the first of these blocks in the stream.
        """
        width = self.block_size + 1
        num_blocks, num_earlier = len(tokens) // width, len(tokens) - len(chunk.ids)
        for index, block in enumerate(tokens[: num_blocks * width].reshape(-1, width), start=1):
            group, index_in_group = divmod(first_block + index, self._group_size)
            if index_in_group == 0:
                self._next_starts[group] = chunk.cursor(index * width - num_earlier)
            yield block.copy()

    def state_dict(self) -> StreamState:
        """Return the position in the stream as JSON values: about twenty integers and strings."""
        return make_state(self._position, self._identity, self._times_sha256)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of `state`: `next` returns the block that would have come next.

        The next call of `next` reads and encodes the current group again, and as much of the next
        group as the buffer contained. Reading begins at the start of a span (about 16 MB of a file,
        or all of a compressed or CSV file); the documents of the span that are before the group are
        cleaned but not encoded. Raises MisuseError for the state of another stream, FolioError for
        a damaged state.
        """
        position = parse_state(state, self._identity)
        num_files, epochs = len(self.corpus.input_files), self._reader.epochs
        start = position.group_start
        if (
            position.num_drawn > self._group_size
            or start.source >= num_files
            or (epochs is not None and start.epoch >= epochs)
        ):
            raise FolioError("the state of the stream is beyond its end; use another checkpoint")
        if state.get("times_sha256", self._times_sha256) != self._times_sha256:
            self.corpus.log(
                f"files of {self.corpus.name} have other modification times or versions than when the state was saved; "
                "if their text was changed, the stream continues with the new text"
            )
        self._restart(position)


def _count_loader_workers() -> int:
    """Return the number of workers of torch's DataLoader if this process is one of them, otherwise 1."""
    torch_data = sys.modules.get("torch.utils.data")  # not imported, because a stream does not need torch
    info = torch_data.get_worker_info() if torch_data is not None else None
    return info.num_workers if info is not None else 1


def _check_integer(name: str, value: int, min_value: int, max_value: int) -> None:
    if not isinstance(value, Integral) or not min_value <= value <= max_value:
        got = f"{value:,}" if isinstance(value, Integral) else repr(value)
        raise MisuseError(f"{name} must be a whole number from {min_value:,} to {max_value:,}, got {got}")


def _find_pad_id(corpus: StreamCorpus) -> int:
    tokenizer = corpus.tokenizer
    pad_id = tokenizer.eot_id if tokenizer.pad_id is None else tokenizer.pad_id
    if pad_id is None:
        raise MisuseError(
            f"tail is 'pad', but the {tokenizer.kind} tokenizer has no token to pad with; set tail to 'drop'"
        )
    return pad_id
