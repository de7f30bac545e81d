"""Tokenizers by name, by file and by folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.tokenizers import find_tokenizer_kind, list_tokenizers, load_tokenizer_by_name, sentencepiece_bpe
from preprocess.tokenizers.characters import ByteTokenizer, train_char
from preprocess.tokenizers.folders import load_from_path, save_tokenizer
from preprocess.tokenizers.sentencepiece_bpe import SentencePieceTokenizer
from preprocess.tokenizers.tiktoken_bpe import TiktokenTokenizer
from tests.conftest import ROOT, VERSE


@pytest.fixture(scope="module")
def trained() -> SentencePieceTokenizer:
    return sentencepiece_bpe.train([VERSE] * 20, num_pieces=310)


def test_saved_tokenizer_loads_from_folder_and_file(tmp_path: Path, trained: SentencePieceTokenizer) -> None:
    save_tokenizer(trained, tmp_path / "made/mine")
    assert [p.name for p in (tmp_path / "made/mine").iterdir()] == ["sentencepiece.model"]
    save_tokenizer(trained, tmp_path / "made/mine")  # the same tokenizer may be saved again
    expected = trained.encode_text(VERSE).tolist()
    for path in (tmp_path / "made/mine", tmp_path / "made/mine/sentencepiece.model"):
        loaded = load_from_path(path)
        assert loaded.kind == find_tokenizer_kind(str(path)) == "sentencepiece" and loaded.files == trained.files
        assert loaded.encode_text(VERSE).tolist() == expected
        assert load_tokenizer_by_name(str(path)).encode_text(VERSE).tolist() == expected


def test_every_kind_with_files_survives_save_and_load(cache: Path, tmp_path: Path) -> None:
    gpt2 = load_tokenizer_by_name("gpt2")
    ranks = b"".join(gpt2.files["gpt2.tiktoken"].splitlines(keepends=True)[:400])
    for saved in (gpt2, TiktokenTokenizer("o200k_base", ranks), train_char([VERSE], has_eot=True)):
        folder = tmp_path / saved.kind
        save_tokenizer(saved, folder)
        loaded = load_from_path(folder)
        assert (loaded.kind, loaded.files, loaded.special_tokens) == (saved.kind, saved.files, saved.special_tokens)
        assert type(loaded) is type(saved) and find_tokenizer_kind(str(folder)) == saved.kind
    assert load_from_path(tmp_path / "char", has_eot=False).eot_id is None


def test_hugging_face_folder_loads_its_tokenizer_json(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    word_level = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "thou": 1}, unk_token="[UNK]"))
    word_level.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.model").write_bytes(b"the same tokenizer, in another format")
    (tmp_path / "config.json").write_text("{}")
    tokenizer = load_tokenizer_by_name(str(tmp_path))
    assert tokenizer.kind == find_tokenizer_kind(f"{tmp_path}/tokenizer.json") == "huggingface"
    assert tokenizer.vocab_size == 2
    save_tokenizer(tokenizer, tmp_path / "copy")
    assert load_from_path(tmp_path / "copy").files == tokenizer.files


def test_save_rejects_tokenizer_without_files_and_folder_of_another(
    tmp_path: Path, trained: SentencePieceTokenizer
) -> None:
    with pytest.raises(MisuseError, match="byte tokenizer has no files to save; use it by its name"):
        save_tokenizer(ByteTokenizer(has_eot=True), tmp_path / "byte")
    assert not (tmp_path / "byte").exists()
    save_tokenizer(train_char([VERSE], has_eot=True), tmp_path)
    with pytest.raises(MisuseError, match="already holds another tokenizer, alphabet.txt; choose another folder"):
        save_tokenizer(trained, tmp_path)


def test_load_rejects_path_without_exactly_one_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"holds no tokenizer, expected one of sentencepiece\.model, tokenizer\.json"):
        load_from_path(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(MisuseError, match="holds both a.model and b.model; pass the path of one file"):
        load_from_path(tmp_path)
    with pytest.raises(FolioError, match="is not a SentencePiece model"):
        load_from_path(tmp_path / "a.model")
    with pytest.raises(MisuseError, match="does not exist; pass a tokenizer's file"):
        load_tokenizer_by_name(str(tmp_path / "c.model"))
    (tmp_path / "d.bin").write_bytes(b"")
    with pytest.raises(MisuseError, match=r"pass one whose name ends in \.model, \.json, \.tiktoken, \.txt"):
        load_tokenizer_by_name(str(tmp_path / "d.bin"))
    (tmp_path / "alphabet.txt").write_bytes(b"\xff")
    with pytest.raises(FolioError, match="alphabet.txt cannot be read"):
        load_tokenizer_by_name(str(tmp_path / "alphabet.txt"))
    (tmp_path / "gpt5.tiktoken").write_bytes(b"")
    with pytest.raises(FolioError, match="tiktoken knows no encoding 'gpt5'"):
        load_tokenizer_by_name(str(tmp_path / "gpt5.tiktoken"))


def test_names_are_found_and_unknown_names_get_a_suggestion(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {name: find_tokenizer_kind(name) for name in list_tokenizers()}
    assert kinds.pop("cl100k_base") == kinds.pop("o200k_harmony") == "tiktoken"
    assert {name for name, kind in kinds.items() if name == kind} == {"byte", "char", "gpt2", "sentencepiece"}
    assert load_tokenizer_by_name("byte", has_eot=False).vocab_size == 256
    assert load_tokenizer_by_name("r50k_base").vocab_size == 50_257
    with pytest.raises(MisuseError, match="unknown tokenizer 'cl100k'; .*did you mean 'cl100k_base'"):
        load_tokenizer_by_name("cl100k")
    with pytest.raises(MisuseError, match="the char tokenizer must be trained on a corpus first"):
        load_tokenizer_by_name("char")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(MisuseError, match=r"unknown tokenizer 'mine'; .*did you mean \./mine\?"):
        find_tokenizer_kind("mine")


def test_importing_the_package_loads_no_tokenizer_library() -> None:
    code = "import preprocess.tokenizers, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"tiktoken", "tiktoken_ext", "tokenizers", "sentencepiece", "gigatoken", "requests"} & set(loaded)
