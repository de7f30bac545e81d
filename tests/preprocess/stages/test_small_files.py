"""Small files that are joined, and opened once: the result is that of files which are read one by one."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.build import build, build_tokenizer
from preprocess.build.plan import Plan, make_plan
from preprocess.errors import FolioError
from preprocess.inputs import describe, detect, walk_folder
from preprocess.inputs.disk_file import InputChanged
from preprocess.readers import joined_files
from preprocess.readers.records import Rejects
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.stages import pipeline
from preprocess.stages.make_documents import DocumentMaker
from tests.helpers.file_builds import QUIET

NUM_FILES = 12


def _write_rows(suffix: str, rows: list[dict[str, Any]]) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".csv":
        file = io.StringIO()
        writer = csv.DictWriter(file, ["text", "year", "n"])
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().encode()
    return "".join(f"{row['text']}\n" for row in rows).encode()


def _make_files(suffix: str, damage: bytes = b"") -> dict[str, bytes]:
    """Return the contents of files of 0 to 3 records each, by name. `damage` is added to two of them."""
    files = {}
    for number in range(NUM_FILES):
        rows = [{"text": f"text {i} of {number}", "year": 1990 + i, "n": i} for i in range(number % 4)]
        data = _write_rows(suffix, rows) + damage * (number in (3, 7))
        files[f"{'AB'[number % 2]}-{1990 + number}-{number:02}{suffix}"] = data
    return files


def _write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _plan(folder: Path, **settings: Any) -> Plan:
    return make_plan(load_recipe(None, inputs=(str(folder),), tokenizer="byte", **settings), None, QUIET)


def _read(plan: Plan, rejects: Rejects) -> Iterator[Any]:
    spans = [(plan.input_files[span.file_number], span) for span in plan.partitions[0].spans]
    return pipeline.read_documents(spans, plan.recipe, rejects, Counter())


def _describe_result(folder: Path, work: Path, **settings: Any) -> list[Any]:
    """Return everything that a build of `folder` leaves, or its error."""
    defaults = {"tokenizer": "byte", "val_fraction": 0.5, "clean": ()}
    recipe = load_recipe(None, inputs=(str(folder),), **{**defaults, **settings})
    try:
        build(recipe, work / "x", name="x", replace=True, progress=QUIET)
    except FolioError as e:
        return [str(e)]
    rejects = work / ".x.work" / "refused.jsonl"
    stats = (work / "x" / "stats.json").read_bytes()
    return [Build(work / "x").build_id, stats, rejects.read_bytes() if rejects.exists() else b""]


CASES: list[tuple[str, bytes, dict[str, Any]]] = [
    (".txt", b"", {}),
    (".txt", b"", {"document": "line", "group_by": "source"}),
    (".txt", b"a line\n" * 1000, {}),
    (".txt", b"\xff", {}),
    (".txt", b"\xff\n", {"document": "line", "invalid_utf8": "skip"}),
    (".txt", b"a long line " * 20, {"max_document_bytes": 100}),
    (".txt", b"a" * 200, {"max_document_bytes": 100}),
    (".txt", b"", {"name_pattern": r"(?P<author>\w+)-(?P<year>\d+)"}),
    (".jsonl", b"", {"where": "n >= 1", "year_column": "year"}),
    (".jsonl", b'{"text": "t"}\n' * 1000, {}),
    (".jsonl", b"{\n", {}),
    (".jsonl", b'{"text": null}\n{"text": 5}\n', {}),
    (".jsonl", b'{"text": "t", "year": "none"}\n', {"year_column": "year"}),
    (".jsonl", b'{"text": "\xff"}\n', {"invalid_utf8": "replace"}),
    (".jsonl", b"", {"template": "{text} {year} {text}", "max_document_bytes": 20}),
    (".csv", b"", {"where": 'n == "1"', "author_column": "year"}),
    (".csv", b"a,b\n", {}),
    (".csv", b'"a"b,1,2\n', {"name_pattern": r"(?P<author>\w+)-"}),
]


@pytest.mark.parametrize(("suffix", "damage", "settings"), CASES)
def test_joined_files_leave_what_files_leave_that_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, damage: bytes, settings: dict[str, Any]
) -> None:
    folder = _write_folder(tmp_path / "in", _make_files(suffix, damage))
    results = []
    for max_files, kept_bytes in ((256, 64 << 20), (5, 500), (1, 0)):
        monkeypatch.setattr(joined_files, "MAX_JOINED_FILES", max_files)
        monkeypatch.setattr(describe, "MAX_KEPT_BYTES", kept_bytes)
        results.append(_describe_result(folder, tmp_path, **settings))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_that_a_condition_drops_are_counted_for_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    condition = "n >= 1" if suffix == ".jsonl" else 'n != "0"'
    plan = _plan(_write_folder(tmp_path / "in", _make_files(suffix)), where=condition)
    results = []
    for max_files in (256, 1):
        monkeypatch.setattr(joined_files, "MAX_JOINED_FILES", max_files)
        rejects = Rejects(None)
        batches = [batch.to_pylist() for batch, _ in _read(plan, rejects)]
        results.append((batches, rejects.counts, rejects.reasons.as_list(), rejects.finished_spans))
    assert results[0] == results[1]
    [reason] = rejects.reasons.as_list()
    assert reason.kind == "filtered" and reason.source == plan.input_files[1].name  # the first file has no rows


def test_small_files_of_one_format_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    for suffix in (".csv", ".jsonl", ".txt"):
        _write_folder(folder / suffix[1:], _make_files(suffix))
    (folder / "txt" / "large.txt").write_bytes(b"x" * (joined_files.MAX_JOINED_BYTES + 1))
    plan, num_makers = _plan(folder), 0

    class CountedMaker(DocumentMaker):
        def __init__(self, *arguments: Any) -> None:
            nonlocal num_makers
            num_makers += 1
            super().__init__(*arguments)

    monkeypatch.setattr(pipeline, "DocumentMaker", CountedMaker)
    batches = [batch for batch, _ in _read(plan, Rejects(None))]
    groups = list(
        joined_files.group_small_files((file, plan.partitions[0].spans[file.number]) for file in plan.input_files)
    )
    assert num_makers == len(groups) == 4
    assert all(len({file.format for file, _ in group}) == 1 for group in groups)
    sources = [source for batch in batches for source in batch.column("source").to_pylist()]
    positions = [position for batch in batches for position in batch.column("position").to_pylist()]
    counts = Counter(sources)
    assert list(zip(sources, positions, strict=True)) == [(n, i) for n in sorted(counts) for i in range(counts[n])]


def test_group_of_small_files_has_a_limit_in_files_and_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(_write_folder(tmp_path / "in", {f"{i}.txt": b"x" * 10 for i in range(9)}))
    spans = [(file, plan.partitions[0].spans[file.number]) for file in plan.input_files]
    monkeypatch.setattr(joined_files, "MAX_JOINED_BYTES", 45)
    assert [len(group) for group in joined_files.group_small_files(spans)] == [4, 4, 1]
    monkeypatch.setattr(joined_files, "MAX_JOINED_FILES", 3)
    assert [len(group) for group in joined_files.group_small_files(spans)] == [3, 3, 3]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_small_file_is_not_opened_again_after_it_was_hashed(tmp_path: Path, suffix: str) -> None:
    files = {f"{i}{suffix}": _write_rows(suffix, [{"text": f"t{i}"}]) for i in range(4)}
    folder = _write_folder(tmp_path / "in", files)
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr(f"z{suffix}", files[f"1{suffix}"])
    plan = _plan(folder)
    for path in folder.iterdir():
        path.unlink()
    [(batch, _)] = _read(plan, Rejects(None))
    assert [text.strip() for text in batch.column("text").to_pylist()] == ["t0", "t1", "t2", "t3", "t1"]


def test_content_that_is_kept_is_bounded_and_is_what_readers_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.txt": b"1234", "b.txt": b"12345", "c.txt": "text".encode("utf-16"), "d.txt": b"", "e.txt": b"a\rb"}
    folder = _write_folder(tmp_path / "in", files)
    monkeypatch.setattr(describe, "MAX_KEPT_BYTES", 5 * 4)  # 4 bytes for each of the files
    contents = [file.content for file in _plan(folder, document="line").input_files]
    assert contents == [b"1234", None, None, b"", None]
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("a.txt", "b.txt", "d.txt"):
            archive.writestr(name, files[name])
    monkeypatch.setattr(describe, "MAX_KEPT_BYTES", 8)  # for all files of the archive
    assert [file.content for file in _plan(tmp_path / "z.zip").input_files] == [b"1234", None, b""]


def test_content_is_kept_only_if_the_first_bytes_are_the_whole_file(tmp_path: Path) -> None:
    sizes = (detect.HEAD_BYTES - 1, detect.HEAD_BYTES, detect.HEAD_BYTES + 1)
    plan = _plan(_write_folder(tmp_path / "in", {f"{size}.txt": b"x" * size for size in sizes}))
    assert [file.content is not None for file in plan.input_files] == [True, False, False]
    [(batch, _)] = _read(plan, Rejects(None))
    assert [len(text) for text in batch.column("text").to_pylist()] == list(sizes)


@pytest.mark.parametrize("is_removed", [True, False])
def test_small_file_that_changes_after_the_plan_ends_a_build_and_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    from preprocess.build import build as build_module

    folder = _write_folder(tmp_path / "in", {f"{i}.txt": b"a text of words %d" % i for i in range(9)})

    def plan_and_change(*arguments: Any, **options: Any) -> Plan:
        plan = make_plan(*arguments, **options)
        if is_removed:
            (folder / "5.txt").unlink()
        else:
            (folder / "5.txt").write_bytes(b"another")
        return plan

    monkeypatch.setattr(build_module, "make_plan", plan_and_change)
    recipe = load_recipe(None, inputs=(str(folder),), tokenizer="char")
    expected = FolioError if is_removed else InputChanged
    with pytest.raises(expected, match=r"5\.txt (changed|was removed) while it was read"):
        build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    (folder / "5.txt").write_bytes(b"a text of words 5")
    with pytest.raises(expected, match=r"5\.txt (changed|was removed) while it was read"):
        build_tokenizer(recipe, tmp_path / "t", source=None, replace=False, progress=QUIET, workers=1)
    assert not (tmp_path / "x").exists() and not (tmp_path / "t").exists()


def test_regular_files_are_listed_without_a_system_call_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write_folder(tmp_path / "in" / "sub", {f"{i}.txt": b"t" for i in range(9)}).parent
    checked: list[str] = []
    monkeypatch.setattr(walk_folder, "check_is_file", checked.append)
    assert len(list(walk_folder.walk_folder(str(folder), "auto"))) == 9 and not checked
    os.symlink(folder / "sub" / "1.txt", folder / "link.txt")
    found = [file for file in walk_folder.walk_folder(str(folder), "auto") if file.is_link]
    assert [file.path for file in found] == checked == [str(folder / "link.txt")]
