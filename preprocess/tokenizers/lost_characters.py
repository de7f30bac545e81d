"""Count the characters of texts that do not come back when their tokens are decoded.

The problem: a vocabulary need not contain every character. The library `tokenizers` drops a
character that its model does not know, or makes the unknown token of it or of its whole word, and
raises no error. The text is then missing from a build without a sign.

The idea: count every character in the texts, and in the decoded tokens. A character that occurs
more often in the texts is lost. Only sums are kept, so the result does not depend on how the
documents are divided among processes. The tokens need not be decoded one by one: how often each id
occurs is multiplied by the characters that it stands for. Only tokens that end inside a character,
such as those of single bytes, are decoded in order.

The count is exact for characters that are dropped or unknown. A character that a normalizer
replaces by another counts as lost, because it does not come back, but a character that moves, or
that a decoder adds elsewhere, such as a space, can hide a lost one of the same kind.

The cost: about 6 ns per character (at 5 MB/s, a reference library needs 200 ns), and 10 MB of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.errors import one_line
from preprocess.tokenizers.characters import NUM_CODE_POINTS, decode_code_points
from preprocess.tokenizers.interface import Tokenizer

WINDOW_BYTES = 1 << 20  # of text in which characters are counted at once
NOT_UTF8 = b"\xff"  # between documents: no character continues from one to the next
NUM_NAMED = 5  # characters in a message


@dataclass(frozen=True)
class CharacterLoss:
    """How many characters were encoded, and by character how many more there were in the texts than in the tokens.

    The differences are negative for characters that the decoder adds. Differences of 0 are left out.
    """

    num_characters: int = 0
    differences: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> Counter[str]:
        """How many of each character are lost."""
        return Counter({character: n for character, n in self.differences.items() if n > 0})

    def __add__(self, other: CharacterLoss) -> CharacterLoss:
        """Return the loss of the texts of both."""
        differences = Counter(self.differences)
        differences.update(other.differences)
        nonzero = {character: n for character, n in differences.items() if n}
        return CharacterLoss(self.num_characters + other.num_characters, nonzero)

    def describe(self) -> str | None:
        """Return a line for a person, or None if no character is lost."""
        if not (lost := self.lost):
            return None
        return (
            f"the tokenizer loses {lost.total():,} of {self.num_characters:,} characters "
            f"({lost.total() / self.num_characters:.2%}), most often {name_most_frequent(lost)}; they are not in the "
            "decoded tokens: use a tokenizer that has these characters"
        )


def name_most_frequent(counts: Mapping[str, int]) -> str:
    """Return the most frequent characters with their counts, for a message."""
    named = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NUM_NAMED]
    return ", ".join(f"{one_line(repr(character))} {n:,}" for character, n in named)


class LossCounter:
    """Counts the characters of texts and of their tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_partial = np.zeros(tokenizer.vocab_size, bool)  # ids that do not stand for whole characters
        points: list[int] = []  # the characters of the other ids
        owners: list[int] = []  # the id of each of `points`
        for i, data in enumerate(tokenizer.id_to_bytes):
            try:
                text = data.decode()
            except UnicodeDecodeError:
                self._is_partial[i] = True
                continue
            points.extend(map(ord, text))
            owners.extend([i] * len(text))
        self._points, self._owners = np.array(points, np.int64), np.array(owners, np.int64)
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self._num_characters = np.zeros(NUM_CODE_POINTS, np.int64)  # in the texts minus in the partial ids
        self._num_ids = np.zeros(self._tokenizer.vocab_size, np.int64)
        self._total = 0

    def add(self, texts: pa.LargeStringArray, ids: np.ndarray, ends: np.ndarray) -> None:
        """Count D texts and their flat ids (N,), whose ends are (D,) int64, as `Tokenizer.encode` returns them."""
        self.add_text(texts)
        self.add_ids(ids, ends)

    def add_text(self, texts: pa.LargeStringArray) -> None:
        """Count the characters of texts, whose ids are added with `add_ids`."""
        data, _ = get_text_buffers(texts)
        for window in _iter_windows(data):
            counts = count_characters(window)
            self._num_characters[: len(counts)] += counts
            self._total += int(counts.sum())

    def add_ids(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Count the characters of flat ids (N,) of texts that end at `ends`."""
        if not len(ids):
            return
        self._num_ids += np.bincount(ids, minlength=len(self._num_ids))
        positions = np.flatnonzero(self._is_partial[ids])
        if len(positions):
            documents = np.searchsorted(ends, positions, side="right")
            parts = np.split(ids[positions], np.flatnonzero(np.diff(documents)) + 1)
            data = NOT_UTF8.join([self._tokenizer.decode_bytes(part) for part in parts])
            counts = count_characters(np.frombuffer(data.decode(errors="ignore").encode(), np.uint8))
            self._num_characters[: len(counts)] -= counts

    def measure(self) -> CharacterLoss:
        """Return the loss of all texts since `reset`."""
        # Floats are exact here: the sums are smaller than 2**53.
        decoded = np.bincount(self._points, weights=self._num_ids[self._owners], minlength=NUM_CODE_POINTS)
        differences = self._num_characters - decoded.astype(np.int64)
        nonzero = np.flatnonzero(differences)
        of_characters = zip(map(chr, nonzero.tolist()), differences[nonzero].tolist(), strict=True)
        return CharacterLoss(self._total, dict(of_characters))


def count_characters(utf8: np.ndarray) -> np.ndarray:
    """Return how often each code point occurs in UTF-8 bytes, (N,) uint8: (C,) int64, without trailing zeros."""
    is_ascii = not len(utf8) or int(utf8.max()) < 0x80
    return np.bincount(utf8 if is_ascii else decode_code_points(utf8))


def _iter_windows(data: np.ndarray) -> Iterator[np.ndarray]:
    """Yield UTF-8 bytes in windows that end between characters."""
    start = 0
    while start < len(data):
        stop = min(start + WINDOW_BYTES, len(data))
        while stop < len(data) and data[stop] & 0xC0 == 0x80:  # 0b10xxxxxx continues a character
            stop += 1
        yield data[start:stop]
        start = stop
