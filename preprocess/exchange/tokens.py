"""Read the tokens and the document ends of a split in order, in chunks of bounded size. All exporters use this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, TypeVar

import numpy as np

from preprocess.shards.format import Build
from preprocess.shards.manifest import ShardEntry
from preprocess.shards.verify import check_known

T = TypeVar("T")
CHUNK_TOKENS = 1 << 20
CHUNK_DOCUMENTS = 1 << 17


def iter_tokens(build: Build, split: str) -> Iterator[np.ndarray]:
    """Yield the tokens of `split` in order: arrays (N,) of the build's dtype."""
    return build.iter_tokens(split, CHUNK_TOKENS)


def write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array of a shard, (N,), in chunks."""
    for start in range(0, len(array), CHUNK_TOKENS):
        file.write(array[start : start + CHUNK_TOKENS].data)


def iter_ends(build: Build, split: str) -> Iterator[np.ndarray]:
    """Yield the exclusive ends of the documents of `split`, in tokens since its beginning: arrays (D,) int64."""
    num_before = 0  # tokens of the earlier shards
    for entry in build.manifest.splits[split].shards:
        ends = build.map_shard(entry).ends
        for start in range(0, len(ends), CHUNK_DOCUMENTS):
            yield ends[start : start + CHUNK_DOCUMENTS].astype(np.int64) + num_before
        num_before += entry.tokens


def iter_records(build: Build, entry: ShardEntry) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the records and the exclusive ends of the documents of a shard: (D,) of DOC_DTYPE, (D,) uint64."""
    ends, first = build.map_shard(entry).ends, 0
    for docs in build.iter_docs(entry, CHUNK_DOCUMENTS):
        yield docs, ends[first : first + len(docs)]
        first += len(docs)


def name_sources(build: Build, docs: np.ndarray) -> list[str]:
    """Return the name of the source of each document. Raises FolioError if the manifest does not have it."""
    sources = build.manifest.sources
    names = {n: str(sources[n]["name"]) for n in np.unique(docs["source"]).tolist() if n < len(sources)}
    return _look_up(build, "source", docs["source"], names)


def name_languages(build: Build, docs: np.ndarray) -> list[str | None]:
    """Return the tag of the language of each document, or None. Raises FolioError if the manifest does not have it."""
    tags = build.manifest.languages
    found: dict[int, str | None] = {n: tags[str(n)] for n in np.unique(docs["lang"]).tolist() if str(n) in tags}
    return _look_up(build, "language", docs["lang"], found | {0: None})


def _look_up(build: Build, noun: str, numbers: np.ndarray, names: dict[int, T]) -> list[T]:
    listed = numbers.tolist()
    check_known(build, noun, set(listed), names)
    return [names[number] for number in listed]
