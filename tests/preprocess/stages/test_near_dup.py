"""Shingles and MinHash signatures, compared with plain sets."""

from __future__ import annotations

import itertools
import random
import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.stages import near_dup, ngrams
from preprocess.stages.near_dup import EMPTY, compute_signatures, hash_bands, hash_shingles

# Words of different lengths, punctuation, scripts without spaces, and characters of all lengths in UTF-8.
PIECES = ["a", "The", "word", "x" * 70, "x" * 64 + "y", " ", "  ", "\n", ",", "—", "«", "»", "\u00a0", "é", "привет"]
PIECES += ["中文", "字", "ก", "ไทย", "日本語。", "😀", "0", "3.14", "don't", "_", "deutsch\u2019s", "\u0800", "한국어"]
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), max_size=8)


def to_arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def list_words(text: str) -> list[bytes]:
    """Return the words of a text, at most 64 bytes of each."""
    lowered = "".join(c.lower() if c.isascii() else c for c in text)
    spaced = re.sub(r"[\u0080-\u00bf\u2000-\u203f]|[^\w\u0800-\U0010ffff]|_", " ", lowered)
    separate = re.sub(r"([\u3000-\u9fff\U00010000-\U0010ffff\u0e00-\u0eff])", r" \1", spaced)
    return [word.encode()[:64] for word in separate.split()]


def list_shingles(text: str, num_words: int) -> set[tuple[bytes, ...]]:
    words = list_words(text)
    if not words:
        return set()
    return {tuple(words[i : i + num_words]) for i in range(max(len(words) - num_words + 1, 1))}


def get_sets(texts: list[str], num_words: int = 5) -> list[set[int]]:
    shingles, counts = hash_shingles(to_arrow(texts), num_words)
    ends = np.cumsum(counts, dtype=np.int64)
    return [set(shingles[end - n : end].tolist()) for end, n in zip(ends, counts, strict=True)]


@settings(deadline=None)
@given(TEXTS, st.integers(1, 6), st.integers(1, 200))
def test_texts_have_equal_shingles_if_their_words_are_equal(texts: list[str], num_words: int, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "WINDOW_BYTES", window)
        found = get_sets(texts, num_words)
    expected = [list_shingles(text, num_words) for text in texts]
    assert [len(each) for each in found] == [len(each) for each in expected]
    of_hash = dict(zip(map(frozenset, found), map(frozenset, expected), strict=True))
    assert len(of_hash) == len(set(map(frozenset, expected)))


@settings(deadline=None)
@given(TEXTS, st.integers(1, 100))
def test_windows_and_neighbours_change_no_shingle(texts: list[str], window: int) -> None:
    alone = [hash_shingles(to_arrow([text]), 5)[0].tolist() for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "WINDOW_BYTES", window)
        shingles, counts = hash_shingles(to_arrow(["before", *texts]).slice(1), 5)
    assert shingles.tolist() == [*itertools.chain(*alone)] and counts.tolist() == [len(each) for each in alone]


def test_case_and_punctuation_make_no_difference() -> None:
    a, b, c = get_sets(["The quick, brown fox — jumps!", "the QUICK brown\nfox «jumps»", "the quick brown fox jumped"])
    assert a == b != c and len(a) == 1


def make_documents(num_documents: int, lengths: tuple[int, int], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random shingles; every second document is a copy of the one before with some replaced."""
    rng = random.Random(seed)
    documents: list[list[int]] = []
    for _ in range(num_documents // 2):
        document = [rng.getrandbits(32) for _ in range(rng.randint(*lengths))]
        fraction = rng.random() * 0.6
        documents += [document, [rng.getrandbits(32) if rng.random() < fraction else each for each in document]]
    counts = np.array([len(each) for each in documents], np.uint32)
    return np.array([*itertools.chain(*documents)], np.uint32), counts


@pytest.mark.parametrize("lengths", [(1, 4), (5, 30), (60, 200), (500, 2000)])
def test_equal_values_of_signatures_estimate_the_similarity(lengths: tuple[int, int]) -> None:
    shingles, counts = make_documents(400, lengths, seed=1)
    signatures = compute_signatures(shingles, counts, 112)
    assert (signatures != EMPTY).all()
    sets = [set(each.tolist()) for each in np.split(shingles, np.cumsum(counts)[:-1])]
    similarities = np.array([len(a & b) / len(a | b) for a, b in zip(sets[::2], sets[1::2], strict=True)])
    errors = (signatures[::2] == signatures[1::2]).mean(axis=1) - similarities
    expected_error = np.sqrt((similarities * (1 - similarities)).mean() / 112)
    assert abs(errors.mean()) < 4 * expected_error / np.sqrt(len(errors)) + 1e-9
    assert errors.std() < 1.1 * expected_error  # as accurate as K independent hash functions


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=6), st.randoms())
def test_signature_depends_only_on_the_set_of_shingles(documents: list[list[int]], rng: random.Random) -> None:
    def sign(documents: list[list[int]]) -> np.ndarray:
        counts = np.array([len(each) for each in documents], np.uint32)
        return compute_signatures(np.array([*itertools.chain(*documents)], np.uint32), counts, 20)

    shuffled = [rng.sample(each + each[:3], len(each + each[:3])) for each in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_dup, "MANY_SHINGLES", 3)
        patch.setattr(near_dup, "CHUNK_SHINGLES", 5)
        found = sign(shuffled)
    assert (found == sign(documents)).all()
    assert all((sign([each])[0] == row).all() for each, row in zip(documents, found, strict=True))
    for each, row in zip(documents, found, strict=True):
        assert (row == EMPTY).all() if not each else (row != EMPTY).all()


def test_documents_with_a_similarity_of_0_85_nearly_always_have_an_equal_band() -> None:
    rng = random.Random(2)
    documents: list[list[int]] = []
    for _ in range(1000):
        document = [rng.getrandbits(32) for _ in range(200)]
        documents += [document, [rng.getrandbits(32) for _ in range(16)] + document[16:]]  # 184 / 216
    counts = np.full(len(documents), 200, np.uint32)
    bands = hash_bands(np.array([*itertools.chain(*documents)], np.uint32), counts, 14, 8)
    assert bands.shape == (2000, 14)
    assert (bands[::2] == bands[1::2]).any(axis=1).mean() > 0.98
    assert (bands[::2] == np.roll(bands[1::2], 1, axis=0)).sum() == 0  # of unrelated documents


@pytest.mark.parametrize("num_different", [1, 26])
def test_signature_of_a_long_document_needs_little_more_memory_than_its_shingles(
    monkeypatch: pytest.MonkeyPatch, num_different: int
) -> None:
    monkeypatch.setattr(ngrams, "WINDOW_BYTES", 1 << 13)
    monkeypatch.setattr(near_dup, "CHUNK_SHINGLES", 1 << 13)
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz"[:num_different], k=300_000)
    texts = to_arrow([" ".join(letters)])
    tracemalloc.start()
    try:
        shingles, counts = hash_shingles(texts, 5)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * shingles.nbytes  # joining a list of arrays: 2
        tracemalloc.reset_peak()
        hash_bands(shingles, counts, 14, 8)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * shingles.nbytes  # with the row of each shingle: 2
    finally:
        tracemalloc.stop()
