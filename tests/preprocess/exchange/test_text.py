"""Export to plain text."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.exchange.nanogpt import export_nanogpt
from preprocess.exchange.text import export_text
from preprocess.shards.format import DOC_DTYPE, Build
from preprocess.shards.replaced import ReplacedError
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.decode_build import decode_documents
from tests.conftest import VERSE


def test_export_text_writes_all_documents_in_order(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text(VERSE * 4, document="passage", passage_characters=50)
    paths = export_text(build, tmp_path / "out", by_language=False, authors=False, replace=False)
    assert [path.name for path in paths] == ["train.txt", "val.txt"]
    documents = "".join(path.read_text(encoding="utf-8") for path in paths).split("\n\n")
    assert "".join(documents).replace("\n", "") == (VERSE * 4).replace("\n", "")
    by_language = export_text(build, tmp_path / "out", by_language=True, authors=False, replace=False)
    assert [path.name for path in by_language] == ["train_unknown.txt", "val_unknown.txt"]
    assert [path.read_bytes() for path in by_language] == [path.read_bytes() for path in paths]


def test_export_text_keeps_existing_files_without_replace(build_text: Callable[..., Build], tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("mine")
    build = build_text()
    with pytest.raises(MisuseError, match=r"train\.txt exists already; pass --replace"):
        export_text(build, tmp_path, by_language=False, authors=False, replace=False)
    assert (tmp_path / "train.txt").read_text() == "mine"
    with pytest.raises(MisuseError, match="is a build, which must not contain other files"):
        export_text(build, build.folder, by_language=False, authors=False, replace=True)


def test_export_text_rejects_id_outside_the_vocabulary(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text()
    with open(build.folder / "val-00000.bin", "r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(
        FolioError, match="holds id 65535, but its vocabulary ends at 256; check it with `preprocess verify`"
    ):
        export_text(build, tmp_path / "out", by_language=False, authors=False, replace=False)


def test_export_text_with_authors_begins_each_document_with_its_control_tokens(
    preprocess: Callable[..., Any], tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "To be", "author": "Ann Lee", "year": 1998, "lang": "en"},
        {"text": "Быть\n\nили нет", "author": "Пушкин", "lang": "ru"},
        {"text": "<author_Ann_Lee>no author", "lang": "en"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("--author-column", "author", "--year-column", "year", "--lang-column", "lang", "--tokenizer", "byte")
    done = preprocess("build", "--input", "rows.jsonl", *columns, "--name", "mixed", "--val-fraction", "0.3")
    assert done.returncode == 0, done.stderr
    found = {}
    for options in ((), ("--authors",), ("--authors", "--by", "language")):
        output = f"out{len(options)}"
        done = preprocess("export", "mixed", "--format", "text", "--output", output, *options)
        assert done.returncode == 0, done.stderr
        found[output] = {path.name: path.read_text() for path in (tmp_path / output).iterdir()}
    texts = [row["text"] + "\n\n" for row in rows]
    assert len("".join(found["out0"].values())) == len("".join(texts)) and found["out0"].keys() == {
        "train.txt",
        "val.txt",
    }
    assert all(any(text in content for content in found["out0"].values()) for text in texts)
    with_authors = ["<author_Ann_Lee><year_1998>" + texts[0], "<author_Пушкин>" + texts[1], texts[2]]
    assert len("".join(found["out1"].values())) == len("".join(with_authors))
    assert all(any(text in content for content in found["out1"].values()) for text in with_authors)
    assert "".join(content for name, content in found["out3"].items() if name.endswith("_ru.txt")) == with_authors[1]
    done = preprocess("export", "mixed", "--format", "nanogpt", "--authors", "--output", "out")
    assert done.returncode == 2 and "--authors needs --format text" in done.stderr


def test_interrupted_export_keeps_the_old_files(
    build_text: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_text(build_text(), tmp_path / "out", by_language=False, authors=False, replace=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def interrupted(build: Build, split: str, *_: object, **__: object) -> Iterator[tuple[int, bytes]]:
        yield 0, b"new text"
        if split == "val":
            raise KeyboardInterrupt

    monkeypatch.setattr("preprocess.exchange.text.decode_documents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_text(build_text(), tmp_path / "out", by_language=False, authors=False, replace=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("replace", [False, True])
def test_two_exports_to_one_folder_at_the_same_time_are_not_mixed(
    build_text: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    build, out, other = build_text(), tmp_path / "out", tmp_path / "other"
    export_nanogpt(build, other, replace=False)
    if replace:
        export_nanogpt(build, out, replace=False)

    def end_other_export(*_: object) -> Iterator[np.ndarray]:
        for path in other.iterdir():
            path.replace(out / path.name)
        yield np.arange(5, dtype=np.uint16)

    before = {path.name: path.read_bytes() for path in other.iterdir()}
    monkeypatch.setattr("preprocess.exchange.nanogpt.iter_tokens", end_other_export)
    with pytest.raises(FolioError, match=r"train\.bin was written by another program meanwhile; choose another"):
        export_nanogpt(build, out, replace=replace)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_export_text_rejects_a_language_that_the_manifest_lacks(
    build_text: Callable[..., Build], tmp_path: Path
) -> None:
    build = build_text()
    docs = np.fromfile(build.folder / "val-00000.docs", DOC_DTYPE)
    docs["lang"] = 7
    docs.tofile(build.folder / "val-00000.docs")
    with pytest.raises(FolioError, match="has documents of language 7, which is not in its manifest; check it with"):
        export_text(build, tmp_path / "out", by_language=True, authors=False, replace=False)


def test_export_text_of_a_long_document_takes_little_memory(build_text: Callable[..., Build], tmp_path: Path) -> None:
    text = VERSE * 4_000
    build = build_text(text, document="file")
    tracemalloc.start()
    export_text(build, tmp_path / "out", by_language=False, authors=False, replace=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(text), peak / len(text)  # lists of all ids would take 80 bytes per byte of text


@pytest.mark.parametrize("format_", ["nanogpt", "text"])
def test_export_of_a_build_that_is_replaced_meanwhile_writes_nothing(
    build_text: Callable[..., Build], tmp_path: Path, format_: str
) -> None:
    """One file would be of the old build, and another one of the new."""
    build = build_text()
    build_text(VERSE * 20, replace=True)
    with pytest.raises(ReplacedError, match="was replaced or deleted while it was read; run the command again"):
        if format_ == "text":
            export_text(build, tmp_path / "out", by_language=False, authors=False, replace=False)
        else:
            export_nanogpt(build, tmp_path / "out", replace=False)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_export_text_leaves_no_file_of_another_build(build_text: Callable[..., Build], tmp_path: Path) -> None:
    """A build without validation documents has no val.txt, and that of another build must not look like it."""
    out = tmp_path / "out"
    export_text(build_text(), out, by_language=False, authors=False, replace=False)
    without_val = build_text(val_fraction=0, name="no-val")
    before = (out / "train.txt").read_bytes()
    with pytest.raises(MisuseError, match=r"val\.txt exists, and this export does not replace it; delete it"):
        export_text(without_val, out, by_language=False, authors=False, replace=True)
    assert (out / "train.txt").read_bytes() == before
    (out / "val.txt").unlink()
    assert [p.name for p in export_text(without_val, out, by_language=False, authors=False, replace=True)] == [
        "train.txt"
    ]
    (out / "train_fr.txt").write_text("of another build")
    with pytest.raises(MisuseError, match=r"train_fr\.txt exists, and this export does not replace it"):
        export_text(without_val, out, by_language=True, authors=False, replace=True)


def test_decode_documents_of_many_short_documents_needs_little_memory(
    monkeypatch: pytest.MonkeyPatch, build_text: Callable[..., Build]
) -> None:
    monkeypatch.setattr("preprocess.tokenizers.decode_build.CHUNK_DOCUMENTS", 100)
    options = {"document": "line", "dedup": False, "group_by": "position", "tokenizer": "byte"}
    build = build_text("a\n" * 10_000, split="exact", eot="none", **options)
    tokenizer = load_tokenizer(build.folder, build.manifest)
    next(decode_documents(build, "train", tokenizer))  # loads what it needs once
    tracemalloc.start()
    try:
        num_documents = sum(text == b"a" for _, text in decode_documents(build, "train", tokenizer))
        assert tracemalloc.get_traced_memory()[1] < 200_000  # all ends as Python integers take 700 KB
    finally:
        tracemalloc.stop()
    assert num_documents == build.manifest.splits["train"].documents == 9_000
