"""Tokenizers from a tokenizer.json of every model type.

Their ids are the library's, text never becomes a control token, and changed text is reported.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import sha256_bytes
from preprocess.shards.format import TOKENIZER_DIR
from preprocess.shards.manifest import TokenizerEntry
from preprocess.stages.slices import slice_texts
from preprocess.tokenizers import huggingface, load_tokenizer, load_tokenizer_by_name
from preprocess.tokenizers.huggingface import HuggingFaceTokenizer, strip_extras
from preprocess.tokenizers.huggingface_spec import Spec
from preprocess.tokenizers.interface import MAX_VOCAB_SIZE, PROBE_TEXTS
from preprocess.tokenizers.sentencepiece_model import SentencePieceModel
from tests.conftest import VERSE
from tests.helpers.manifests import make_manifest
from tests.preprocess.tokenizers.helpers import ADDED_TOKEN, arrow
from tests.preprocess.tokenizers.json_makers import MAKERS, RUSSIAN, SPECIALS, library, to_bytes

TEXT = st.text(max_size=30) | st.sampled_from(
    [*PROBE_TEXTS, *SPECIALS, "a</s>b", "  ", "    x", "<tool>", VERSE, RUSSIAN]
)
Specs = dict[str, Spec]  # by the names in MAKERS
Tokenizers = dict[str, HuggingFaceTokenizer]
DOCUMENTS = st.lists(st.lists(TEXT, max_size=4).map("".join), max_size=5)


@pytest.fixture(scope="module")
def specs() -> Specs:
    return {name: make() for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def tokenizers(specs: Specs) -> Tokenizers:
    return {name: HuggingFaceTokenizer(to_bytes(spec)) for name, spec in specs.items()}


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@settings(max_examples=200, deadline=None)
@given(texts=DOCUMENTS)
def test_lossless_models_round_trip_without_control_tokens(tokenizers: Tokenizers, name: str, texts: list[str]) -> None:
    tokenizer = tokenizers[name]
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
def test_other_models_never_turn_text_into_control_tokens(tokenizers: Tokenizers, name: str, texts: list[str]) -> None:
    tokenizer = tokenizers[name]
    ids, ends = tokenizer.encode(arrow([*texts, "[SEP] </s> <s>", "[SEP]"]))
    assert not set(ids.tolist()) & (set(tokenizer.special_tokens.values()) - {tokenizer.unk_id})
    assert len(ends) == len(texts) + 2 and tokenizer.backend == "tokenizers"


def test_ids_equal_the_library_for_text_without_token_names(specs: Specs, tokenizers: Tokenizers) -> None:
    for name, spec in specs.items():
        original = library.Tokenizer.from_str(json.dumps(spec))
        original.no_truncation()
        original.no_padding()
        texts = [text for text in PROBE_TEXTS if not any(special in text for special in SPECIALS)]
        for text in (*texts, VERSE, RUSSIAN, "if x:\n        y"):
            expected = original.encode(text, add_special_tokens=False).ids
            assert tokenizers[name].encode_text(text).tolist() == expected, name


def test_round_trip_issue_names_what_comes_back_changed(tokenizers: Tokenizers) -> None:
    assert {name: tokenizer.is_lossless for name, tokenizer in tokenizers.items()} == {
        "byte_level": True, "byte_fallback": True, "unigram": False, "word_piece": False, "word_level": False,
    }  # fmt: skip
    assert tokenizers["byte_level"].round_trip_issue is None
    assert "' ' comes back as ''" in str(tokenizers["word_piece"].round_trip_issue)
    assert tokenizers["word_piece"].decode(tokenizers["word_piece"].encode_text("Romeo thou ART")) == " romeo thou art"
    assert tokenizers["unigram"].decode(tokenizers["unigram"].encode_text("Deny thy father")) == " Deny thy father"
    assert tokenizers["word_level"].decode(tokenizers["word_level"].encode_text("Romeo, x thou")) == " Romeo, thou"


def test_special_tokens_get_roles_and_stand_for_no_bytes(tokenizers: Tokenizers) -> None:
    roles = {name: (t.eot_id, t.bos_id, t.pad_id, t.unk_id) for name, t in tokenizers.items()}
    assert roles["byte_level"] == roles["byte_fallback"] == roles["unigram"] == (3, 1, None, 0)
    assert roles["word_piece"] == (3, 2, 0, 1) and roles["word_level"] == (1, None, None, 0)
    tokenizer = tokenizers["byte_level"]
    assert tokenizer.special_tokens == {**{name: i for i, name in enumerate(SPECIALS)}, "<tool>": 401}
    assert not any(tokenizer.id_to_bytes[i] for i in tokenizer.special_tokens.values())
    assert tokenizer.id_to_bytes[400] == b"    " and tokenizer.vocab_size == 402
    assert tokenizer.is_byte_level and tokenizer.settings == {"model": "BPE"}
    assert not tokenizers["byte_fallback"].is_byte_level and len(tokenizers["byte_fallback"].byte_fallback_ids) == 256


def test_added_white_space_is_found_in_text_and_added_markup_is_not(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["byte_level"]
    assert 400 in tokenizer.encode_text("if x:\n    y") and 401 not in tokenizer.encode_text("a <tool> call")
    assert tokenizer.decode(tokenizer.encode_text("a <tool> call")) == "a <tool> call"


WORD_FLAGS: dict[str, dict[str, bool]] = {
    "plain": {}, "normalized": {"normalized": True}, "single word": {"single_word": True},
    "space on the left": {"lstrip": True}, "space on the right": {"rstrip": True},
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("flags", WORD_FLAGS)
def test_added_words_get_the_ids_of_the_library(specs: Specs, name: str, flags: str) -> None:
    spec = json.loads(to_bytes(specs[name]))
    num_ids = HuggingFaceTokenizer(to_bytes(spec)).vocab_size
    words = ["newword", "Слово", "zoo keeper"]
    added = [{**ADDED_TOKEN, **WORD_FLAGS[flags], "id": num_ids + i, "content": word} for i, word in enumerate(words)]
    spec["added_tokens"] += [*added, {**ADDED_TOKEN, "id": num_ids + 3, "content": "<own>", "special": True}]
    tokenizer = HuggingFaceTokenizer(to_bytes(spec))
    tokenizer.start_fast_backend()
    assert set(tokenizer.special_tokens) & {*words, "<own>"} == {"<own>"}
    original = library.Tokenizer.from_str(json.dumps(strip_extras(spec)))
    texts = ["newword", "a newword, Слово.", "newwords anewword NewWord", "СЛОВО слово  Слово ", "the zoo keeper x"]
    for encode in (tokenizer.encode, tokenizer.encode_reference):
        ids, ends = encode(arrow(texts))
        expected = [original.encode(text, add_special_tokens=False).ids for text in texts]
        assert [ids[a:b].tolist() for a, b in itertools.pairwise([0, *ends.tolist()])] == expected
    assert num_ids in ids
    assert num_ids + 3 not in tokenizer.encode(arrow(["a <own> b"]))[0]


def test_added_words_are_decoded_and_are_part_of_a_lossless_tokenizer(specs: Specs) -> None:
    spec = json.loads(to_bytes(specs["byte_level"]))
    spec["added_tokens"] += [{**ADDED_TOKEN, "id": 402, "content": "Слово"}]
    tokenizer = HuggingFaceTokenizer(to_bytes(spec))
    assert tokenizer.is_lossless and tokenizer.start_fast_backend() is None
    for text in ("a Слово b", "Словом Слово"):
        ids = tokenizer.encode(arrow([text]))[0]
        assert 402 in ids and tokenizer.decode(ids) == text


def test_rejects_special_token_that_the_library_gives_another_id(specs: Specs) -> None:
    spec = {**specs["byte_level"], "model": dict(specs["byte_level"]["model"])}
    vocab = {text: i for text, i in spec["model"]["vocab"].items() if text != "[SEP]"}
    spec["model"]["vocab"] = vocab
    with pytest.raises(ValueError, match=r"gives '\[SEP\]' the id 4, the library reads"):
        HuggingFaceTokenizer(to_bytes(spec))


def test_merges_never_make_a_special_token(specs: Specs) -> None:
    spec = json.loads(to_bytes(specs["byte_level"]))
    text = next(text for text in spec["model"]["vocab"] if len(text) == 3 and text.isascii() and text.isalpha())
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": spec["model"]["vocab"][text], "content": text})
    spec["added_tokens"].sort(key=lambda token: token["id"])
    tokenizer = HuggingFaceTokenizer(to_bytes(spec))
    tokenizer.start_fast_backend()
    for encode in (tokenizer.encode, tokenizer.encode_reference):
        ids = encode(arrow([f"{text} {text}"]))[0]
        assert tokenizer.decode(ids) == f"{text} {text}" and spec["model"]["vocab"][text] not in ids


def test_bpe_dropout_is_switched_off(specs: Specs) -> None:
    spec = json.loads(to_bytes(specs["byte_level"]))
    spec["model"]["dropout"] = 0.5
    tokenizer, plain = HuggingFaceTokenizer(to_bytes(spec)), HuggingFaceTokenizer(to_bytes(specs["byte_level"]))
    assert tokenizer.encode_text(VERSE).tolist() == plain.encode_text(VERSE).tolist()


def test_text_with_a_hidden_token_name_never_becomes_a_control_token(tokenizers: Tokenizers) -> None:
    forged = "\U0010ffff2\U0010ffff"
    assert tokenizers["byte_level"].decode(tokenizers["byte_level"].encode_text(forged)) == forged
    with pytest.raises(FolioError, match="turns text into its control token '</s>'"):
        tokenizers["unigram"].encode_text(forged)


def test_load_tokenizer_keeps_the_file_byte_for_byte(tmp_path: Path, specs: Specs) -> None:
    data = to_bytes(specs["byte_level"]) + b"\n\n"
    (tmp_path / TOKENIZER_DIR).mkdir()
    (tmp_path / TOKENIZER_DIR / "tokenizer.json").write_bytes(data)
    files = {"tokenizer.json": sha256_bytes(data)}
    entry = TokenizerEntry(kind="huggingface", files=files, settings={"model": "BPE"})
    tokenizer = load_tokenizer(tmp_path, make_manifest(tokenizer=entry, eot_id=3, vocab_size=402))
    assert tokenizer.files == {"tokenizer.json": data} and tokenizer.decode(tokenizer.encode_text(VERSE)) == VERSE


def replace_keys(**values: Any) -> Callable[[Spec], Spec]:
    return lambda spec: {**spec, **values}


def change_model(**values: Any) -> Callable[[Spec], Spec]:
    return lambda spec: {**spec, "model": {**spec["model"], **values}}


UNREADABLE = {
    "not JSON": b"\x00\xff not JSON",
    "empty": b"",
    "deeply nested": b"[" * 1_000_000,
    "deeply nested decoder": b'{"model": {"vocab": {"a": 0}}, "decoder": '
    + b'{"decoders": [' * 300
    + b"]}" * 300
    + b"}",
    "a list instead of an object": b"[]",
    "no vocabulary": b'{"model": {"type": "BPE"}}',
    "no model": b'{"added_tokens": []}',
    "NaN as an id": b'{"model": {"vocab": {"a": NaN}}}',
    "unknown model type": b'{"model": {"type": "Own", "vocab": {"a": 0}}}',
    "empty vocabulary": b'{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}',
    "half a surrogate": b'{"model": {"type": "WordLevel", "vocab": {"\\ud800": 0}, "unk_token": "a"}}',
    "id beyond the limit": b'{"model": {"type": "WordLevel", "vocab": {"a": %d}, "unk_token": "a"}}' % MAX_VOCAB_SIZE,
}
MALFORMED = {
    "added_tokens is an object": replace_keys(added_tokens={"a": 1}),
    "added token without content": replace_keys(added_tokens=[{"id": 1}]),
    "boolean id": replace_keys(added_tokens=[{"id": True, "content": "a"}]),
    "decoders is a number": replace_keys(decoder={"type": "ByteLevel", "decoders": 7}),
    "added id beyond the limit": replace_keys(added_tokens=[{"id": 1 << 40, "content": "<s>", "special": True}]),
    "long added token": replace_keys(added_tokens=[{"id": 1, "content": "a" * 1001, "special": True}]),
    "merge of three tokens": change_model(merges=[["a", "b", "c"]]),
    "merge of numbers": change_model(merges=[[1, 2]]),
    "merge of objects": change_model(merges=[{"a": 1}]),
    "vocabulary of texts": change_model(vocab={"a": "b"}),
    "unknown pre-tokenizer": replace_keys(pre_tokenizer={"type": "Own"}),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_load_rejects_unreadable_file(tmp_path: Path, case: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(UNREADABLE[case])
    with pytest.raises(FolioError, match="is not a usable tokenizer.json") as caught:
        huggingface.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("case", MALFORMED)
def test_load_rejects_malformed_component(tmp_path: Path, specs: Specs, case: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(to_bytes(MALFORMED[case](specs["byte_level"])))
    with pytest.raises(FolioError, match="is not a usable tokenizer.json") as caught:
        huggingface.load(path)
    assert "\n" not in str(caught.value)


def test_unknown_token_that_is_not_text_is_ignored(specs: Specs) -> None:
    with pytest.raises(ValueError, match="unk_token|did not match|invalid type"):
        HuggingFaceTokenizer(to_bytes(change_model(unk_token={"a": []})(specs["byte_level"])))


def test_messages_of_the_library_are_one_line(tmp_path: Path, specs: Specs) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(to_bytes(change_model(merges=["\x1b[31m \x07"])(specs["byte_level"])))
    with pytest.raises(FolioError, match="is not a usable tokenizer.json") as caught:
        huggingface.load(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["tokenizer.json", "sentencepiece.model", "gpt2.tiktoken", "alphabet.txt"])
def test_named_pipe_is_not_a_tokenizer(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FolioError, match="is not a regular file"):
        load_tokenizer_by_name(str(tmp_path / name))


def test_load_rejects_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="is not a file; pass a tokenizer's file"):
        huggingface.load(tmp_path / "tokenizer.json")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(2 << 30)  # sparse
    with pytest.raises(FolioError, match=r"has 2,147,483,648 bytes, expected at most 200,000,000"):
        huggingface.load(tmp_path / "huge.json")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(FolioError, match=r"it has 67,108,865 bytes, expected at most 67,108,864"):
        huggingface.load(tmp_path / "huge.json")


def test_missing_library_error_names_the_extra(tmp_path: Path, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(FolioError, match=r"pip install 'folio-lm\[huggingface\]'"):
        HuggingFaceTokenizer(to_bytes(specs["byte_level"]))


def test_trained_byte_level_bpe_round_trips_real_text(mirror: Path) -> None:
    text = (mirror / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer, trained.decoder = (
        library.pre_tokenizers.ByteLevel(add_prefix_space=False),
        library.decoders.ByteLevel(),
    )
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        [text], library.trainers.BpeTrainer(vocab_size=4_000, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = HuggingFaceTokenizer(trained.to_str().encode())
    assert tokenizer.start_fast_backend() is None
    ids = tokenizer.encode(arrow([text]))[0]
    assert ids.tolist() == tokenizer.encode_text(text).tolist()
    assert tokenizer.decode(ids) == text and tokenizer.eot_id is None


@pytest.mark.parametrize("pre_tokenizer", ["BertPreTokenizer", "Whitespace"])
@given(
    text=st.text("ab1Z'.,-/&;\u00a0\u3000\u2028\ufeff。，中國我я№é\u0301でです😀 \n\r\t", max_size=60),
    num_bytes=st.integers(3, 20),
)
def test_slices_of_a_text_have_its_ids(specs: Specs, pre_tokenizer: str, text: str, num_bytes: int) -> None:
    tokenizer = load_spec(to_bytes(specs["word_piece"] | {"pre_tokenizer": {"type": pre_tokenizer}}))
    slices, _ = slice_texts(arrow([text]), tokenizer.cuts, num_bytes)
    assert tokenizer.cuts == "spaces"
    assert np.array_equal(tokenizer.encode_reference(slices)[0], tokenizer.encode_reference(arrow([text]))[0])


load_spec = functools.cache(HuggingFaceTokenizer)
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "split": True}
WHITESPACE_SPLIT = {"type": "WhitespaceSplit"}
STRIP_RIGHT = {"type": "Strip", "strip_left": False, "strip_right": True}
COLLAPSE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
MARK = {**COLLAPSE, "content": "\u2581"}
# It puts spaces around Chinese characters.
BERT_NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": False}


def change_steps(spec: Spec, normalizers: list[Spec], steps: list[Spec]) -> Spec:
    normalizer = {"type": "Sequence", "normalizers": [BERT_NORMALIZER, {"type": "NFKC"}, *normalizers]}
    return spec | {"normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


@pytest.mark.parametrize(
    ("normalizers", "first_step", "prepend_scheme"),
    [
        ([], [], "always"),
        ([MARK], [], "first"),
        ([STRIP_RIGHT, MARK], [], "always"),  # as in T5
        ([STRIP_RIGHT, COLLAPSE], [], "never"),
        ([COLLAPSE], [WHITESPACE_SPLIT], "always"),  # as in XLM-R
        ([STRIP_RIGHT, MARK], [WHITESPACE_SPLIT], "first"),
        ([MARK, STRIP_RIGHT], [WHITESPACE_SPLIT], "never"),
    ],
)
@settings(max_examples=40)
@given(
    text=st.text("ab1Z\u2581'.,-/&;\u00a0\u3000\u2028\ufeff\u00b4。，中丰我№é\u0301で😀   \n\r\t", max_size=60),
    num_bytes=st.integers(1, 20),
)
def test_slices_at_spaces_have_the_ids_of_the_text(
    specs: Specs, normalizers: list[Spec], first_step: list[Spec], prepend_scheme: str, text: str, num_bytes: int
) -> None:
    steps = [*first_step, {**METASPACE, "prepend_scheme": prepend_scheme}]
    tokenizer = load_spec(to_bytes(change_steps(specs["unigram"], normalizers, steps)))
    assert tokenizer.cuts == "only_spaces"
    slices, _ = slice_texts(arrow([text]), tokenizer.cuts, num_bytes)
    assert all(slice_.startswith(" ") for slice_ in slices.to_pylist()[1:])
    assert np.array_equal(tokenizer.encode_reference(slices)[0], tokenizer.encode_reference(arrow([text]))[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {**METASPACE, "split": False}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}},
        {"added_tokens": [{**ADDED_TOKEN, "id": 30, "content": "  "}]},
        {"added_tokens": [{**ADDED_TOKEN, "id": 0, "content": "<unk>", "rstrip": True}]},
        {"normalizer": MARK, "pre_tokenizer": WHITESPACE_SPLIT},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Punctuation", "behavior": "Isolated"}},
        # damaged files: the fuzzers found the first
        {"normalizer": {"type": {"type": "NFC"}}},
        {"pre_tokenizer": {"type": ["WhitespaceSplit"]}},
        {"normalizer": {"type": "Precompiled"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": [1]}},
    ],
)
def test_tokenizer_that_looks_across_spaces_gets_whole_texts(specs: Specs, changes: Spec) -> None:
    assert huggingface._find_cuts(specs["unigram"]) == "only_spaces"
    assert huggingface._find_cuts(specs["unigram"] | changes) == "none"
    assert huggingface._find_cuts(specs["byte_fallback"]) == "none"


@pytest.mark.parametrize(
    ("normalizers", "steps", "text", "cut"),
    [
        ([STRIP_RIGHT, MARK], [{**METASPACE, "replacement": "_"}], "ab  cd", 2),
        ([], [METASPACE, {**METASPACE, "replacement": "_", "prepend_scheme": "first"}], "ab cd", 2),
    ],
)
def test_steps_whose_ids_would_depend_on_a_cut(
    specs: Specs, normalizers: list[Spec], steps: list[Spec], text: str, cut: int
) -> None:
    tokenizer = load_spec(to_bytes(change_steps(specs["unigram"], normalizers, steps)))
    assert tokenizer.cuts == "none"
    whole = tokenizer.encode_reference(arrow([text]))[0]
    assert not np.array_equal(tokenizer.encode_reference(arrow([text[:cut], text[cut:]]))[0], whole)


@pytest.mark.parametrize(("rules", "cuts"), [("41\t61\n", "only_spaces"), ("62\t20\n", "none"), ("20\t78\n", "none")])
def test_map_that_makes_or_removes_spaces_gets_whole_texts(specs: Specs, tmp_path: Path, rules: str, cuts: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "rules.tsv").write_text(rules, encoding="utf-8")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([VERSE]),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        normalization_rule_tsv=str(tmp_path / "rules.tsv"),
        minloglevel=2,
    )
    charsmap = base64.b64encode(SentencePieceModel(model.getvalue()).charsmap).decode()
    normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    assert load_spec(to_bytes(specs["unigram"] | {"normalizer": normalizer})).cuts == cuts


def test_few_texts_at_once_are_objects_of_the_library(tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers["unigram"]
    texts = arrow(["thou " * 30, "", "Romeo " * 50, "a", "b"])
    ids, ends = tokenizer.encode_reference(texts)
    sizes = []
    encode = tokenizer._encode
    monkeypatch.setattr(tokenizer, "_encode", lambda texts: sizes.append(sum(map(len, texts))) or encode(texts))
    monkeypatch.setattr(huggingface, "MAX_ENCODED_BYTES", 160)
    of_parts = tokenizer.encode_reference(texts)
    assert sizes == [150, 300, 2]
    assert np.array_equal(of_parts[0], ids) and of_parts[1].tolist() == ends.tolist()
    assert [len(each) for each in tokenizer.encode_reference(arrow([]))] == [0, 0]
