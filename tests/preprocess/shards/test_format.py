"""The contract on disk: round trip, golden bytes, refusals, verification."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import canonical_json, readable_json
from preprocess.shards.format import DOC_DTYPE, Build, ShardError, check_name, find_build, seal, token_dtype
from preprocess.shards.verify import verify
from preprocess.shards.writer import ShardPlan, ShardSealer, WriteOffset, create_shard, write_documents
from tests.conftest import write_split


def docs_table(n: int, first: int = 0) -> np.ndarray:
    table = np.zeros(n, DOC_DTYPE)
    table["position"] = np.arange(first, first + n)
    return table


def write(folder: Path, documents: list[list[int]], *, vocab_size: int = 300, shard_tokens: int = 10) -> dict:
    ids = np.array([t for d in documents for t in d], np.uint32)
    ends = np.cumsum([len(d) for d in documents])
    return write_split(
        folder, "train", ids, ends, docs_table(len(documents)), vocab_size=vocab_size, shard_tokens=shard_tokens
    )


@settings(deadline=None, max_examples=40)  # every example fsyncs dozens of files
@given(st.lists(st.lists(st.integers(0, 299), max_size=12), max_size=20), st.integers(1, 40))
def test_what_is_written_is_read(tmp_path_factory, documents, shard_tokens) -> None:
    folder = tmp_path_factory.mktemp("w")
    got, sizes = [], []
    for entry in write(folder, documents, shard_tokens=shard_tokens)["shards"]:
        tokens = np.fromfile(folder / entry["file"], "<u2").tolist()
        ends = np.fromfile((folder / entry["file"]).with_suffix(".ends"), "<u8").tolist()
        got += [tokens[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        sizes.append((entry["tokens"], len(got[-1])))
    assert got == documents
    # A shard ends at the very document that takes it to shard_tokens; only the last may be shorter.
    assert all(tokens >= shard_tokens and tokens - last < shard_tokens for tokens, last in sizes[:-1])


def test_golden_bytes(tmp_path: Path) -> None:
    write(tmp_path, [[1, 256], [2]], shard_tokens=100)
    assert (tmp_path / "train-00000.bin").read_bytes() == b"\x01\x00\x00\x01\x02\x00"
    assert (tmp_path / "train-00000.ends").read_bytes() == b"\x02" + b"\x00" * 7 + b"\x03" + b"\x00" * 7
    table = np.array([(range(16), 0x01020304, 5, 6)], DOC_DTYPE)
    assert table.tobytes() == bytes(range(16)) + b"\x04\x03\x02\x01" + b"\x05\0\0\0" + b"\x06" + b"\0" * 7
    assert readable_json({"b": "я", "a": 1}) == '{\n  "a": 1,\n  "b": "я"\n}\n'.encode()
    assert canonical_json({"b": "я", "a": [1, 2]}) == '{"a":[1,2],"b":"я"}'.encode()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "<u2"), (65_535, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_dtype_goes_by_the_vocabulary(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == dtype


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        write(tmp_path, [[300]])


def test_wide_ids_survive(tmp_path: Path) -> None:
    entry = write(tmp_path, [[65_536, 7]], vocab_size=65_537)["shards"][0]
    assert np.fromfile(tmp_path / entry["file"], "<u4").tolist() == [65_536, 7]
    assert entry["bytes"] == 8


@pytest.mark.parametrize("name", ["a", "tiny.shakespeare_2-x", "0" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", ".hidden", "../x", "a/b", "x" * 65, "a\n", "имя", "-a"])
def test_bad_names(name: str) -> None:
    with pytest.raises(MisuseError, match="choose another name"):
        check_name(name)


def test_a_build_is_found_by_name_and_by_folder(
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


def edit(build: Build, **changes: object) -> None:
    path = build.folder / "manifest.json"
    path.write_bytes(readable_json(json.loads(path.read_bytes()) | changes))


def test_refusals_name_what_was_got_and_wanted(build_text: Callable[..., Build]) -> None:
    for n, (changes, message) in enumerate(
        [
            ({"version": 99}, "version 99, this Folio reads version 1"),
            ({"format": "other"}, "format 'other', wanted 'folio-shards'"),
            ({"dtype": "<u8"}, "dtype '<u8', wanted one of"),
            ({"dtype": "|O"}, "dtype"),
            ({"splits": {"train": {}}}, "malformed"),
            ({"splits": []}, "malformed"),
            ({"vocab_size": 10, "special_tokens": {}, "eot_id": None}, "its vocabulary ends at 9"),
            ({"vocab_size": None}, "malformed: it has vocab_size None"),
            ({"special_tokens": {"<x>": 999}}, "gives '<x>' the id 999"),
            ({"splits": {"train": 1, "val": 2, "test": 5}}, "its splits are test, train, val, wanted train and val"),
            ({"eot_id": 10**9}, "eot_id is 1000000000, wanted one below vocab_size"),
            ({"tokenizer": {"kind": "char", "settings": {}, "files": {"../x": ""}}}, "names the tokenizer file '../x'"),
            ({"recipe": None}, "malformed: it has recipe None"),
            ({"vocab_size": True}, "malformed: it has vocab_size True"),
        ]
    ):
        build = build_text(name=f"b{n}")
        edit(build, **changes)
        with pytest.raises(ShardError, match=message):
            Build(build.folder)


def test_a_file_name_cannot_lead_out_of_the_build(build_text: Callable[..., Build]) -> None:
    build = build_text()
    splits = build.manifest["splits"]
    splits["train"]["shards"][0]["file"] = "../../train-00000.bin"
    edit(build, splits=splits)
    with pytest.raises(ShardError, match=r"names the file '\.\./\.\./train-00000\.bin'"):
        Build(build.folder)


def test_a_truncated_or_missing_file_is_seen_on_opening(build_text: Callable[..., Build]) -> None:
    for suffix in (".bin", ".ends", ".docs"):
        build = build_text(name="cut" + suffix)
        path = build.folder / f"val-00000{suffix}"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ShardError, match=r"bytes, its manifest says"):
            Build(build.folder)
        path.unlink()
        with pytest.raises(ShardError, match="is missing"):
            Build(build.folder)


def test_verify_finds_every_flipped_bit(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    assert list(verify(build)) == []
    for path in sorted(
        p for p in build.folder.rglob("*") if p.is_file() and p.name not in ("build_log.json", "manifest.json")
    ):
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert any(path.name in fault or path.stem in fault for fault in verify(build)), path
        path.write_bytes(good)
    manifest = build.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert list(verify(Build(build.folder))) == ["manifest.json is not spelled as a builder spells it: it was edited"]


def test_verify_sees_an_edit_that_was_resealed(build_text: Callable[..., Build]) -> None:
    build = build_text()
    edit(build, eot_id=3)
    faults = list(verify(Build(build.folder)))
    assert any("checksum" in f for f in faults) and any("build_id" in f for f in faults)


def test_the_build_id_is_not_the_name(build_text: Callable[..., Build]) -> None:
    one, two = build_text(name="one"), build_text(name="two")
    assert one.build_id == two.build_id and one.manifest["checksum"] != two.manifest["checksum"]
    assert seal({**one.manifest, "vocab_size": 9})["build_id"] != one.build_id


def test_documents_are_found_by_number(build_text: Callable[..., Build]) -> None:
    build = build_text("abc\n\n" * 50, document="passage", passage_characters=5, authors=False, shard_tokens=20)
    assert len(build.manifest["splits"]["train"]["shards"]) > 5
    documents = [bytes(build.document("train", i)[:-1].astype(np.uint8).tolist()) for i in range(45)]
    assert b"".join(documents) == b"abc\n\n" * 45
    assert len(build.docs("train")) == 45 and build.docs("train")["position"].tolist() == list(range(45))
    for outside in (-1, 45):
        with pytest.raises(MisuseError, match="it has 45, counted from 0"):
            build.document("train", outside)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), min_size=2, max_size=12), st.data())
def test_the_order_in_which_a_shard_is_filled_changes_nothing(tmp_path_factory, documents, data) -> None:
    """Two parts written in either order, hashed as they come or at the end."""
    cut = data.draw(st.integers(1, len(documents) - 1))
    ids, ends = np.array([t for d in documents for t in d], np.uint32), np.cumsum([len(d) for d in documents])
    plan = ShardPlan("train", 0, len(ids), len(documents))
    entries = []
    for order in ((0, 1), (1, 0)):
        folder = tmp_path_factory.mktemp("w")
        create_shard(folder, plan, vocab_size=300)
        sealer, boundary = ShardSealer(folder, plan, vocab_size=300), int(ends[cut - 1])
        docs = docs_table(len(documents))
        parts = [
            (WriteOffset(0, 0), ids[:boundary], ends[:cut], docs[:cut]),
            (WriteOffset(boundary, cut), ids[boundary:], ends[cut:] - boundary, docs[cut:]),
        ]
        max_id = -1
        for part in order:
            max_id = max(max_id, write_documents(folder, plan, *parts[part], vocab_size=300))
            if order == (0, 1) and part == 0:
                sealer.advance(boundary, cut)
        entries.append(sealer.finish(max_id))
    assert entries[0] == entries[1]
    assert entries[0]["sha256"] == hashlib.sha256(ids.astype("<u2").tobytes()).hexdigest() and entries[0][
        "max_id"
    ] == int(ids.max())
    assert np.fromfile(folder / "train-00000.ends", "<u8").tolist() == ends.tolist()


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    plan = ShardPlan("train", 0, 3, 1)
    create_shard(tmp_path, plan, vocab_size=10)
    with pytest.raises(ValueError, match="do not belong together"):
        write_documents(
            tmp_path, plan, WriteOffset(0, 0), np.zeros(3, np.uint32), np.array([2]), docs_table(1), vocab_size=10
        )


def test_more_shards_than_names_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.shards.writer.MAX_SHARDS", 2)
    with pytest.raises(FolioError, match="2 shards of train are full; pass a larger --shard-tokens"):
        write(tmp_path, [[1], [2], [3]], shard_tokens=1)


@pytest.mark.parametrize("text", ['{"recipe": NaN}', '{"name": "\\ud800"}', "[" * 100_000, "", "[]", "null"])
def test_json_that_no_builder_wrote(build_text: Callable[..., Build], text: str) -> None:
    folder = build_text().folder
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ShardError):
        Build(folder)


def test_a_missing_tokenizer_file_is_seen_on_opening(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    (build.folder / "tokenizer/alphabet.txt").unlink()
    with pytest.raises(ShardError, match=r"alphabet\.txt is missing"):
        Build(build.folder)
