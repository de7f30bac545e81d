"""Opening builds: dtypes, names, missing files, documents by number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preprocess.errors import MisuseError
from preprocess.shards.format import Build, ShardError, check_name, find_build, token_dtype
from preprocess.shards.replaced import ReplacedError


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "<u2"), (65_535, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_token_dtype_follows_the_vocabulary(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == dtype


@pytest.mark.parametrize("name", ["a", "tiny.shakespeare_2-x", "0" * 64])
def test_check_name_accepts_valid_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", ".hidden", "../x", "a/b", "x" * 65, "a\n", "имя", "-a"])
def test_check_name_rejects_invalid_names(name: str) -> None:
    with pytest.raises(MisuseError, match="choose another name"):
        check_name(name)


def test_find_build_takes_a_name_or_a_folder(
    build_text: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = build_text().folder
    assert find_build(str(folder)) == folder
    monkeypatch.setenv("FOLIO_SHARDS", str(folder.parent))
    assert find_build("own") == folder
    monkeypatch.delenv("FOLIO_SHARDS")
    monkeypatch.chdir(tmp_path)
    assert find_build("own") == Path("shards/own")
    with pytest.raises(MisuseError, match=r"no manifest\.json in shards/other"):
        find_build("other")
    folder.rename("own")
    with pytest.raises(MisuseError, match=r"in shards/own; for the folder here, pass \./own"):
        find_build("own")
    assert find_build("./own") == Path("own")


def test_build_rejects_truncated_or_missing_files(build_text: Callable[..., Build]) -> None:
    for suffix in (".bin", ".ends", ".docs"):
        build = build_text(name="cut" + suffix)
        path = build.folder / f"val-00000{suffix}"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ShardError, match=r"bytes, its manifest says"):
            Build(build.folder)
        path.unlink()
        with pytest.raises(ShardError, match="is missing"):
            Build(build.folder)


def test_build_rejects_a_missing_tokenizer_file(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    (build.folder / "tokenizer/alphabet.txt").unlink()
    with pytest.raises(ShardError, match=r"alphabet\.txt is missing"):
        Build(build.folder)


def test_document_finds_documents_by_number(build_text: Callable[..., Build]) -> None:
    build = build_text("abc\n\n" * 50, document="passage", passage_characters=5, authors=False, shard_tokens=20)
    assert len(build.manifest.splits["train"].shards) > 5
    documents = [bytes(build.document("train", i)[:-1].astype(np.uint8).tolist()) for i in range(45)]
    assert b"".join(documents) == b"abc\n\n" * 45
    assert len(build.docs("train")) == 45 and build.docs("train")["position"].tolist() == list(range(45))
    for number in (-1, 45):
        with pytest.raises(MisuseError, match="it has 45, counted from 0"):
            build.document("train", number)


def test_reading_notices_a_build_that_was_replaced_and_is_back(build_text: Callable[..., Build]) -> None:
    """The block may have read some files of the build in between."""
    build = build_text()
    with pytest.raises(ReplacedError, match="was replaced or deleted while it was read"), build.reading():
        build_text("Another text.\n\n" * 40, replace=True)
        build_text(replace=True)
    with build.reading():  # the same build was made again before
        assert build.document("val", 0).tolist() == Build(build.folder).document("val", 0).tolist()


def test_a_document_is_found_without_mapping_the_other_shards(
    build_text: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build may have more shards than a process may open files."""
    build = build_text("abc\n\n" * 50, document="passage", passage_characters=5, authors=False, shard_tokens=1)
    mapped: list[Path] = []
    num_documents = build.manifest.splits["train"].documents

    def map_array(path: Path, dtype: np.dtype) -> np.ndarray:
        mapped.append(path)
        return np.fromfile(path, dtype)

    monkeypatch.setattr("preprocess.shards.format.map_array", map_array)
    assert len(build.manifest.splits["train"].shards) == num_documents > 5
    ids = [build.document("train", number).tolist() for number in range(num_documents)]
    assert len(mapped) == 2 * num_documents  # .bin and .ends of one shard for each document
    assert ids == [shard.tokens.tolist() for shard in build.shards("train")]
