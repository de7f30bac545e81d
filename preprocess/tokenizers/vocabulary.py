"""The vocabulary of token ids that another program or another build wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.shards.files import JsonObject, sha256_bytes
from preprocess.shards.format import MANIFEST, Build
from preprocess.tokenizers import is_tokenizer_path, load_tokenizer, load_tokenizer_by_name
from preprocess.tokenizers.interface import Tokenizer

DECODED_AT_ONCE = 1 << 20  # ids


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and the control tokens whose ids follow its own."""

    tokenizer: Tokenizer
    control_tokens: Mapping[str, int]  # token -> id
    settings: JsonObject  # `tokenizer` and others, for the recipe in the manifest

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size + len(set(self.control_tokens.values()))


def load_vocabulary(name: str) -> Vocabulary:
    """Return the vocabulary of the tokenizer `name`, or that of a build if `name` is its folder.

    Only the vocabulary of a build has control tokens of chats and authors. Raises the errors of
    `load_tokenizer_by_name`, and ShardError if the build is damaged.
    """
    if is_tokenizer_path(name) and (Path(name) / MANIFEST).is_file():
        return read_vocabulary(Build(Path(name)))
    tokenizer = load_tokenizer_by_name(name)
    settings: JsonObject = {"tokenizer": Path(name).name if is_tokenizer_path(name) else name}
    if is_tokenizer_path(name):
        settings["tokenizer_sha256"] = sha256_bytes(b"".join(tokenizer.files.values()))
    return Vocabulary(tokenizer, {}, settings)


def read_vocabulary(build: Build) -> Vocabulary:
    """Return the vocabulary of a build."""
    with build.reading():
        tokenizer = load_tokenizer(build.folder, build.manifest)
    control = {token: i for token, i in build.manifest.special_tokens.items() if i >= tokenizer.vocab_size}
    keys = ("tokenizer", "tokenizer_sha256", "chat_template", "chat_columns")
    settings = {key: build.manifest.recipe[key] for key in keys if key in build.manifest.recipe}
    return Vocabulary(tokenizer, control, settings)


class TextHasher:
    """Computes the content hash and the size of the text of documents from their ids, without control tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        pieces = list(vocabulary.tokenizer.id_to_bytes)
        for token_id in vocabulary.tokenizer.special_tokens.values():
            pieces[token_id] = b""
        pieces += [b""] * (vocabulary.vocab_size - len(pieces))
        self._pieces = pa.array(pieces, pa.large_binary())

    def hash(self, ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the hash, (D, 16) uint8, and the number of UTF-8 bytes, (D,) int64, of the texts of D documents.

        `ids`: (N,), all below the vocabulary's size. `ends`: (D,), exclusive end of each document in `ids`.
        """
        hashes, sizes = [], np.zeros(len(ends), np.int64)
        digest, row = xxhash.xxh3_128(), 0
        for start in range(0, len(ids), DECODED_AT_ONCE):
            stop = min(start + DECODED_AT_ONCE, len(ids))
            data, offsets = self._decode(ids[start:stop])
            position = 0  # in `data`
            while row < len(ends) and ends[row] <= stop:
                end = int(offsets[int(ends[row]) - start])
                digest.update(data[position:end])
                sizes[row] += end - position
                hashes.append(digest.digest())
                digest, row, position = xxhash.xxh3_128(), row + 1, end
            if row < len(ends):
                digest.update(data[position:])
                sizes[row] += len(data) - position
        while row < len(ends):  # documents without tokens at the end
            hashes.append(digest.digest())
            digest, row = xxhash.xxh3_128(), row + 1
        return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(ends), 16), sizes

    def _decode(self, ids: np.ndarray) -> tuple[memoryview, np.ndarray]:
        """Return the bytes of N ids, and the begin of each in them and the end of the last, (N + 1,)."""
        texts = self._pieces.take(pa.array(ids))
        _, offsets, data = texts.buffers()
        return memoryview(data) if data is not None else memoryview(b""), np.frombuffer(offsets, np.int64, len(ids) + 1)
