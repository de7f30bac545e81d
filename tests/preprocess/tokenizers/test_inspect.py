"""The figures of a tokenizer, on texts that are short enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.tokenizers import inspect as inspect_module
from preprocess.tokenizers import load_tokenizer_by_name, sentencepiece_bpe
from preprocess.tokenizers.characters import ByteTokenizer, train_char
from preprocess.tokenizers.inspect import format_inspection, inspect_tokenizer
from tests.preprocess.tokenizers.helpers import arrow, make_dropping_tokenizer


def test_inspect_tokenizer_counts_words_and_tokens(cache: Path) -> None:
    texts = {"en": arrow(["Hello world\n", "  x", ""]), "ru": arrow(["дом"])}
    figures = inspect_tokenizer(load_tokenizer_by_name("gpt2"), texts)
    assert figures["en"] == {
        "documents": 3, "words": 3, "text_bytes": 15, "tokens": 5, "tokens_per_word": 5 / 3, "bytes_per_token": 3.0,
        "character_coverage": 1.0, "byte_fallback": None, "single_token_words": 1.0,
    }  # fmt: skip
    assert figures["ru"]["words"] == 1 and figures["ru"]["single_token_words"] == 0


def test_byte_fallback_is_reported_beside_the_coverage() -> None:
    tokenizer = sentencepiece_bpe.train(["aab aab ab\n"] * 50, num_pieces=264)
    figures = inspect_tokenizer(
        tokenizer, {"known": arrow(["aab ab a"]), "half": arrow(["ab€€", "日本ab"]), "none": arrow(["é"])}
    )
    assert [figures[name]["byte_fallback"] for name in figures] == [0.0, 0.5, 1.0]
    assert [figures[name]["character_coverage"] for name in figures] == [1.0, 1.0, 1.0]
    assert figures["none"]["tokens"] == 2 and figures["none"]["bytes_per_token"] == 1.0


def test_words_with_the_unknown_token_lower_coverage() -> None:
    library = pytest.importorskip("tokenizers")
    from preprocess.tokenizers.huggingface import HuggingFaceTokenizer

    vocab = {"[UNK]": 0, "thou": 1, "art": 2, "##s": 3}
    word_piece = library.Tokenizer(library.models.WordPiece(vocab, unk_token="[UNK]"))
    word_piece.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    word_piece.decoder = library.decoders.WordPiece()
    tokenizer = HuggingFaceTokenizer(word_piece.to_str().encode())
    figures = inspect_tokenizer(tokenizer, {"en": arrow(["thou arts qqq"])})["en"]
    assert (figures["words"], figures["tokens"], figures["single_token_words"]) == (3, 4, 2 / 3)
    assert figures["character_coverage"] == 10 / 13


def test_dropped_characters_lower_coverage() -> None:
    tokenizer = make_dropping_tokenizer("abc ")
    figures = inspect_tokenizer(tokenizer, {"en": arrow(["abc 12", "ab3"]), "ru": arrow(["да"])})
    assert figures["en"]["character_coverage"] == 6 / 9 and figures["ru"]["character_coverage"] == 0


def test_inspect_tokenizer_of_kind_char_and_byte() -> None:
    figures = inspect_tokenizer(train_char(["a bc"], has_eot=True), {"en": arrow(["a bc", "b"])})["en"]
    assert (figures["character_coverage"], figures["single_token_words"]) == (1.0, 2 / 3)
    assert figures["tokens_per_word"] == 5 / 3
    assert inspect_tokenizer(ByteTokenizer(has_eot=True), {"en": arrow(["é a"])})["en"]["single_token_words"] == 0.5


@pytest.mark.parametrize("texts", [[], [""], [" \n"]])
def test_ratios_without_words_are_none(texts: list[str]) -> None:
    figures = inspect_tokenizer(ByteTokenizer(has_eot=True), {"en": arrow(texts)})["en"]
    assert figures["tokens_per_word"] is None and figures["words"] == 0 and "–" in format_inspection({"en": figures})[1]


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6))
def test_slice_size_changes_no_figure(texts: list[str]) -> None:
    whole = inspect_tokenizer(ByteTokenizer(has_eot=True), {"x": arrow(texts)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect_module, "SLICE_BYTES", 7)
        assert inspect_tokenizer(ByteTokenizer(has_eot=True), {"x": arrow(texts)}) == whole
    assert whole["x"]["tokens"] == whole["x"]["text_bytes"] == len("".join(texts).encode())


def test_format_inspection_aligns_columns(cache: Path) -> None:
    texts = {"en": arrow(["To be or not to be\n"] * 1_000), "ru": arrow(["Быть или не быть"])}
    lines = format_inspection(inspect_tokenizer(load_tokenizer_by_name("gpt2"), texts))
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert lines[0].split()[0] == "language" and lines[2].startswith("ru")
    assert "19,000" in lines[1] and "100.00%" in lines[1]


def test_real_languages_differ_in_tokens_per_word(cache: Path, mirror: Path) -> None:
    texts = {
        lang: arrow((mirror / f"pud/{lang}.txt").read_text(encoding="utf-8").splitlines()) for lang in ("en", "ru")
    }
    tokenizer = load_tokenizer_by_name("gpt2")
    tokenizer.start_fast_backend()
    figures = inspect_tokenizer(tokenizer, texts)
    assert figures["en"]["tokens_per_word"] < 1.5 < 4 < figures["ru"]["tokens_per_word"]
    ours = sentencepiece_bpe.train([t for column in texts.values() for t in column.to_pylist()], num_pieces=8_000)
    fitted = inspect_tokenizer(ours, texts)
    assert fitted["ru"]["tokens_per_word"] < 3 and fitted["ru"]["character_coverage"] == 1
    assert fitted["ru"]["byte_fallback"] < 0.001


def test_long_texts_are_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_module, "MAX_CHARACTERS", 5)
    monkeypatch.setattr(inspect_module, "MAX_BYTES", 12)
    figures = inspect_tokenizer(
        ByteTokenizer(has_eot=True), {"en": arrow(["ab cde", "é", "abcdef", "xyz"]), "ru": arrow(["дом мой"])}
    )
    assert (figures["en"]["documents"], figures["en"]["text_bytes"], figures["en"]["words"]) == (3, 12, 4)
    assert (figures["ru"]["documents"], figures["ru"]["text_bytes"]) == (1, 9)
