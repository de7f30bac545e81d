"""The features of a text for a classifier: its words and pairs of consecutive words, as numbers of buckets.

The problem: a classifier has a weight for each word and each pair of words, but it is not
known in advance which of them occur, and a table of all possible pairs would not fit into memory.

The idea (Weinberger et al. 2009, arXiv 0902.2206): a word or a pair is hashed, and the hash selects one of
B buckets, which have the weights. Different words in the same bucket share a weight, which changes the
result little if there are many buckets. fastText does the same with pairs of words.

Words are those of `words.py`. A text of many megabytes is read in windows, so that the positions of its
words are never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.filters.spans import MULTIPLIER
from preprocess.filters.words import TextGroup, find_words, iter_word_windows
from preprocess.shards.permutation import mix64

NGRAM_ORDER = 2  # words, and pairs of words


@dataclass(frozen=True)
class Features:
    """Features of the D texts of a group. A long text has several of these, one for each window."""

    buckets: np.ndarray  # (F,) int32, in the order of the text
    firsts: np.ndarray  # (D + 1,) int64, index of the first feature of each text; at the end F


def iter_features(group: TextGroup, bucket_bits: int) -> Iterator[Features]:
    """Yield the features of the texts of a group; their buckets are below 2 ** `bucket_bits`.

    A group of several texts has one `Features`. A single text has one for each window of about a
    megabyte, and together these are the same for any size of the windows.
    """
    if group.num_documents > 1:
        words = find_words(group)
        yield _make_features(words.hash(group.data), words.firsts, bucket_bits)
        return
    last = np.empty(0, np.uint64)  # the hash of the last word of the windows before
    for window in iter_word_windows(group):
        hashes = np.concatenate([last, find_words(window).hash(window.data)])
        features = _make_features(hashes, np.array([0, len(hashes)]), bucket_bits)
        buckets = features.buckets[len(last) :]  # the feature of the last word itself was yielded before
        yield Features(buckets, np.array([0, len(buckets)]))
        last = hashes[-1:]


def _make_features(hashes: np.ndarray, firsts: np.ndarray, bucket_bits: int) -> Features:
    """Return the features of several texts. `hashes`: (W,) uint64, of their words; `firsts`: as in Words."""
    num_words = np.diff(firsts)
    # A word, the pair that begins with it, the next word, …; the last word of a text begins no pair.
    both = np.zeros((len(hashes), 2), np.uint64)
    both[:, 0] = hashes
    both[:-1, 1] = hashes[:-1] * MULTIPLIER + hashes[1:]
    is_feature = np.ones((len(hashes), 2), bool)
    is_feature[firsts[1:][num_words > 0] - 1, 1] = False
    edges = np.concatenate([[0], np.cumsum(2 * num_words - (num_words > 0))])
    return Features(_find_buckets(both[is_feature], bucket_bits), edges)


def _find_buckets(hashes: np.ndarray, bucket_bits: int) -> np.ndarray:
    buckets: np.ndarray = (mix64(hashes) >> np.uint64(64 - bucket_bits)).astype(np.int32)
    return buckets
