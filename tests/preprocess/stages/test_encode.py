"""Control ids around documents, and the check of the fast engine."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.stages.dedup import content_hashes
from preprocess.stages.encode import BackendMismatch, choose_spot_check, encode_checked, surround
from preprocess.tokenizers.characters import ByteTokenizer

CONTROL = st.sampled_from([-1, 900, 901, 902])
DOCUMENT = st.tuples(
    st.lists(st.integers(0, 9), max_size=5),
    st.lists(CONTROL, min_size=3, max_size=3),
    st.lists(CONTROL, min_size=1, max_size=1),
)


@given(st.lists(DOCUMENT, max_size=8))
def test_surround_is_what_a_loop_would_do(documents) -> None:
    ids = np.array([i for d, _, _ in documents for i in d], np.uint32)
    ends = np.cumsum([len(d) for d, _, _ in documents], dtype=np.int64)
    front = np.array([f for _, f, _ in documents], np.int64).reshape(len(documents), 3)
    back = np.array([b for _, _, b in documents], np.int64).reshape(len(documents), 1)
    got, got_ends = surround(ids, ends, front, back)
    expected = [[i for i in (*f, *d, *b) if i >= 0] for d, f, b in documents]
    assert got.tolist() == [i for e in expected for i in e]
    assert got_ends.tolist() == np.cumsum([len(e) for e in expected], dtype=np.int64).tolist()


class Broken(ByteTokenizer):
    """An engine that is wrong about one word."""

    engine = "fast"

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        ids, ends = self.encode_reference(texts)
        return (np.where(ids == ord("Z"), 0, ids).astype(np.uint32) if self.has_fast_backend else ids), ends


def test_the_first_difference_is_told() -> None:
    texts = pa.array(["abc", "", "xZ", "d"], pa.large_string())
    tokenizer = Broken(has_eot=True)
    with pytest.raises(BackendMismatch, match="fast differs from numpy on 'xZ'"):
        encode_checked(tokenizer, texts, np.array([0, 2]))
    assert encode_checked(tokenizer, texts, np.array([0, 1, 3]))[1].tolist() == [3, 3, 5, 6]
    tokenizer.use_reference()
    assert ord("Z") in encode_checked(tokenizer, texts, np.array([2]))[0]


def test_of_a_long_document_the_head_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.stages.encode.CHECKED_CHARACTERS", 4)
    tokenizer = Broken(has_eot=True)
    with pytest.raises(BackendMismatch, match="'abZdefg'"):
        encode_checked(tokenizer, pa.array(["abZdefg"], pa.large_string()), np.array([0]))
    assert len(encode_checked(tokenizer, pa.array(["abcdZfg"], pa.large_string()), np.array([0]))[0]) == 7


def test_an_engine_that_raises_is_a_mismatch() -> None:
    class Raising(Broken):
        def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
            raise RuntimeError("a bug in Rust")

    with pytest.raises(BackendMismatch, match="fast failed .RuntimeError: a bug in Rust"):
        encode_checked(Raising(has_eot=True), pa.array(["x"], pa.large_string()), np.array([0]))


def test_the_sample_is_a_share_keyed_by_seed() -> None:
    hashes = content_hashes(pa.array([str(i) for i in range(20_000)], pa.large_string()))
    sample = choose_spot_check(hashes, 0.1, seed=1, at_least_one=False)
    assert 1800 < len(sample) < 2200 and len(choose_spot_check(hashes, 7.0, seed=1, at_least_one=False)) == 20_000
    assert set(sample) != set(choose_spot_check(hashes, 0.1, seed=2, at_least_one=False))
    assert (
        len(choose_spot_check(hashes, 0.0, seed=1, at_least_one=True)) == 1
    )  # never none: every process checks something
    assert len(choose_spot_check(hashes, 0.0, seed=1, at_least_one=False)) == 0
    # A document is in the sample or not, whatever else is in the batch.
    assert choose_spot_check(hashes[sample[:5]], 0.1, seed=1, at_least_one=False).tolist() == [0, 1, 2, 3, 4]
