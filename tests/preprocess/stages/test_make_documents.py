"""Metadata of documents, from columns and from file names."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from tests.helpers.file_builds import build_files, read_stats


def test_unreadable_years_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "y": y} for i, y in enumerate([1999, "2001", "later", None, "", 20222, 1999.0])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = read_stats(build_files(tmp_path, tmp_path / "a.jsonl", year_column="y"))
    assert counts["authors"]["year"]["documents_by_value"] == {"1999": 2, "2001": 1}
    assert counts["mended"]["unreadable_year"] == 2


def test_years_are_trimmed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,y\na, 1999 \nb,1\n")
    counts = read_stats(build_files(tmp_path, tmp_path / "a.csv", year_column="y"))
    assert counts["authors"]["year"]["documents_by_value"] == {"1": 1, "1999": 1}


def test_metadata_is_parsed_from_file_names(mirror: Path, tmp_path: Path) -> None:
    pattern = r"(?P<year>\d{4})-(?P<author>\w+)"
    result = build_files(tmp_path, mirror / "inaugural", name_pattern=pattern, invalid_utf8="replace")
    special = {i: t for t, i in result.manifest.special_tokens.items()}
    for split in ("train", "val"):
        for number, entry in enumerate(result.docs(split)):
            year, author = result.manifest.sources[int(entry["source"])]["name"].removesuffix(".txt").split("-")
            ids = result.document(split, number)
            assert [special[int(i)] for i in ids[:2]] == [f"<author_{author}>", f"<year_{year}>"]
    with pytest.raises(MisuseError, match="does not match '1789-Washington.txt'"):
        build_files(tmp_path, mirror / "inaugural", name_pattern="(?P<year>9999)")
    begin = time.perf_counter()
    with pytest.raises(MisuseError, match="does not match"):
        build_files(tmp_path, mirror / "inaugural", name_pattern="(?P<author>(?:a+)+)$")
    assert time.perf_counter() - begin < 5
