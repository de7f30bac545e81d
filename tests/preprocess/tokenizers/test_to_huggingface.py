"""Exported tokenizers of every kind: transformers gives Folio's ids and Folio's text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from preprocess.build.build import build
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.files import sha256_bytes
from preprocess.shards.format import TOKENIZER_DIR, Build, ShardError
from preprocess.shards.manifest import Manifest, TokenizerEntry
from preprocess.tokenizers import load_tokenizer, load_tokenizer_by_name, sentencepiece_bpe, tiktoken_bpe
from preprocess.tokenizers.characters import ByteTokenizer, train_char
from preprocess.tokenizers.huggingface import HuggingFaceTokenizer
from preprocess.tokenizers.interface import PROBE_TEXTS, Tokenizer
from preprocess.tokenizers.sentencepiece_bpe import SentencePieceTokenizer
from preprocess.tokenizers.tiktoken_bpe import TiktokenTokenizer
from preprocess.tokenizers.to_huggingface import make_huggingface_files, recover_merges
from tests.conftest import VERSE
from tests.helpers.manifests import make_manifest

transformers = pytest.importorskip("transformers")
from tests.preprocess.tokenizers.json_makers import MAKERS, RUSSIAN, to_bytes  # noqa: E402  (needs the library)

CORPORA = ("tinyshakespeare/input.txt", "pud/ru.txt", "pud/en.txt", "wikitext-2/valid.txt")
NUM_CHARACTERS = 100_000  # of each corpus: transformers encodes 300,000 per second
CONTROL_TOKENS = ("<author_William_Shakespeare>", "<author_Пушкин>", "<city_Нижний_Новгород>", "<year_1623>")
UNMERGEABLE = "zqxjkw"
HOSTILE_TEXTS = (
    "", " ", "\n", "  \n \n\n   ", " a ", "a  \n  b \r\n\r\n c\t\t d",
    "\x00a\x00", "\x01\x1f\x7f\x85\x9f", "\u2028\u2029\ufeff\u200b",
    "\u00a0\u2003\u3000 \u1680x", "e\u0301e\u0308\u0301 \u0301", "👩‍👩‍👧 🇫🇷\U0001f3fd",
    "\u2581", "\u2581a \u2581\u2581 b", "<0x41><0x0A>",
    "ﬁ Ａ ① ſ K İi̇", "'S 'ſ 'LL it'Re x'D", "1234567 ١٢٣ ²½",
    "a" * 300, " " * 100 + "x" + "\n" * 50, "\ufffd\U0010ffff", "नमस्ते ไทย 한국어",
    UNMERGEABLE, VERSE, RUSSIAN, *(text for text in PROBE_TEXTS if "<" not in text),
)  # fmt: skip
NAMES = (
    "gpt2", "p50k_base", "cl100k_base", "o200k_base", "sentencepiece", "dummy_prefix", "no_fallback",
    "byte", "byte_without_eot", "char", "byte_level", "byte_fallback", "unigram", "word_piece", "word_level",
)  # fmt: skip
# Settings of SentencePiece's trainer that Folio uses too.
LOSSLESS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
DECODED_DIFFERENTLY = ("no_fallback", "unigram", "word_piece", "word_level")
# Folio's tokenizer, transformers' tokenizer, the manifest, the exported folder
Exported = tuple[Tokenizer, Any, Manifest, Path]


def train_with(**training: Any) -> SentencePieceTokenizer:
    """Train a model with settings that Folio does not use."""
    model, lines = io.BytesIO(), [*VERSE.splitlines(), RUSSIAN] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        minloglevel=2,
        **{"vocab_size": 90, "model_type": "bpe"} | training,
    )
    return SentencePieceTokenizer(model.getvalue())


def make_small(name: str) -> TiktokenTokenizer:
    """Return an encoding with GPT-2's first ranks, and the token UNMERGEABLE that no pair makes."""
    ranks = b"".join(tiktoken_bpe.load().files["gpt2.tiktoken"].splitlines(keepends=True)[:5_000])
    return TiktokenTokenizer(name, ranks + base64.b64encode(UNMERGEABLE.encode()) + b" 5000\n")


def make_tokenizer(name: str) -> Tokenizer:
    makers: dict[str, Callable[[], Tokenizer]] = {
        "cl100k_base": lambda: make_small(name),
        "o200k_base": lambda: make_small(name),
        "sentencepiece": lambda: sentencepiece_bpe.train(
            [VERSE, RUSSIAN, "    if x:\n        y  # a\u0301é\n"] * 20, num_pieces=420
        ),
        "dummy_prefix": lambda: train_with(**LOSSLESS, byte_fallback=True, vocab_size=340),
        "no_fallback": lambda: train_with(**LOSSLESS, add_dummy_prefix=False),
        "byte": lambda: ByteTokenizer(has_eot=True),
        "byte_without_eot": lambda: ByteTokenizer(has_eot=False),
        "char": lambda: train_char([*HOSTILE_TEXTS, *CONTROL_TOKENS, "".join(map(chr, range(0xD800)))], has_eot=True),
        **{maker: lambda: HuggingFaceTokenizer(to_bytes(MAKERS[name]())) for maker in MAKERS},
    }
    return makers.get(name, lambda: load_tokenizer_by_name(name))()


def store(tokenizer: Tokenizer, folder: Path) -> Manifest:
    """Write the files that a build keeps of `tokenizer`; return the manifest."""
    (folder / TOKENIZER_DIR).mkdir(parents=True)
    for name, data in tokenizer.files.items():
        (folder / TOKENIZER_DIR / name).write_bytes(data)
    files = {name: sha256_bytes(data) for name, data in tokenizer.files.items()}
    return make_manifest(
        tokenizer=TokenizerEntry(kind=tokenizer.kind, files=files, settings=tokenizer.settings),
        vocab_size=tokenizer.vocab_size + len(CONTROL_TOKENS),
        special_tokens=tokenizer.special_tokens
        | {name: tokenizer.vocab_size + n for n, name in enumerate(CONTROL_TOKENS)},
        **{key: getattr(tokenizer, key) for key in ("bos_id", "eot_id", "pad_id", "unk_id")},
    )


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def exported(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Return a function from a name in NAMES to the exported tokenizer, which is made once."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            folder, tokenizer = tmp_path_factory.mktemp(name), make_tokenizer(name)
            manifest = store(tokenizer, folder)
            out = write_files(folder / "hf", make_huggingface_files(folder, manifest, model_max_length=1 << 30))
            made[name] = tokenizer, transformers.AutoTokenizer.from_pretrained(out), manifest, out
        return made[name]

    return get


def assert_same(name: str, tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert theirs(text).input_ids == ids.tolist()
    if name not in DECODED_DIFFERENTLY:
        assert theirs.decode(ids.tolist()) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_export_agrees_on_hostile_text(exported: Callable[[str], Exported], name: str) -> None:
    tokenizer, theirs, _, _ = exported(name)
    for text in HOSTILE_TEXTS:
        assert_same(name, tokenizer, theirs, text)


@pytest.mark.parametrize("name", NAMES)
def test_export_agrees_on_random_text(exported: Callable[[str], Exported], name: str) -> None:
    tokenizer, theirs, _, _ = exported(name)
    alphabet = (
        "".join(data.decode() for data in tokenizer.id_to_bytes)
        if name == "char"
        else st.characters(exclude_categories=["Cs"])
    )
    spaced = st.text(st.sampled_from(" \n\t\u2581aAе1'.\u0301"), max_size=30)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.text(alphabet, max_size=20) | spaced | st.sampled_from(HOSTILE_TEXTS), max_size=4).map("".join))
    def check(text: str) -> None:
        # transformers turns the text of a control token into its id unless split_special_tokens is
        # set. hypothesis draws such texts too, because it reads the constants of this repository.
        assume(not any(token in text for token in theirs.all_special_tokens))
        assert_same(name, tokenizer, theirs, text)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_export_agrees_on_real_text(exported: Callable[[str], Exported], mirror: Path, name: str) -> None:
    tokenizer, theirs, _, _ = exported(name)
    for corpus in CORPORA:
        text = (mirror / corpus).read_text(encoding="utf-8")[:NUM_CHARACTERS]
        assert_same(name, tokenizer, theirs, text.replace("<unk>", "unk"))  # WikiText contains `<unk>`


@pytest.mark.parametrize("name", NAMES)
def test_export_maps_control_tokens_to_their_ids(exported: Callable[[str], Exported], name: str) -> None:
    tokenizer, theirs, manifest, _ = exported(name)
    assert len(theirs) == manifest.vocab_size and theirs.model_max_length == 1 << 30
    for control_token, i in manifest.special_tokens.items():
        assert theirs(control_token).input_ids == [i] and theirs.convert_tokens_to_ids(control_token) == i
        assert theirs.added_tokens_decoder[i].special and not theirs.added_tokens_decoder[i].normalized
        assert theirs.decode([i]) == control_token and theirs.decode([i], skip_special_tokens=True) == ""
        around = theirs(f"thou{control_token}thou").input_ids
        assert around == [*tokenizer.encode_text("thou").tolist(), i, *tokenizer.encode_text("thou").tolist()]
    roles = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id)
    assert roles == (manifest.bos_id, manifest.eot_id, manifest.pad_id, manifest.unk_id)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MAKERS])
def test_split_special_tokens_encodes_control_tokens_as_text(exported: Callable[[str], Exported], name: str) -> None:
    tokenizer, _, manifest, out = exported(name)
    theirs = transformers.AutoTokenizer.from_pretrained(out, split_special_tokens=True)
    for text in (*list(manifest.special_tokens)[:20], *CONTROL_TOKENS, f"a{CONTROL_TOKENS[0]} <|endoftext|>"):
        assert theirs(text).input_ids == tokenizer.encode_text(text).tolist()


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_export_agrees_next_to_a_model_of_any_type(
    exported: Callable[[str], Exported], tmp_path: Path, model_type: str
) -> None:
    """For some models transformers prefers a tokenizer class of their own."""
    for name in ("gpt2", "sentencepiece", "char"):
        tokenizer, _, _, out = exported(name)
        copy = write_files(tmp_path / name, {p.name: p.read_bytes() for p in out.iterdir()})
        (copy / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert_same(name, tokenizer, transformers.AutoTokenizer.from_pretrained(copy), VERSE)


@pytest.mark.parametrize("tokenizer", ["gpt2", "sentencepiece", "char", "byte"])
def test_export_decodes_documents_of_a_build(tmp_path: Path, cache: Path, tokenizer: str) -> None:
    pieces = {"num_pieces": 600} if tokenizer == "sentencepiece" else {}
    recipe = load_recipe("synthetic", num_pairs=40, tokenizer=tokenizer, **pieces)
    build(recipe, tmp_path / "made", name="made", source=None, replace=False, progress=Progress(quiet=True))
    made = Build(tmp_path / "made")
    theirs = transformers.AutoTokenizer.from_pretrained(
        write_files(tmp_path / "hf", make_huggingface_files(made.folder, made.manifest, model_max_length=128))
    )
    ours, special = load_tokenizer(made.folder, made.manifest), list(made.manifest.special_tokens.values())
    assert len(special) > 10
    for i in range(20):
        ids = np.asarray(made.document("train", i))
        text = ours.decode(ids[~np.isin(ids, special)])
        assert theirs.decode(ids.tolist(), skip_special_tokens=True) == text and text
        assert theirs(theirs.decode(ids.tolist())).input_ids == ids.tolist(), (
            "the decoded control tokens and text encode to the same ids"
        )


def test_unknown_character_raises_in_both(exported: Callable[[str], Exported]) -> None:
    tokenizer, theirs, _, _ = exported("char")
    with pytest.raises(FolioError, match="is not in the alphabet of this tokenizer"):
        tokenizer.encode_text("a\U00020000")
    with pytest.raises(Exception, match="Missing .* token from the vocabulary"):
        theirs("a\U00020000")


def test_recovered_merges_of_gpt2_equal_openais(exported: Callable[[str], Exported], cache: Path) -> None:
    out = exported("gpt2")[3]
    url = next(url for url in tiktoken_bpe.find_encoding("gpt2").files if url.endswith("vocab.bpe"))
    theirs = (cache / "tiktoken" / hashlib.sha1(url.encode()).hexdigest()).read_text(encoding="utf-8").splitlines()[1:]
    assert [" ".join(pair) for pair in json.loads((out / "tokenizer.json").read_bytes())["model"]["merges"]] == theirs


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab", min_size=2, max_size=6), max_size=12, unique=True), st.text("ab", max_size=24))
def test_recover_merges_is_exact_for_any_ranks(tokens: list[str], text: str) -> None:
    ranks: dict[str, float] = {token: rank for rank, token in enumerate(["a", "b", *tokens])}
    by_pair = {pair: rank for rank, pair in enumerate(recover_merges(ranks))}
    assert merge_all(text, lambda a, b: by_pair.get((a, b))) == merge_all(text, lambda a, b: ranks.get(a + b))


def merge_all(text: str, rank: Callable[[str, str], float | None]) -> list[str]:
    """Merge the neighbours with the lowest rank until no two have one."""
    parts = list(text)
    while found := [(r, i) for i, (a, b) in enumerate(pairwise(parts)) if (r := rank(a, b)) is not None]:
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({}, "normalizes text"),
        ({"model_type": "unigram", "vocab_size": 60}, "is not a BPE model"),
        ({"normalization_rule_name": "identity"}, "removes white space"),
        ({**LOSSLESS, "treat_whitespace_as_suffix": True}, "puts a space after the text"),
        ({**LOSSLESS, "user_defined_symbols": ["<x>"]}, "has user-defined or unused pieces"),
    ],
)
def test_rejects_sentencepiece_model_that_json_cannot_express(
    tmp_path: Path, training: dict[str, Any], message: str
) -> None:
    manifest = store(train_with(**training), tmp_path)
    with pytest.raises(
        FolioError,
        match=f"this SentencePiece model {message}, which a tokenizer.json cannot express exactly; build with",
    ) as caught:
        make_huggingface_files(tmp_path, manifest, model_max_length=128)
    assert "\n" not in str(caught.value)


def test_rejects_control_tokens_that_json_cannot_hold(tmp_path: Path) -> None:
    spec = MAKERS["word_level"]()
    spec["model"]["vocab"]["far"] = 9
    manifest = store(HuggingFaceTokenizer(to_bytes(spec)), tmp_path)
    with pytest.raises(
        FolioError,
        match="tokenizer.json of this build cannot hold its control tokens .*gives '<.*' the id 1., the library reads",
    ):
        make_huggingface_files(tmp_path, manifest, model_max_length=128)


def test_only_kind_huggingface_needs_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level = HuggingFaceTokenizer(to_bytes(MAKERS["byte_level"]()))
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    for name in ("sentencepiece", "char", "byte", "cl100k_base"):
        assert make_huggingface_files(
            tmp_path / name, store(make_tokenizer(name), tmp_path / name), model_max_length=128
        )
    with pytest.raises(FolioError, match=r"pip install 'folio-lm\[huggingface\]'"):
        make_huggingface_files(tmp_path / "file", store(byte_level, tmp_path / "file"), model_max_length=128)


def test_rejects_damaged_tokenizer_file(tmp_path: Path) -> None:
    manifest = store(train_char(["abc"], has_eot=True), tmp_path)
    (tmp_path / TOKENIZER_DIR / "alphabet.txt").write_bytes(b"abd")
    with pytest.raises(ShardError, match="does not have the sha256 in its manifest"):
        make_huggingface_files(tmp_path, manifest, model_max_length=128)
