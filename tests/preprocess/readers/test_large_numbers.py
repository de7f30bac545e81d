"""Conditions on 64-bit numbers select the same rows in every format of tables."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from tests.preprocess.readers.helpers import list_texts

# As floats, the last four are two pairs of equal numbers.
NUMBERS = [7, None, 2**53, 2**53 + 1, 1234567890123456788, 1234567890123456789]


def write_numbers(folder: Path, kind: str, fraction: float | None) -> Path:
    """Write NUMBERS, and then `fraction`; the texts of the rows are their indices."""
    path, numbers = folder / f"a.{kind}", NUMBERS if fraction is None else [*NUMBERS, fraction]
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": str(i), "n": n}) + "\n" for i, n in enumerate(numbers)))
    elif kind == "csv":
        path.write_text("text,n\n" + "".join(f"{i},{'' if n is None else n}\n" for i, n in enumerate(numbers)))
    else:
        table = pa.table({"text": list(map(str, range(len(numbers)))), "n": numbers})
        (pq.write_table if kind == "parquet" else pyarrow.feather.write_feather)(table, path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("n == 1234567890123456789", "5"),
        ("n != 1234567890123456789", "0234"),
        ("n in [7, 9007199254740993]", "03"),
        ("n not in [1234567890123456788, 9007199254740993]", "025"),
        ("n < 9007199254740993", "02"),
        ("n > 9007199254740992", "345"),
        ("1234567890123456788 >= n", "0234"),
        ("n == null or n >= 1234567890123456789", "15"),
        ("not (n == 9007199254740993)", "01245"),
    ],
)
def test_condition_compares_large_integers_exactly(tmp_path: Path, kind: str, condition: str, expected: str) -> None:
    assert "".join(list_texts(write_numbers(tmp_path, kind, None), where=condition)) == expected


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("n < 9007199254740993", "026"),
        ("n == 9007199254740993", "3"),
        ("n in [0.5, 9007199254740993]", "36"),
        ("n >= 0.5 and n != 9007199254740993", "02456"),
    ],
)
def test_condition_compares_large_integers_beside_fractions_exactly(
    tmp_path: Path, kind: str, condition: str, expected: str
) -> None:
    assert "".join(list_texts(write_numbers(tmp_path, kind, 0.5), where=condition)) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [("n == 9007199254740993", ""), ("n < 9007199254740993", "0"), ("n > 9007199254740993", "1")],
)
def test_condition_compares_floats_with_an_integer_that_is_not_a_float(
    tmp_path: Path, condition: str, expected: str
) -> None:
    pq.write_table(pa.table({"text": ["0", "1"], "n": [2.0**53, 2.0**53 + 2]}), tmp_path / "a.parquet")
    assert "".join(list_texts(tmp_path / "a.parquet", where=condition)) == expected
