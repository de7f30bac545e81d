"""Parsing and checking manifest.json."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from preprocess.shards.files import readable_json
from preprocess.shards.format import MANIFEST, Build, ShardError, seal
from preprocess.shards.manifest import ShardEntry, parse_manifest
from tests.preprocess.shards.helpers import edit_manifest, read_manifest_json


def test_parse_manifest_keeps_every_key(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    stored = read_manifest_json(build)
    manifest = parse_manifest(stored)
    assert manifest == build.manifest
    assert readable_json(manifest.as_dict()) == readable_json(stored) == (build.folder / MANIFEST).read_bytes()
    assert isinstance(manifest.splits["train"].shards[0], ShardEntry)


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


def test_build_names_what_was_found_and_expected(build_text: Callable[..., Build]) -> None:
    for n, (changes, message) in enumerate(
        [
            ({"version": 99}, "version 99, this Folio reads version 1"),
            ({"format": "other"}, "format 'other', expected 'folio-shards'"),
            ({"dtype": "<u8"}, "dtype '<u8', expected one of"),
            ({"dtype": "|O"}, "dtype"),
            ({"splits": {"train": {}}}, "malformed"),
            ({"splits": []}, "malformed"),
            ({"vocab_size": 10, "special_tokens": {}, "eot_id": None}, "its vocabulary ends at 9"),
            ({"vocab_size": None}, "malformed: it has vocab_size None"),
            ({"special_tokens": {"<x>": 999}}, "gives '<x>' the id 999"),
            ({"splits": {"train": 1, "val": 2, "test": 5}}, "its splits are test, train, val, expected train and val"),
            ({"eot_id": 10**9}, "eot_id is 1000000000, expected one below vocab_size"),
            ({"tokenizer": {"kind": "char", "settings": {}, "files": {"../x": ""}}}, "names the tokenizer file '../x'"),
            ({"recipe": None}, "malformed: it has recipe None"),
            ({"vocab_size": True}, "malformed: it has vocab_size True"),
        ]
    ):
        build = build_text(name=f"b{n}")
        edit_manifest(build, **changes)
        with pytest.raises(ShardError, match=message):
            Build(build.folder)


def test_build_rejects_a_file_name_outside_its_folder(build_text: Callable[..., Build]) -> None:
    build = build_text()
    splits = read_manifest_json(build)["splits"]
    splits["train"]["shards"][0]["file"] = "../../train-00000.bin"
    edit_manifest(build, splits=splits)
    with pytest.raises(ShardError, match=r"names the file '\.\./\.\./train-00000\.bin'"):
        Build(build.folder)


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
