"""Damaged input files of every format: a build refuses each in one line, or reads what can be read."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from preprocess.build.build import build
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from tests.fuzz.harness import Mutation, assert_no_failure, fuzz
from tests.fuzz.mutations import mutate_bytes, mutate_json_lines
from tests.helpers.file_builds import QUIET

TEXTS = [f"Document {number}: Привет, мир! \u00e9\u0301 {'word ' * (number % 30)}" for number in range(60)]
ROWS = [{"text": text, "author": f"A{number % 3}", "n": number, "flag": None} for number, text in enumerate(TEXTS)]


def read_inputs(path: Path) -> None:
    """Build from the file at `path`, with columns and conditions if its format has them."""
    output = path.parent / "build"
    shutil.rmtree(output, ignore_errors=True)
    settings: dict[str, Any] = {"tokenizer": "byte", "dedup": False, "val_fraction": 0.5}
    if path.suffix in (".jsonl", ".csv", ".parquet"):
        settings |= {"author_column": "author", "template": "{text} {n}", "max_document_bytes": 1 << 20}
    else:
        settings["document"] = "line"
    recipe = load_recipe(None, inputs=(str(path),), **settings)
    build(recipe, output, name="build", replace=True, progress=QUIET)


def make_text() -> list[bytes]:
    return ["\n\n".join(TEXTS).encode(), "\r\n".join(TEXTS).encode(), b"\xef\xbb\xbf" + "\n".join(TEXTS).encode()]


def make_json_lines() -> list[bytes]:
    return ["\n".join(json.dumps(row, ensure_ascii=ascii) for row in ROWS).encode() for ascii in (True, False)]


def make_csv() -> list[bytes]:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.table({"text": TEXTS, "author": ["a, b"] * 60, "n": list(range(60))}), sink)
    return [
        sink.getvalue().to_pybytes(),
        b'text,author,n\n"two\r\nlines",x,1\n"a ""quote""",y,2\n' * 1 + b"plain,z,3\n" * 20,
    ]


def make_parquet() -> list[bytes]:
    """Return files that differ in encoding, compression, page version and nested columns."""
    table = pa.Table.from_pylist([row | {"nested": [{"a": row["n"]}]} for row in ROWS])
    options: list[dict[str, Any]] = [
        {}, {"compression": "zstd", "use_dictionary": False}, {"compression": "none", "data_page_version": "2.0"},
        {"row_group_size": 7}, {"compression": "gzip", "write_page_checksum": True},
    ]  # fmt: skip
    files = []
    for option in options:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **option)
        files.append(sink.getvalue().to_pybytes())
    return files


def make_gzip() -> list[bytes]:
    return [gzip.compress(data) for data in make_text()]


def make_zstd() -> list[bytes]:
    files = []
    for data in make_text():
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        files.append(sink.getvalue().to_pybytes())
    return files


def mutate_footer(data: bytes, random_: random.Random) -> bytes:
    """Damage the end of a Parquet file, which describes the rest, more often than the rest."""
    if random_.random() < 0.3:
        return mutate_bytes(data, random_)
    size = min(len(data), 8 + int.from_bytes(data[-8:-4], "little"))
    return data[:-size] + mutate_bytes(data[-size:], random_)


KINDS: dict[str, tuple[str, Callable[[], list[bytes]], Mutation]] = {
    "text": ("a.txt", make_text, mutate_bytes),
    "jsonl": ("a.jsonl", make_json_lines, mutate_json_lines),
    "csv": ("a.csv", make_csv, mutate_bytes),
    "parquet": ("a.parquet", make_parquet, mutate_footer),
    "gzip": ("a.txt.gz", make_gzip, mutate_bytes),
    "zstd": ("a.txt.zst", make_zstd, mutate_bytes),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_build_refuses_damaged_files_in_one_line(
    kind: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    name, make, mutate = KINDS[kind]
    assert_no_failure(fuzz(read_inputs, tmp_path / name, make(), mutate), record_property)


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_files_are_built(kind: str, tmp_path: Path) -> None:
    name, make, _ = KINDS[kind]
    for data in make():
        (tmp_path / name).write_bytes(data)
        read_inputs(tmp_path / name)
        assert Build(tmp_path / "build").manifest.splits["train"].tokens > 0
