"""Decode the documents of a build back to text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.tokenizers.interface import Tokenizer

UNKNOWN_LANGUAGE = "unknown"


def list_language_tags(build: Build) -> dict[int, str]:
    """Return the tag of each language by its number; 0 is the unknown language."""
    return {0: UNKNOWN_LANGUAGE, **{int(number): tag for number, tag in build.manifest.languages.items()}}


def decode_documents(
    build: Build, split: str, tokenizer: Tokenizer, *, authors: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Yield (language number, UTF-8 text) of each document of `split`, without its control tokens.

    With `authors`, the control tokens of author, city and year are put before the text, such as
    `<author_Anna_Akimova>`. Raises FolioError for an id that is not in the build's vocabulary.
    """
    is_control = np.zeros(build.vocab_size, bool)
    is_control[list(build.manifest.special_tokens.values())] = True
    names = {token_id: token.encode() for token, token_id in build.manifest.special_tokens.items()}
    for language, ids in zip(build.docs(split)["lang"], _read_documents(build, split), strict=True):
        if len(ids) and int(ids.max()) >= build.vocab_size:
            raise FolioError(
                f"{build.folder} holds id {int(ids.max())}, but its vocabulary ends at {build.vocab_size - 1}; "
                "check it with `preprocess verify`"
            )
        text = tokenizer.decode_bytes(ids[~is_control[ids]])
        if authors:  # their ids come after those of the tokenizer
            text = b"".join([names[i] for i in ids[ids >= tokenizer.vocab_size].tolist()]) + text
        yield int(language), text


def _read_documents(build: Build, split: str) -> Iterator[np.ndarray]:
    for shard in build.shards(split):
        for begin, end in itertools.pairwise([0, *shard.ends.tolist()]):
            yield shard.tokens[begin:end]
