"""Train a tokenizer on the documents of a build.

The SentencePiece trainer needs all of its text in memory, so it gets only about `sample_bytes` of a
large corpus. Every document is cut into slices, because it may be a whole book, and a slice is used
if its keyed hash is small enough. The choice therefore depends only on the seed and the content.
The trainer also needs up to 250 bytes of memory for each slice, so at most about MAX_SLICES are
used; this limit matters only for corpora of very short documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pyarrow as pa

from preprocess.build.prepare import read_texts
from preprocess.build.split_assignment import SplitAssignment
from preprocess.chats.marked_text import Turns, split_turns
from preprocess.documents import TRAIN
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.windows import keyed_hash
from preprocess.stages.dedup import to_uint64_halves
from preprocess.tokenizers import characters, sentencepiece_bpe
from preprocess.tokenizers.interface import Tokenizer

SLICE_CHARACTERS = 1 << 16
MAX_SLICES = 2_000_000
MAX_UINT64 = 2**64 - 1
TRAINED_FILE_NAMES = {"sentencepiece": sentencepiece_bpe.MODEL_FILE, "char": characters.ALPHABET_FILE}


def train_tokenizer(recipe: Recipe, assignment: SplitAssignment, progress: Progress) -> Tokenizer:
    """Train the tokenizer of `recipe`, `char` or `sentencepiece`, on the prepared documents.

    A `char` tokenizer gets every character of the corpus, validation documents included, so that
    both splits can be encoded. SentencePiece is trained on training documents only.
    """
    work_dir = assignment.work_dir
    if recipe.tokenizer == "char":
        alphabet: set[int] = set()
        for partition in range(len(assignment.num_documents)):
            alphabet.update(work_dir.read_values(partition).alphabet or ())
        return characters.CharTokenizer("".join(map(chr, sorted(alphabet))), has_eot=recipe.eot == "append")
    progress.log(
        f"training {recipe.num_pieces:,} SentencePiece pieces on {assignment.count(TRAIN):,} training documents, or "
        f"on about {recipe.sample_bytes:,} bytes of them if they are larger"
    )
    return sentencepiece_bpe.train(choose_texts(recipe, assignment), num_pieces=recipe.num_pieces)


def choose_texts(recipe: Recipe, assignment: SplitAssignment) -> Iterator[str]:
    """Yield slices of training documents, as text, in reading order.

    Their total size is about `recipe.sample_bytes` or that of all training documents, whichever is
    smaller. There are not many more than MAX_SLICES.
    """
    work_dir, total_bytes = assignment.work_dir, 0
    for chunk, sides in assignment.chunks():
        total_bytes += int(work_dir.map_documents(chunk)["text_bytes"][sides == TRAIN].sum(dtype=np.int64))
    fraction = min(
        Fraction(recipe.sample_bytes, max(total_bytes, 1)),
        Fraction(MAX_SLICES, max(assignment.count(TRAIN), 1)),
        Fraction(1),
    )
    max_key = min(int(fraction * 2**64), MAX_UINT64)
    for partition in range(len(assignment.num_documents)):
        for chunk, texts in read_texts(work_dir, partition):
            documents, sides = work_dir.map_documents(chunk), work_dir.map_sides(chunk)
            high, low = to_uint64_halves(documents["hash"])
            keys = high ^ low
            # Most documents have one slice, which has the key of the document. Longer ones are always read.
            may_be_chosen = (keyed_hash(recipe.seed, keys) <= np.uint64(max_key)) | (
                documents["text_bytes"] > SLICE_CHARACTERS
            )
            rows = np.flatnonzero((sides == TRAIN) & may_be_chosen)
            chosen = texts.take(pa.array(rows))
            turns = split_turns(chosen) if recipe.chat_columns is not None else None
            for index, row in enumerate(rows.tolist()):
                text = chosen[index].as_py() if turns is None else _join_turns(turns, index)
                yield from _choose_slices(text, int(keys[row]), seed=recipe.seed, max_key=max_key)


def _join_turns(turns: Turns, document: int) -> str:
    """Return the text of a document with a line for each turn, so that no piece joins the words of two."""
    first, last = int(turns.firsts[document]), int(turns.firsts[document + 1])
    return "\n".join(turns.texts.slice(first, last - first).to_pylist())


def _choose_slices(text: str, document_key: int, *, seed: int, max_key: int) -> Iterator[str]:
    """Yield those slices of a document whose keyed hash is at most `max_key`."""
    for number, start in enumerate(range(0, len(text), SLICE_CHARACTERS)):
        slice_key = np.array([(document_key + number) & MAX_UINT64], np.uint64)
        if max_key == MAX_UINT64 or int(keyed_hash(seed, slice_key)[0]) <= max_key:
            yield text[start : start + SLICE_CHARACTERS]
