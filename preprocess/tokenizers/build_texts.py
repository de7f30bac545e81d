"""TODO."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.tokenizers.interface import Tokenizer

UNKNOWN_LANGUAGE = "unknown"


def language_tags(build: Build) -> dict[int, str]:
    """The tag that each number of a language in the document tables stands for."""
    return {0: UNKNOWN_LANGUAGE, **{int(number): tag for number, tag in build.manifest["languages"].items()}}


def texts_of(build: Build, split: str, tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """The number of the language, and the text in UTF-8, of each document of `split`, control tokens left out.

    Raises FolioError for an id outside the vocabulary.
    """
    is_control = np.zeros(build.vocab_size, bool)
    is_control[list(build.manifest["special_tokens"].values())] = True
    for number, ids in zip(build.docs(split)["lang"], _documents(build, split), strict=True):
        if len(ids) and int(ids.max()) >= build.vocab_size:
            raise FolioError(f"{build.folder} holds an id outside its vocabulary; check it with `preprocess verify`")
        yield int(number), tokenizer.decode_bytes(ids[~is_control[ids]])


def _documents(build: Build, split: str) -> Iterator[np.ndarray]:
    for shard in build.shards(split):
        for begin, end in itertools.pairwise([0, *shard.ends.tolist()]):
            yield shard.tokens[begin:end]
