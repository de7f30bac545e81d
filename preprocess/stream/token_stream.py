"""A corpus as blocks of tokens, in a shuffled order that its seed and the place in it decide, and a state to go on from.

Blocks are cut from the documents' tokens joined, one behind the other: every token lies in one block. A block has block_size + 1 tokens,
inputs and targets of a sample, so that a first token is no sample's target: 1 in block_size + 1 of them. Overlapping blocks by a token
would mend that and give the overlapped one twice.

The buffer is shuffled by groups: `stream_buffer` consecutive blocks are a group, given out in an order that is a permutation keyed by
(seed, group), while those of the next group take the places that become free. So what the buffer holds follows from the seed and from
how many blocks were given out, and a state is where the group begins and how many of its blocks are gone: a few integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs import input_files as sources
from preprocess.recipes.schema import Recipe
from preprocess.shards.permutation import keyed_hash, permute
from preprocess.stream.corpus import StreamCorpus, open_corpus
from preprocess.stream.encoding import ChunkEncoder
from preprocess.stream.reading import SIDE_OF_SPLIT, Cursor, DocumentReader, Retries, Share

STATE_VERSION = 1
SHUFFLE_KEY = 0x5F17  # so that the order of blocks does not follow from how documents are shared
MOST_BUFFERED = 1 << 24  # blocks; their order alone takes 8 bytes for each
TAILS = ("drop", "pad")


class TokenStream(Iterator[np.ndarray]):
    """Iterates over blocks, (block_size + 1,) of `dtype`, each the caller's own."""

    def __init__(
        self, corpus: StreamCorpus | Recipe | str | Path, *, block_size: int, split: Literal["train", "val"] = "train", seed: int = 0,
        stream_buffer: int = 10_000, tail: Literal["drop", "pad"] = "drop", rank: int = 0, world_size: int = 1, worker: int = 0,
        num_workers: int = 1, epochs: int | None = 1, retries: Retries | None = None,
    ) -> None:  # fmt: skip
        """`corpus`: what `open_corpus` gives or takes. `seed`: of the order and of who reads which document; the same for all shares.

        `stream_buffer`: blocks that are shuffled together; 0 or 1 for the order as it is. `tail`: what becomes of the tokens behind the
        last whole block: left out, or filled up with the padding token. `rank` of `world_size` and `worker` of `num_workers`: whose
        documents these are. `epochs`: passes over the corpus, None for no end; a block may hold the end of one and the begin of the next.
        Raises MisuseError or FolioError.
        """
        self.corpus = corpus if isinstance(corpus, StreamCorpus) else open_corpus(corpus)
        self.block_size, self.dtype = block_size, self.corpus.dtype
        _check("block_size", block_size, 1, 1 << 32)
        _check("stream_buffer", stream_buffer, 0, MOST_BUFFERED)
        _check("world_size", world_size, 1, 1 << 16)
        _check("num_workers", num_workers, 1, 1 << 16)
        _check("rank", rank, 0, world_size - 1)
        _check("worker", worker, 0, num_workers - 1)
        _check("seed", seed, 0, (1 << 64) - 1)
        if epochs is not None:
            _check("epochs", epochs, 1, 1 << 32)
        for name, value, allowed in (("split", split, tuple(SIDE_OF_SPLIT)), ("tail", tail, TAILS)):
            if value not in allowed:
                raise MisuseError(f"{name} is {value!r}, wanted {' or '.join(allowed)}")
        self._pad_id = _padding(self.corpus) if tail == "pad" else None
        self._seed, self._group_blocks = seed, max(stream_buffer, 1)
        share = Share(rank, world_size, worker, num_workers)
        self._reader = DocumentReader(self.corpus, split, share, seed, epochs, retries or Retries())
        self._identity = {
            "corpus": self.corpus.sha256, "block_size": block_size, "split": split, "seed": seed, "stream_buffer": self._group_blocks,
            "tail": tail, **asdict(share), "epochs": epochs, "piece_bytes": sources.PARTITION_BYTES,
        }  # fmt: skip
        self._begin(Cursor(), 0, 0)

    def _begin(self, start: Cursor, group: int, drawn: int) -> None:
        """Stand behind the first `drawn` blocks of the group number `group`, whose tokens begin at `start`."""
        self._group, self._drawn, self._start = group, drawn, start
        self._starts: dict[int, Cursor] = {}  # of groups that are to come
        self._current: list[np.ndarray | None] = []
        self._coming: list[np.ndarray | None] = []
        self._order: list[int] = []
        self.num_tokens = self.num_text_bytes = self.num_documents = self.num_padded = 0
        self._blocks: Iterator[np.ndarray] | None = None

    @property
    def num_blocks(self) -> int:
        """How many blocks were given out, before and since a state was loaded."""
        return self._group * self._group_blocks + self._drawn

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> np.ndarray:
        """The next block. Raises FolioError where reading fails, and asked again reads again, so that nothing is lost; and where there
        is text, but less than one block of it.
        """
        try:
            self._prepare()
        except BaseException:
            self._begin(self._start, self._group, self._drawn)
            raise
        if self._drawn >= len(self._current):
            raise StopIteration
        place = self._order[self._drawn]
        block = self._current[place]
        assert block is not None
        self._current[place] = None
        self._drawn += 1
        return block.copy()  # one of a chunk's, all of which it would keep in memory

    def _prepare(self) -> None:
        """Have the next block ready, and in the places of those that are gone the next group's."""
        if self._blocks is None:
            self._blocks = self._read(self._start, self._group)
            self._fill(self._current, self._group_blocks)
            if not self._current and not self.num_blocks:
                raise FolioError(self._explain_no_block())
            self._order = self._order_of(self._group, len(self._current))
            for place in self._order[: self._drawn]:
                self._current[place] = None
        self._fill(self._coming, self._drawn)
        if self._drawn == len(self._current) and self._coming:
            self._turn()

    def _explain_no_block(self) -> str:
        split, share = self._reader.split, self._reader.share
        cures = ["choose a smaller block_size", *(["a larger val_fraction"] if split == "val" else [])]
        cures += ["fewer processes and workers"] if share.world_size * share.num_workers > 1 else []
        return (
            f"the {split} side of {self.corpus.name} has {self.num_tokens:,} tokens for this stream, too few for a block of "
            f"{self.block_size + 1:,}; {' or '.join(cures)}"
        )

    def _fill(self, blocks: list[np.ndarray | None], most: int) -> None:
        assert self._blocks is not None
        while len(blocks) < most and (block := next(self._blocks, None)) is not None:
            blocks.append(block)

    def _turn(self) -> None:
        """Begin with the next group."""
        self._group, self._drawn = self._group + 1, 0
        self._current, self._coming = self._coming, []
        self._order = self._order_of(self._group, len(self._current))
        self._start = self._starts.pop(self._group)

    def _order_of(self, group: int, size: int) -> list[int]:
        if size <= 1:
            return [0] * size
        key = keyed_hash(self._seed ^ SHUFFLE_KEY, np.array([group], np.uint64))
        return (
            permute(np.arange(size, dtype=np.uint64), size, np.full(size, key[0], np.uint64)).astype(np.int64).tolist()
        )

    def _read(self, start: Cursor, group: int) -> Iterator[np.ndarray]:
        """All blocks in the order of the documents, from `start` on, where `group` begins."""
        width = self.block_size + 1
        rest, num_tokens, skip = np.empty(0, self.dtype), 0, start.offset
        encoder = ChunkEncoder(self.corpus)
        for selected in self._reader.read(start):
            for chunk in encoder.encode(selected):
                self.num_tokens += len(chunk.ids)
                self.num_text_bytes += chunk.text_bytes
                self.num_documents += len(chunk.ends)
                ids, whole = chunk.ids[skip:], self._group_blocks * width
                for end in range((num_tokens // whole + 1) * whole, num_tokens + len(ids) + 1, whole):
                    self._starts[group + end // whole] = chunk.cursor(end - num_tokens + skip)
                num_tokens, skip = num_tokens + len(ids), 0
                joined = np.concatenate([rest, ids])
                blocks = joined[: len(joined) // width * width].reshape(-1, width)
                rest = joined[blocks.size :].copy()
                yield from blocks
        if self._pad_id is not None and len(rest):
            self.num_padded = width - len(rest)
            yield np.concatenate([rest, np.full(self.num_padded, self._pad_id, self.dtype)])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON can hold it: some twenty integers and strings, whatever the buffer holds."""
        return {
            "version": STATE_VERSION,
            "stream": dict(self._identity),
            "group": self._group,
            "drawn": self._drawn,
            "cursor": asdict(self._start),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the stream stood that gave `state`: its next block is this one's next, bit for bit.

        What is read again, at the next block: the group that was being given out, as much of the next as the buffer held, and in front
        of them the span of the file (16 MB; of compressed files and CSV all of it), which is read and cleaned, not encoded.
        Raises MisuseError for the state of another stream, FolioError for one that is damaged.
        """
        _check_same(state, self._identity)
        try:
            numbers = [state["group"], state["drawn"], *(state["cursor"][f.name] for f in fields(Cursor))]
        except (KeyError, TypeError) as e:
            raise FolioError("the state of the stream does not hold all of a place; take another checkpoint") from e
        group, drawn, *place = numbers
        if (
            any(type(n) is not int or n < 0 for n in numbers)
            or drawn > self._group_blocks
            or place[1] >= len(self.corpus.sources)
        ):
            raise FolioError("the state of the stream holds numbers that none has; take another checkpoint")
        self._begin(Cursor(*place), group, drawn)


def _check(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, Integral) or not least <= value <= most:
        told = f"{value:,}" if isinstance(value, Integral) else repr(value)
        raise MisuseError(f"{name} is {told}, wanted a whole number, {least:,} to {most:,}")


def _padding(corpus: StreamCorpus) -> int:
    tokenizer = corpus.tokenizer
    found = next((i for i in (tokenizer.pad_id, tokenizer.eot_id) if i is not None), None)
    if found is None:
        raise MisuseError(
            f"tail is 'pad', and the {tokenizer.kind} tokenizer has no token to pad with; wanted tail 'drop'"
        )
    return found


def _check_same(state: dict[str, Any], identity: dict[str, Any]) -> None:
    version = state.get("version") if isinstance(state, dict) else None
    if version != STATE_VERSION:
        raise MisuseError(
            f"the state is of version {version!r}, this Folio reads version {STATE_VERSION}; use the Folio that wrote it"
        )
    told = state.get("stream")
    for name, value in identity.items():
        other = told.get(name) if isinstance(told, dict) else None
        if other != value:
            what = "recipe, files or tokenizer" if name == "corpus" else name
            shown = "" if name == "corpus" else f" ({other!r}, now {value!r})"
            raise MisuseError(
                f"the state is of a stream with another {what}{shown}; open the stream as it was, or begin a new one"
            )
