"""Tokenizers by name, by file and by folder; what is saved is what is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.tokenizers import load_named, sentencepiece_bpe, tokenizer_kind, tokenizer_names
from preprocess.tokenizers.characters import ByteTokenizer, train_char
from preprocess.tokenizers.folders import load_folder, save
from preprocess.tokenizers.sentencepiece_bpe import SentencePieceTokenizer
from preprocess.tokenizers.tiktoken_bpe import TiktokenTokenizer
from tests.conftest import ROOT, VERSE


@pytest.fixture(scope="module")
def trained() -> SentencePieceTokenizer:
    return sentencepiece_bpe.train([VERSE] * 20, num_pieces=310)


def test_a_saved_tokenizer_is_loaded_from_folder_and_file(tmp_path: Path, trained: SentencePieceTokenizer) -> None:
    save(trained, tmp_path / "made/mine")
    assert [p.name for p in (tmp_path / "made/mine").iterdir()] == ["sentencepiece.model"]
    save(trained, tmp_path / "made/mine")  # again: the same file, whole
    for path in (tmp_path / "made/mine", tmp_path / "made/mine/sentencepiece.model"):
        again = load_folder(path)
        assert again.kind == tokenizer_kind(str(path)) == "sentencepiece" and again.files == trained.files
        assert (
            again.encode_text(VERSE).tolist()
            == load_named(str(path)).encode_text(VERSE).tolist()
            == trained.encode_text(VERSE).tolist()
        )


def test_every_kind_with_files_goes_round(cache: Path, tmp_path: Path) -> None:
    gpt2 = load_named("gpt2")
    small = b"".join(gpt2.files["gpt2.tiktoken"].splitlines(keepends=True)[:400])
    for tokenizer in (gpt2, TiktokenTokenizer("o200k_base", small), train_char([VERSE], has_eot=True)):
        folder = tmp_path / tokenizer.kind
        save(tokenizer, folder)
        again = load_folder(folder)
        assert (again.kind, again.files, again.special_tokens) == (
            tokenizer.kind,
            tokenizer.files,
            tokenizer.special_tokens,
        )
        assert type(again) is type(tokenizer) and tokenizer_kind(str(folder)) == tokenizer.kind
    assert load_folder(tmp_path / "char", has_eot=False).eot_id is None


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "thou": 1}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.model").write_bytes(b"the same tokenizer, in another format")
    (tmp_path / "config.json").write_text("{}")
    tokenizer = load_named(str(tmp_path))
    assert tokenizer.kind == tokenizer_kind(f"{tmp_path}/tokenizer.json") == "huggingface" and tokenizer.vocab_size == 2
    save(tokenizer, tmp_path / "copy")
    assert load_folder(tmp_path / "copy").files == tokenizer.files


def test_saving_refuses_what_could_not_be_found_again(tmp_path: Path, trained: SentencePieceTokenizer) -> None:
    with pytest.raises(MisuseError, match="byte tokenizer has no files to save"):
        save(ByteTokenizer(has_eot=True), tmp_path / "byte")
    assert not (tmp_path / "byte").exists()
    save(train_char([VERSE], has_eot=True), tmp_path)
    with pytest.raises(MisuseError, match="already has the tokenizer alphabet.txt; name another folder"):
        save(trained, tmp_path)


def test_a_folder_without_one_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"holds no tokenizer, wanted one of sentencepiece\.model, tokenizer\.json"):
        load_folder(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(MisuseError, match="has a.model and b.model; name the one that is meant"):
        load_folder(tmp_path)
    with pytest.raises(FolioError, match="is no SentencePiece model"):
        load_folder(tmp_path / "a.model")
    with pytest.raises(MisuseError, match="is not there; name a tokenizer's file"):
        load_named(str(tmp_path / "c.model"))
    (tmp_path / "d.bin").write_bytes(b"")
    with pytest.raises(MisuseError, match=r"by its name, wanted one that ends in \.model, \.json, \.tiktoken, \.txt"):
        load_named(str(tmp_path / "d.bin"))
    (tmp_path / "alphabet.txt").write_bytes(b"\xff")
    with pytest.raises(FolioError, match="alphabet.txt cannot be read"):
        load_named(str(tmp_path / "alphabet.txt"))
    (tmp_path / "gpt5.tiktoken").write_bytes(b"")
    with pytest.raises(FolioError, match="tiktoken knows no encoding 'gpt5'"):
        load_named(str(tmp_path / "gpt5.tiktoken"))


def test_names(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name: tokenizer_kind(name) for name in tokenizer_names()}
    assert kinds.pop("cl100k_base") == kinds.pop("o200k_harmony") == "tiktoken"
    assert {name for name, kind in kinds.items() if name == kind} == {"byte", "char", "gpt2", "sentencepiece"}
    assert load_named("byte", has_eot=False).vocab_size == 256 and load_named("r50k_base").vocab_size == 50_257
    with pytest.raises(MisuseError, match="no tokenizer is called 'cl100k'; .*did you mean 'cl100k_base'"):
        load_named("cl100k")
    with pytest.raises(MisuseError, match="char tokenizer is trained on a corpus"):
        load_named("char")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(MisuseError, match=r"no tokenizer is called 'mine'; .*did you mean \./mine\?"):
        tokenizer_kind("mine")


def test_the_package_itself_is_light() -> None:
    code = "import preprocess.tokenizers, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"tiktoken", "tiktoken_ext", "tokenizers", "sentencepiece", "gigatoken", "requests"} & set(loaded)
