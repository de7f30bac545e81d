"""Any tokenizer.json: ids are the library's, no text becomes a control token, and what is lost is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import sha256_bytes
from preprocess.shards.format import TOKENIZER_DIR
from preprocess.tokenizers import huggingface, load_tokenizer
from preprocess.tokenizers.huggingface import HuggingFaceTokenizer
from preprocess.tokenizers.interface import MAX_VOCAB_SIZE, PROBE
from tests.conftest import VERSE

library = pytest.importorskip("tokenizers")

SPECIALS = ["<unk>", "<s>", "</s>", "<|endoftext|>", "[SEP]"]
RUSSIAN = "Мой дядя самых честных правил, когда не в шутку занемог, он уважать себя заставил.\n"
TRAINING_TEXT = [VERSE, RUSSIAN, "def f(x):\n    return x ** 2  # 12345\n"] * 20
TEXT = st.text(max_size=30) | st.sampled_from([*PROBE, *SPECIALS, "a</s>b", "  ", "    x", "<tool>", VERSE, RUSSIAN])
Described = dict[str, dict[str, Any]]  # by the names of MAKERS
Loaded = dict[str, HuggingFaceTokenizer]
DOCUMENTS = st.lists(st.lists(TEXT, max_size=4).map("".join), max_size=5)


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def byte_level() -> dict[str, Any]:
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TRAINING_TEXT, trainer)
    made.add_tokens([library.AddedToken("    ", normalized=False), library.AddedToken("<tool>", normalized=False)])
    made.post_processor = library.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.enable_truncation(4)
    made.enable_padding()
    described: dict[str, Any] = json.loads(made.to_str())
    return described


def byte_fallback() -> dict[str, Any]:
    """As SentencePiece's models are converted: U+2581 for the space, `<0xNN>` for bytes, no space in front."""
    made = library.Tokenizer(library.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = library.normalizers.Replace(" ", "\u2581")
    made.decoder = library.decoders.Sequence(
        [library.decoders.Replace("\u2581", " "), library.decoders.ByteFallback(), library.decoders.Fuse()]
    )
    pieces = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256))]
    made.train_from_iterator(
        TRAINING_TEXT[:1], library.trainers.BpeTrainer(vocab_size=350, special_tokens=pieces, show_progress=False)
    )
    described: dict[str, Any] = json.loads(made.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in SPECIALS]
    return described


def unigram() -> dict[str, Any]:
    made = library.Tokenizer(library.models.Unigram())
    made.normalizer = library.normalizers.NFKC()
    made.pre_tokenizer = library.pre_tokenizers.Metaspace()
    made.decoder = library.decoders.Metaspace()
    trainer = library.trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TRAINING_TEXT, trainer)
    described: dict[str, Any] = json.loads(made.to_str())
    return described


def word_piece() -> dict[str, Any]:
    made = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        TRAINING_TEXT, library.trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    described: dict[str, Any] = json.loads(made.to_str())
    return described


def word_level() -> dict[str, Any]:
    vocab = {"[UNK]": 0, "[SEP]": 1, "Romeo,": 2, "thou": 3}
    made = library.Tokenizer(library.models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[SEP]"])
    described: dict[str, Any] = json.loads(made.to_str())
    return described


MAKERS = {f.__name__: f for f in (byte_level, byte_fallback, unigram, word_piece, word_level)}


def spell(described: dict[str, Any]) -> bytes:
    return json.dumps(described, ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def described() -> Described:
    return {name: make() for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def loaded(described: Described) -> Loaded:
    return {name: HuggingFaceTokenizer(spell(one)) for name, one in described.items()}


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@settings(max_examples=200, deadline=None)
@given(texts=DOCUMENTS)
def test_round_trip_engines_and_forgery(loaded: Loaded, name: str, texts: list[str]) -> None:
    tokenizer = loaded[name]
    texts = [text.replace("\u2581", "_") for text in texts]
    if not tokenizer.has_fast_backend:
        assert tokenizer.start_fast_backend() is None
    ids, ends = tokenizer.encode(arrow(texts))
    reference_ids, reference_ends = tokenizer.encode_reference(arrow(texts))
    assert ids.tolist() == reference_ids.tolist() and ends.tolist() == reference_ends.tolist()
    assert tokenizer.decode_bytes(ids) == "".join(texts).encode()
    assert not set(ids.tolist()) & set(tokenizer.special_tokens.values())


@pytest.mark.parametrize("name", ["unigram", "word_piece", "word_level"])
@settings(max_examples=100, deadline=None)
@given(texts=DOCUMENTS)
def test_no_model_lets_text_become_a_control_token(loaded: Loaded, name: str, texts: list[str]) -> None:
    tokenizer = loaded[name]
    ids, ends = tokenizer.encode(arrow([*texts, "[SEP] </s> <s>", "[SEP]"]))
    assert not set(ids.tolist()) & (set(tokenizer.special_tokens.values()) - {tokenizer.unk_id})
    assert len(ends) == len(texts) + 2 and tokenizer.engine == "tokenizers"


def test_ids_are_the_librarys_where_text_spells_no_token(described: Described, loaded: Loaded) -> None:
    for name, one in described.items():
        theirs = library.Tokenizer.from_str(json.dumps(one))
        theirs.no_truncation()
        theirs.no_padding()
        for text in (
            *(p for p in PROBE if not any(special in p for special in SPECIALS)),
            VERSE,
            RUSSIAN,
            "if x:\n        y",
        ):
            assert loaded[name].encode_text(text).tolist() == theirs.encode(text, add_special_tokens=False).ids, name


def test_what_is_lost_is_said(loaded: Loaded) -> None:
    assert {name: tokenizer.is_lossless for name, tokenizer in loaded.items()} == {
        "byte_level": True, "byte_fallback": True, "unigram": False, "word_piece": False, "word_level": False,
    }  # fmt: skip
    assert loaded["byte_level"].loss is None and "' ' comes back as ''" in str(loaded["word_piece"].loss)
    assert loaded["word_piece"].decode(loaded["word_piece"].encode_text("Romeo thou ART")) == " romeo thou art"
    assert loaded["unigram"].decode(loaded["unigram"].encode_text("Deny thy father")) == " Deny thy father"
    assert loaded["word_level"].decode(loaded["word_level"].encode_text("Romeo, x thou")) == " Romeo, thou"


def test_each_special_token_has_its_part(loaded: Loaded) -> None:
    parts = {name: (t.eot_id, t.bos_id, t.pad_id, t.unk_id) for name, t in loaded.items()}
    assert parts["byte_level"] == parts["byte_fallback"] == parts["unigram"] == (3, 1, None, 0)
    assert parts["word_piece"] == (3, 2, 0, 1) and parts["word_level"] == (1, None, None, 0)
    tokenizer = loaded["byte_level"]
    assert tokenizer.special_tokens == {**{name: i for i, name in enumerate(SPECIALS)}, "<tool>": 401}
    assert not any(tokenizer.pieces[i] for i in tokenizer.special_tokens.values())
    assert tokenizer.pieces[400] == b"    " and tokenizer.vocab_size == 402
    assert tokenizer.is_byte_level and tokenizer.settings == {"model": "BPE"}
    assert not loaded["byte_fallback"].is_byte_level and len(loaded["byte_fallback"].fallback_ids) == 256


def test_added_white_space_is_text_and_added_markup_is_not(loaded: Loaded) -> None:
    tokenizer = loaded["byte_level"]
    assert 400 in tokenizer.encode_text("if x:\n    y") and 401 not in tokenizer.encode_text("a <tool> call")
    assert tokenizer.decode(tokenizer.encode_text("a <tool> call")) == "a <tool> call"


def test_special_tokens_beyond_the_models_ids_keep_them(described: Described) -> None:
    one = {**described["byte_level"], "model": dict(described["byte_level"]["model"])}
    vocab = {text: i for text, i in one["model"]["vocab"].items() if text != "[SEP]"}
    one["model"]["vocab"] = vocab
    with pytest.raises(ValueError, match=r"gives '\[SEP\]' the id 4, the library reads"):
        HuggingFaceTokenizer(spell(one))


def test_a_special_token_that_merges_make_is_not_made(described: Described) -> None:
    one = json.loads(spell(described["byte_level"]))
    text = next(text for text in one["model"]["vocab"] if len(text) == 3 and text.isascii() and text.isalpha())
    one["added_tokens"].append({**one["added_tokens"][0], "id": one["model"]["vocab"][text], "content": text})
    one["added_tokens"].sort(key=lambda token: token["id"])
    tokenizer = HuggingFaceTokenizer(spell(one))
    tokenizer.start_fast_backend()
    for encode in (tokenizer.encode, tokenizer.encode_reference):
        ids = encode(arrow([f"{text} {text}"]))[0]
        assert tokenizer.decode(ids) == f"{text} {text}" and one["model"]["vocab"][text] not in ids


def test_a_model_that_draws_lots_draws_none(described: Described) -> None:
    one = json.loads(spell(described["byte_level"]))
    one["model"]["dropout"] = 0.5
    tokenizer, plain = HuggingFaceTokenizer(spell(one)), HuggingFaceTokenizer(spell(described["byte_level"]))
    assert tokenizer.encode_text(VERSE).tolist() == plain.encode_text(VERSE).tolist()


def test_a_new_name_spelled_out_in_text_is_no_control_token_either(loaded: Loaded) -> None:
    forged = "\U0010ffff2\U0010ffff"
    assert loaded["byte_level"].decode(loaded["byte_level"].encode_text(forged)) == forged
    with pytest.raises(FolioError, match="turns text into its control token '</s>'"):
        loaded["unigram"].encode_text(forged)


def test_a_build_holds_the_file_as_given(tmp_path: Path, described: Described) -> None:
    data = spell(described["byte_level"]) + b"\n\n"
    (tmp_path / TOKENIZER_DIR).mkdir()
    (tmp_path / TOKENIZER_DIR / "tokenizer.json").write_bytes(data)
    entry = {"kind": "huggingface", "files": {"tokenizer.json": sha256_bytes(data)}, "settings": {"model": "BPE"}}
    tokenizer = load_tokenizer(tmp_path, {"tokenizer": entry, "eot_id": 3})
    assert tokenizer.files == {"tokenizer.json": data} and tokenizer.decode(tokenizer.encode_text(VERSE)) == VERSE


def changed(**parts: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda described: {**described, **parts}


UNREADABLE = {
    "not JSON": b"\x00\xff not JSON",
    "empty": b"",
    "a deep nest": b"[" * 1_000_000,
    "a nest in its place": b'{"model": {"vocab": {"a": 0}}, "decoder": ' + b'{"decoders": [' * 300 + b"]}" * 300 + b"}",
    "a list": b"[]",
    "no vocabulary": b'{"model": {"type": "BPE"}}',
    "no model": b'{"added_tokens": []}',
    "no number": b'{"model": {"vocab": {"a": NaN}}}',
    "another model": b'{"model": {"type": "Own", "vocab": {"a": 0}}}',
    "no ids": b'{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}',
    "half a surrogate": b'{"model": {"type": "WordLevel", "vocab": {"\\ud800": 0}, "unk_token": "a"}}',
    "a far id": b'{"model": {"type": "WordLevel", "vocab": {"a": %d}, "unk_token": "a"}}' % MAX_VOCAB_SIZE,
}
MALFORMED = {
    "added tokens": changed(added_tokens={"a": 1}),
    "an added token": changed(added_tokens=[{"id": 1}]),
    "a true id": changed(added_tokens=[{"id": True, "content": "a"}]),
    "a decoder": changed(decoder={"type": "ByteLevel", "decoders": 7}),
    "a far added id": changed(added_tokens=[{"id": 1 << 40, "content": "<s>", "special": True}]),
    "an unknown part": changed(pre_tokenizer={"type": "Own"}),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(UNREADABLE[what])
    with pytest.raises(FolioError, match="no tokenizer.json that can be used") as caught:
        huggingface.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_tokenizer_is_refused(tmp_path: Path, described: Described, what: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(spell(MALFORMED[what](described["byte_level"])))
    with pytest.raises(FolioError, match="no tokenizer.json that can be used") as caught:
        huggingface.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_huge_is_told(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="is not a file; name a tokenizer's file"):
        huggingface.load(tmp_path / "tokenizer.json")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(2 << 30)  # sparse
    with pytest.raises(FolioError, match=r"has 2,147,483,648 bytes, wanted at most 200,000,000"):
        huggingface.load(tmp_path / "huge.json")


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, described: Described, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(FolioError, match=r"pip install 'folio-lm\[huggingface\]'"):
        HuggingFaceTokenizer(spell(described["byte_level"]))


def test_real_text_with_a_trained_vocabulary(mirror: Path) -> None:
    text = (mirror / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer, made.decoder = (
        library.pre_tokenizers.ByteLevel(add_prefix_space=False),
        library.decoders.ByteLevel(),
    )
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [text], library.trainers.BpeTrainer(vocab_size=4_000, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = HuggingFaceTokenizer(made.to_str().encode())
    assert tokenizer.start_fast_backend() is None
    ids = tokenizer.encode(arrow([text]))[0]
    assert (
        ids.tolist() == tokenizer.encode_text(text).tolist()
        and tokenizer.decode(ids) == text
        and tokenizer.eot_id is None
    )
