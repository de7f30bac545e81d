"""The text that the benches run on: natural word frequencies, unique documents, a vocabulary that grows.

Words are drawn in short runs from real corpora, so that each occurs as often as it does there; 3 % of them are replaced by
words made up on the spot, so that the number of distinct words grows with length as it does in real text. With `--words random`
every word is made up: 3 to 10 lower-case letters.

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

FRESH_FRACTION = 0.03
RUN_WORDS = 12  # consecutive words taken from a corpus at a time
CHUNK_WORDS = 200_000
ROW_GROUP_BYTES = 16 << 20
LETTERS = np.frombuffer(b"eeeeeetttttaaaaaooooiiiinnnnsssshhhrrrrddlllccuummwwffggyyppbbvkxjqz", np.uint8)
ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


def words_of(mirror: Path) -> list[bytes]:
    """Every word of the mirror's corpora with the white space in front of it, in order."""
    texts = [path.read_bytes() for path in sorted(mirror.rglob("*.txt"))]
    return [word for text in texts for word in re.findall(rb"\s*\S+", text.decode("utf-8", errors="ignore").encode())]


def made_up(count: int, letters: np.ndarray, rng: np.random.Generator) -> list[bytes]:
    """Words of 3 to 10 of the `letters`, a space in front of each."""
    lengths = rng.integers(3, 11, count)
    text = letters[rng.integers(0, len(letters), int(lengths.sum()))].tobytes()
    ends = np.cumsum(lengths).tolist()
    return [b" " + text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def natural_chunks(words: list[bytes], rng: np.random.Generator) -> Iterator[list[bytes]]:
    """Runs of `words`, some of which give way to words made up; without end."""
    while True:
        runs = rng.integers(0, len(words) - RUN_WORDS, CHUNK_WORDS // RUN_WORDS)
        places = (runs[:, None] + np.arange(RUN_WORDS)).reshape(-1)
        chunk = [words[i] for i in places.tolist()]
        fresh = np.flatnonzero(rng.random(len(chunk)) < FRESH_FRACTION).tolist()
        for place, word in zip(fresh, made_up(len(fresh), LETTERS, rng), strict=True):
            chunk[place] = word
        yield chunk


def random_chunks(rng: np.random.Generator) -> Iterator[list[bytes]]:
    """Words made up of letters that are all as frequent; without end."""
    while True:
        yield made_up(CHUNK_WORDS, ALPHABET, rng)


def cut(chunk: list[bytes], document_bytes: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Documents whose lengths vary by a third around the wanted one; the rest of the chunk is dropped."""
    start = before = 0
    ends = np.cumsum([len(word) for word in chunk])
    while start < len(chunk):
        size = int(document_bytes * rng.uniform(0.67, 1.33))
        stop = max(int(np.searchsorted(ends, before + size)), start + 1)
        if stop >= len(chunk):
            return
        yield b"".join(chunk[start:stop]).strip()
        start, before = stop, int(ends[stop - 1])


def documents(
    chunks: Iterator[list[bytes]], num_bytes: int, document_bytes: int, rng: np.random.Generator
) -> Iterator[bytes]:
    """Documents of about `document_bytes` each until there are `num_bytes`; fresh words or a random cut make each its own."""
    made = 0
    for chunk in chunks:
        for text in cut(chunk, document_bytes, rng):
            made += len(text)
            yield text
            if made >= num_bytes:
                return


def natural(mirror: Path, num_bytes: int, document_bytes: int, *, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    return documents(natural_chunks(words_of(mirror), rng), num_bytes, document_bytes, rng)


def random(num_bytes: int, document_bytes: int, *, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    return documents(random_chunks(rng), num_bytes, document_bytes, rng)


def write_parquet(path: Path, texts: Iterator[bytes]) -> tuple[int, int]:
    """Writes `texts` to the column `text` of `path`; how many documents and bytes they were."""
    schema = pa.schema([("text", pa.string())])
    count = size = 0
    with pq.ParquetWriter(path, schema) as writer:
        group: list[bytes] = []
        held = 0
        for text in texts:
            group.append(text)
            held += len(text)
            count, size = count + 1, size + len(text)
            if held >= ROW_GROUP_BYTES:
                writer.write_table(pa.table({"text": pa.array(group, pa.binary()).cast(pa.string())}))
                group, held = [], 0
        if group:
            writer.write_table(pa.table({"text": pa.array(group, pa.binary()).cast(pa.string())}))
    return count, size


def write_text(path: Path, texts: Iterator[bytes], *, end: bytes = b"\n") -> tuple[int, int]:
    """Writes each of `texts` in one line, `end` behind it; how many documents and bytes they were."""
    count = size = 0
    with open(path, "wb") as file:
        for text in texts:
            size += file.write(b" ".join(text.split()) + end)
            count += 1
    return count, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", type=Path, default=os.environ.get("PREPROCESS_MIRROR"), help="folder of corpora")
    parser.add_argument(
        "--words", choices=("natural", "random"), default="natural", help="random: none of a corpus (default: natural)"
    )
    parser.add_argument("--mb", type=int, default=400)
    parser.add_argument("--document-bytes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, required=True, help="a .parquet, or a .txt of one line for each document"
    )
    arguments = parser.parse_args()
    if arguments.words == "natural" and arguments.mirror is None:
        parser.error("natural words come from corpora: name their folder with --mirror or PREPROCESS_MIRROR")
    num_bytes, document_bytes = arguments.mb * 1_000_000, arguments.document_bytes
    if arguments.words == "random":
        texts = random(num_bytes, document_bytes, seed=arguments.seed)
    else:
        texts = natural(arguments.mirror, num_bytes, document_bytes, seed=arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    count, size = (write_parquet if arguments.output.suffix == ".parquet" else write_text)(arguments.output, texts)
    print(
        f"{arguments.output}: {count:,} documents, {size:,} bytes of text, {arguments.output.stat().st_size:,} bytes on disk"
    )


if __name__ == "__main__":
    main()
