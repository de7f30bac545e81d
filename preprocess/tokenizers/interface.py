"""The interface of all tokenizers: text to ids, and ids to text.

Each id has a fixed byte string (`id_to_bytes`). Decoding is therefore the same for every kind:
concatenate the byte strings of the ids.

A tokenizer may have two backends. The *reference backend* is the library that defines the
tokenizer, such as tiktoken; its ids are correct by definition, but it encodes only about 5 MB/s.
The *fast backend* is gigatoken, which encodes about 200 MB/s. It is used only if it gives the
reference's ids for PROBE_TEXTS, and a build compares the two again on some of the documents
(`stages/encode.py`).

Text never becomes a control token: `encode` treats the characters of "<|endoftext|>" like any other
text. Callers insert control ids around the encoded text, by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import read_small_file

END_OF_TEXT = "<|endoftext|>"
# The largest id determines the length of a list, so the ids of an untrusted file are limited. This
# is slightly more than the largest vocabulary in use (XLM-V, 901,629). An id takes about 400 bytes in each process.
MAX_VOCAB_SIZE = 1 << 20
MAX_FILE_BYTES = 200_000_000  # of a tokenizer's file from elsewhere; the largest in use have 40 MB
# The fast backend must encode these texts as the reference does, and a lossless tokenizer must
# return them unchanged: contractions, runs of white space, rare spaces, combining marks, emoji,
# digits, and the text of control tokens.
PROBE_TEXTS = (
    "", " ", "\n\n \n", "don't WE'LL they've 12345 x²",
    "a  b   c\t\td \u00a0\u2003e", "naïve Ünïcödé e\u0301", "\u00a0x\u200b",
    "Привет, мир! 你好世界 مرحبا",
    "日本語 👩‍👩‍👧 🇫🇷", "<|endoftext|> <author_X>", "<bos> <eos></s> <0x0A>", "----====####!!!??",
    "def f(x):\n        return x  # ok\r\n", " Hello  HELLO Helló 3.14159\n",
)  # fmt: skip
DECODED_AT_ONCE = 1 << 16  # ids
# Never treat these as failures of a tokenizer library. Everything else is one: a Rust panic raises
# a BaseException that is not an Exception.
FATAL_ERRORS = (MemoryError, KeyboardInterrupt, SystemExit)
# Where a text can be cut: nowhere, where slices.py cuts it (mostly before spaces), only before a space that follows a
# visible ASCII character, or between any two characters.
Cuts = Literal["none", "spaces", "only_spaces", "characters"]
Encoded = tuple[np.ndarray, np.ndarray]  # flat ids (N,) uint32, exclusive end of each text in them (D,) int64


class Tokenizer:
    """The base class of all tokenizers.

    The ids are 0 … vocab_size - 1 and include `special_tokens`. A build numbers the control tokens
    that it adds (authors, cities, years) from vocab_size on.
    """

    kind: ClassVar[str]
    reference_backend: ClassVar[str]  # the library whose ids are correct by definition
    backend: str  # the library that `encode` uses now
    special_tokens: dict[str, int]  # text → id
    bos_id: int | None = None
    eot_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    id_to_bytes: Sequence[bytes]  # empty for control ids and for ids that are never used
    files: dict[str, bytes]  # file name → content; sufficient to load the tokenizer again
    settings: dict[str, object]  # how the tokenizer was made, for the manifest
    is_byte_level: bool = False  # tokens are byte strings, so every character can be encoded
    cuts: Cuts = "none"  # where a text can be cut without changing its ids
    byte_fallback_ids: Sequence[int] = ()  # ids of single bytes, used for characters that have no other token
    can_lose_characters: bool = False  # some character may be dropped, or encoded by the unknown token
    unused_words: Sequence[str] = ()  # added tokens that are not marked as control tokens, but are never found in text
    round_trip_issue: str | None = None  # describes a probe text that decode(encode(text)) changes, if there is one

    @property
    def is_lossless(self) -> bool:
        """Whether decode(encode(text)) returned every probe text unchanged.

        The probe texts do not contain U+2581, which SentencePiece tokenizers return as a space.
        """
        return self.round_trip_issue is None

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self.id_to_bytes)

    @property
    def has_fast_backend(self) -> bool:
        """Whether `encode` uses the fast backend now."""
        return self.backend != self.reference_backend

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode D texts. The names of control tokens are encoded as ordinary text.

        No text may be null. Returns the ids of all texts, (N,) uint32, and the exclusive end of
        each text in them, (D,) int64.
        """
        return self.encode_reference(texts)

    def encode_long(self, text: pa.LargeStringArray) -> Iterator[np.ndarray]:
        """Yield the ids of one text of many megabytes, (N,) uint32, in one or more arrays."""
        yield self.encode(text)[0]

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode D texts like `encode`, with the reference backend."""
        raise NotImplementedError

    def start_fast_backend(self, *, num_threads: int = 1) -> str | None:
        """Use the fast backend from now on, if there is one and it agrees with the reference.

        If there is one that cannot be used, returns the reason, else None.
        """
        return None

    def use_reference(self) -> None:
        """Use the reference backend from now on."""
        self.backend = self.reference_backend

    def encode_text(self, text: str) -> np.ndarray:
        """Return the ids of one text: (N,) uint32.

        Raises FolioError for a character that is missing from the alphabet of a `char` tokenizer.
        """
        return self.encode_reference(pa.array([text], pa.large_string()))[0]

    def decode_bytes(self, ids: np.ndarray) -> bytes:
        """Return the bytes of `ids`, (N,) unsigned integers, as UTF-8.

        They may begin or end inside a character. Raises FolioError for an id that is not below
        vocab_size.
        """
        id_to_bytes = self.id_to_bytes
        if len(ids) and int(ids.max()) >= len(id_to_bytes):
            raise FolioError(
                f"id {int(ids.max())} is not in the vocabulary of this tokenizer, whose last id is "
                f"{len(id_to_bytes) - 1}; check the build with `preprocess verify`"
            )
        # In parts: a list of the ids of a whole document may take 30 times the memory of its text.
        parts = (ids[start : start + DECODED_AT_ONCE] for start in range(0, len(ids), DECODED_AT_ONCE))
        return b"".join([b"".join([id_to_bytes[i] for i in part.tolist()]) for part in parts])

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of `ids`, (N,) unsigned integers.

        Bytes that are not UTF-8, which a model may generate, become U+FFFD. Raises FolioError for
        an id that is not below vocab_size.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class TwoBackendTokenizer(Tokenizer):
    """A tokenizer with a slow reference library, which gigatoken can replace if both give the same ids."""

    probe_texts: tuple[str, ...] = PROBE_TEXTS
    _fast: Any = None  # a GigatokenBackend, once started

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        """Return an instance of `tokenizer_class`, gigatoken.Tokenizer, without control tokens."""
        raise NotImplementedError

    def start_fast_backend(self, *, num_threads: int = 1) -> str | None:
        """Use gigatoken from now on, if it encodes the probe texts as the reference does.

        Returns the reason if gigatoken cannot be used, else None.
        """
        from preprocess.tokenizers.gigatoken_backend import GigatokenBackend

        try:
            self._fast = GigatokenBackend(self._make_gigatoken, num_threads=num_threads)
            probe = pa.array(self.probe_texts, pa.large_string())
            fast = self._fast.encode(probe)
        except FATAL_ERRORS:
            raise
        except BaseException as e:  # including a Rust panic; the reference can still encode
            reason = str(e).partition("\n")[0]  # the other lines of a panic locate it in the library's source
            return f"gigatoken cannot be used ({type(e).__name__}: {reason})"
        if any(a.tolist() != b.tolist() for a, b in zip(fast, self.encode_reference(probe), strict=True)):
            return f"gigatoken differs from {self.reference_backend} on the probe text"
        self.backend = "gigatoken"
        return None

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode every text with the backend in use."""
        encoded: Encoded = self._fast.encode(texts) if self.has_fast_backend else self.encode_reference(texts)
        return encoded


def find_round_trip_issue(tokenizer: Tokenizer, probe_texts: Sequence[str]) -> str | None:
    """Return a description of the first text that decode(encode(text)) changes, or None.

    For example: `'Naïve' comes back as 'naive'`.
    """
    ids, ends = tokenizer.encode_reference(pa.array(probe_texts, pa.large_string()))
    begin = 0
    for text, end in zip(probe_texts, ends.tolist(), strict=True):
        decoded = tokenizer.decode(ids[begin:end])
        if decoded != text:
            return f"{text!r} comes back as {decoded!r}"
        begin = end
    return None


def flatten_ids(ids_per_text: Sequence[Sequence[int]]) -> Encoded:
    """Concatenate one list of ids per text into the flat form that `encode` returns."""
    ends = np.cumsum([len(ids) for ids in ids_per_text], dtype=np.int64)
    flat = np.fromiter((i for ids in ids_per_text for i in ids), np.uint32, count=int(ends[-1]) if len(ends) else 0)
    return flat, ends


def read_tokenizer_file(path: Path) -> bytes:
    """Return the content of an untrusted tokenizer file.

    Raises MisuseError if `path` is not a file, FolioError if it is larger than MAX_FILE_BYTES.
    """
    if not path.is_file():
        raise MisuseError(f"{path} is not a file; pass a tokenizer's file, or the folder that holds it")
    return read_small_file(path, MAX_FILE_BYTES)
