"""A long text that the contiguous split cuts is read by several tasks, which changes no byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.build import prepare
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError
from preprocess.recipes.catalog import load_recipe
from tests.conftest import file_bytes
from tests.helpers.file_builds import FEW_EXAMPLES, QUIET, WORDS, build_files
from tests.preprocess.build.helpers import run_build

SPLIT = {"split": "contiguous", "tokenizer": "byte"}
DIVIDED = {**SPLIT, "max_document_bytes": 40}  # into about 9 spans if a partition has 100 bytes
TEXT = " ".join(f"слово {word}\n\n" for word in WORDS)


@pytest.fixture
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 100)


def build_or_explain(folder: Path, path: Path, settings: dict[str, Any]) -> Any:
    """Return the bytes of the build, or the first words of the error message."""
    try:
        return file_bytes(build_files(folder, path, **settings).folder)
    except FolioError as e:
        return str(e)[:40]


@FEW_EXAMPLES
@given(
    st.lists(
        st.sampled_from([b"a", b"  b", b"\n\n", b" \xd0\xb6", b"e\xcc\x81\r", b" \xff", b"&lt; "]),
        min_size=40,
        max_size=80,
    ),
    st.sampled_from([{}, {"document": "passage", "passage_characters": 9}, {"dedup": True, "min_characters": 3}]),
    st.sampled_from(["skip", "replace"]),
    st.integers(1, 40),
)
def test_partition_size_does_not_change_a_contiguous_split(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[bytes],
    settings: dict[str, Any],
    invalid_utf8: str,
    partition_bytes: int,
) -> None:
    (tmp_path / "a.txt").write_bytes(b"".join(words) + b" \xff" * 9 + b" the end")
    (tmp_path / "b.txt").write_text("another file")
    settings = {**SPLIT, "clean": ("trim", "white_space", "nfc"), **settings, "invalid_utf8": invalid_utf8}
    settings |= {"max_document_bytes": 9, "oversized": "skip"}
    results = []
    for size in (1 << 20, partition_bytes):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", size)
        results.append(build_or_explain(tmp_path, tmp_path / "*.txt", settings))
    assert results[0] == results[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_contiguous_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    (tmp_path / "input.txt").write_text(TEXT)
    recipe = load_recipe(None, inputs=(str(tmp_path / "input.txt"),), **DIVIDED)
    run_build(recipe, tmp_path / "expected/x")
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 100)
    assert len(make_plan(recipe, None, QUIET).partitions) > 4
    run_build(recipe, tmp_path / "x", workers=workers)
    assert file_bytes(tmp_path / "x") == file_bytes(tmp_path / "expected/x")


def test_long_text_is_divided_where_it_is_cut_into_documents(tmp_path: Path, small_partitions: None) -> None:
    path = tmp_path / "input.txt"
    path.write_text(TEXT)
    plan = make_plan(load_recipe(None, inputs=(str(path),), **DIVIDED), None, QUIET)
    spans = [span for partition in plan.partitions for span in partition.spans]
    parts = [path.read_bytes()[span.start : span.stop] for span in spans]
    assert b"".join(parts) == path.read_bytes() and len(parts) > 4
    assert all(100 <= len(part) < 140 for part in parts[:-1])
    assert all(part[:1].isspace() for part in parts[1:]) and not any(part[-1:].isspace() for part in parts[:-1])


def test_text_of_two_documents_is_not_divided(tmp_path: Path, small_partitions: None) -> None:
    (tmp_path / "input.txt").write_text(TEXT[:150])
    (tmp_path / "long.txt").write_text("no_white_space" * 40)
    recipe = load_recipe(None, inputs=(str(tmp_path / "*.txt"),), **SPLIT, max_document_bytes=120)
    spans = [span for partition in make_plan(recipe, None, QUIET).partitions for span in partition.spans]
    assert [(span.start, span.stop) for span in spans] == [(0, None), (0, 560)]


def test_interrupted_build_does_not_count_characters_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_partitions: None
) -> None:
    (tmp_path / "input.txt").write_text(TEXT)
    recipe = load_recipe(None, inputs=(str(tmp_path / "input.txt"),), **DIVIDED)
    run_build(recipe, tmp_path / "expected/x")
    prepared: list[int] = []
    prepare_partition = prepare.prepare_partition

    def interrupt_third(context: Any, partition: Any) -> Any:
        if len(prepared) == 2:
            raise KeyboardInterrupt
        prepared.append(partition.number)
        return prepare_partition(context, partition)

    def count_again(*_: object) -> NoReturn:
        raise AssertionError("the characters were counted before")

    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.prepare_partition", interrupt_third)
        with pytest.raises(KeyboardInterrupt):
            run_build(recipe, tmp_path / "x")
    monkeypatch.setattr("preprocess.build.build.count_partition", count_again)
    run_build(recipe, tmp_path / "x")
    assert prepared == [0, 1] and file_bytes(tmp_path / "x") == file_bytes(tmp_path / "expected/x")
