"""What a tokenizer of the corpus' own is trained on: its training documents, at most about `sample_bytes` of them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.build.dedup_and_split import Decided
from preprocess.build.prepare import spilled_texts
from preprocess.build.work_dir import WorkFolder
from preprocess.documents import TRAIN
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.windows import keyed_hash
from preprocess.stages.dedup import two_halves
from preprocess.tokenizers import characters, sentencepiece_bpe
from preprocess.tokenizers.interface import Tokenizer

SLICE_CHARACTERS = 1 << 16
TRAINED_FILE = {
    "sentencepiece": sentencepiece_bpe.MODEL_FILE,
    "char": characters.ALPHABET_FILE,
}  # what each is written to


def train_tokenizer(
    recipe: Recipe, work: WorkFolder, decided: Decided, receipts: list[dict[str, Any]], progress: Progress
) -> Tokenizer:
    """The tokenizer that `recipe` asks for: characters of all that was read, or pieces of the training side's documents."""
    if recipe.tokenizer == "char":
        points = sorted({point for receipt in receipts for point in receipt["alphabet"]})
        return characters.CharTokenizer("".join(map(chr, points)), has_eot=recipe.eot == "append")
    count = sum(int((sides == TRAIN).sum()) for _, sides in decided.partitions())
    progress.say(
        f"training {recipe.num_pieces:,} SentencePiece pieces on {count:,} training documents, at most {recipe.sample_bytes:,} bytes"
    )
    return sentencepiece_bpe.train(_sample(recipe, work, decided), num_pieces=recipe.num_pieces)


def _sample(recipe: Recipe, work: WorkFolder, decided: Decided) -> Iterator[str]:
    """Slices of training documents in reading order: all, or of more than `sample_bytes` those with a small keyed hash."""
    total = 0
    for number, sides in decided.partitions():
        total += int(work.documents(number)["text_bytes"][sides == TRAIN].sum(dtype=np.int64))
    share = min(Fraction(recipe.sample_bytes, max(total, 1)), Fraction(1))
    limit = min(int(share * 2**64), 2**64 - 1)
    for number, sides in decided.partitions():
        documents = work.documents(number)
        high, low = two_halves(documents["hash"])
        first = 0
        for texts in spilled_texts(work, number):
            rows = first + np.flatnonzero(sides[first : first + len(texts)] == TRAIN)
            for row, text in zip(rows.tolist(), texts.take(pa.array(rows - first)), strict=True):
                yield from _slices(text.as_py(), int(high[row] ^ low[row]), recipe.seed, limit)
            first += len(texts)


def _slices(text: str, key: int, seed: int, limit: int) -> Iterator[str]:
    """The slices of a document that are drawn: a short one is a slice, of a long one only a part may be needed."""
    for number, start in enumerate(range(0, len(text), SLICE_CHARACTERS)):
        place = np.array([(key + number) & (2**64 - 1)], np.uint64)
        if limit == 2**64 - 1 or int(keyed_hash(seed, place)[0]) <= limit:
            yield text[start : start + SLICE_CHARACTERS]
