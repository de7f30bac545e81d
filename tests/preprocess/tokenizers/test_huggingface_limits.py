"""A tokenizer.json that would take all memory or forever is refused; ordinary ones are not."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from preprocess.errors import FolioError
from preprocess.tokenizers import huggingface_limits
from preprocess.tokenizers.huggingface import HuggingFaceTokenizer
from preprocess.tokenizers.huggingface_limits import run_limited
from preprocess.tokenizers.huggingface_spec import MAX_GROWTH, Spec, compute_growth
from tests.conftest import assert_one_line
from tests.preprocess.tokenizers.json_makers import byte_level, library, to_bytes, unigram

LONG_TEXT = "Deny thy father and refuse thy name; " * 3_000


def replace(pattern: str, content: str, *, is_regex: bool = False) -> Spec:
    return {"type": "Replace", "pattern": {"Regex" if is_regex else "String": pattern}, "content": content}


def sequence(*normalizers: Spec) -> Spec:
    return {"type": "Sequence", "normalizers": list(normalizers)}


def charsmap(text: bytes) -> Spec:
    trie = bytes(1024)
    data = len(trie).to_bytes(4, "little") + trie + text + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("normalizer", "growth"),
    [
        (None, 1),
        ({"type": "NFKC"}, 1),
        (replace(" ", "\u2581"), 3),
        (sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581")), 3),
        (replace("``", '"'), 1),
        (sequence(charsmap(b"x" * 33), replace(" {2,}", "\u2581", is_regex=True)), 132),
        (sequence(sequence(replace("a", "aa"), replace("a", "aaa"))), 6),
        (replace("", "ab"), 3),
    ],
)
def test_growth_is_the_product_over_all_normalizers(normalizer: Spec | None, growth: float) -> None:
    assert compute_growth({"normalizer": normalizer}) == growth


NESTED: Spec = replace("a", "aa")
for _ in range(9):
    NESTED = sequence(NESTED, NESTED)


@pytest.mark.parametrize(
    "normalizer",
    [
        replace("e", "x" * 5_000),
        sequence(*[replace("e", "e" * 10)] * 3),
        replace(".", "xyz" * 100, is_regex=True),
        replace("", "x" * MAX_GROWTH),
        {"type": "Prepend", "prepend": "x" * 1_000},
        charsmap(b"x" * 65),
        NESTED,
    ],
)
def test_normalizer_that_multiplies_text_is_refused(normalizer: Spec) -> None:
    with pytest.raises(ValueError, match="expected at most") as raised:
        HuggingFaceTokenizer(to_bytes(byte_level() | {"normalizer": normalizer}))
    assert_one_line(str(raised.value))


def test_growth_within_the_limit_is_measured_on_long_texts() -> None:
    """A hundredfold growth of rare characters is common, of all characters it is an attack."""
    rare = HuggingFaceTokenizer(to_bytes(byte_level() | {"normalizer": replace("ﷺ", "x" * 300)}))
    assert rare.encode_text(LONG_TEXT + "ﷺ").size
    common = HuggingFaceTokenizer(to_bytes(byte_level() | {"normalizer": replace("e", "x" * 100)}))
    assert common.encode_text("the end").size > 200  # short texts cannot fill the memory
    with pytest.raises(FolioError, match="normalizes 16,000 characters to [0-9,]+, expected at most 4 times as many"):
        common.encode_text(LONG_TEXT)


def test_sentencepiece_normalization_of_real_models_is_accepted() -> None:
    sentencepiece = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([LONG_TEXT[:400]] * 20), model_writer=model, vocab_size=20, model_type="unigram",
        minloglevel=2,
    )  # fmt: skip
    real = sentencepiece.ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap
    spec = unigram() | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(real).decode()}}
    assert len(real) > 100_000 and compute_growth(spec) == 33
    assert HuggingFaceTokenizer(to_bytes(spec)).encode_text(LONG_TEXT).size


def make_slow_word_piece() -> bytes:
    model = library.models.WordPiece({"?": 0, "a": 1, "##a": 2}, unk_token="?", max_input_chars_per_word=10**9)
    return library.Tokenizer(model).to_str().encode()


def make_slow_regex(part: str) -> bytes:
    pattern = {"Regex": "a(?=a*b)|x"}  # looks ahead to the end of a run at each of its characters
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    byte_level_part = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    changes: dict[str, Any] = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level_part]},
        "normalizer": {"type": "Replace", "pattern": pattern, "content": "a"},
    }
    return to_bytes(byte_level() | {part: changes[part]})


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (make_slow_word_piece(), 5_000),
        (make_slow_regex("pre_tokenizer"), 60_000),
        (make_slow_regex("normalizer"), 60_000),
    ],
    ids=["word_piece", "pre_tokenizer", "normalizer"],
)
def test_tokenizer_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch, data: bytes, length: int) -> None:
    tokenizer = HuggingFaceTokenizer(data)
    monkeypatch.setattr(huggingface_limits, "MIN_SECONDS", 0.05)
    monkeypatch.setattr(huggingface_limits, "MIN_CHARACTERS_PER_SECOND", 1_000_000)
    began = time.monotonic()
    with pytest.raises(FolioError, match="has not finished encoding after 0 s; its file may be malicious") as raised:
        tokenizer.encode_text("a" * length)
    assert time.monotonic() - began < 5
    assert_one_line(str(raised.value))


def test_exponential_regex_is_refused_at_once() -> None:
    spec = byte_level()
    split = {"type": "Split", "pattern": {"Regex": "(a+)+[bc]"}, "behavior": "Isolated", "invert": False}
    tokenizer = HuggingFaceTokenizer(to_bytes(spec | {"pre_tokenizer": split}))
    with pytest.raises(FolioError, match="could not encode with this tokenizer.json"):
        tokenizer.encode_text("a" * 60)


def test_run_limited_passes_on_results_and_exceptions() -> None:
    assert run_limited(lambda: None, 5) is None
    with pytest.raises(KeyError, match="x"):
        run_limited(lambda: json.loads('{"a": 1}')["x"], 5)


STOPPED_WORK = """
import time
from preprocess.tokenizers.huggingface_limits import run_limited

def work():
    now = time.monotonic()
    print("started", flush=True)
    while time.monotonic() - now < 1:  # until the process was stopped
        now = time.monotonic()
        time.sleep(0.01)
    time.sleep(0.1)
    return "finished"

print(run_limited(work, 1.5))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped")
def test_time_in_which_the_process_is_stopped_does_not_count() -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED_WORK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        time.sleep(0.2)  # until the main thread waits
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "finished\n"
