"""What every tokenizer can do.

Decoding is the same for all of them, since each id stands for a fixed string of bytes. Encoding comes twice where
there is a fast engine: the fast one, and the reference that it must agree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError, MisuseError

END_OF_TEXT = "<|endoftext|>"
# Ids come from files of unknown origin and a list is made of them: 16 times the largest vocabulary in use.
MAX_VOCAB_SIZE = 1 << 22
MAX_FILE_BYTES = 200_000_000  # of a tokenizer's file from elsewhere: the largest in use have 40 MB
# What two engines must agree on before the fast one may encode anything, and what a lossless tokenizer gives back:
# contractions, runs of white space, exotic spaces, combining marks, emoji, digits, and control tokens spelled out.
PROBE = (
    "", " ", "\n\n \n", "don't WE'LL they've 12345 x²", "a  b   c\t\td \u00a0\u2003e", "naïve Ünïcödé e\u0301", "\u00a0x\u200b",
    "Привет, мир! 你好世界 مرحبا", "日本語 👩‍👩‍👧 🇫🇷", "<|endoftext|> <author_X>", "<bos> <eos></s> <0x0A>", "----====####!!!??",
    "def f(x):\n        return x  # ok\r\n", " Hello  HELLO Helló 3.14159\n",
)  # fmt: skip
# Not to be taken for a failure of a compiled library; all else is one, since a panic of Rust's is no mere Exception.
FATAL = (MemoryError, KeyboardInterrupt, SystemExit)
Encoded = tuple[np.ndarray, np.ndarray]  # flat ids (N,) uint32, exclusive end of each text in them (D,) int64


class Tokenizer:
    """Ids 0 … vocab_size − 1, `special_tokens` (text → id) among them; control tokens of authors come after these."""

    kind: ClassVar[str]
    reference_backend: ClassVar[str]  # the library that decides what is right
    engine: str  # the library that encodes
    special_tokens: dict[str, int]
    bos_id: int | None = None
    eot_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    pieces: Sequence[bytes]  # what each id stands for; control ids stand for nothing
    files: dict[str, bytes]  # all that is needed to make it again: file name → contents
    settings: dict[str, object]  # what its training was given
    is_byte_level: bool = False  # every text is spelled in pieces of bytes: it has no characters of its own
    fallback_ids: Sequence[int] = ()  # pieces that spell one byte of a character that has no piece
    loss: str | None = None  # what does not survive decode(encode(text)), in words; None where everything does

    @property
    def is_lossless(self) -> bool:
        """Whether decode(encode(text)) is text, U+2581 excepted where it spells the space, as far as the probe shows."""
        return self.loss is None

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def has_fast_backend(self) -> bool:
        return self.engine != self.reference_backend

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Ids of every text; control tokens' spellings in them are ordinary text. No text may be null."""
        return self.encode_reference(texts)

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        raise NotImplementedError

    def start_fast_backend(self, *, num_threads: int = 1) -> str | None:
        """Encode with the fast engine from now on, if there is one and it agrees; returns why it does not, or None."""
        return None

    def use_reference(self) -> None:
        """From now on, encode with the reference engine."""
        self.engine = self.reference_backend

    def encode_text(self, text: str) -> np.ndarray:
        """Ids of one text: (N,) uint32. Raises FolioError for a character that a `char` tokenizer does not know."""
        return self.encode_reference(pa.array([text], pa.large_string()))[0]

    def decode_bytes(self, ids: np.ndarray) -> bytes:
        """The UTF-8 bytes that `ids` stand for, exact even inside a character. Raises FolioError for an id beyond the tokenizer's."""
        pieces = self.pieces
        if len(ids) and int(ids.max()) >= len(pieces):
            raise FolioError(
                f"id {int(ids.max())} stands for no text, this tokenizer's end at {len(pieces) - 1}; check with `preprocess verify`"
            )
        return b"".join([pieces[i] for i in ids.tolist()])

    def decode(self, ids: np.ndarray) -> str:
        """The text of `ids`; bytes that are no UTF-8, as a model may produce, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class TwoBackendTokenizer(Tokenizer):
    """A tokenizer whose reference library is slow: gigatoken encodes in its place wherever both agree."""

    probe: tuple[str, ...] = PROBE
    _fast: Any = None

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        raise NotImplementedError

    def start_fast_backend(self, *, num_threads: int = 1) -> str | None:
        """As the interface says; gigatoken is the engine, and must agree on the probe."""
        from preprocess.tokenizers.gigatoken_backend import GigatokenBackend

        try:
            self._fast = GigatokenBackend(self._make_gigatoken, num_threads=num_threads)
            probe = pa.array(self.probe, pa.large_string())
            fast = self._fast.encode(probe)
        except FATAL:
            raise
        except BaseException as e:  # whatever a compiled library may raise: the reference can still do the work
            why = str(e).partition("\n")[0]  # below it stands a place in its source
            return f"gigatoken cannot be used ({type(e).__name__}: {why})"
        if any(a.tolist() != b.tolist() for a, b in zip(fast, self.encode_reference(probe), strict=True)):
            return f"gigatoken differs from {self.reference_backend} on the probe text"
        self.engine = "gigatoken"
        return None

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        encoded: Encoded = self._fast.encode(texts) if self.has_fast_backend else self.encode_reference(texts)
        return encoded


def find_loss(tokenizer: Tokenizer, probe: Sequence[str]) -> str | None:
    """The first text of `probe` that does not survive the round trip, as `'Naïve' comes back as 'naive'`; None if all do."""
    ids, ends = tokenizer.encode_reference(pa.array(probe, pa.large_string()))
    begin = 0
    for text, end in zip(probe, ends.tolist(), strict=True):
        decoded = tokenizer.decode(ids[begin:end])
        if decoded != text:
            return f"{text!r} comes back as {decoded!r}"
        begin = end
    return None


def from_lists(lists: Sequence[Sequence[int]]) -> Encoded:
    """Encoded from a list of ids a text."""
    ends = np.cumsum([len(ids) for ids in lists], dtype=np.int64)
    flat = np.fromiter((i for ids in lists for i in ids), np.uint32, count=int(ends[-1]) if len(ends) else 0)
    return flat, ends


def read_bounded(path: Path) -> bytes:
    """A tokenizer's file from elsewhere. Raises MisuseError where there is none, FolioError where it is too large for one."""
    if not path.is_file():
        raise MisuseError(f"{path} is not a file; name a tokenizer's file, or the folder that holds it")
    if (size_bytes := path.stat().st_size) > MAX_FILE_BYTES:
        raise FolioError(
            f"{path} has {size_bytes:,} bytes, wanted at most {MAX_FILE_BYTES:,}; this is no tokenizer's file"
        )
    return path.read_bytes()
