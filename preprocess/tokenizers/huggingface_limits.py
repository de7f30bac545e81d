"""Encode with an untrusted tokenizer.json, with limits on time and memory.

Three parts of a file can make the library `tokenizers` slow: regular expressions (Oniguruma limits the
time of one match, but not the number of matches), models on very long words or with very long tokens,
and a long list of steps. A file that has none of them is ordinary: its time is proportional to the
length of the text. Another file encodes in a child process, which is ended if it takes far longer than
any real tokenizer needs.

Normalizers can lengthen text. If those of a file can make a text more than a few times longer, they
are first applied to pieces of each long text, to measure by how much they lengthen it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preprocess.errors import FolioError
from preprocess.tokenizers.huggingface_spec import Spec, find_components, read_vocabulary

MAX_ORDINARY_TOKEN = 1_000  # characters
MAX_ORDINARY_WORD = 1_000  # characters that a WordPiece model looks at; the library's default is 100
MAX_ORDINARY_STEPS = 50
MAX_UNCHECKED_GROWTH = 4.0  # in bytes; many files replace a space by a character of three bytes
MAX_MEASURED_GROWTH = 4.0  # in characters, of the pieces of a text
PIECE_CHARACTERS = 4_000
NUM_PIECES = 4  # of a long text
Encode = Callable[[list[str]], Sequence[Sequence[int]]]  # texts → the ids of each


def is_ordinary(spec: Spec) -> bool:
    """Return whether the library encodes with a parsed tokenizer.json in a time proportional to the text."""
    steps = list(find_components(spec, "normalizer", "pre_tokenizer"))
    max_word = spec["model"].get("max_input_chars_per_word", 0)
    return (
        len(steps) <= MAX_ORDINARY_STEPS
        and not any(isinstance(step.get("pattern"), dict) and "Regex" in step["pattern"] for step in steps)
        and isinstance(max_word, int)
        and max_word <= MAX_ORDINARY_WORD
        and max(map(len, read_vocabulary(spec)), default=0) <= MAX_ORDINARY_TOKEN
    )


def encode_checked(texts: list[str], encode: Encode, count: Encode | None) -> Sequence[Sequence[int]]:
    """Return the ids of each text. Raises FolioError if the tokenizer makes a text much longer.

    `count` gives an id for each character of the normalized text. It is None for a tokenizer that lengthens
    no text by more than MAX_UNCHECKED_GROWTH.
    """
    if count is not None:
        for text in texts:
            if len(text) > NUM_PIECES * PIECE_CHARACTERS:
                _check_growth(text, count)
    return encode(texts)


def _check_growth(text: str, count: Encode) -> None:
    """Raise FolioError if the normalizer makes pieces of `text` much longer."""
    starts = [len(text) * i // NUM_PIECES for i in range(NUM_PIECES)]
    pieces = [text[start : start + PIECE_CHARACTERS] for start in starts]
    num_before = sum(map(len, pieces))
    num_after = sum(map(len, count(pieces)))
    if num_after > MAX_MEASURED_GROWTH * num_before:
        raise FolioError(
            f"the tokenizer normalizes {num_before:,} characters to {num_after:,}, expected at most "
            f"{MAX_MEASURED_GROWTH:g} times as many; its file may be malicious, use another tokenizer"
        )
