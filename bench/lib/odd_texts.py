"""Inputs with an unusual shape: much text in few bytes, many documents in little text, or one long text.

Each function writes one input to `path`, a file or a folder. Sizes are multiplied by `scale`.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.make_text import generate_random

LINES_PER_WRITE = 100_000
WORDS = b"the quick brown fox jumps over a lazy dog while "


def write_shared_value(path: Path, scale: float) -> None:
    """Write a Parquet file of a few kB: 4,000 rows that share one value of 0.9 MB, 3.6 GB decoded."""
    value = (WORDS * 20_000)[:900_000].decode()
    numbers = list(range(round(4_000 * scale)))
    values = pa.DictionaryArray.from_arrays(pa.array([0] * len(numbers), pa.int32()), pa.array([value]))
    pq.write_table(pa.table({"number": numbers, "text": values}), path, compression="zstd")


def write_shared_prompt(path: Path, scale: float) -> None:
    """Write a Parquet file of 200,000 rows with a shared prompt of 20 kB: 4 GB of documents with a template."""
    num_rows, prompt = round(200_000 * scale), (WORDS * 500)[:20_000].decode()
    answers = pa.array([f"answer {number}" for number in range(num_rows)])
    prompts = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array([prompt]))
    pq.write_table(pa.table({"prompt": prompts, "answer": answers}), path, compression="zstd")


def write_equal_lines(path: Path, scale: float) -> None:
    """Write a text file of 100 different lines and 33.5 million lines `a`, 67 MB."""
    with open(path, "wb") as file:
        file.writelines(b"line %d\n" % number for number in range(100))
        for _ in range(round(335 * scale)):
            file.write(b"a\n" * LINES_PER_WRITE)


def _generate_short_lines(scale: float) -> Iterator[bytes]:
    """Yield 83 MB of different lines of 4 to 9 bytes."""
    num_lines = round(11_000_000 * scale)
    for start in range(0, num_lines, LINES_PER_WRITE):
        yield b"".join(b"%x\n" % (number * 2_654_435_761 % 2**28) for number in range(start, start + LINES_PER_WRITE))


def write_short_lines(path: Path, scale: float) -> None:
    """Write 83 MB of lines of a few characters as text."""
    with open(path, "wb") as file:
        file.writelines(_generate_short_lines(scale))


def write_short_lines_zstd(path: Path, scale: float) -> None:
    """Write 83 MB of lines of a few characters, compressed with zstd, so that the file cannot be divided."""
    with pa.output_stream(str(path), compression="zstd") as file:
        for lines in _generate_short_lines(scale):
            file.write(lines)


def write_long_text(path: Path, texts: Iterator[bytes], end: bytes) -> None:
    """Write `texts` as one text without line feeds but for `end`, which follows each."""
    with open(path, "wb") as file:
        for text in texts:
            file.write(text.replace(b"\n", b" ") + end)


def write_long_text_as_parquet(path: Path, texts: Iterator[bytes]) -> None:
    """Write the words of `write_long_text` as a Parquet file with a row for each of `texts`."""
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = (text.replace(b"\n", b" ").decode() for text in texts)
        while chunk := list(itertools.islice(rows, 1_000)):
            writer.write_table(pa.table({"text": chunk}, schema))


def write_many_files(path: Path, scale: float) -> None:
    """Write a folder of 200,000 text files of one line each, 1,000 in a subfolder."""
    for number in range(round(200_000 * scale)):
        folder = path / f"{number // 1_000:03d}"
        if number % 1_000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:06d}.txt").write_bytes(b"document %d: the quick brown fox\n" % number)


def _iterate_rows(scale: float) -> Iterator[bytes]:
    return generate_random(round(75_000_000 * scale), 300, seed=9)


def write_csv(path: Path, scale: float) -> None:
    """Write 75 MB of CSV, in rows of 300 bytes."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows((number, text.decode()) for number, text in enumerate(_iterate_rows(scale)))


def write_languages(path: Path, scale: float) -> None:
    """Write JSON lines with 200,000 distinct languages."""
    with open(path, "wb") as file:
        for number in range(round(200_000 * scale)):
            file.write(b'{"text": "document number %d", "lang": "l%d"}\n' % (number, number))
