"""Parsing and checking manifest.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.shards import manifest_file
from preprocess.shards.files import JsonObject, canonical_json, readable_json, sha256_bytes
from preprocess.shards.format import MANIFEST, Build, seal
from preprocess.shards.manifest import NOT_IN_BUILD_ID, ShardEntry, hash_manifest, parse_manifest
from preprocess.shards.manifest_file import ShardError
from tests.conftest import assert_one_line
from tests.helpers.memory import measure_peak_bytes
from tests.helpers.runs import make_build
from tests.preprocess.shards.helpers import edit_manifest, read_manifest_json


def test_parse_manifest_keeps_every_key(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    stored = read_manifest_json(build)
    manifest = parse_manifest(stored)
    assert manifest == build.manifest
    assert readable_json(manifest.as_dict()) == readable_json(stored) == (build.folder / MANIFEST).read_bytes()
    assert isinstance(manifest.splits["train"].shards[0], ShardEntry)


def test_manifests_share_the_texts_of_their_languages(build_text: Callable[..., Build]) -> None:
    stored = read_manifest_json(build_text()) | {"languages": {"300": "a language", "301": "another one"}}
    first, second = (parse_manifest(json.loads(json.dumps(stored))).languages for _ in range(2))
    assert first == second == stored["languages"]
    assert all(
        a is b for one, two in zip(first.items(), second.items(), strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_parse_manifest_rejects_what_is_not_an_object(value: object) -> None:
    with pytest.raises(TypeError, match="expected an object"):
        parse_manifest(value)


@pytest.mark.parametrize("path", ["dtype", "tokenizer.kind", "splits.train.tokens", "splits.val.shards.0.max_id"])
def test_parse_manifest_rejects_a_missing_key(build_text: Callable[..., Build], path: str) -> None:
    manifest = read_manifest_json(build_text())
    *parents, key = path.split(".")
    parent = manifest
    for name in parents:
        parent = parent[int(name) if name.isdecimal() else name]
    del parent[key]
    with pytest.raises(TypeError, match=f" lacks {key}"):
        parse_manifest(manifest)


@pytest.mark.parametrize("max_id", [-2, True, 1.0, None, "1"])
def test_parse_manifest_rejects_a_number_that_is_not_one(build_text: Callable[..., Build], max_id: object) -> None:
    manifest = read_manifest_json(build_text())
    manifest["splits"]["val"]["shards"][0]["max_id"] = max_id
    with pytest.raises(TypeError, match=f"a shard of val has max_id {max_id!r}"):
        parse_manifest(manifest)


HASH = "0" * 64
DAMAGES = [
    ({"version": 99}, "version 99, this Folio reads version 1"),
    ({"format": "other"}, "format 'other', expected 'folio-shards'"),
    ({"dtype": "<u8"}, "dtype '<u8', expected '<u2' for a vocabulary of 31"),
    ({"dtype": "|O"}, "dtype"),
    ({"dtype": "<u4"}, "dtype '<u4', expected '<u2'"),
    ({"splits": {"train": {}}}, "malformed"),
    ({"splits": []}, "malformed"),
    ({"vocab_size": 10, "special_tokens": {}, "eot_id": None}, "its vocabulary ends at 9"),
    ({"vocab_size": None}, "malformed: it has vocab_size None"),
    ({"vocab_size": (1 << 32) + 1}, "has vocab_size 4,294,967,297, expected at most 4,294,967,296"),
    ({"vocab_size": 10**4000}, "malformed: it has vocab_size 1000"),
    ({"vocab_size": -1}, "malformed: it has vocab_size -1"),
    ({"special_tokens": {"<x>": 999}}, "gives '<x>' the id 999"),
    ({"special_tokens": {"<x>" * 999: [0]}}, r"gives '<x><x>.*\.\.\. the id \[0\]"),
    ({"splits": {"train": 1, "val": 2, "test": 5}}, "its splits are 'test', 'train', 'val', expected train and val"),
    ({"eot_id": 10**9}, "eot_id is 1000000000, expected one below vocab_size"),
    ({"tokenizer": {"kind": "char", "settings": {}, "files": {"../x": HASH}}}, "names the tokenizer file '../x'"),
    ({"tokenizer": {"kind": "char", "settings": {}, "files": {"/etc/x": HASH}}}, "names the tokenizer file '/etc/x'"),
    ({"tokenizer": {"kind": "char", "settings": {}, "files": {"a\0b": HASH}}}, r"tokenizer file 'a\\x00b'"),
    ({"tokenizer": {"kind": "char", "settings": {}, "files": {"x": "0"}}}, "has the sha256 '0' of x"),
    ({"recipe": None}, "malformed: it has recipe None"),
    ({"vocab_size": True}, "malformed: it has vocab_size True"),
    ({"name": "a\x1b[31m"}, r"has name 'a\\x1b\[31m'"),
    ({"name": "x" * 256}, "has name 'xxxx"),
    ({"languages": {"x": "en"}}, "languages gives 'x' the tag 'en'"),
    ({"languages": {"1": ["en"]}}, r"languages gives '1' the tag \['en'\]"),
    ({"stats_sha256": "../x"}, "has the sha256 '../x' of stats_sha256"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), DAMAGES)
def test_build_names_what_was_found_and_expected(tmp_path: Path, changes: JsonObject, message: str) -> None:
    build = Build(make_build(tmp_path / "own"))
    edit_manifest(build, **changes)
    with pytest.raises(ShardError, match=message) as raised:
        Build(build.folder)
    assert_one_line(str(raised.value).replace(str(tmp_path), ""))


SHARD_DAMAGES = [
    ({"file": "../../train-00000.bin"}, r"names the file '\.\./\.\./train-00000\.bin', expected train-00000\.bin"),
    ({"file": "/etc/passwd"}, "names the file '/etc/passwd', expected train-00000"),
    ({"file": "train-00001.bin"}, "names the file 'train-00001.bin', expected train-00000.bin"),
    ({"tokens": 1}, "splits.train has 1,840 tokens, its shards have 1"),
    ({"documents": 41}, "splits.train has 40 documents, its shards have 41"),
    ({"sha256": "x"}, "has the sha256 'x' of train-00000.bin"),
    ({"ends_sha256": None}, "has ends_sha256 None"),
    ({"bytes": 1}, "has 1 bytes in its manifest, expected 2 for each of 1,840 tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), SHARD_DAMAGES)
def test_build_rejects_a_shard_that_no_builder_writes(tmp_path: Path, changes: JsonObject, message: str) -> None:
    build = Build(make_build(tmp_path / "own"))
    splits = read_manifest_json(build)["splits"]
    splits["train"]["shards"][0] |= changes
    edit_manifest(build, splits=splits)
    with pytest.raises(ShardError, match=message):
        Build(build.folder)


def test_build_rejects_a_shard_that_is_listed_twice(tmp_path: Path) -> None:
    build = Build(make_build(tmp_path / "own"))
    splits = read_manifest_json(build)["splits"]
    splits["train"] = {key: 2 * value for key, value in splits["train"].items()}
    edit_manifest(build, splits=splits)
    with pytest.raises(ShardError, match="names the file 'train-00000.bin', expected train-00001.bin"):
        Build(build.folder)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"vocab_size": 31', b'"vocab_size": 39'),
        (b'"eot_id": 28', b'"eot_id": 12'),
        (b'"text_bytes": 1760', b'"text_bytes": 1761'),
        (b'"kind": "char"', b'"kind": "byte"'),
        (b'"append"', b'"none"'),
    ],
)
def test_build_rejects_a_manifest_with_one_changed_value(tmp_path: Path, before: bytes, after: bytes) -> None:
    """Such a value would train to the end: no other file contradicts it."""
    path = make_build(tmp_path / "own") / MANIFEST
    assert path.read_bytes().count(before) == 1
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(ShardError, match="does not match its checksum: it was damaged or edited; copy the build again"):
        Build(path.parent)


def test_build_rejects_a_build_id_that_is_not_its_own(tmp_path: Path) -> None:
    path = make_build(tmp_path / "own") / MANIFEST
    stored = json.loads(path.read_bytes()) | {"build_id": HASH}
    del stored["checksum"]
    stored["checksum"] = sha256_bytes(canonical_json(stored))
    path.write_bytes(readable_json(stored))
    with pytest.raises(ShardError, match="does not match its build_id"):
        Build(path.parent)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=9) | st.sampled_from(NOT_IN_BUILD_ID),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_hash_manifest_hashes_canonical_json(manifest: JsonObject) -> None:
    in_build_id = {key: value for key, value in manifest.items() if key not in NOT_IN_BUILD_ID}
    in_checksum = {key: value for key, value in manifest.items() if key != "checksum"}
    assert hash_manifest(manifest) == tuple(sha256_bytes(canonical_json(part)) for part in (in_build_id, in_checksum))


def test_build_with_many_sources_opens_in_the_time_of_reading_them(tmp_path: Path) -> None:
    build = Build(make_build(tmp_path / "own"))
    edit_manifest(build, sources=[{"name": f"{i:060d}.txt", "bytes": i, "sha256": HASH} for i in range(20_000)])
    began = time.process_time()
    readable_json(read_manifest_json(build))
    middle = time.process_time()
    Build(build.folder)
    assert time.process_time() - middle < 2 * (middle - began) + 0.05


def test_build_rejects_a_manifest_whose_values_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_build(tmp_path / "own")
    monkeypatch.setattr(manifest_file, "MAX_SMALL_FILE_BYTES", 1 << 10)
    Build(folder)
    (folder / MANIFEST).write_bytes(b"[" + b"[]," * 1000 + b"[]]")
    with pytest.raises(ShardError, match="has 1,000 values, too many for its size"):
        Build(folder)


@pytest.mark.parametrize("name", [MANIFEST, "train-00000.bin", "val-00000.ends", "val-00000.docs", "stats.json"])
def test_build_does_not_wait_for_a_named_pipe(tmp_path: Path, name: str) -> None:
    folder = make_build(tmp_path / "own")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FolioError, match="is not a regular file|is missing") as raised:
        Build(folder)
    assert_one_line(str(raised.value).replace(str(tmp_path), ""))


@pytest.mark.parametrize("text", ['{"recipe": NaN}', '{"name": "\\ud800"}', "[" * 100_000, "", "[]", "null"])
def test_build_rejects_json_that_no_builder_writes(build_text: Callable[..., Build], text: str) -> None:
    folder = build_text().folder
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ShardError):
        Build(folder)


def test_build_id_does_not_depend_on_the_name(build_text: Callable[..., Build]) -> None:
    first, second = build_text(name="one"), build_text(name="two")
    assert first.build_id == second.build_id and first.manifest.checksum != second.manifest.checksum
    assert seal({**first.manifest.as_dict(), "vocab_size": 9})["build_id"] != first.build_id


def test_a_manifest_of_many_sources_is_hashed_and_formatted_in_parts() -> None:
    sources = [{"name": f"folder/file-{i:06}.txt", "bytes": i, "sha256": f"{i:064}"} for i in range(20_000)]
    manifest = {"name": "many", "sources": [*sources, {"name": "é", "url": "https://host/é", "version": "1"}, "x"]}
    size_bytes = len(canonical_json(manifest))
    hashes: list[object] = []
    assert measure_peak_bytes(lambda: hashes.append(hash_manifest(manifest))) < size_bytes
    contents = {"sources": [*sources, {"name": "é"}, "x"]}
    assert hashes == [(sha256_bytes(canonical_json(contents)), sha256_bytes(canonical_json(manifest)))]
    assert measure_peak_bytes(lambda: readable_json(manifest)) < 3 * size_bytes


@pytest.mark.parametrize("value", [{}, {"checksum": "a"}, {"sources": []}, {"sources": None, "b": 1, "name": 2}])
def test_hashes_are_those_of_canonical_json(value: dict[str, Any]) -> None:
    contents = {key: each for key, each in value.items() if key not in NOT_IN_BUILD_ID}
    sealed = {key: each for key, each in value.items() if key != "checksum"}
    assert hash_manifest(value) == (sha256_bytes(canonical_json(contents)), sha256_bytes(canonical_json(sealed)))
