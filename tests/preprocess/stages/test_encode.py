"""Control tokens around documents, and the spot check of the fast backend."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.stages.dedup import hash_contents
from preprocess.stages.encode import BackendMismatch, SpotCheck, add_control_tokens, choose_spot_check, encode_checked
from preprocess.tokenizers.characters import ByteTokenizer

CONTROL_IDS = st.sampled_from([-1, 900, 901, 902])
DOCUMENTS = st.tuples(
    st.lists(st.integers(0, 9), max_size=5),
    st.lists(CONTROL_IDS, min_size=3, max_size=3),
    st.lists(CONTROL_IDS, min_size=1, max_size=1),
)


@given(st.lists(DOCUMENTS, max_size=8))
def test_add_control_tokens_agrees_with_a_loop(documents) -> None:
    ids = np.array([i for text, _, _ in documents for i in text], np.uint32)
    ends = np.cumsum([len(text) for text, _, _ in documents], dtype=np.int64)
    leading = np.array([ids_before for _, ids_before, _ in documents], np.int64).reshape(len(documents), 3)
    trailing = np.array([ids_after for _, _, ids_after in documents], np.int64).reshape(len(documents), 1)
    new_ids, new_ends = add_control_tokens(ids, ends, leading, trailing)
    expected = [[i for i in (*before, *text, *after) if i >= 0] for text, before, after in documents]
    assert new_ids.tolist() == [i for document in expected for i in document]
    assert new_ends.tolist() == np.cumsum([len(document) for document in expected], dtype=np.int64).tolist()


class BrokenTokenizer(ByteTokenizer):
    """A tokenizer whose fast backend encodes the letter Z wrongly."""

    backend = "fast"

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        ids, ends = self.encode_reference(texts)
        return (np.where(ids == ord("Z"), 0, ids).astype(np.uint32) if self.has_fast_backend else ids), ends


def test_encode_checked_reports_the_first_difference() -> None:
    texts = pa.array(["abc", "", "xZ", "d"], pa.large_string())
    tokenizer = BrokenTokenizer(has_eot=True)
    with pytest.raises(BackendMismatch, match="fast differs from numpy on 'xZ'"):
        encode_checked(tokenizer, texts, np.array([0, 2]))
    assert encode_checked(tokenizer, texts, np.array([0, 1, 3]))[1].tolist() == [3, 3, 5, 6]
    tokenizer.use_reference()
    assert ord("Z") in encode_checked(tokenizer, texts, np.array([2]))[0]


def test_encode_checked_compares_the_head_of_a_long_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.stages.encode.MAX_CHECK_CHARACTERS", 4)
    tokenizer = BrokenTokenizer(has_eot=True)
    with pytest.raises(BackendMismatch, match="'abZdefg'"):
        encode_checked(tokenizer, pa.array(["abZdefg"], pa.large_string()), np.array([0]))
    assert len(encode_checked(tokenizer, pa.array(["abcdZfg"], pa.large_string()), np.array([0]))[0]) == 7


def test_encode_checked_treats_an_exception_as_a_mismatch() -> None:
    class RaisingTokenizer(BrokenTokenizer):
        def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
            raise RuntimeError("a bug in Rust")

    with pytest.raises(BackendMismatch, match="fast failed .RuntimeError: a bug in Rust"):
        encode_checked(RaisingTokenizer(has_eot=True), pa.array(["x"], pa.large_string()), np.array([0]))


def test_spot_check_takes_equal_texts_once_and_few_short_ones() -> None:
    """The reference needs some 10 microseconds per call, so millions of tiny texts would take minutes."""
    equal = hash_contents(pa.array(["a"] * 20_000, pa.large_string()))
    assert SpotCheck(seed=1).choose_rows(equal, np.ones(len(equal), np.int64)).tolist() == [0]
    different = hash_contents(pa.array([str(i) for i in range(20_000)], pa.large_string()))
    assert 1900 < len(SpotCheck(seed=1).choose_rows(different, np.full(len(different), 5))) < 2200


def test_choose_spot_check_takes_a_fraction_keyed_by_the_seed() -> None:
    hashes = hash_contents(pa.array([str(i) for i in range(20_000)], pa.large_string()))
    rows = choose_spot_check(hashes, 0.1, seed=1, at_least_one=False)
    assert 1800 < len(rows) < 2200 and len(choose_spot_check(hashes, 7.0, seed=1, at_least_one=False)) == 20_000
    assert set(rows) != set(choose_spot_check(hashes, 0.1, seed=2, at_least_one=False))
    # Every process checks at least one document.
    assert len(choose_spot_check(hashes, 0.0, seed=1, at_least_one=True)) == 1
    assert len(choose_spot_check(hashes, 0.0, seed=1, at_least_one=False)) == 0
    # Whether a document is chosen does not depend on the rest of the batch.
    assert choose_spot_check(hashes[rows[:5]], 0.1, seed=1, at_least_one=False).tolist() == [0, 1, 2, 3, 4]
