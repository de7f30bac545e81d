"""`preprocess merge`: documents, control tokens, sources, languages and splits of the merged build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from preprocess.build import merge
from preprocess.build.stats import read_stats
from preprocess.cli.main import main
from preprocess.shards.format import SPLITS, Build
from preprocess.shards.leaks import count_leaks
from preprocess.shards.verify import verify
from tests.conftest import assert_one_line, file_bytes
from tests.helpers.file_builds import build_files


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs `preprocess merge` in this process, with builds in tmp_path/shards."""
    monkeypatch.setenv("FOLIO_SHARDS", str(tmp_path / "shards"))
    return lambda *arguments: CliRunner().invoke(main, ["merge", *map(str, arguments)])


@pytest.fixture
def make(build_text: Callable[..., Build]) -> Callable[..., Build]:
    def make(name: str, numbers: range, **settings: Any) -> Build:
        text = "".join(f"line {i}\n" for i in numbers)
        return build_text(text, name=name, split="exact", document="line", replace=True, **settings)

    return make


def name_documents(build: Build, split: str) -> list[list[object]]:
    """Return each document with the names of its control tokens instead of their ids."""
    names = {i: token for token, i in build.manifest.special_tokens.items()}
    ids = (build.document(split, i).tolist() for i in range(build.manifest.splits[split].documents))
    return [[names.get(i, i) for i in document] for document in ids]


def test_merge_has_the_documents_of_both_builds_in_order(
    make: Callable[..., Build], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make("a", range(40), author="Ann Lee", lang="en", shard_tokens=200)
    b = make("b", range(40, 90), author="Bo", year=1998, lang="ru")
    monkeypatch.setattr(merge, "CHUNK_DOCUMENTS", 7)
    monkeypatch.setattr(merge, "BATCH_TOKENS", 30)
    result = run("a", "b", "--name", "c")
    assert result.exit_code == 0, result.output
    c = Build("c")
    assert list(verify(c)) == [] and count_leaks(c).num_texts == 0
    for split in SPLITS:
        assert name_documents(c, split) == name_documents(a, split) + name_documents(b, split)
        parts = [build.docs(split) for build in (a, b)]
        assert c.docs(split)["hash"].tolist() == [*parts[0]["hash"].tolist(), *parts[1]["hash"].tolist()]
        assert c.docs(split)["position"].tolist() == [*parts[0]["position"].tolist(), *parts[1]["position"].tolist()]
        assert c.docs(split)["source"].tolist() == [0] * len(parts[0]) + [1] * len(parts[1])
        tags = [c.manifest.languages[str(number)] for number in c.docs(split)["lang"].tolist()]
        assert tags == ["en"] * len(parts[0]) + ["ru"] * len(parts[1])
        total = sum(build.manifest.splits[split].text_bytes for build in (a, b))
        assert c.manifest.splits[split].text_bytes == total
    assert c.manifest.sources == a.manifest.sources + b.manifest.sources
    assert c.vocab_size == 257 + 3 and c.manifest.special_tokens["<author_Bo>"] == 258
    authors = json.loads(read_stats(c))["authors"]
    assert authors["author"]["documents_by_value"] == {"Ann_Lee": 40, "Bo": 50}
    assert authors["year"]["documents_by_value"] == {"1998": 50}


def test_merge_drops_texts_of_the_first_build(make: Callable[..., Build], run: Callable[..., Result]) -> None:
    a, b = make("a", range(60)), make("b", range(30, 90), seed=1)
    assert run("a", "b", "--name", "c").exit_code == 0
    c = Build("c")
    hashes = [bytes(digest) for split in SPLITS for digest in c.docs(split)["hash"]]
    assert len(hashes) == len(set(hashes)) == 90 and count_leaks(c).num_texts == 0
    assert json.loads(read_stats(c))["documents"]["duplicates"] == 30
    for split in SPLITS:
        first = a.docs(split)["hash"].tolist()
        assert c.docs(split)["hash"].tolist()[: len(first)] == first
    assert b.manifest.splits["val"].documents


def test_merge_without_dedup_moves_copies_to_the_split_of_the_first(
    make: Callable[..., Build], run: Callable[..., Result]
) -> None:
    make("a", range(60))
    make("b", range(60), seed=1)
    assert run("a", "b", "--name", "c", "--no-dedup").exit_code == 0
    c, a = Build("c"), Build("a")
    assert count_leaks(c).num_texts == 0
    for split in SPLITS:
        expected = sorted(bytes(digest) for digest in a.docs(split)["hash"])
        assert sorted(bytes(digest) for digest in c.docs(split)["hash"]) == sorted(2 * expected)


def test_merge_finds_the_chats_of_a_build_in_an_import(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [
        [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
        for i in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    a = build_files(tmp_path / "shards", tmp_path / "chats.jsonl", name="a")
    invoke = CliRunner().invoke
    export = invoke(main, ["export", "a", "--format", "parquet", "--output", str(tmp_path / "files")])
    assert export.exit_code == 0, export.output
    for number, path in enumerate(sorted((tmp_path / "files").iterdir())):
        path.rename(tmp_path / "files" / f"{number}.parquet")  # so that the import makes another split
    flags = ["--format", "parquet", "--tokenizer", str(a.folder), "--val-fraction", "0.5", "--seed", "1"]
    imported = invoke(main, ["import", str(tmp_path / "files"), *flags, "--name", "b"])
    assert imported.exit_code == 0, imported.output
    for names in (("a", "b"), ("b", "a")):
        assert run(*names, "--name", "c", "--replace").exit_code == 0
        for split in SPLITS:
            first = Build(names[0])
            assert name_documents(Build("c"), split) == name_documents(first, split)
    assert run("a", "b", "--name", "c", "--no-dedup", "--replace").exit_code == 0
    c = Build("c")
    sides = [{tuple(document) for document in name_documents(c, split)} for split in SPLITS]
    assert not sides[0] & sides[1] and [c.manifest.splits[split].documents for split in SPLITS] == [40, 40]
    assert run("c", "a", "--name", "d").exit_code == 0
    assert sum(Build("d").manifest.splits[split].documents for split in SPLITS) == 40


def test_merge_of_builds_without_validation(make: Callable[..., Build], run: Callable[..., Result]) -> None:
    make("a", range(5), val_fraction=0)
    make("b", range(5, 9), val_fraction=0)
    assert run("a", "b", "--name", "c").exit_code == 0
    assert [Build("c").manifest.splits[split].documents for split in SPLITS] == [9, 0]


def test_merge_is_not_repeated_and_depends_on_the_builds_only(
    make: Callable[..., Build], run: Callable[..., Result], tmp_path: Path
) -> None:
    make("a", range(20))
    make("b", range(20, 40))
    run("a", "b", "--name", "c")
    before = file_bytes(tmp_path / "shards" / "c")
    assert "already merged" in run("a", "b", "--name", "c").stdout
    assert run("a", "b", "--name", "c", "--replace").exit_code == 0
    assert file_bytes(tmp_path / "shards" / "c") == before
    result = run("b", "a", "--name", "c")
    assert result.exit_code == 2 and "holds another build" in result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "gpt2"}, "a has the tokenizer byte, and b another one (gpt2)"),
        ({"eot": "none"}, "a has the tokenizer byte, and b another one (byte)"),
    ],
)
def test_builds_that_do_not_fit_are_not_merged(
    make: Callable[..., Build], run: Callable[..., Result], tmp_path: Path, settings: Any, message: str
) -> None:
    make("a", range(20))
    make("b", range(20), **settings)
    result = run("a", "b", "--name", "c")
    assert result.exit_code == 2 and message in result.stderr
    assert_one_line(result.stderr.splitlines()[-1])
    assert not (tmp_path / "shards" / "c").exists()


def test_merge_needs_two_builds_and_a_new_name(make: Callable[..., Build], run: Callable[..., Result]) -> None:
    make("a", range(20))
    make("b", range(20, 40))
    assert run("a", "--name", "c").exit_code == 2
    result = run("a", "b", "--name", "a", "--replace")
    assert result.exit_code == 2 and "is one of the builds to merge" in result.stderr


@pytest.mark.parametrize("file", ["train-00000.bin", "train-00000.docs", "val-00000.ends"])
def test_damaged_build_is_not_merged(
    make: Callable[..., Build], run: Callable[..., Result], tmp_path: Path, file: str
) -> None:
    make("a", range(20))
    b = make("b", range(20, 40))
    data = bytearray((b.folder / file).read_bytes())
    data[0] ^= 1
    (b.folder / file).write_bytes(data)
    result = run("a", "b", "--name", "c")
    assert result.exit_code == 1 and f"is damaged: {file} has sha256" in result.stderr
    assert_one_line(result.stderr.splitlines()[-1])
    assert not (tmp_path / "shards" / "c").exists() and not list((tmp_path / "shards").glob("*.work"))
