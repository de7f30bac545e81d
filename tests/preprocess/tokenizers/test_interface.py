"""What holds for every kind of tokenizer.

decode(encode(text)) is text, no text becomes a control token, the backends agree, and the files
that a build stores are sufficient to decode it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from preprocess.documents import make_batch
from preprocess.errors import FolioError
from preprocess.recipes.schema import DEFAULT_RULES
from preprocess.shards.format import Build
from preprocess.shards.manifest import TokenizerEntry
from preprocess.stages.clean import clean
from preprocess.tokenizers import load_tokenizer, sentencepiece_bpe, tiktoken_bpe
from preprocess.tokenizers.characters import ByteTokenizer, train_char
from preprocess.tokenizers.interface import Tokenizer
from tests.preprocess.tokenizers.helpers import DOCUMENTS, LINES, arrow


def clean_texts(texts: list[str]) -> list[str]:
    return clean(make_batch({"text": arrow(texts)}, len(texts)), DEFAULT_RULES)[0].column("text").to_pylist()


def split_documents(ids: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    yield from (ids[a:b] for a, b in zip([0, *ends.tolist()], ends.tolist(), strict=False))


@pytest.fixture(scope="module")
def tokenizers(cache: Path) -> dict[str, Tokenizer]:
    made = [tiktoken_bpe.load(), sentencepiece_bpe.train(LINES * 20, num_pieces=400), ByteTokenizer(has_eot=True)]
    for tokenizer in made:
        assert tokenizer.start_fast_backend() is None
    return {tokenizer.kind: tokenizer for tokenizer in made}


@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece", "byte"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=DOCUMENTS)
def test_round_trip_without_control_tokens(tokenizers: dict[str, Tokenizer], kind: str, texts: list[str]) -> None:
    tokenizer, texts = tokenizers[kind], clean_texts(texts)
    ids, ends = tokenizer.encode(arrow(texts))
    reference_ids, reference_ends = tokenizer.encode_reference(arrow(texts))
    assert ids.tolist() == reference_ids.tolist() and ends.tolist() == reference_ends.tolist()
    assert ids.dtype == np.uint32 and ends.dtype == np.int64
    for text, document in zip(texts, split_documents(ids, ends), strict=True):
        expected = text.replace(sentencepiece_bpe.SPACE_MARKER, " ") if kind == "sentencepiece" else text
        assert tokenizer.decode_bytes(document) == expected.encode()
        assert not set(document.tolist()) & set(tokenizer.special_tokens.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS)
def test_char_tokenizer_round_trips_its_training_texts(texts: list[str]) -> None:
    tokenizer = train_char(texts, has_eot=False)
    assert tokenizer.files["alphabet.txt"].decode() == "".join(sorted(set("".join(texts))))
    documents = split_documents(*tokenizer.encode(arrow(texts)))
    assert [tokenizer.decode(document) for document in documents] == texts


def test_encode_accepts_slices_of_a_column(tokenizers: dict[str, Tokenizer]) -> None:
    texts = ["один", "two", "", "three €", "fünf"]
    for tokenizer in [*tokenizers.values(), train_char(texts, has_eot=True)]:
        assert tokenizer.encode(arrow(texts).slice(1, 3))[0].tolist() == tokenizer.encode(arrow(texts[1:4]))[0].tolist()


def test_decode_rejects_id_outside_the_vocabulary() -> None:
    message = "id 300 is not in the vocabulary of this tokenizer, whose last id is 256; .* `preprocess verify`"
    with pytest.raises(FolioError, match=message):
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
def test_load_tokenizer_decodes_a_build_from_its_files(build_text: Callable[..., Build], settings: dict) -> None:
    text = "".join(f"Über {i} café\n\n" for i in range(60))
    build = build_text(text, document="passage", passage_characters=30, **settings)
    tokenizer = load_tokenizer(build.folder, build.manifest)
    assert tokenizer.kind == settings["tokenizer"] and tokenizer.eot_id == build.manifest.eot_id
    for split, part in (("train", text[: len(text) * 9 // 10]), ("val", text[len(text) * 9 // 10 :])):
        count = build.manifest.splits[split].documents
        assert "".join(tokenizer.decode(build.document(split, i)[:-1]) for i in range(count)) == part


def test_load_tokenizer_rejects_damaged_missing_and_unknown_files(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    path = build.folder / "tokenizer/alphabet.txt"
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(FolioError, match="does not have the sha256 in its manifest"):
        load_tokenizer(build.folder, build.manifest)
    path.unlink()
    with pytest.raises(FolioError, match="is missing"):
        load_tokenizer(build.folder, build.manifest)
    entry = TokenizerEntry(kind="wordpiece", files={}, settings={})
    with pytest.raises(FolioError, match="of kind 'wordpiece'"):
        load_tokenizer(build.folder, dataclasses.replace(build.manifest, tokenizer=entry))
