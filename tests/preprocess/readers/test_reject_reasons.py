"""Reasons of rejected records, and the lines of their places."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from preprocess.readers import reject_reasons
from preprocess.readers.reject_reasons import OTHER, ReasonCounts, RejectReason, explain_reasons, sum_reasons
from tests.helpers.file_builds import build_files


def make(reason: str, place: str = "row 1", num_records: int = 1, kind: str = "malformed") -> RejectReason:
    return RejectReason(kind, reason, num_records, "a.csv", place)


def unchanged(source: str, place: str) -> str:
    return place


def test_reasons_that_differ_in_numbers_are_one_with_the_first_place() -> None:
    counts = ReasonCounts()
    for reason, place in (("got 3 values", "row 2"), ("got 1,400 values", "row 5"), ("not JSON", "row 7")):
        counts.add(make(reason, place))
    assert counts.as_list() == [make("got 3 values", "row 2", 2), make("not JSON", "row 7")]


def test_number_of_reasons_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reject_reasons, "MAX_REASONS", 2)
    counts = ReasonCounts()
    for reason in "abcdab":
        counts.add(make(reason))
    assert [(found.reason, found.num_records) for found in counts.as_list()] == [("a", 2), ("b", 2), (OTHER, 2)]


def test_sum_keeps_the_first_place_in_reading_order() -> None:
    assert sum_reasons([[make("a", "row 9")], [], [make("a", "row 3", 4), make("b")]]) == [
        make("a", "row 9", 5),
        make("b"),
    ]


def test_explanation_depends_on_the_number_of_reasons_and_records() -> None:
    assert explain_reasons([], unchanged) == ""
    assert explain_reasons([make("a")], unchanged) == "the reason: a (at a.csv, row 1)"
    assert explain_reasons([make("a", "row 1", 2)], unchanged) == "the reason of all 2: a (first at a.csv, row 1)"
    several = [make("a"), make("b", "row 2", 1000), make("c", "row 3", 1000)]
    assert explain_reasons(several, unchanged) == "the most frequent reason, of 1,000: b (first at a.csv, row 2)"
    assert explain_reasons([make("\x1b[31m\n")], unchanged).isprintable()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_line_of_a_place_is_found_in_the_decompressed_file(tmp_path: Path, suffix: str) -> None:
    data = b'{"text": ""}\n\n{"text": ""}\n[1]\n[2]\n[3]\n'
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    with pytest.raises(FolioError) as caught:
        build_files(tmp_path, path)
    expected = f"of 3: expected a JSON object, got array (first at a{suffix}, line 4 (byte 27))"
    assert expected in str(caught.value)


def test_place_far_inside_a_file_is_its_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.readers.locate.MAX_BYTES", 10)
    (tmp_path / "a.jsonl").write_bytes(b"\n" * 11 + b'{"text": 5}\n')
    with pytest.raises(FolioError, match=r"\(at a.jsonl, byte 11\)"):
        build_files(tmp_path, tmp_path / "a.jsonl")
