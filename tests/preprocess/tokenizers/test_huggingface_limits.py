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
from preprocess.tokenizers import encoder_process
from preprocess.tokenizers.encoder_process import EncoderProcess, run_limited
from preprocess.tokenizers.huggingface import HuggingFaceTokenizer
from preprocess.tokenizers.huggingface_limits import is_ordinary
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
    monkeypatch.setattr(encoder_process, "MIN_SECONDS", 0.05)
    monkeypatch.setattr(encoder_process, "MIN_CHARACTERS_PER_SECOND", 1_000_000)
    began = time.monotonic()
    with pytest.raises(FolioError, match="has not finished encoding after 0 s; its file may be malicious") as raised:
        tokenizer.encode_text("a" * length)
    assert time.monotonic() - began < 5
    assert_one_line(str(raised.value))


def make_exponential_regex() -> bytes:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+[bc]"}, "behavior": "Isolated", "invert": False}
    return to_bytes(byte_level() | {"pre_tokenizer": split})


def test_exponential_regex_is_refused_at_once_and_without_the_output_of_the_library(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tokenizer = HuggingFaceTokenizer(make_exponential_regex())
    expected = tokenizer.encode_text("able").tolist()
    for _ in range(2):
        with pytest.raises(FolioError, match="could not encode with this tokenizer.json .Onig: Regex search error"):
            tokenizer.encode_text("a" * 60)
        assert tokenizer.encode_text("able").tolist() == expected  # a new child
    assert capfd.readouterr().err == ""


def test_normalizer_that_fails_on_an_added_token_is_rejected_silently(capfd: pytest.CaptureFixture[str]) -> None:
    spec = byte_level() | {"normalizer": replace("(a+)+[bc]", "a", is_regex=True)}
    spec["added_tokens"].append({**spec["added_tokens"][-1], "content": "a" * 60, "id": 402, "normalized": True})
    with pytest.raises(ValueError, match="Onig: Regex search error"):
        HuggingFaceTokenizer(to_bytes(spec))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"normalizer": replace(" {2,}", " ", is_regex=True)}, False),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 60}}, False),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 100}}, True),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 10**9}}, False),
        ({"model": {"type": "Unigram", "vocab": [["a" * 2_000, 0.0]]}}, False),
    ],
)
def test_only_ordinary_files_are_encoded_in_this_process(changes: Spec, expected: bool) -> None:
    assert is_ordinary({"model": {"type": "BPE", "vocab": {"a": 0}}} | changes) == expected


def test_child_gives_the_ids_that_the_library_gives_here() -> None:
    spec = byte_level()
    split = {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False}
    steps = [split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]
    spec |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": None, "truncation": None}
    texts = ["thou art", "", "Мой дядя самых честных правил 🎉\0\n", LONG_TEXT]
    here = library.Tokenizer.from_str(to_bytes(spec | {"padding": None}).decode())
    expected = [here.encode(text, add_special_tokens=False).ids for text in texts]
    tokenizer = HuggingFaceTokenizer(to_bytes(spec))
    assert [tokenizer.encode_text(text).tolist() for text in texts] == expected


def test_child_that_is_killed_is_explained_and_replaced() -> None:
    encoder = EncoderProcess(make_exponential_regex().decode())
    encoder.start()
    assert encoder._child is not None
    process = encoder._child._process
    process.kill()
    with pytest.raises(FolioError, match="the process that encodes text has ended with SIGKILL") as raised:
        encoder.encode(["a"])
    assert_one_line(str(raised.value))
    assert all(stream is not None and stream.closed for stream in (process.stdin, process.stdout, process.stderr))
    assert encoder.encode(["able"])


def test_child_ends_with_its_parent_while_it_encodes() -> None:
    child = encoder_process._Child()
    child.load(make_slow_regex("normalizer"))
    child._send(json.dumps(["a" * 1_000_000]).encode())  # takes minutes
    assert child._process.stdin is not None
    child._process.stdin.close()  # as when the parent ends in any way
    assert child._process.wait(60) == 0


def test_start_of_a_child_may_take_longer_than_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_process, "MIN_SECONDS", 0.0)  # the machine may be busy
    monkeypatch.setattr(encoder_process, "MIN_CHARACTERS_PER_SECOND", 10**12)
    process = EncoderProcess(make_exponential_regex().decode())
    process.start()
    assert process._child is not None and process._child.is_usable()


def test_missing_library_is_named_before_a_child_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_exponential_regex()
    monkeypatch.setattr(encoder_process, "start_child", lambda *_: pytest.fail("a child was started"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(FolioError, match="a tokenizer.json needs the library tokenizers; install it with"):
        HuggingFaceTokenizer(data)


UNFINISHED = """
import sys
from preprocess.errors import FolioError
from preprocess.tokenizers import encoder_process
from preprocess.tokenizers.huggingface import HuggingFaceTokenizer
tokenizer = HuggingFaceTokenizer(sys.stdin.buffer.read())
encoder_process.MIN_SECONDS, encoder_process.MIN_CHARACTERS_PER_SECOND = 0.05, 10**9
try:
    tokenizer.encode_text("a" * 300_000)
except FolioError as e:
    print(e)
    sys.exit(3)
"""


def test_process_ends_in_order_after_the_refusal() -> None:
    data = make_slow_regex("pre_tokenizer")
    ended = subprocess.run([sys.executable, "-c", UNFINISHED], input=data, capture_output=True, timeout=60)
    assert ended.returncode == 3 and ended.stderr == b"" and b"has not finished encoding" in ended.stdout


def test_run_limited_passes_on_results_and_exceptions() -> None:
    assert run_limited(lambda: None, 5) is None
    with pytest.raises(KeyError, match="x"):
        run_limited(lambda: json.loads('{"a": 1}')["x"], 5)


STOPPED_WORK = """
import time
from preprocess.tokenizers.encoder_process import run_limited

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
