"""Verification finds every change to a build."""

from __future__ import annotations

from collections.abc import Callable

from preprocess.shards.format import Build, seal
from preprocess.shards.verify import verify
from tests.preprocess.shards.helpers import edit_manifest, read_manifest_json


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
    assert list(verify(Build(build.folder))) == [
        "manifest.json is not formatted as a builder formats it: it was edited"
    ]


def test_verify_finds_an_edited_manifest(build_text: Callable[..., Build]) -> None:
    build = build_text()
    edit_manifest(build, eot_id=3)
    faults = list(verify(Build(build.folder)))
    assert any("checksum" in f for f in faults) and any("build_id" in f for f in faults)


def test_verify_finds_totals_that_are_not_sums(build_text: Callable[..., Build]) -> None:
    build = build_text()
    manifest = read_manifest_json(build)
    manifest["splits"]["train"]["tokens"] += 1
    manifest["splits"]["val"]["documents"] += 1
    edit_manifest(build, **seal(manifest))
    assert list(verify(Build(build.folder))) == [
        "train: tokens is not the sum over its shards",
        "val: documents is not the sum over its shards",
    ]
