"""What every tokenizer can do.

Decoding is the same for all of them, since each id stands for a fixed string of bytes. Encoding comes twice where
there is a fast engine: the fast one, and the reference that it must agree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError

END_OF_TEXT = "<|endoftext|>"
Encoded = tuple[np.ndarray, np.ndarray]  # flat ids (N,) uint32, exclusive end of each text in them (D,) int64


class Tokenizer:
    """Ids 0 … vocab_size − 1, `special_tokens` (text → id) among them; control tokens of authors come after these."""

    kind: ClassVar[str]
    reference_engine: ClassVar[str]  # the library that decides what is right
    engine: str  # the library that encodes
    special_tokens: dict[str, int]
    bos_id: int | None = None
    eot_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    pieces: Sequence[bytes]  # what each id stands for; control ids stand for nothing
    files: dict[str, bytes]  # all that is needed to make it again: file name → contents
    settings: dict[str, object]  # what its training was given

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def has_fast_engine(self) -> bool:
        return self.engine != self.reference_engine

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Ids of every text; control tokens' spellings in them are ordinary text. No text may be null."""
        return self.encode_reference(texts)

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        raise NotImplementedError

    def start_fast_engine(self) -> str | None:
        """Encode with the fast engine from now on, if there is one and it agrees; returns why it does not, or None."""
        return None

    def use_reference(self) -> None:
        """From now on, encode with the reference engine."""
        self.engine = self.reference_engine

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


class TwoEngineTokenizer(Tokenizer):
    """A tokenizer whose reference library is slow: gigatoken encodes in its place wherever both agree."""

    probe: ClassVar[tuple[str, ...]]  # what they must agree on before gigatoken may encode anything
    _fast: Any = None

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        raise NotImplementedError

    def start_fast_engine(self) -> str | None:
        """As the interface says; gigatoken is the engine, and must agree on the probe."""
        from preprocess.tokenizers.gigatoken_engine import GigatokenEngine

        try:
            self._fast = GigatokenEngine(self._make_gigatoken)
            probe = pa.array(self.probe, pa.large_string())
            fast = self._fast.encode(probe)
        except MemoryError:
            raise
        except Exception as e:  # whatever a compiled library may raise: the reference can still do the work
            return f"gigatoken cannot be used ({type(e).__name__}: {e})"
        if any(a.tolist() != b.tolist() for a, b in zip(fast, self.encode_reference(probe), strict=True)):
            return f"gigatoken differs from {self.reference_engine} on the probe text"
        self.engine = "gigatoken"
        return None

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        encoded: Encoded = self._fast.encode(texts) if self.has_fast_engine else self.encode_reference(texts)
        return encoded


def from_lists(lists: Sequence[Sequence[int]]) -> Encoded:
    """Encoded from a list of ids a text."""
    ends = np.cumsum([len(ids) for ids in lists], dtype=np.int64)
    flat = np.fromiter((i for ids in lists for i in ids), np.uint32, count=int(ends[-1]) if len(ends) else 0)
    return flat, ends
