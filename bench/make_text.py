"""Make the text that the benches run on: unique documents with natural word frequencies.

Words are taken in short runs from real corpora, so that each occurs as often as it does there. 3 %
of them are replaced by newly generated words, so that the number of distinct words grows with the
length of the text as it does in real text. With `--words random` every word is generated: 3 to 10
lower-case letters.

    python bench/make_text.py --mb 400 --document-bytes 10000 --output /tmp/bench/long.parquet
    python bench/make_text.py --mb 400 --document-bytes 40 --words random --output /tmp/bench/lines.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GENERATED_FRACTION = 0.03
RUN_WORDS = 12  # consecutive words taken from a corpus
CHUNK_WORDS = 200_000
ROW_GROUP_BYTES = 16 << 20
# English letter frequencies, about, for words among natural ones; equal frequencies for random text.
NATURAL_LETTERS = np.frombuffer(b"eeeeeetttttaaaaaooooiiiinnnnsssshhhrrrrdddllccuummwwffggyyppbbvkxjqz", np.uint8)
ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


def read_words(mirror: Path) -> list[bytes]:
    """Return all words of the corpora in `mirror`, each with the white space before it, in order."""
    texts = [path.read_bytes() for path in sorted(mirror.rglob("*.txt"))]
    return [word for text in texts for word in re.findall(rb"\s*\S+", text.decode("utf-8", errors="ignore").encode())]


def generate_words(count: int, letters: np.ndarray, rng: np.random.Generator) -> list[bytes]:
    """Return `count` words of 3 to 10 letters drawn from `letters`, each with a space before it."""
    lengths = rng.integers(3, 11, count)
    text = letters[rng.integers(0, len(letters), int(lengths.sum()))].tobytes()
    ends = np.cumsum(lengths).tolist()
    return [b" " + text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def natural_chunks(words: list[bytes], rng: np.random.Generator) -> Iterator[list[bytes]]:
    """Yield chunks of runs of `words` in which some words are replaced by generated ones, without end."""
    while True:
        runs = rng.integers(0, len(words) - RUN_WORDS, CHUNK_WORDS // RUN_WORDS)
        indices = (runs[:, None] + np.arange(RUN_WORDS)).reshape(-1)
        chunk = [words[i] for i in indices.tolist()]
        replaced = np.flatnonzero(rng.random(len(chunk)) < GENERATED_FRACTION).tolist()
        for index, word in zip(replaced, generate_words(len(replaced), NATURAL_LETTERS, rng), strict=True):
            chunk[index] = word
        yield chunk


def random_chunks(rng: np.random.Generator) -> Iterator[list[bytes]]:
    """Yield chunks of generated words, without end."""
    while True:
        yield generate_words(CHUNK_WORDS, ALPHABET, rng)


def cut_documents(chunk: list[bytes], document_bytes: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield documents whose sizes vary by up to a third around `document_bytes`; drop the rest of the chunk."""
    start = begin = 0  # word, byte
    ends = np.cumsum([len(word) for word in chunk])
    while start < len(chunk):
        size = int(document_bytes * rng.uniform(0.67, 1.33))
        stop = max(int(np.searchsorted(ends, begin + size)), start + 1)
        if stop >= len(chunk):
            return
        yield b"".join(chunk[start:stop]).strip()
        start, begin = stop, int(ends[stop - 1])


def generate_documents(
    chunks: Iterator[list[bytes]], num_bytes: int, document_bytes: int, rng: np.random.Generator
) -> Iterator[bytes]:
    """Yield documents of about `document_bytes` until there are `num_bytes`.

    The generated words and the random cuts make each document unique.
    """
    total_bytes = 0
    for chunk in chunks:
        for text in cut_documents(chunk, document_bytes, rng):
            total_bytes += len(text)
            yield text
            if total_bytes >= num_bytes:
                return


def generate_natural(mirror: Path, num_bytes: int, document_bytes: int, *, seed: int) -> Iterator[bytes]:
    """Yield documents of words from the corpora in `mirror`."""
    rng = np.random.default_rng(seed)
    return generate_documents(natural_chunks(read_words(mirror), rng), num_bytes, document_bytes, rng)


def generate_random(num_bytes: int, document_bytes: int, *, seed: int) -> Iterator[bytes]:
    """Yield documents of generated words."""
    rng = np.random.default_rng(seed)
    return generate_documents(random_chunks(rng), num_bytes, document_bytes, rng)


def write_parquet(path: Path, texts: Iterator[bytes]) -> tuple[int, int]:
    """Write `texts` to the column `text` of `path`. Return the number of documents and their bytes."""
    num_documents = num_bytes = 0
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        row_group: list[bytes] = []
        row_group_bytes = 0

        def flush() -> None:
            writer.write_table(pa.table({"text": pa.array(row_group, pa.binary()).cast(pa.string())}))

        for text in texts:
            row_group.append(text)
            row_group_bytes += len(text)
            num_documents, num_bytes = num_documents + 1, num_bytes + len(text)
            if row_group_bytes >= ROW_GROUP_BYTES:
                flush()
                row_group, row_group_bytes = [], 0
        if row_group:
            flush()
    return num_documents, num_bytes


def write_text(path: Path, texts: Iterator[bytes], *, end: bytes = b"\n") -> tuple[int, int]:
    """Write each of `texts` on one line that ends with `end`. Return the number of documents and their bytes."""
    num_documents = num_bytes = 0
    with open(path, "wb") as file:
        for text in texts:
            num_bytes += file.write(b" ".join(text.split()) + end)
            num_documents += 1
    return num_documents, num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", type=Path, default=os.environ.get("PREPROCESS_MIRROR"), help="folder of corpora")
    parser.add_argument(
        "--words",
        choices=("natural", "random"),
        default="natural",
        help="natural: from the corpora; random: generated (default: natural)",
    )
    parser.add_argument("--mb", type=int, default=400, help="MB of text (default: 400)")
    parser.add_argument("--document-bytes", type=int, default=10_000, help="mean size (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--output", type=Path, required=True, help="a .parquet file, or a .txt file with a document per line"
    )
    arguments = parser.parse_args()
    if arguments.words == "natural" and arguments.mirror is None:
        parser.error("natural words are drawn from corpora; name their folder with --mirror or PREPROCESS_MIRROR")
    num_bytes, document_bytes = arguments.mb * 1_000_000, arguments.document_bytes
    if arguments.words == "random":
        texts = generate_random(num_bytes, document_bytes, seed=arguments.seed)
    else:
        texts = generate_natural(arguments.mirror, num_bytes, document_bytes, seed=arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write = write_parquet if arguments.output.suffix == ".parquet" else write_text
    num_documents, text_bytes = write(arguments.output, texts)
    file_bytes = arguments.output.stat().st_size
    print(
        f"{arguments.output}: {num_documents:,} documents, {text_bytes:,} bytes of text, {file_bytes:,} bytes on disk"
    )


if __name__ == "__main__":
    main()
