"""Builds: what they contain, that only the recipe decides their bytes, and what cannot be built."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.inputs.download import find_file
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.tokenizers import load_stored_tokenizer, load_tokenizer
from preprocess.tokenizers.interface import Encoded
from tests.conftest import file_bytes
from tests.preprocess.build.helpers import QUIET, list_leftovers, run_build

TEXT_OF_CONTROL_TOKENS = "<|endoftext|><author_William_Shakespeare>\n\n" * 40


def read_build_log(folder: Path) -> dict[str, str]:
    log: dict[str, str] = json.loads((folder / "build_log.json").read_bytes())
    return log


def test_synthetic_build_has_documented_contents(tmp_path: Path) -> None:
    run_build(load_recipe("synthetic"), tmp_path / "synthetic")
    build = Build(tmp_path / "synthetic")
    assert list(verify(build)) == []
    num_documents = {split: build.manifest.splits[split].documents for split in ("train", "val")}
    assert num_documents == {"train": 18_000, "val": 2_000}
    stats = json.loads((build.folder / "stats.json").read_bytes())
    assert {key: n for key, n in stats["documents"].items() if n} == {"read": 20_000, "kept": 20_000}
    assert all(stats["authors"][field]["distinct"] >= 100 for field in ("author", "city", "year"))
    assert stats["vocabulary"]["tokenizer"] == 3_000 and build.vocab_size == 3_000 + stats["vocabulary"]["control"]
    assert set(stats["languages"]) == {"en", "ru"} and build.manifest.languages == {"1": "en", "2": "ru"}
    special_tokens = build.manifest.special_tokens
    control_tokens = ("<author_MagistrTheOne>", "<city_Krasnodar>", "<year_2025>")
    expected = [build.manifest.bos_id, *(special_tokens[token] for token in control_tokens)]
    first_ids = [build.document(split, i)[:4].tolist() for split in num_documents for i in range(num_documents[split])]
    assert expected in first_ids
    # The two sentences of a pair, at positions 2k and 2k + 1, are one group.
    pairs = {split: set((build.docs(split)["position"] // 2).tolist()) for split in ("train", "val")}
    assert len(pairs["val"]) == 1_000 and not pairs["train"] & pairs["val"]


def test_control_ids_are_inserted_and_never_encoded_from_text(build_text: Callable[..., Build]) -> None:
    settings_ = {"author": "William Shakespeare", "year": 1623, "document": "passage", "passage_characters": 200}
    build = build_text(TEXT_OF_CONTROL_TOKENS, tokenizer="gpt2", **settings_)
    special_tokens = build.manifest.special_tokens
    assert special_tokens == {"<|endoftext|>": 50256, "<author_William_Shakespeare>": 50257, "<year_1623>": 50258}
    tokenizer = load_tokenizer(build.folder, build.manifest)
    texts = []
    for i in range(build.manifest.splits["train"].documents):
        ids = build.document("train", i)
        assert ids[:2].tolist() == [50257, 50258] and ids[-1] == 50256 and (ids[2:-1] < 50256).all()
        texts.append(tokenizer.decode(ids[2:-1]))
    assert "".join(texts) == TEXT_OF_CONTROL_TOKENS[: len(TEXT_OF_CONTROL_TOKENS) * 9 // 10]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=20, max_size=300), st.sampled_from(["char", "byte", "gpt2"]), st.sampled_from([None, 10]))
def test_decoded_build_is_the_input(
    build_text: Callable[..., Build], text: str, tokenizer: str, passage_characters: int | None
) -> None:
    document = {"document": "passage", "passage_characters": passage_characters} if passage_characters else {}
    try:
        build = build_text(text.encode(), tokenizer=tokenizer, clean=(), replace=True, shard_tokens=40, **document)
    except FolioError as e:
        assert "too short to cut" in str(e)
        return
    decoder = load_tokenizer(build.folder, build.manifest)
    num_documents = {split: build.manifest.splits[split].documents for split in ("train", "val")}
    documents = [build.document(split, i)[:-1] for split in num_documents for i in range(num_documents[split])]
    assert b"".join(decoder.decode_bytes(ids) for ids in documents) == text.encode()
    assert list(verify(build)) == []


def test_origin_of_the_files_changes_no_byte(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("tinyshakespeare")
    run_build(recipe, tmp_path / "mirror")
    monkeypatch.delenv("PREPROCESS_MIRROR")
    copy = shutil.copy(mirror / "tinyshakespeare/input.txt", tmp_path / "another name.txt")
    run_build(recipe, tmp_path / "source", name="mirror", source=Path(copy))
    assert file_bytes(tmp_path / "mirror") == file_bytes(tmp_path / "source")
    found = find_file("tinyshakespeare", recipe.files[0], source=Path(copy), progress=QUIET)
    assert str(found) not in (tmp_path / "source/manifest.json").read_text()


def test_build_of_tinyshakespeare_has_nanogpts_tokens(
    mirror: Path, tmp_path: Path, preprocess: Callable[..., subprocess.CompletedProcess]
) -> None:
    settings_ = ("--document", "file", "--no-authors", "--eot", "none", "--quiet")
    env = {"PREPROCESS_MIRROR": str(mirror)}
    expected_sha256 = {
        "gpt2": (
            "502a2bdc8210d1ac5d5674867cb74467dd31db575d25cf6dbb08c8bdbea8680f",
            "68a53422394c26a655ebe641f5c6f49888e8f4e45fe5d6f02abda63ba3ebd65b",
        ),
        "char": (
            "6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f",
            "d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1",
        ),
    }
    for tokenizer, expected in expected_sha256.items():
        command = ("build", "--corpus", "tinyshakespeare", *settings_, "--tokenizer", tokenizer, "--name", tokenizer)
        done = preprocess(*command, env=env)
        assert done.returncode == 0, done.stderr
        assert preprocess("export", tokenizer, "--format", "nanogpt", "--output", f"out/{tokenizer}").returncode == 0
        files = [tmp_path / "out" / tokenizer / f"{split}.bin" for split in ("train", "val")]
        assert tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files) == expected


def test_chunks_batches_and_backends_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("synthetic", num_pairs=300, num_pieces=500)
    run_build(recipe, tmp_path / "default" / "x")
    monkeypatch.setattr("preprocess.build.write_shards.PART_TOKENS", 1000)
    monkeypatch.setattr("preprocess.build.work_dir.CHUNK_DOCUMENTS", 11)
    monkeypatch.setattr("preprocess.stages.pipeline.PAIRS_PER_BATCH", 7)
    run_build(recipe, tmp_path / "small" / "x")
    monkeypatch.setitem(sys.modules, "gigatoken", None)  # as if the package were not installed
    run_build(recipe, tmp_path / "reference" / "x")
    assert file_bytes(tmp_path / "default/x") == file_bytes(tmp_path / "small/x")
    assert file_bytes(tmp_path / "default/x") == file_bytes(tmp_path / "reference/x")
    assert read_build_log(tmp_path / "default/x")["backend"] == "gigatoken"
    log = read_build_log(tmp_path / "reference/x")
    assert log["backend"] == "sentencepiece" and "cannot be used" in log["backend_fallback"]


def test_wrong_backend_is_replaced_by_the_reference(
    build_text: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The fast backend returns one wrong id half-way. The reference must encode everything."""
    text = "".join(f"{i} green bottles\n\n" for i in range(3000))
    expected = build_text(text, name="expected", tokenizer="gpt2")

    def load_wrong_tokenizer(*arguments: Any, **options: Any) -> object:
        tokenizer = load_stored_tokenizer(*arguments, **options)
        encode = type(tokenizer).encode

        def encode_wrongly(texts: pa.LargeStringArray) -> Encoded:
            ids, ends = encode(tokenizer, texts)
            if tokenizer.has_fast_backend and any("2900" in text for text in texts.to_pylist()):
                ids = ids.copy()
                ids[5] ^= 1
            return ids, ends

        tokenizer.encode = encode_wrongly
        return tokenizer

    monkeypatch.setattr("preprocess.build.prepare.load_stored_tokenizer", load_wrong_tokenizer)
    build = build_text(text, name="wrong", tokenizer="gpt2")
    assert build.build_id == expected.build_id
    assert "gigatoken differs from tiktoken" in capsys.readouterr().err
    assert read_build_log(build.folder)["backend"] == "tiktoken"


def test_build_id_of_synthetic_never_changes(tmp_path: Path) -> None:
    """The build_id covers every byte of tokens, tables, tokenizer and stats.

    A change means that Folio now makes other builds.
    """
    run_build(load_recipe("synthetic", num_pairs=200, num_pieces=400), tmp_path / "x")
    assert Build(tmp_path / "x").build_id == "8db6c299eeef4c1f34735afb6818d19081eebda439d1f0600d350bd9f4b4664e"


def test_build_log_names_the_phases(tmp_path: Path) -> None:
    run_build(load_recipe("synthetic", num_pairs=50, num_pieces=400), tmp_path / "x")
    phases = ["plan", "prepare", "dedup_and_split", "train_tokenizer", "encode", "shard_layout", "write_shards"]
    assert sorted(read_build_log(tmp_path / "x")["elapsed_s_by_phase"]) == sorted(phases)


def test_stats_count_the_documents_of_the_build(
    build_text: Callable[..., Build], capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = "".join(f"а\u2581б слово{i} word{i * 7} {i * i}\n\n" for i in range(90))
    text = cleaned.replace("\n\n", "\r\n\n") + "\x00"
    settings_ = {"tokenizer": "sentencepiece", "num_pieces": 310, "document": "passage", "passage_characters": 5}
    build = build_text(text, lang="ru", **settings_)
    stats = json.loads((build.folder / "stats.json").read_bytes())
    assert stats["clean"] == {"line_ends": 1, "control_characters": 1, "byte_order_mark": 0, "nfc": 0}
    num_documents = {split: build.manifest.splits[split].documents for split in ("train", "val")}
    documents = {split: [build.document(split, i) for i in range(num_documents[split])] for split in num_documents}
    assert stats["documents"]["kept"] == sum(num_documents.values()) and stats["documents_with_u2581"] == 90
    assert "90 documents contain the character U+2581 (\u2581), SentencePiece's sign for" in capsys.readouterr().err
    assert stats["tokens"] == sum(len(ids) for split in documents.values() for ids in split)
    assert stats["text_bytes"] == len(cleaned.encode())
    assert stats["languages"]["ru"]["tokens"] == stats["tokens"]
    lengths = stats["tokens_per_document"]["train"]
    assert lengths["min"] <= lengths["median"] <= lengths["max"] == max(map(len, documents["train"]))
    assert sum(bin_["documents"] for bin_ in lengths["histogram"]) == num_documents["train"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no document is left of own: 1 document read; 1 empty"),
        (b"\xef\xbb\xbf", "no document is left of own"),
        (b"\x01\x02", "no document is left of own"),
        (b"x", "its training side would be empty"),
        (
            b"good \xff bad" * 9,
            r"is not UTF-8: byte 0xff at offset 5 .*; pass the encoding of the file, with --encoding ",
        ),
        (b"cut short \xd0", r"byte 0xd0 at offset 10 \(unexpected end of data\)"),
    ],
)
def test_build_rejects_text_and_leaves_nothing(
    text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path, text: bytes, message: str
) -> None:
    recipe, path = text_recipe(text)
    with pytest.raises(FolioError, match=message):
        run_build(recipe, tmp_path / "shards/own", source=path)
    assert not (tmp_path / "shards/own").exists() and list_leftovers(tmp_path / "shards") == []


def test_full_disk_is_reported_in_one_line_and_leaves_nothing(
    tmp_path: Path, preprocess: Callable[..., subprocess.CompletedProcess]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the permission to mount a small disk: {mounted.stderr.strip()}")
    try:
        done = preprocess("build", "--corpus", "synthetic", "--output", str(disk / "synthetic"))
        assert done.returncode == 1 and "not enough space on the disk" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr and not (disk / "synthetic").exists() and list_leftovers(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
